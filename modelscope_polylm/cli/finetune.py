"""`polylm finetune`: an adapter, or all weights, learn from data."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelscope_polylm.cli.data import parse_data_set
from modelscope_polylm.errors import InputError
from modelscope_polylm.terminal.flags import (
    DeviceFlag,
    DtypeFlag,
    JsonFlag,
    ModelFlag,
    RevisionFlag,
    takes_options,
)
from modelscope_polylm.terminal.models import find_model, release_name
from modelscope_polylm.terminal.output import console, is_terminal, write, write_error
from modelscope_polylm.training.options import training_fields

if TYPE_CHECKING:
    from modelscope_polylm.training.plan import Plan
    from modelscope_polylm.training.prepare import DataSet
    from modelscope_polylm.training.trainer import Progress


@takes_options(training_fields())
def finetune(
    *,
    model: ModelFlag,
    data: Annotated[
        list[str] | None,
        typer.Argument(help="Files of `polylm data` or your own, or NAME=PATH as there."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder of the run; its result is in OUT/output.")],
    curriculum: Annotated[
        Path | None,
        typer.Option(help="A YAML file with groups of data and the stages that mix them, instead of DATA."),
    ] = None,
    evaluation_data: Annotated[
        list[str] | None, typer.Option(help="Data to measure the loss on, as DATA; may be repeated.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done, and show two records.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Remove another run from the folder.")] = False,
    release: Annotated[str | None, typer.Option(help="Which release it is, where the model does not tell.")] = None,
    prompt_format: Annotated[
        str | None, typer.Option(help="How conversations are written: assistant, multialpaca, ecomm or base.")
    ] = None,
    revision: RevisionFlag = None,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    as_json: JsonFlag = False,
    options: dict[str, Any],
) -> None:
    """Fine-tune a model on conversations or texts.

    Writes an adapter (--method lora) or a snapshot (--method full) to OUT/output. A run that was interrupted is
    continued by the same command. Several GPUs: accelerate launch -m modelscope_polylm finetune ...
    """
    from modelscope_polylm.training.finetune import Job, finetune, is_main_process, plan
    from modelscope_polylm.training.options import TrainingOptions
    from modelscope_polylm.training.schedule import Curriculum

    if bool(data) == (curriculum is not None):
        raise InputError("Give one of these: data files, or --curriculum FILE.")
    name = release_name(model, release)
    job = Job(
        model=find_model(model, revision),
        data=Curriculum.read(curriculum) if curriculum is not None else named_data(data or []),
        out=out,
        options=TrainingOptions.from_dict(options),
        evaluation_data=named_data(evaluation_data or []),
        model_name=None if Path(model).expanduser().is_dir() or model == "tiny" else model,
        release=name,
        prompt_format=prompt_format,
        device=device,
        dtype=dtype,
    )
    if dry_run:
        write(render_plan(plan(job), as_json))
        return
    with run_progress() as report:
        result = finetune(job, force=force, announce=lambda plan: write_error(str(plan)), report=report)
    if is_main_process():
        write(f"{json.dumps({'output': str(result)}) if as_json else result}\n")


def swift_plugin() -> None:
    """Print the path of the plugin for ms-swift.

    For `swift sft --model PACKAGE --external_plugins "$(polylm swift-plugin)" --target_modules c_attn c_proj c_fc`, and
    likewise for `swift export` and `swift infer`.
    """
    from modelscope_polylm import training

    write(f"{Path(training.__file__).with_name('swift_plugin.py')}\n")


def named_data(texts: Sequence[str]) -> list[DataSet]:
    """Data sets of NAME=PATH, and of paths, whose rows tell what they are. Raises InputError."""
    from modelscope_polylm.training.prepare import own_data_set

    is_named = ["=" in text and not Path(text).exists() for text in texts]
    return [
        parse_data_set(text) if named else own_data_set(Path(text)) for text, named in zip(texts, is_named, strict=True)
    ]


def render_plan(plan: Plan, as_json: bool) -> str:
    """The plan and its samples."""
    if as_json:
        return json.dumps(plan.to_dict(), ensure_ascii=False, indent=2) + "\n"
    from modelscope_polylm.training.plan import LEARNT

    marks = f"Records, what is learnt between {LEARNT[0]} and {LEARNT[1]}:"
    return "\n\n".join([str(plan), marks, *plan.samples]) + "\n"


@contextlib.contextmanager
def run_progress() -> Iterator[Callable[[Progress], None]]:
    """What to call with the progress of a run: a bar on a terminal, lines elsewhere."""
    if not is_terminal(sys.stderr):
        yield lambda progress: write_error(progress_line(progress))
        return
    from rich import progress as bars

    columns = [
        bars.TextColumn("step"),
        bars.MofNCompleteColumn(),
        bars.BarColumn(),
        bars.TextColumn("{task.description}"),
    ]
    with bars.Progress(*columns, console=console(stderr=True)) as bar:
        task = bar.add_task("starting", total=None)

        def show(progress: Progress) -> None:
            if progress.evaluation is not None:
                bar.console.print(progress_line(progress))
            else:
                bar.update(task, completed=progress.step, total=progress.steps, description=progress_facts(progress))

        yield show


def progress_line(progress: Progress) -> str:
    """One line of a log."""
    return f"Step {progress.step}/{progress.steps}: {progress_facts(progress)}"


def progress_facts(progress: Progress) -> str:
    """Loss, speed and time left; or the losses of an evaluation."""
    if progress.evaluation is not None:
        return "held-out loss " + ", ".join(f"{name} {loss:.4f}" for name, loss in progress.evaluation.items())
    left = "-" if math.isinf(progress.seconds_left) else time.strftime("%H:%M:%S", time.gmtime(progress.seconds_left))
    return f"loss {progress.loss:.4f}, {progress.tokens_per_second:,.0f} tokens/s, {left} left"
