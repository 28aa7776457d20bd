"""`python -m benchmarks.decode --shape 13b`: the decode table of RESULTS.md, ours and the peers in one run.

`--model FOLDER` measures with the weights of a snapshot.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from modelscope_polylm.cli.bench.command import ENGINES, bench
from modelscope_polylm.cli.bench.report import draw_files
from modelscope_polylm.cli.bench.workloads import SHAPES, WORKS
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.terminal.models import find_model


def main() -> None:
    """Parse the arguments and run the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--shape", choices=sorted(SHAPES), default="13b")
    weights.add_argument("--model", help="a folder, a hub id or a release, in place of random weights")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--engines", nargs="+", choices=sorted(ENGINES), default=list(ENGINES))
    parser.add_argument("--works", nargs="+", type=int, help="numbers of the table's rows, from 0")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path, help="a picture of time against context and of speed against rows")
    parser.add_argument("--plot-from", nargs="+", type=Path, help="measure nothing, draw what --out wrote")
    arguments = vars(parser.parse_args())
    if files := arguments.pop("plot_from"):
        if arguments["plot"] is None:
            parser.error("--plot-from needs --plot")
        draw_files(files, arguments["plot"])
        return
    chosen = arguments.pop("works")
    if model := arguments.pop("model"):
        arguments |= {"shape": model, "snapshot": open_snapshot(find_model(model))}
    bench(works=[WORKS[index] for index in chosen] if chosen else WORKS, **arguments)


if __name__ == "__main__":
    main()
