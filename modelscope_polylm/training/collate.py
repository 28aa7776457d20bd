"""Records become token ids with the token that each position is to predict; several fill a row of the context."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelscope_polylm.errors import InputError
from modelscope_polylm.text.prompts import ASSISTANT, Message, PromptFormat, render
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from modelscope_polylm.training.layouts import Record, TrainingMessage
from modelscope_polylm.training.prepare import DataReport

IGNORED = -100
"""A position's target where nothing is learnt, as in `torch.nn.functional.cross_entropy`."""
BUFFER_BYTES = 1 << 20
UNKNOWN_LANGUAGE = "other"

Packing = Literal["isolated", "leaky", "none"]


@dataclass
class Example:
    """A record as tokens.

    Attributes:
        ids: token ids, the end token last.
        targets: for each position the id that it is to predict, or IGNORED.
        left_out_turns: the oldest turns of the conversation that the context has no room for.
    """

    ids: list[int]
    targets: list[int]
    left_out_turns: int = 0


@dataclass(frozen=True)
class RecordEncoder:
    """Makes examples of records, so that prompts have the ids that the pipelines give them.

    Answers and the end token are learnt. After an answer the end token is to be predicted although, unless
    `end_in_history`, a conversation goes on there without it, as it does in the pipelines.

    Attributes:
        tokenizer: of the model.
        prompt_format: how conversations are written.
        length: most tokens of an example.
        end_in_history: whether the end token stands after earlier answers, too.
    """

    tokenizer: PolyLMTokenizer
    prompt_format: PromptFormat
    length: int
    end_in_history: bool = False

    def encode(self, record: Record) -> Iterator[Example]:
        """The examples of a record: one of a conversation, as many of a text as are needed for all of it.

        Raises:
            InputError: a conversation that cannot be learnt.
        """
        if record.messages:
            yield self._conversation(record.messages)
        else:
            yield from self._text(record.text)

    def _text(self, text: str) -> Iterator[Example]:
        ids = [*self.tokenizer.encode(text), self.tokenizer.eos_token_id]
        targets = [*ids[1:], IGNORED]
        for start in range(0, len(ids), self.length):
            piece = Example(ids[start : start + self.length], targets[start : start + self.length])
            if any(target != IGNORED for target in piece.targets):
                yield piece

    def _conversation(self, messages: Sequence[TrainingMessage]) -> Example:
        turns = len(messages) // 2
        if turns > 1 and self.prompt_format.earlier_turn is None:
            raise InputError(f"several turns, which the prompt format {self.prompt_format.name!r} does not have")
        parts = self._parts(messages)
        while (excess := sum(map(len, parts)) + self._ends(len(messages) // 2) - self.length) > 0:
            if len(messages) == 2:
                raise InputError(f"longer than {self.length} tokens, even the last question and answer alone")
            messages = messages[self._messages_to_drop(parts, excess) :]
            parts = self._parts(messages)
        example = self._example(messages, parts)
        if all(target == IGNORED for target in example.targets):
            raise InputError(f"the answer to learn is not within the last {self.length} tokens")
        example.left_out_turns = turns - len(messages) // 2
        return example

    def _ends(self, turns: int) -> int:
        return turns if self.end_in_history else 1

    def _messages_to_drop(self, parts: Sequence[Sequence[int]], excess: int) -> int:
        """How many of the oldest messages have about `excess` tokens; never the last two."""
        dropped, tokens = 2, len(parts[0]) + len(parts[1])
        while dropped < len(parts) - 2 and tokens + len(parts[dropped]) + len(parts[dropped + 1]) <= excess:
            tokens += len(parts[dropped]) + len(parts[dropped + 1])
            dropped += 2
        return dropped

    def _parts(self, messages: Sequence[TrainingMessage]) -> list[list[int]]:
        """The ids of what comes before the first answer, that answer, what comes before the second, and so on."""
        chat = [Message(role=message["role"], content=message["content"]) for message in messages]
        prompts = [render(chat[: index + 1], self.prompt_format) for index in range(0, len(chat), 2)]
        answers = [message["content"] for message in chat[1::2]]
        befores = [prompts[0]]
        for prompt, answer, following in zip(prompts, answers, prompts[1:], strict=False):
            befores.append(following[len(prompt) + len(answer) :])
        texts = [text for pair in zip(befores, answers, strict=True) for text in pair]
        parts = [self.tokenizer.encode(texts[0]), *map(self._continued, texts[1:])]
        if len(prompts) > 1 and list(itertools.chain(*parts[:-1])) != self.tokenizer.encode(prompts[-1]):
            raise InputError("turns that the tokenizer does not keep apart")
        return parts

    @functools.cached_property
    def _line_break(self) -> list[int]:
        return self.tokenizer.encode("\n")

    def _continued(self, text: str) -> list[int]:
        """The ids of a text within another one: at its start and end a tokenizer may add or drop a space."""
        ids, start, end = self.tokenizer.encode(f"\n{text}\n"), self._line_break, self._line_break[-1:]
        if ids[: len(start)] != start or ids[-1:] != end:  # a tokenizer that takes line breaks for spaces
            return self.tokenizer.encode(text)
        return ids[len(start) : -1]

    def _example(self, messages: Sequence[TrainingMessage], parts: Sequence[Sequence[int]]) -> Example:
        end = self.tokenizer.eos_token_id
        ids: list[int] = []
        targets: list[int] = []
        for message, part in zip(messages, parts, strict=True):
            if message["role"] != ASSISTANT:
                ids += part
                targets += [IGNORED] * len(part)
                continue
            if message.get("weight", 1):
                targets[-1:] = [*part, end]
            else:
                targets += [IGNORED] * len(part)
            ids += part
            if self.end_in_history or message is messages[-1]:
                ids.append(end)
                targets.append(IGNORED)
        return Example(ids, targets)


@dataclass
class EncodingReport:
    """What became of the records.

    Attributes:
        records, examples: that were to be encoded, and made of them.
        tokens, trained_tokens: of the examples; the latter are predicted.
        left_out: rows and records that make no example, by reason.
        shortened: conversations that lost their oldest turns.
        left_out_turns: those turns.
    """

    records: int = 0
    examples: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    shortened: int = 0
    left_out_turns: int = 0


class TokenFile:
    """Examples on disk, read as they are needed.

    Attributes:
        offsets: [examples + 1] int64, where each example begins.
        records: [examples] int32, the record that it was made of, counted from 0.
        languages: its language's number in `language_names`.
        report: what became of the records.
    """

    CONTENT = "tokens.bin"

    def __init__(self, folder: Path) -> None:
        """Open what `write` has written. Raises OSError where it is not complete."""
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.report = EncodingReport(**{**about["report"], "left_out": Counter(about["report"]["left_out"])})
        self.language_names: list[str] = about["languages"]
        self.offsets: NDArray[np.int64] = np.load(folder / "offsets.npy")
        self.records: NDArray[np.int32] = np.load(folder / "records.npy")
        self.languages: NDArray[np.int32] = np.load(folder / "languages.npy")
        self._tokens: NDArray[np.int32] = np.memmap(folder / self.CONTENT, np.int32, "r").reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[examples], tokens of each."""
        return np.diff(self.offsets)

    def example(self, index: int) -> NDArray[np.int32]:
        """[length, 2], ids and targets."""
        return self._tokens[self.offsets[index] : self.offsets[index + 1]]

    @classmethod
    def write(
        cls, folder: Path, records: Iterable[Record], encoder: RecordEncoder, source: DataReport | None = None
    ) -> TokenFile:
        """Encode records into a folder, and open it. Memory grows by some 100 bytes for a record.

        Args:
            folder: is made if needed.
            records: what to encode.
            encoder: makes the examples.
            source: what was left out before the records came; it is counted, too.

        Raises:
            InputError: no record can be learnt.
        """
        folder.mkdir(parents=True, exist_ok=True)
        report, language_numbers = EncodingReport(), dict[str, int]()
        lengths, numbers, languages = [0], list[int](), list[int]()
        with (folder / cls.CONTENT).open("wb", buffering=BUFFER_BYTES) as file:
            for number, record in enumerate(records):
                for example in _examples(record, encoder, report):
                    file.write(np.array([example.ids, example.targets], np.int32).T.tobytes())
                    lengths.append(len(example.ids))
                    numbers.append(number)
                    name = record.language or UNKNOWN_LANGUAGE
                    languages.append(language_numbers.setdefault(name, len(language_numbers)))
        for counts in source.counts.values() if source else ():
            report.left_out.update(counts.left_out)
        if not numbers:
            reasons = "; ".join(f"{count:,} left out: {reason}" for reason, count in report.left_out.most_common(3))
            raise InputError(f"No record can be learnt. {reasons or 'The data are empty'}.")
        np.save(folder / "offsets.npy", np.cumsum(lengths, dtype=np.int64))
        np.save(folder / "records.npy", np.array(numbers, np.int32))
        np.save(folder / "languages.npy", np.array(languages, np.int32))
        about = {"report": vars(report), "languages": list(language_numbers)}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
        return cls(folder)


def _examples(record: Record, encoder: RecordEncoder, report: EncodingReport) -> list[Example]:
    report.records += 1
    try:
        examples = list(encoder.encode(record))
    except InputError as error:
        report.left_out[str(error)] += 1
        return []
    for example in examples:
        report.examples += 1
        report.tokens += len(example.ids)
        report.trained_tokens += sum(target != IGNORED for target in example.targets)
        report.shortened += bool(example.left_out_turns)
        report.left_out_turns += example.left_out_turns
    return examples


def pack(lengths: NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Put examples into rows of at most `capacity` tokens: the longest first, each into the fullest row that has room.

    Args:
        lengths: [examples], each from 1 to `capacity`.
        capacity: tokens of a row.

    Returns:
        For each row the numbers of its examples.
    """
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the tokens that they have room for
    rooms = np.zeros(capacity + 1, bool)  # where there is such a row
    for example in np.argsort(-lengths, kind="stable"):
        length = int(lengths[example])
        room = length + int(rooms[length:].argmax())
        if rooms[room]:
            row = with_room[room].pop()
            rooms[room] = bool(with_room[room])
        else:
            row, room = len(rows), capacity
            rows.append([])
        rows[row].append(int(example))
        with_room[room - length].append(row)
        rooms[room - length] = True
    return rows


class PackedRows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of examples, for a data loader with `collate`.

    Args:
        tokens: the examples.
        rows: for each row the numbers of its examples.
        packing: 'isolated' lets positions begin anew with every example, so that none sees another; 'leaky' runs
            through the whole row, as in Megatron-LM without `--reset-position-ids`.
    """

    def __init__(self, tokens: TokenFile, rows: Sequence[Sequence[int]], packing: Packing = "isolated") -> None:
        self.tokens, self.rows, self.packing = tokens, rows, packing

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """'input_ids', 'shift_labels' and 'position_ids', each [length] int64, and the numbers of the 'records'."""
        examples = [self.tokens.example(example) for example in self.rows[index]]
        ids, targets = torch.from_numpy(np.concatenate(examples).astype(np.int64)).unbind(1)
        lengths = [len(example) for example in examples] if self.packing != "leaky" else [len(ids)]
        return {
            "input_ids": ids,
            "shift_labels": targets,
            "position_ids": torch.cat([torch.arange(length) for length in lengths]),
            "records": [int(self.tokens.records[example]) for example in self.rows[index]],
        }


def collate(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of rows, padded on the right to the longest one.

    Padding is an example of its own: positions begin anew, nothing is learnt, and nothing before it sees it.

    Returns:
        'input_ids', 'shift_labels' and 'position_ids', each [rows, length] int64, and the numbers of the 'records'.
    """
    longest = max(len(row["input_ids"]) for row in rows)
    return {
        "input_ids": _padded([row["input_ids"] for row in rows], longest, 0),
        "shift_labels": _padded([row["shift_labels"] for row in rows], longest, IGNORED),
        "position_ids": torch.stack(
            [torch.cat([row["position_ids"], torch.arange(longest - len(row["position_ids"]))]) for row in rows]
        ),
        "records": [record for row in rows for record in row["records"]],
    }


def _padded(rows: Sequence[Tensor], length: int, value: int) -> Tensor:
    # rows: each [its length] -> [rows, length]
    return torch.stack([torch.nn.functional.pad(row, (0, length - len(row)), value=value) for row in rows])
