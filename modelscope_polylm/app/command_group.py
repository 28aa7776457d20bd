"""The root of the command line: a wrong use of it is told in one line, too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from modelscope_polylm.app.reporting import WRONG_INPUT, report
from modelscope_polylm.app.terminal import write_error

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
        return report(KeyboardInterrupt())
    except BrokenPipeError as error:
        return report(error)
    except SystemExit as end:  # typer and rich turn a closed pipe into one
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return report(end.__context__)
    return code if isinstance(code, int) else 0
