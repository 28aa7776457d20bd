"""Run rows: their prompts are read while earlier ones are answered, and outcomes keep the order of the rows."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelscope_polylm.cli.batch.requests import RequestSource, RowRequest
from modelscope_polylm.cli.batch.rows import Row
from modelscope_polylm.errors import InputError, OptionError, PolyLMError

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import GenerationResult, TextGenerator
    from modelscope_polylm.inputs import Prompt

CountRows = Callable[[int, int, int], None]
"""Takes the number of rows that were finished, errors among them, and generated tokens."""


@dataclass(frozen=True)
class RowAnswers:
    """The prompt of a row and its answers."""

    prompt: Prompt
    result: GenerationResult

    @property
    def tokens(self) -> int:
        """Generated tokens, of all answers."""
        return sum(len(completion.ids) for completion in self.result.completions)


Outcome = RowAnswers | PolyLMError
"""What became of a row: its answers, or why there are none."""


class RowRunner:
    """Turns rows into outcomes.

    Args:
        generator: answers them.
        options: generation options of the command.
        source: makes requests of rows.
        batch_size: most rows that run together; None leaves it to the backend.
        count: hears of finished rows.

    Raises:
        OptionError: options that cannot be.
    """

    def __init__(
        self,
        generator: TextGenerator,
        options: Mapping[str, Any],
        source: RequestSource,
        batch_size: int | None,
        count: CountRows,
    ) -> None:
        self.shared_options = generator.options(options)
        generator.backend.check_options(self.shared_options)
        self._generator, self._options, self._source = generator, options, source
        self._batch_size, self._count = batch_size, count

    def run(self, rows: Iterable[Row]) -> Iterator[tuple[Row, Outcome]]:
        """Each row with its outcome, in order; a row that cannot be answered does not keep others from it."""
        waiting: deque[tuple[Row, Prompt | None]] = deque()

        def prompts() -> Iterator[tuple[Prompt, GenerationOptions] | PolyLMError]:
            for row in rows:
                read = self._prompt_or_error(row)
                waiting.append((row, None if isinstance(read, PolyLMError) else read[0]))
                yield read

        for result in self._generator.reply_each(prompts(), self._batch_size):
            row, prompt = waiting.popleft()
            if prompt is None or isinstance(result, PolyLMError):
                assert isinstance(result, PolyLMError)
                self._count(1, 1, 0)
                yield row, result
            else:
                answers = RowAnswers(prompt, result)
                self._count(1, 0, answers.tokens)
                yield row, answers

    def _prompt_or_error(self, row: Row) -> tuple[Prompt, GenerationOptions] | PolyLMError:
        """What to submit for a row. Raises OptionError for the options of all rows."""
        if row.error is not None:
            return InputError(row.error)
        try:
            request = self._source.read(row.value)
            options = self.shared_options if request.options is None else self._own_options(request.options)
            return self._read(request, options), options
        except InputError as error:
            return error
        except OptionError as error:
            if request.options is None:
                raise
            return InputError(str(error))

    def _own_options(self, options: Mapping[str, Any]) -> GenerationOptions:
        checked = self._generator.options({**self._options, **options})
        # beam search has no stop strings; a row with options of its own has them cut off its answers
        return dataclasses.replace(checked, stop_strings=None) if checked.num_beams > 1 else checked

    def _read(self, request: RowRequest, options: GenerationOptions) -> Prompt:
        return self._generator.reader.read(
            request.value, options, request.chat, request.allow_role_markers, request.system_message
        )
