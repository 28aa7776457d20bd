"""From a row to what the model is asked, and on to what became of it.

A row that cannot be asked is an error that says why. Prompts are read while earlier ones are answered, and outcomes
keep the order of the rows.
"""

from __future__ import annotations

import dataclasses
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from modelscope_polylm.cli.batch.formats import TEXT_COLUMN, text_of
from modelscope_polylm.cli.batch.rows import Row
from modelscope_polylm.errors import InputError, OptionError, PolyLMError, nearest_name
from modelscope_polylm.generation.options import option_fields
from modelscope_polylm.inputs import is_conversation

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import GenerationResult, TextGenerator
    from modelscope_polylm.inputs import Prompt

PLACEHOLDER = re.compile(r"\{(\w+)\}")
ROW_KEYS = ("id", TEXT_COLUMN, "messages", "history")
OPTION_KEYS = frozenset(field.name for field in option_fields())
CountRows = Callable[[int, int, int], None]
"""Takes the number of rows that were finished, errors among them, and generated tokens."""


@dataclass(frozen=True)
class RowRequest:
    """What is asked of the model for one row.

    Attributes:
        value: the input, as `generator.InputReader.read` takes it.
        chat: whether a plain text is a user's message.
        options: generation options of this row, which win over the command's; None: it has none of its own.
        allow_role_markers: whether a message may hold the markers that begin a turn; None: no, and nobody can allow it.
        system_message: what becomes of system messages, as in `join_turns`.
    """

    value: Any
    chat: bool = False
    options: Mapping[str, Any] | None = None
    allow_role_markers: bool | None = None
    system_message: str = "refuse"


class RequestSource(Protocol):
    """Makes requests of rows."""

    def read(self, value: Any) -> RowRequest:
        """The request of a row's value. Raises InputError."""


@dataclass(frozen=True)
class PromptTemplate:
    """Makes the prompt of a row's text, messages or columns.

    Attributes:
        column: the column or key with the text; 'text' if None.
        template: a text with placeholders such as {text} and {title}; {text} is the row's text.
        chat: whether the prompt is a user's message.
        keeps_columns: whether the output has all keys of a row, so that it may have any.
    """

    column: str | None = None
    template: str | None = None
    chat: bool = False
    keeps_columns: bool = False

    @property
    def columns(self) -> list[str]:
        """The columns or keys that the prompt is made of."""
        named = PLACEHOLDER.findall(self.template) if self.template is not None else [TEXT_COLUMN]
        return [self.column or TEXT_COLUMN if name == TEXT_COLUMN else name for name in named]

    def check_columns(self, known: Collection[str] | None) -> None:
        """Raise OptionError for columns that a file lacks, or has to no purpose; `known` is None for JSON."""
        if self.template is not None and not PLACEHOLDER.search(self.template):
            raise OptionError(f"template={self.template!r} has no place for the text: write {{text}} where it goes.")
        if known is None:
            return
        for name in self.columns:
            if name not in known:
                raise OptionError(f"The file has no column {name!r}: {_hint(name, known)}")
        if surplus := self._surplus(known):
            raise OptionError(f"The file has {surplus}")

    def read(self, value: Any) -> RowRequest:
        """The request of a row: a text, or an object with a text or messages. Raises InputError."""
        if is_conversation(value) and isinstance(value, list):
            value = {"messages": value}
        if not isinstance(value, (str, dict)):
            raise InputError(f"A row must be a text or an object, not {value!r:.80}.")
        # null is how Arrow writes a key that a row does not have
        fields = {TEXT_COLUMN: value} if isinstance(value, str) else {k: v for k, v in value.items() if v is not None}
        if self.template is not None:
            template = self.template
            prompt: Any = PLACEHOLDER.sub(lambda found: text_of(self._field(fields, found[1])), template)
        elif self.column is None and "messages" in fields:
            prompt = {"messages": fields["messages"]}
        elif self.column is None and "history" in fields:
            prompt = {TEXT_COLUMN: self._field(fields, TEXT_COLUMN), "history": fields["history"]}
        else:
            prompt = self._field(fields, TEXT_COLUMN)
        if surplus := self._surplus(fields):
            raise InputError(f"The row has {surplus}")
        return RowRequest(prompt, self.chat)

    def _field(self, fields: Mapping[str, Any], name: str) -> Any:
        key = self.column or TEXT_COLUMN if name == TEXT_COLUMN else name
        if key not in fields:
            advice = ": name the text's key with --column" if self.column is None and name == TEXT_COLUMN else ""
            raise InputError(f"The row has no {key!r}; it has {', '.join(map(repr, fields)) or 'nothing'}{advice}.")
        return fields[key]

    def _surplus(self, keys: Collection[str]) -> str | None:
        """The first key that would be left out in silence, and what to do about it; None if there is none."""
        is_chosen = self.column is not None or self.template is not None
        for key in keys:
            if key in self.columns and not (key == TEXT_COLUMN and "messages" in keys and not is_chosen):
                continue
            if key in OPTION_KEYS:
                return f"the option {key!r}, but options are for all rows: pass --{key.replace('_', '-')} instead."
            if key == "system":
                return "a 'system' message, which PolyLM was not trained with: put it at the start of the text."
            if key == TEXT_COLUMN and not is_chosen:
                return "both 'messages' and 'text': leave one of them out, or name the text with --column text."
            if key not in ROW_KEYS and not is_chosen and not self.keeps_columns:
                return (
                    f"{key!r}, which has no meaning here: name the text with --column, and others are left out; or "
                    "write to a .csv file, which keeps them."
                )
        return None


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


def _hint(name: str, known: Collection[str]) -> str:
    nearest = nearest_name(name, known)
    return f"did you mean {nearest!r}?" if nearest else f"it has {', '.join(map(repr, known))}."
