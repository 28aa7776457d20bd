"""The command line `polylm`. Commands are functions of their own modules; here they are named and put together.

Nothing here or in the commands' modules imports torch or ModelScope before a command runs: `polylm --help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import modelscope_polylm
from modelscope_polylm.app.demo import demo
from modelscope_polylm.app.generate import generate
from modelscope_polylm.app.reporting import reports_errors

app = typer.Typer(
    name="polylm",
    help="PolyLM, a language model for 18 languages.",
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's tables cut the longer option names off at 80 columns
    pretty_exceptions_enable=False,
)
for command in (demo, generate):
    app.command()(reports_errors(command))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polylm {modelscope_polylm.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """PolyLM, a language model for 18 languages."""


def main(arguments: Sequence[str] | None = None, program: str = "polylm") -> None:
    """Run the command line and end the process: 0 if all went well, 2 for a wrong input or option, 1 for other errors.

    Args:
        arguments: what follows the program's name; that of this process if None.
        program: the name that help texts show.
    """
    app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name=program)
