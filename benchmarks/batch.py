"""`python -m benchmarks.batch`: `polylm batch` on a file next to the engine alone on the same prompts.

Writes a file of translation requests of different lengths and runs `polylm batch --chat` on it, which times itself
after loading: reading, checking, tokenizing, generating, decoding, writing. Then the backend alone gets the same token
ids, as many of them at once. What counts is the ratio of the two speeds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelscope_polylm.cli.bench.run import timed
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.text.languages import LANGUAGES, TRANSLATIONS, translation_request


def main() -> None:
    """Parse the arguments and time both, in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device")
    parser.add_argument("--lines", type=int, default=5000)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=32)
    parser.add_argument("--num-beams", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    generator = load_model(arguments.model, device=arguments.device)
    options = {"max_new_tokens": arguments.max_new_tokens, "num_beams": arguments.num_beams}
    command = ["--model", arguments.model, "--batch-size", str(arguments.batch_size)]
    command += ["--device", arguments.device] if arguments.device else []
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "requests.jsonl"
        write_requests(source, arguments.lines)
        for number in range(arguments.repeats):
            batch = command_speed(source, Path(folder) / f"{number}.jsonl", command, options)
            engine = engine_speed(generator, source, arguments.batch_size, options)
            ratios.append(batch / engine)
            print(f"polylm batch {batch:,.0f} tokens/s, engine alone {engine:,.0f}: {ratios[-1]:.3f}", flush=True)
    print(f"median of {arguments.lines:,} lines: {statistics.median(ratios):.3f} of the engine's speed")


def write_requests(file: Path, count: int) -> None:
    """Write JSON lines that ask for translations of 1 to 8 sentences in any of 18 languages."""
    chosen, sentences, languages = random.Random(0), list(TRANSLATIONS.values()), list(LANGUAGES.values())
    texts = (" ".join(chosen.choices(sentences, k=chosen.randint(1, 8))) for _ in range(count))
    requests = (translation_request(text, chosen.choice(languages)) for text in texts)
    file.write_text("".join(f"{json.dumps(request)}\n" for request in requests), encoding="utf-8")


def command_speed(source: Path, out: Path, flags: list[str], options: Mapping[str, int]) -> float:
    """Tokens per second of `polylm batch`, by its own summary."""
    given = [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "modelscope_polylm", "batch", str(source), str(out), "--chat", "--json"]
    output = subprocess.run([*command, *flags, "--no-do-sample", *given], stdout=subprocess.PIPE, check=True).stdout
    return float(json.loads(output)["tokens_per_second"])


def engine_speed(generator: TextGenerator, source: Path, size: int, options: Mapping[str, Any]) -> float:
    """Tokens per second of the backend alone."""
    checked, backend = generator.options({"do_sample": False, **options}), generator.backend
    texts = map(json.loads, source.read_text(encoding="utf-8").splitlines())
    requests = backend.requests([generator.reader.read(text, checked, chat=True).ids for text in texts], checked)
    counts: list[int] = []

    def run() -> None:
        found = backend.submit(requests, partial=False, at_once=size).completions()
        counts.extend(len(completion.ids) for group in found for completion in group)

    seconds = timed(run)
    return sum(counts) / seconds


if __name__ == "__main__":
    main()
