"""`python -m benchmarks.serving load` and `python -m benchmarks.serving overhead`: the server under load, and its cost.

`load` starts `polylm serve tiny` in a process of its own: one client, then 32 for a minute, then twice as many, then
clients that are killed, then one client again. Every client checks each of its answers. The server's memory is
watched.

`overhead` compares tokens/s of the bare engine, called with all prompts together, with those of the server in the same
process, asked by as many streaming clients in a process of their own. With `--shape 13b` the weights are random.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from modelscope_polylm.cli.bench.workloads import SHAPES


def main() -> None:
    """Parse the arguments, measure, print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="a JSON file for the figures")
    kinds = parser.add_subparsers(dest="kind", required=True)
    load = kinds.add_parser("load")
    load.add_argument("--clients", type=int, default=32)
    load.add_argument("--seconds", type=float, default=60.0)
    overhead = kinds.add_parser("overhead")
    overhead.add_argument("--model", default="tiny", help="a folder, a hub id or a short name")
    overhead.add_argument("--shape", choices=sorted(SHAPES), help="random weights instead of a model")
    overhead.add_argument("--device")
    overhead.add_argument("--dtype")
    overhead.add_argument("--clients", type=int, default=16)
    overhead.add_argument("--prompt", type=int, default=128, help="tokens of a prompt")
    overhead.add_argument("--new", type=int, default=128, help="tokens of an answer")
    overhead.add_argument("--rounds", type=int, default=5, help="requests of each client, and calls of the engine")
    arguments = vars(parser.parse_args())
    out, kind = arguments.pop("out"), arguments.pop("kind")
    figures = measured(kind, arguments)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    print(text)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")


def measured(kind: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """The figures of one kind."""
    if kind == "load":
        from benchmarks.serving_load import measure_load

        return measure_load(**arguments)
    from benchmarks.serving_overhead import measure_overhead

    return measure_overhead(**arguments)


if __name__ == "__main__":
    main()
