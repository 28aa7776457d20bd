"""The rows of a running batch on the device, in buffers whose shapes never change.

A request has one row, or a group of consecutive rows: its beams or samples. Its options are values of its rows, so
requests of different options run in one step. Strategies read and write the rows that they are given.
"""

from __future__ import annotations

import dataclasses
from array import array
from collections.abc import Sequence

import torch
from torch import Tensor

from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.requests import MAX_END_TOKENS
from modelscope_polylm.network.kv_cache import SCRATCH_SLOT

SCRATCH_ROWS = 64
"""Rows after the last real one, as many as the most beams: padding of a step points to them."""
NO_TOKEN = -1
SCORE, LOGPROB, TOKEN, PARENT, POSITION = range(5)
"""Columns of a beam's continuation, all exact in fp64: its sum of log-probabilities (in a finished beam divided by the
length), the token's own log-probability, the token, the beam that it continues, and the token's position."""
IMPOSSIBLE = -1.0e9
"""transformers' score of a beam that cannot be chosen."""


@dataclasses.dataclass(frozen=True)
class NewRow:
    """What a row starts from.

    Attributes:
        ids: tokens of the prompt, and of the answer where a request is recomputed.
        prompt_length: how many of them are the prompt's.
        max_new_tokens, min_new_tokens: of the answer.
        options: the request's.
        seed: of the row's random numbers.
    """

    ids: Sequence[int]
    prompt_length: int
    max_new_tokens: int
    min_new_tokens: int
    options: GenerationOptions
    seed: int = 0


