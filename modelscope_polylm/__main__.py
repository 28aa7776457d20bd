"""The command line `polylm`, also `python -m modelscope_polylm`: its commands, and one line for each error.

Neither this module nor those of the commands import torch or ModelScope before a command runs: `polylm --help` is
quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import modelscope_polylm
from modelscope_polylm.cli.autoload import autoload
from modelscope_polylm.cli.batch.command import batch
from modelscope_polylm.cli.bench.command import bench
from modelscope_polylm.cli.chat.command import chat
from modelscope_polylm.cli.data import data
from modelscope_polylm.cli.eval import evaluate
from modelscope_polylm.cli.finetune import finetune, swift_plugin
from modelscope_polylm.cli.generate import demo, generate
from modelscope_polylm.cli.info import info
from modelscope_polylm.cli.packages import package, upload, verify
from modelscope_polylm.cli.score import score
from modelscope_polylm.cli.self_instruct import self_instruct
from modelscope_polylm.cli.tokens import tokens
from modelscope_polylm.cli.translate.command import translate
from modelscope_polylm.serve.command import serve
from modelscope_polylm.terminal.flags import ModelCommand, takes_model
from modelscope_polylm.terminal.output import (
    EXIT_CODES,
    WRONG_INPUT,
    choose_encodings,
    handle_errors,
    print_error,
    write_error,
)
from modelscope_polylm.web.command import web

UsageError: Any = typer.BadParameter.__base__  # typer has it from click, or a copy of its own


class CommandGroup(TyperGroup):
    """typer's group, with one-line errors."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command line; ends the process unless `standalone_mode` is False."""

        def run() -> Any:
            return super(CommandGroup, self).main(
                args, prog_name, complete_var, standalone_mode=False, windows_expand_args=windows_expand_args, **extra
            )

        return sys.exit(_exit_code(run)) if standalone_mode else run()


def _exit_code(run: Any) -> int:
    try:
        code = run()
    except UsageError as error:
        program = error.ctx.command_path if error.ctx is not None else "polylm"
        message = " ".join(error.format_message().split()).rstrip(".?")
        ends = "?" if "Did you mean" in message else "."
        write_error(f"Error: {message}{ends} See `{program} --help`.")
        return WRONG_INPUT
    except (typer.Abort, KeyboardInterrupt):
        return print_error(KeyboardInterrupt())
    except BrokenPipeError as error:
        return print_error(error)
    except SystemExit as end:  # typer and rich turn a closed pipe into one
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return print_error(end.__context__)
    return code if isinstance(code, int) else 0


app = typer.Typer(
    name="polylm",
    cls=CommandGroup,
    help="PolyLM, a language model for 18 languages.",
    epilog=EXIT_CODES,
    invoke_without_command=True,
    rich_markup_mode=None,  # rich's tables cut the longer option names off at 80 columns
    pretty_exceptions_enable=False,
)
USE = (demo, generate, chat, translate, batch, web, serve)
FILES = (info, tokens, bench, package, verify, upload, autoload)
TRAINING = (self_instruct, data, finetune, swift_plugin, score, evaluate)
NAMES: dict[Any, str] = {evaluate: "eval"}
"""Commands whose names are taken in Python."""
for command in (*USE, *FILES, *TRAINING):
    app.command(NAMES.get(command), cls=ModelCommand)(handle_errors(takes_model(command)))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"polylm {modelscope_polylm.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """PolyLM, a language model for 18 languages."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None, program: str = "polylm") -> None:
    """Run the command line and end the process with an exit code of `terminal.output.EXIT_CODES`.

    Args:
        arguments: what follows the program's name; that of this process if None.
        program: the name that help texts show.
    """
    choose_encodings()
    app(args=list(sys.argv[1:] if arguments is None else arguments), prog_name=program)


if __name__ == "__main__":
    main()
