"""`python -m benchmarks.cpu --shape 1.7b`: this engine and its peers on a CPU; each dtype is a run of its own.

CTranslate2 is among the peers where it is installed; it has its own types and is measured in the float32 run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from modelscope_polylm.cli.bench.run import ENGINES, bench
from modelscope_polylm.cli.bench.workloads import BEAMS, GREEDY, ROWS_UNIT, SHAPES, Workload

WORKLOADS = (
    Workload("greedy, 1 row, 32 + 16", 1, 32, 16, GREEDY),
    Workload("4 beams, 1 row, 32 + 16", 1, 32, 16, BEAMS),
    Workload("greedy, 8 rows, 32 + 16", 8, 32, 16, GREEDY, ROWS_UNIT),
)
CTRANSLATE2 = ("ctranslate2", "ctranslate2-int8")


def main() -> None:
    """Parse the arguments and run the table once for each dtype."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="1.7b")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a folder for the figures, one JSON file for each dtype")
    arguments = parser.parse_args()
    for dtype in arguments.dtypes:
        engines = ["polylm", "transformers"]
        engines += [name for name in CTRANSLATE2 if name in ENGINES and dtype == "float32"]
        out = arguments.out and arguments.out / f"cpu-{arguments.shape}-{dtype}.json"
        bench(arguments.shape, "cpu", dtype, engines, WORKLOADS, arguments.repeats, out)


if __name__ == "__main__":
    main()
