"""The command line `polylm`. Commands are functions of their own modules; here they are named and put together.

Nothing here or in the commands' modules imports torch or ModelScope before a command runs: `polylm --help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import modelscope_polylm
from modelscope_polylm.app.batch.command import batch
from modelscope_polylm.app.bench_command import bench
from modelscope_polylm.app.chat.command import chat
from modelscope_polylm.app.command_group import CommandGroup
from modelscope_polylm.app.demo import demo
from modelscope_polylm.app.generate import generate
from modelscope_polylm.app.hub_commands import package, upload, verify
from modelscope_polylm.app.info import info
from modelscope_polylm.app.reporting import EXIT_CODES, reports_errors
from modelscope_polylm.app.serve.command import serve
from modelscope_polylm.app.terminal import replace_unknown_characters
from modelscope_polylm.app.tokens import tokens
from modelscope_polylm.app.web import web

app = typer.Typer(
    name="polylm",
    cls=CommandGroup,
    help="PolyLM, a language model for 18 languages.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    rich_markup_mode=None,  # rich's tables cut the longer option names off at 80 columns
    pretty_exceptions_enable=False,
)
for command in (demo, generate, chat, batch, web, serve, info, tokens, bench, package, verify, upload):
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
    """Run the command line and end the process with an exit code of `reporting.EXIT_CODES`.

    Args:
        arguments: what follows the program's name; that of this process if None.
        program: the name that help texts show.
    """
    replace_unknown_characters()
    app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name=program)
