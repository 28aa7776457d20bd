"""Runs the network and the choice of tokens on the device: prefill of newcomers, and one decode step of all rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from modelscope_polylm.generation.graphs import GraphCache
from modelscope_polylm.generation.lm_head import score_tokens
from modelscope_polylm.generation.sampling import row_seed
from modelscope_polylm.generation.scheduler import ActiveRequest, Extension
from modelscope_polylm.generation.slots import slot_count
from modelscope_polylm.generation.state import BatchState, NewRow
from modelscope_polylm.generation.strategies import Strategy, StrategyKey
from modelscope_polylm.network.gpt2 import Decoder, prefill_tiles
from modelscope_polylm.network.kernels.attention import MAX_GROUP
from modelscope_polylm.network.kernels.prefill_attention import TILE
from modelscope_polylm.network.kv_cache import KVCache

ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
"""Rows that a captured step can have; a step runs in the smallest that holds its rows."""
SHORT_PREFILLS = (64, 256)
"""Tokens of the captured prefills; a GPU runs so many in less time than the host needs to launch their kernels."""
PREFILL_ROWS = 128
"""Longer prefills are padded to a multiple of so many tokens."""
SHORT_SEGMENTS = 8
"""Most prompts of a captured prefill."""
BEAMS_PER_GROUP = 4
"""Rows of a group in a step of beams alone, which is captured for a quarter of the groups."""


@dataclasses.dataclass(frozen=True)
class AsyncReadback:
    """Tensors that are on their way to the host.

    Attributes:
        event: is over when they are complete; None on a CPU, where they are at once.
    """

    event: torch.cuda.Event | None

    @property
    def is_complete(self) -> bool:
        """Whether the host has them."""
        return self.event is None or self.event.query()

    def wait(self) -> None:
        """Wait until the host has them."""
        if self.event is not None:
            self.event.synchronize()


@dataclasses.dataclass(frozen=True)
class StepReadback(AsyncReadback):
    """What a step chose.

    Attributes:
        requests: whose rows it has, each with its rows at that time.
        output: [rows, 2] int32, see `BatchState.step_output`.
        scored: requests whose tokens are scored.
        scores: [tokens of all, 1 + 2 * best] fp32, see `score_tokens`; None if there are none.
    """

    requests: list[tuple[ActiveRequest, list[int]]]
    output: Tensor
    scored: Sequence[ActiveRequest] = ()
    scores: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class BeamReadback(AsyncReadback):
    """The result of a beam search.

    Attributes:
        request, rows: whose it is, and its rows at that time.
        beams: [beams, 5] fp64, see `BatchState.finished_beams`.
        history: [beams, positions, 3] fp64, see `BatchState.history`.
    """

    request: ActiveRequest
    rows: list[int]
    beams: Tensor
    history: Tensor


class Runner:
    """One decoder with the state and the cache of a running batch.

    Args:
        decoder: the network.
        max_rows: rows that may run together.
        vocab_limit: ids at or above it are never generated.
        pages: pages of the cache at first.
        graphs: keeps what is captured.
        cache_dtype: of the cache; None: the decoder's.
    """

    def __init__(
        self,
        decoder: Decoder,
        max_rows: int,
        vocab_limit: int,
        pages: int,
        graphs: GraphCache,
        cache_dtype: torch.dtype | None = None,
    ):
        self.decoder, self._vocab_limit, self._graphs = decoder, vocab_limit, graphs
        config, device = decoder.config, decoder.device
        self.state = BatchState(max_rows, config.max_positions, device)
        self.cache = KVCache(config, slot_count(pages), device, cache_dtype or decoder.dtype)
        self._strategies: dict[StrategyKey, Strategy] = {}
        self._hidden = torch.zeros(ROW_BUCKETS[-1], config.hidden_size, dtype=decoder.dtype, device=device)
        # what captured work reads: fixed memory, filled anew before it is replayed
        self._inputs: dict[object, tuple[Tensor, ...]] = {}
        self._sent_rows: dict[object, list[tuple[int, int]]] = {}
        self._plan: tuple[list[tuple[ActiveRequest, list[int]]], _Plan] | None = None

    def grow(self, pages: int) -> None:
        """Make room for more pages; what is cached stays."""
        self._graphs.clear()
        self.cache.grow(slot_count(pages))

    def prefill(self, admitted: Sequence[ActiveRequest]) -> StepReadback:
        """Run the prompts of requests that begin, and choose their first tokens, or score the prompts' own."""
        self._begin_rows(admitted)
        scores = self._run_prompts(admitted)
        growing = [active for active in admitted if active.request.scoring is None]
        scored = [active for active in admitted if active.request.scoring is not None]
        return self._select(growing, _Plan.of(growing, lambda index, row: index), scored, scores)

    def step(self, active: Sequence[ActiveRequest]) -> StepReadback:
        """Run the current token of every row of these requests, and choose those that follow."""
        members = [(each, each.rows) for each in active]
        if self._plan is None or self._plan[0] != members:
            self._plan = (members, _Plan.of(active, lambda index, row: row))
            self._send_rows(self._plan[1])
        plan = self._plan[1]
        rows, groups = self._inputs["rows", plan.bucket(self.state.device)]
        self._graphs.run(("step", len(rows), len(groups)), lambda: self._decode(rows, groups))
        return self._select(active, plan)

    def extend(self, extensions: Sequence[Extension]) -> None:
        """Give rows the slots of further positions."""
        for length in {len(extension.slots) for extension in extensions}:
            same = [extension for extension in extensions if len(extension.slots) == length]
            self.state.extend_slots(
                [extension.row for extension in same],
                [extension.position for extension in same],
                [extension.slots for extension in same],
            )

    def read_beams(self, active: ActiveRequest) -> BeamReadback:
        """Send the finished beams of a group, and what its beams chose at each position, to the host."""
        group = slice(active.rows[0], active.rows[-1] + 1)
        beams = _to_host(self.state.finished_beams[group])
        history = _to_host(self.state.history[group, : active.length])
        return BeamReadback(_event_on(self.state.device), active, active.rows, beams, history)

    def _begin_rows(self, admitted: Sequence[ActiveRequest]) -> None:
        rows = [row for active in admitted for row in active.rows]
        new = [
            NewRow(
                active.ids, len(active.request.prompt), active.request.max_new_tokens, active.request.min_new_tokens,
                active.request.options, row_seed(active.seed, sample),
            )
            for active in admitted for sample in range(len(active.rows))
        ]  # fmt: skip
        self.state.begin(rows, new, [slots for active in admitted for slots in active.row_slots()])
        beams = [active for active in admitted if active.key.beams is not None]
        if beams:
            penalties = [active.request.options.length_penalty for active in beams]
            self.state.begin_beams([active.rows for active in beams], penalties)
        for active in admitted:
            self._strategy(active.key).begin(active.rows, active.request.options)

    def _run_prompts(self, admitted: Sequence[ActiveRequest]) -> Tensor | None:
        """Leave the last results of prompts that go on in `_hidden`; returns the scores of the others, if any."""
        tokens = [active.ids[active.cached :] for active in admitted]
        segments = [(active.rows[0], active.cached, len(own)) for active, own in zip(admitted, tokens, strict=True)]
        positions = [torch.arange(position, position + count) for _, position, count in segments]
        packed, at = torch.tensor([token for own in tokens for token in own]), torch.cat(positions)
        last, before = _wanted(admitted)
        wanted = torch.tensor([*last, *before], dtype=torch.int64)
        given = (packed, at, prefill_tiles(segments), wanted)
        size = next((size for size in SHORT_PREFILLS if len(packed) <= size), None)
        is_short = size is not None and len(segments) <= SHORT_SEGMENTS and not before
        if self.state.device.type == "cuda" and size is not None and is_short:
            self._run_short_prompts(size, given)
            return None
        if self.state.device.type == "cuda":
            # kernels are compiled, or chosen by the library, for each new number of rows, which takes a while
            tokens_more, wanted_more = (
                -len(packed) % PREFILL_ROWS,
                _bucket(len(wanted), self.state.device) - len(wanted),
            )
            given = (_pad(packed, tokens_more), _pad(at, tokens_more), given[2], _pad(wanted, wanted_more))
        hidden = self._prefill(*(self.state.send(part) for part in given))
        self._hidden[: len(last)] = hidden[: len(last)]
        return self._scores(admitted, hidden[len(last) :]) if before else None

    def _scores(self, admitted: Sequence[ActiveRequest], hidden: Tensor) -> Tensor:
        # hidden: [tokens and padding, hidden_size] -> [tokens, 1 + 2 * best], see score_tokens
        tokens = [token for active in admitted for token in active.request.scored_tokens]
        best = max(active.request.scoring.best for active in admitted if active.request.scoring is not None)
        sent = self.state.send(_pad(torch.tensor(tokens), len(hidden) - len(tokens)))
        return score_tokens(hidden, self.decoder.embedding, sent, best, self._vocab_limit)[: len(tokens)]

    def _run_short_prompts(self, size: int, given: tuple[Tensor, ...]) -> None:
        if ("prefill", size) not in self._inputs:
            tiles = size // TILE + SHORT_SEGMENTS
            shapes = ((size,), (size,), (tiles, 5), (SHORT_SEGMENTS,))
            dtypes = (torch.int64, torch.int64, torch.int32, torch.int64)
            self._inputs["prefill", size] = tuple(
                torch.zeros(shape, dtype=dtype, device=self.state.device)
                for shape, dtype in zip(shapes, dtypes, strict=True)
            )
        inputs = self._inputs["prefill", size]
        inputs[2].zero_()
        for target, part in zip(inputs, given, strict=True):
            target[: len(part)] = self.state.send(part)

        def work() -> None:
            self._hidden[:SHORT_SEGMENTS] = self._prefill(*inputs)

        self._graphs.run(("prefill", size), work)

    def _prefill(self, tokens: Tensor, positions: Tensor, tiles: Tensor, last: Tensor) -> Tensor:
        # tokens, positions: [total], tiles: [m, 5], last: [k] -> [k, hidden_size]
        return self.decoder.prefill(tokens, positions, tiles, self.state.slot_table, self.cache, last)

    def _decode(self, rows: Tensor, groups: Tensor) -> None:
        # rows: [n], groups: [n, 2]
        state = self.state
        self._hidden[: len(rows)] = self.decoder.decode(
            rows, groups, state.tokens, state.lengths, state.prompt_lengths, state.slot_table, self.cache
        )
        state.advance(rows)

    def _select(
        self,
        active: Sequence[ActiveRequest],
        plan: _Plan,
        scored: Sequence[ActiveRequest] = (),
        scores: Tensor | None = None,
    ) -> StepReadback:
        for key, chosen in plan.by_key.items():
            self._select_with(key, chosen)
        for each in active:
            each.steps += 1
        requests = [(each, each.rows) for each in active]
        output, read = _to_host(self.state.step_output), None if scores is None else _to_host(scores)
        return StepReadback(_event_on(self.state.device), requests, output, scored, read)

    def _select_with(self, key: StrategyKey, chosen: list[tuple[int, int]]) -> None:
        # chosen: index of the hidden state and row, of each row
        strategy = self._strategy(key)
        group = key.beams or 1
        size = min(_bucket(len(chosen) // group, self.state.device), ROW_BUCKETS[-1] // group) * group
        padding = [(0, self.state.scratch_row + index % group) for index in range(size - len(chosen))]
        if self.state.device.type != "cuda":
            indices, rows = torch.tensor([*chosen, *padding]).unbind(1)
            strategy.select(self._hidden[indices], rows.contiguous())
            return
        if (key, size) not in self._inputs:
            self._inputs[key, size] = (torch.zeros(2, size, dtype=torch.int64, device=self.state.device),)
        (sent,) = self._inputs[key, size]
        if self._sent_rows.get((key, size)) != chosen:
            sent.copy_(self.state.send(torch.tensor([*chosen, *padding]).t().contiguous()))
            self._sent_rows[key, size] = chosen
        self._graphs.run((key, size), lambda: strategy.select(self._hidden[sent[0]], sent[1]))

    def _send_rows(self, plan: _Plan) -> None:
        bucket = plan.bucket(self.state.device)
        rows = [*plan.rows, *([self.state.scratch_row] * (bucket[0] - len(plan.rows)))]
        groups = [*plan.groups, *([(0, 0)] * (bucket[1] - len(plan.groups)))]
        if ("rows", bucket) not in self._inputs:
            device = self.state.device
            self._inputs["rows", bucket] = (
                torch.zeros(bucket[0], dtype=torch.int64, device=device),
                torch.zeros(bucket[1], 2, dtype=torch.int32, device=device),
            )
        sent_rows, sent_groups = self._inputs["rows", bucket]
        sent_rows.copy_(self.state.send(torch.tensor(rows)))
        sent_groups.copy_(self.state.send(torch.tensor(groups, dtype=torch.int32)))

    def _strategy(self, key: StrategyKey) -> Strategy:
        if key not in self._strategies:
            self._strategies[key] = Strategy(key, self.state, self.decoder.embedding, self._vocab_limit)
        return self._strategies[key]


@dataclasses.dataclass
class _Plan:
    """Which rows a step has.

    Attributes:
        rows: of the batch, in the order in which the step runs them.
        groups: index in `rows` of the first row of each group that shares a prompt, and the group's size.
        by_key: for each strategy, of each of its rows the index of its hidden state and the row.
    """

    rows: list[int]
    groups: list[tuple[int, int]]
    by_key: dict[StrategyKey, list[tuple[int, int]]]

    @classmethod
    def of(cls, active: Sequence[ActiveRequest], hidden_index: Callable[[int, int], int]) -> _Plan:
        """The plan of some requests; `hidden_index` takes a request's index and a row's in `rows`."""
        plan = cls([], [], {})
        for index, each in enumerate(active):
            first, size = len(plan.rows), len(each.rows)
            # rows of a larger group read their prompt's keys each on its own
            plan.groups += [(first, size)] if size <= MAX_GROUP else [(first + row, 1) for row in range(size)]
            chosen = plan.by_key.setdefault(each.key, [])
            chosen += [(hidden_index(index, first + number), row) for number, row in enumerate(each.rows)]
            plan.rows += each.rows
        return plan

    def bucket(self, device: torch.device) -> tuple[int, int]:
        """Rows and groups of the step with its padding; where all rows are beams, a quarter of the groups is enough."""
        rows = _bucket(len(self.rows), device)
        few = max(rows // BEAMS_PER_GROUP, 1)
        return rows, few if len(self.groups) <= few else rows


def _wanted(admitted: Sequence[ActiveRequest]) -> tuple[list[int], list[int]]:
    """Indices in the packed prompts: of the last token of each that goes on, and of the tokens before scored ones."""
    last: list[int] = []
    before: list[int] = []
    end = 0
    for active in admitted:
        end += len(active.ids) - active.cached
        if active.request.scoring is None:
            last.append(end - 1)
        else:
            before += range(end - len(active.request.scored_tokens), end)
    return last, before


def _pad(values: Tensor, count: int) -> Tensor:
    # values: [n] -> [n + count], with zeros at the end
    return torch.nn.functional.pad(values, (0, count))


def _to_host(values: Tensor) -> Tensor:
    """A copy on the host, complete when the device has done what was launched before."""
    if not values.is_cuda:
        return values.clone()
    copy = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    return copy.copy_(values, non_blocking=True)


def _event_on(device: torch.device) -> torch.cuda.Event | None:
    """What is over when the device has done all that was launched so far; None on a CPU."""
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record()
    return event


def _bucket(count: int, device: torch.device) -> int:
    # on a CPU nothing is captured, so nothing is padded
    if device.type != "cuda":
        return count
    return next((size for size in ROW_BUCKETS if size >= count), count + -count % PREFILL_ROWS)