class BatchState:
    """All that a step reads and writes of its rows.

    Attributes:
        tokens: [rows] int64, the tokens chosen last.
        ids: [rows, positions] int64, prompt and answer so far.
        lengths: [rows] int32, tokens in the cache, the position of the next token.
        prompt_lengths, limits, minimums: [rows] int32, tokens of the prompt, and most and fewest tokens to add.
        slot_table: [rows, positions] int32, the cache slot of each position.
        finished: [rows] bool.
        end_tokens: [rows, MAX_END_TOKENS] int64, filled up with NO_TOKEN; pad_tokens: [rows] int64.
        seeds: [rows] int64; temperature, top_k, top_p, min_p, typical_p, repetition_penalty: [rows].
        ngram_sizes: [rows] int64, 0 where no n-gram is forbidden.
        divisors: [rows, positions + 1] fp64, of a group's first row: what divides the score of a beam of each length.
        running_scores: [rows] fp32, a beam's sum of log-probabilities.
        finished_beams: [rows, 5] fp64, a group's finished beams (their last continuations), best first.
        history: [rows, positions, 3] fp64, log-probability, token and parent beam of what a beam chose.
        step_output: [rows, 2] int32, what the host reads of each step: of a row its token and the bits of the token's
            log-probability; of a group of beams whether it is done, and the bits of its best log-probability.
    """

    def __init__(self, rows: int, positions: int, device: torch.device):
        self.rows, self.positions, self.device = rows, positions, device
        size = rows + SCRATCH_ROWS

        def table(*shape: int, dtype: torch.dtype = torch.int64, fill: float = 0) -> Tensor:
            return torch.full((size, *shape), fill, dtype=dtype, device=device)

        self.tokens, self.ids = table(), table(positions)
        self.slot_table = table(positions, dtype=torch.int32, fill=SCRATCH_SLOT)
        self.finished = table(dtype=torch.bool, fill=True)
        self.end_tokens, self.pad_tokens = table(MAX_END_TOKENS, fill=NO_TOKEN), table()
        # one piece of memory each, which `begin` fills at once
        self._integers = torch.ones(5, size, dtype=torch.int32, device=device)
        self.lengths, self.prompt_lengths, self.limits, self.minimums, self._last_lengths = self._integers.unbind()
        self._choices = torch.ones(3, size, dtype=torch.int64, device=device)
        self.seeds, self.top_k, self.ngram_sizes = self._choices.unbind()
        self._numbers = torch.ones(5, size, dtype=torch.float32, device=device)
        self.temperature, self.top_p, self.min_p, self.typical_p, self.repetition_penalty = self._numbers.unbind()
        self.divisors = table(positions + 1, dtype=torch.float64, fill=1)
        self.running_scores = table(dtype=torch.float32)
        self.finished_beams = table(5, dtype=torch.float64)
        self.history = table(positions, 3, dtype=torch.float64)
        self.step_output = table(2, dtype=torch.int32)
        self._every_position = torch.arange(positions, device=device)

    @property
    def scratch_row(self) -> int:
        """The first row that belongs to nobody."""
        return self.rows

    def begin(self, rows: Sequence[int], new_rows: Sequence[NewRow], slots: Sequence[Sequence[int]]) -> None:
        """Put new rows in place of what was there.

        Args:
            rows: where.
            new_rows: what each starts from.
            slots: the cache slots of each row's positions, as far as they are known.
        """
        at = self._sent(rows, torch.int64)
        width = max(max(len(new.ids) for new in new_rows), max(map(len, slots)))
        self.ids[at, :width] = self._padded([new.ids for new in new_rows], width, 0)
        self.slot_table[at, :width] = self._padded(slots, width, SCRATCH_SLOT).int()
        self.end_tokens[at] = self._padded([new.options.end_tokens for new in new_rows], MAX_END_TOKENS, NO_TOKEN)
        self.pad_tokens[at] = self._sent([_pad_token(new.options) for new in new_rows], torch.int64)
        self._integers[:, at] = self._sent([_integers(new) for new in new_rows], torch.int32).t()
        self._choices[:, at] = self._sent([_choices(new) for new in new_rows], torch.int64).t()
        self._numbers[:, at] = self._sent([_numbers(new.options) for new in new_rows], torch.float32).t()
        self.finished.index_fill_(0, at, False)  # an assignment of a number would wait for the device

    def begin_beams(self, groups: Sequence[Sequence[int]], length_penalties: Sequence[float]) -> None:
        """Start groups of beams: only the first beam of a prompt counts, for all are equal."""
        lengths = torch.arange(self.positions + 1, dtype=torch.float64, device=self.device)
        for rows, penalty in zip(groups, length_penalties, strict=True):
            group = slice(rows[0], rows[-1] + 1)
            self.divisors[rows[0]] = lengths**penalty
            self.running_scores[group] = IMPOSSIBLE
            self.running_scores[rows[0]] = 0.0
            self.finished_beams[group] = 0.0
            self.finished_beams[group, SCORE] = IMPOSSIBLE

    def extend_slots(self, rows: Sequence[int], first: Sequence[int], slots: Sequence[Sequence[int]]) -> None:
        """Give rows the slots of more positions: of row i from position first[i] on; all get equally many."""
        at = self._sent([list(range(begin, begin + len(slots[0]))) for begin in first], torch.int64)
        self.slot_table[self._sent(rows, torch.int64)[:, None], at] = self._sent(slots, torch.int32)

    def generated(self, rows: Tensor) -> Tensor:
        """How many tokens each of `rows` [n] has added before the one that is chosen now: [n] int32."""
        return self.lengths[rows] - self.prompt_lengths[rows]

    def advance(self, rows: Tensor) -> None:
        """Count the current tokens of `rows` [n] as cached; a row at its limit stays there, within its slots."""
        self.lengths[rows] = torch.minimum(self.lengths[rows] + 1, self._last_lengths[rows])

    def append(self, rows: Tensor, tokens: Tensor, logprobs: Tensor) -> None:
        """Make tokens the current ones of rows that are not finished, note what ends, and fill in the step's output.

        Args:
            rows: [n] int64.
            tokens: [n] int64, the chosen tokens.
            logprobs: [n] fp32, the log-probabilities that the model gave them.
        """
        # rows, tokens, logprobs: [n]
        tokens = torch.where(self.finished[rows], self.pad_tokens[rows], tokens)
        ended = is_one_of(tokens, self.end_tokens[rows]) | (self.generated(rows) + 1 >= self.limits[rows])
        self.finished[rows] |= ended
        self.tokens[rows] = tokens
        self.ids[rows, self.lengths[rows].long()] = tokens
        self.step_output[rows] = torch.stack((tokens.int(), logprobs.view(torch.int32)), 1)

    def reorder(self, rows: Tensor, parents: Tensor, with_ids: bool) -> None:
        """Let each row continue another row's text; the answer slots still to be written stay the row's own.

        Args:
            rows: [n] int64.
            parents: [n] int64, the rows whose texts they continue.
            with_ids: whether anything reads `ids`, which otherwise stay where they are.
        """
        # [n, positions]: what is cached comes from the parent, what is not is kept
        cached = self._every_position < self.lengths[rows][:, None]
        self.slot_table[rows] = torch.where(cached, self.slot_table[parents], self.slot_table[rows])
        if with_ids:
            self.ids[rows] = self.ids[parents]

    def send(self, values: Tensor) -> Tensor:
        """A tensor of the host on the device; the host does not wait for what the device has still to do."""
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    def _sent(self, values: Sequence[object], dtype: torch.dtype) -> Tensor:
        return self.send(torch.tensor(values, dtype=dtype))

    def _padded(self, values: Sequence[Sequence[int]], width: int, fill: int) -> Tensor:
        # -> [len(values), width] int64
        padded = torch.full((len(values), width), fill, dtype=torch.int64)
        for row, given in zip(padded, values, strict=True):
            if given:
                # an array becomes a tensor several times as fast as a list
                row[: len(given)] = torch.frombuffer(array("q", given), dtype=torch.int64)
        return self.send(padded)


def is_one_of(tokens: Tensor, ends: Tensor) -> Tensor:
    """Whether each token [n] is among the ends [n, m] of its row: [n] bool."""
    return (tokens[:, None] == ends).any(-1)


def _pad_token(options: GenerationOptions) -> int:
    return options.end_tokens[0] if options.pad_token_id is None else options.pad_token_id


def _integers(new: NewRow) -> list[int]:
    last = new.prompt_length + new.max_new_tokens - 1
    return [len(new.ids), new.prompt_length, new.max_new_tokens, new.min_new_tokens, last]


def _choices(new: NewRow) -> list[int]:
    return [new.seed, new.options.top_k, new.options.no_repeat_ngram_size]


def _numbers(options: GenerationOptions) -> list[float]:
    return [options.temperature, options.top_p, options.min_p or 0.0, options.typical_p, options.repetition_penalty]
