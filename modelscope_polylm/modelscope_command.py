"""`modelscope polylm ...`: the command line of PolyLM as a part of ModelScope's.

Every `modelscope` command loads this class through the entry point group `modelscope_hub.cli_plugins`. Doing so imports
the package, which makes PolyLM's pipelines known to `modelscope server`, too.
"""

from __future__ import annotations

from argparse import REMAINDER, Namespace
from typing import Any


class PolyLMCommand:
    """A sub-command of `modelscope`: hands everything after its name to `polylm`."""

    name = "polylm"

    def __init__(self, args: Namespace) -> None:
        self.args = args

    @staticmethod
    def register(subparsers: Any) -> None:
        """Add the sub-command to ModelScope's parser."""
        # no argument begins with a NUL, so none is taken for an option of this parser, --help included
        parser = subparsers.add_parser(PolyLMCommand.name, help="Run PolyLM models.", add_help=False, prefix_chars="\0")
        parser.add_argument("arguments", nargs=REMAINDER)
        parser.set_defaults(_command=PolyLMCommand)

    def execute(self) -> None:
        """Run `polylm` with the arguments; ends with SystemExit."""
        from modelscope_polylm.__main__ import main

        main(self.args.arguments, program="modelscope polylm")
