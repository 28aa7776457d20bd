"""`python -m benchmarks.prefill_clocks`: prefill in a row and behind pauses, beside the GPU's clock and power.

A GPU at its power limit lowers its clock, so that the calls of a row take longer than one behind a pause.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import time
from collections.abc import Iterator
from typing import NamedTuple

import torch

from modelscope_polylm.cli.bench.engines import Ours
from modelscope_polylm.cli.bench.measure import timed
from modelscope_polylm.cli.bench.workloads import SHAPES, WORKS, shape_config

PREFILL = next(work for work in WORKS if work.name.startswith("prefill"))
ROUNDS = ((0.0, 60), (0.5, 10), (0.0, 60))
"""Seconds of the pause before each call, and calls."""
QUERY = ("nvidia-smi", "--query-gpu=clocks.sm,power.draw.instant", "--format=csv,noheader,nounits", "-lms", "20")


class Sample(NamedTuple):
    """What the GPU does at a moment: clock of the multiprocessors in MHz, and power in W."""

    clock: float
    power: float


@contextlib.contextmanager
def sampling(device: torch.device) -> Iterator[list[Sample]]:
    """Collects samples every 20 ms; they are there when the block has ended."""
    index = str(device.index or 0)
    samples: list[Sample] = []
    with subprocess.Popen([*QUERY, "-i", index], stdout=subprocess.PIPE, text=True) as process:
        try:
            time.sleep(1)  # until it has begun
            yield samples
        finally:
            process.terminate()
            answers = process.communicate()[0].splitlines()
            # the last one may be cut off
            samples += [Sample(*map(float, answer.split(", "))) for answer in answers[:-1]]


def line(pause: float, milliseconds: list[float], samples: list[Sample]) -> str:
    """What is printed of a round."""
    # what was sampled before the first call is not the calls' clock
    clocks, powers = zip(*samples[len(samples) // 10 :], strict=True)
    median = statistics.median
    return (
        f"pause of {pause} s, {len(milliseconds)} calls: "
        f"first {milliseconds[0]:.1f}, median {median(milliseconds):.1f}, last {milliseconds[-1]:.1f} ms; "
        f"clock {median(clocks):.0f} MHz ({min(clocks):.0f} - {max(clocks):.0f}), "
        f"power {median(powers):.0f} W, at most {max(powers):.0f}"
    )


def main() -> None:
    """Run the rounds and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    parser.add_argument("--device", default="cuda")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    engine = Ours(shape_config(arguments.shape), device, torch.bfloat16)
    timed(lambda: engine.run(PREFILL))
    for pause, calls in ROUNDS:
        milliseconds = []
        with sampling(device) as samples:
            for _ in range(calls):
                time.sleep(pause)
                milliseconds.append(1e3 * timed(lambda: engine.run(PREFILL)))
        print(line(pause, milliseconds, samples), flush=True)


if __name__ == "__main__":
    main()
