"""One batch from its files' check to its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.app.batch.output import OutputFile, OutputStream, is_stream
from modelscope_polylm.app.batch.progress import Progress
from modelscope_polylm.app.batch.questions import Question
from modelscope_polylm.app.batch.rows import InputFile
from modelscope_polylm.app.batch.settings import check_or_write, model_settings, settings_file, sha256
from modelscope_polylm.app.batch.work import Work
from modelscope_polylm.errors import OptionError

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator


@dataclass(frozen=True)
class Job:
    """What is to be answered, how, and where the answers go.

    Attributes:
        source: the rows.
        out: the output.
        question: makes inputs of rows.
        chat: whether a plain text is a user's message.
        batch_size: rows that run together.
        overwrite: begin again where the output exists.
    """

    source: InputFile
    out: Path
    question: Question
    chat: bool = False
    batch_size: int = 16
    overwrite: bool = False

    def check(self) -> None:
        """Find what is wrong with the files before a model is loaded. Raises OptionError or InputError."""
        self.question.check_columns(self.source.columns())
        if is_stream(self.out):
            return
        if self.out.is_dir():
            raise OptionError(f"{self.out} is a folder: name a file.")
        if not self.out.parent.is_dir():
            raise OptionError(f"The folder {self.out.parent} does not exist: create it, or choose another output.")
        if not self.out.exists():
            return
        if self.out.samefile(self.source.path):
            raise OptionError(f"{self.out} is the input: choose another output.")
        if self.out.stat().st_size and not settings_file(self.out).exists() and not self.overwrite:
            raise OptionError(f"{self.out} exists and is of no batch: choose another output, or pass --overwrite.")

    def run(self, generator: TextGenerator, options: Mapping[str, Any]) -> dict[str, Any]:
        """Answer all rows that are not answered yet.

        Returns:
            'lines' in all, and of this run 'answered', 'errors', 'tokens', 'seconds', 'tokens_per_second'.

        Raises:
            OptionError: wrong options, or an output of another run.
            PolyLMError: the output cannot be written.
        """
        checked = generator.options(options)
        output = self._opened(model_settings(generator, checked))
        try:
            total = sum(1 for _ in self.source.rows())
            progress = Progress(total, output.written)
            work = Work(generator, checked, self.question, self.chat, self.batch_size, progress.report)
            with progress.shown():
                for records in work.records(self.source.rows(), output.written):
                    output.append(records)
        finally:
            output.close()
        return {"lines": total, **progress.summary()}

    def _opened(self, settings: dict[str, Any]) -> OutputFile | OutputStream:
        if is_stream(self.out):
            return OutputStream(self.out)
        output = OutputFile(self.out, self.overwrite)
        try:
            check_or_write(self.out, {**self._settings(), **settings}, begun=output.written > 0)
        except BaseException:
            output.close()
            raise
        return output

    def _settings(self) -> dict[str, Any]:
        reading = {"input": sha256(self.source.path), "kind": self.source.kind, "encoding": self.source.encoding}
        asking = {"column": self.question.column, "template": self.question.template, "chat": self.chat}
        return {**reading, **asking, "batch_size": self.batch_size}


def complete_lines(out: Path) -> int:
    """How many lines of an output file are complete."""
    if not out.exists():
        return 0
    with out.open("rb") as file:
        return sum(line.endswith(b"\n") for line in file)
