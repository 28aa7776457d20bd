"""The rounds of the engine: admit and prefill newcomers, run a step of all rows, read what the last steps chose."""

from __future__ import annotations

import functools
import itertools
import math
import struct
from collections import deque

import torch

from modelscope_polylm.errors import DeviceError, PolyLMError, SnapshotError
from modelscope_polylm.generation.graphs import GraphCache
from modelscope_polylm.generation.outputs import Completion, Delta, beam_completions, token_scores
from modelscope_polylm.generation.runner import ROW_BUCKETS, BeamReadback, Runner, StepReadback
from modelscope_polylm.generation.scheduler import ActiveRequest, Extension, Scheduler
from modelscope_polylm.generation.slots import PAGE, SlotPool, pages_for, slot_count
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.network.kv_cache import bytes_per_slot

MAX_ROWS = ROW_BUCKETS[-1]
STEPS_AHEAD = 2
"""How many steps a GPU may run ahead of the host's reading: newcomers wait for them, ended answers waste them."""
PREFILL_TOKENS = 8192
"""Most prompt tokens of one prefill, which bounds the memory of activations."""
PREFILL_TOKENS_WHILE_RUNNING = 2048
"""Most prompt tokens between two steps of the answers that are running."""
CONTEXTS_AT_FIRST = 4
"""The first cache holds this many full contexts, so that few calls ever make it grow."""
SPARE_BYTES = 1 << 30
"""GPU memory that the cache leaves to activations and captured steps."""
NOT_FINITE = (
    "The network's results are not finite numbers, so no token can be chosen. Its weights may hold NaN or infinite "
    "numbers, or overflow in this precision: check them with `polylm verify`, and use bfloat16 or float32."
)


class EngineLoop:
    """The rounds of the engine's thread: admit, prefill, step, read."""

    def __init__(
        self,
        decoder: Decoder,
        vocab_limit: int,
        reuse_prefixes: bool,
        max_pages: int | None,
        cache_dtype: torch.dtype,
    ):
        self._decoder, self._vocab_limit = decoder, vocab_limit
        self._max_pages, self._cache_dtype = max_pages, cache_dtype
        self.slot_bytes = bytes_per_slot(decoder.config, cache_dtype)
        self.scheduler = Scheduler(MAX_ROWS, SlotPool(0, reuse_prefixes))
        pages = CONTEXTS_AT_FIRST * pages_for(decoder.config.max_positions)
        self.scheduler.grow(max(1, min(pages, self._possible_pages())))
        self.graphs = GraphCache(decoder.device)
        self._launched: deque[StepReadback] = deque()
        self._finished_beams: deque[BeamReadback] = deque()
        self._steps_ahead = STEPS_AHEAD if decoder.device.type == "cuda" else 1
        self._is_short_of_memory = False  # the next prefill takes one request
        self._may_grow = True  # asking the device for its free memory takes time

    @functools.cached_property
    def runner(self) -> Runner:
        """Made in the engine's thread: torch's threads of a caller's do not survive a fork."""
        pages = self.scheduler.pool.pages
        return Runner(self._decoder, MAX_ROWS, self._vocab_limit, pages, self.graphs, self._cache_dtype)

    def check_room(self, active: ActiveRequest) -> None:
        """Raise DeviceError for a request that cannot fit even alone."""
        rows, needed = active.request.rows_per_prompt, active.most_pages
        if rows > self.scheduler.max_rows:
            raise DeviceError(
                f"{rows} beams or samples do not fit into the {self.scheduler.max_rows} rows of a batch: ask for fewer."
            )
        if needed > self.scheduler.pool.pages and needed > (possible := self._possible_pages()):
            size = slot_count(needed) * self.slot_bytes
            raise DeviceError(
                f"{rows} rows with {needed * PAGE} tokens of prompt and answers need {size:,} bytes of KV cache, but "
                f"{self._decoder.device} has room for {possible * PAGE} tokens: use fewer beams, a shorter text, or "
                "backend='transformers' with offload."
            )

    def round(self) -> bool:
        """One round; whether anything is left to do."""
        self._drop_cancelled()
        goes_on = self._admit() and bool(self.scheduler.waiting)
        self._step()
        goes_on |= bool(self._stepping())
        while len(self._launched) >= self._steps_ahead or (self._launched and not goes_on):
            self._read()
            goes_on &= bool(self.scheduler.waiting or self._stepping())
        while self._finished_beams and (not self._launched or self._finished_beams[0].is_complete):
            self._read_beams()
        return bool(self.scheduler.waiting or self.scheduler.running or self._launched)

    def fail_all(self, error: BaseException) -> None:
        """End the requests that run with an error, or those that wait if none does."""
        running = list(self.scheduler.running)
        failed = [*running, *(active for launched in self._launched for active in launched.scored)]
        self._launched.clear()
        self._finished_beams.clear()
        for active in running:
            self._end(active)
        if not failed:
            failed = list(self.scheduler.waiting)
            self.scheduler.waiting.clear()
        for active in failed:
            self._fail(active, error)
        # what was noted may not have been computed
        self.scheduler.pool.forget()
        self.graphs.clear()

    def _drop_cancelled(self) -> None:
        for active in [active for active in self.scheduler.waiting if active.submission.cancelled]:
            self.scheduler.withdraw(active)
        for active in [active for active in self.scheduler.running if active.submission.cancelled]:
            self._end(active)

    def _admit(self) -> bool:
        """Begin requests that wait; whether any could."""
        if not self.scheduler.waiting:
            return False
        if not self.scheduler.running:
            self._may_grow = True
        budget = PREFILL_TOKENS_WHILE_RUNNING if self.scheduler.running else PREFILL_TOKENS
        budget = 1 if self._is_short_of_memory else budget
        admitted = self.scheduler.admit(budget)
        if self.scheduler.lacks_pages and self._may_grow:
            alone = self.scheduler.waiting[0].most_pages if not self.scheduler.running else 0
            self._may_grow = self._make_room(max(alone, self.scheduler.pool.pages + 1))
            admitted = admitted or self.scheduler.admit(budget)
        if admitted:
            self._prefill(admitted)
        return bool(admitted)

    def _prefill(self, admitted: list[ActiveRequest]) -> None:
        try:
            self._launched.append(self.runner.prefill(admitted))
            self._is_short_of_memory = False
            for active in admitted:
                self._tell_begin(active)
                if active.request.scoring is not None:
                    # the device does what comes later, in the same rows and slots, after it
                    self._end(active)
        except torch.OutOfMemoryError as error:
            self._is_short_of_memory = True
            # what is too much for the device together may fit one after the other
            for active in admitted:
                self._end(active)
            self.scheduler.pool.forget()
            if len(admitted) == 1:
                self._fail(admitted[0], explained(error, self._decoder.device))
                return
            for active in admitted:
                self.scheduler.add(active)
                active.submission.at_once = 1

    def _stepping(self) -> list[ActiveRequest]:
        return [active for active in self.scheduler.running if active.may_step]

    def _step(self) -> None:
        extensions: list[Extension] = []
        for active in self._stepping():
            if not active.rows:
                continue
            while (more := self.scheduler.extend(active)) is None:
                if self._make_room(self.scheduler.pool.pages + 1):
                    continue
                self._read_all()
                if not active.rows or self.scheduler.put_back() is active:
                    more = []
                    break
            extensions += more
        stepping = self._stepping()
        rows = {row for active in stepping for row in active.rows}
        extensions = [extension for extension in extensions if extension.row in rows]
        if extensions:
            self.runner.extend(extensions)
        if stepping:
            self._launched.append(self.runner.step(stepping))

    def _make_room(self, pages: int) -> bool:
        """Let the cache grow to so many pages or, as few calls should need that, to twice its size."""
        pool = self.scheduler.pool
        wanted = min(max(pages, 2 * pool.pages), self._possible_pages())
        if wanted < pages or wanted <= pool.pages:
            return False
        self._read_all()
        self.runner.grow(wanted)
        self.scheduler.grow(wanted)
        return True

    def _possible_pages(self) -> int:
        """Pages that the cache can have at most on this device, with what it has now."""
        bound = self._max_pages if self._max_pages is not None else 1 << 30
        if self._decoder.device.type != "cuda":
            return bound
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self._decoder.device)[0] - SPARE_BYTES
        own = self.scheduler.pool.pages
        return min(bound, own + max(0, free) // (PAGE * self.slot_bytes))

    def _read(self) -> None:
        """Take what the oldest launched step has chosen."""
        launched = self._launched[0]  # until all of it is taken, so that an error fails its requests
        launched.wait()
        output = launched.output.tolist()
        for active, rows in launched.requests:
            # a request that ended meanwhile, or began again, has other rows
            if active.rows is rows:
                self._take(active, [output[row] for row in rows])
        scores = iter(launched.scores.tolist() if launched.scores is not None else [])
        for active in launched.scored:
            own = list(itertools.islice(scores, len(active.request.scored_tokens)))
            if not active.submission.cancelled:
                self._take_scores(active, own)
        self._launched.popleft()

    def _take(self, active: ActiveRequest, output: list[list[int]]) -> None:
        # output: of each row, see BatchState.step_output
        if not math.isfinite(_float_of(output[0][1])):
            self._end(active)
            self._fail(active, SnapshotError(NOT_FINITE))
            return
        if active.key.beams is not None:
            if output[0][0] and not active.is_complete:
                # read while the device goes on with the others
                active.is_complete = True
                self._finished_beams.append(self.runner.read_beams(active))
            return
        collector, new = active.collector, []
        for row, (token, bits) in enumerate(output):
            if collector.is_open(row) and collector.take(row, token, _float_of(bits)):
                new.append(token)
        if collector.finished:
            self._end(active)
            self._complete(active, collector.completions())
        elif active.is_single and active.submission.partial:
            self._emit(active, new)

    def _take_scores(self, active: ActiveRequest, scores: list[list[float]]) -> None:
        # scores: [tokens][1 + 2 * best], see score_tokens
        if not all(math.isfinite(each[0]) for each in scores):
            self._fail(active, SnapshotError(NOT_FINITE))
            return
        best = active.request.scoring.best if active.request.scoring is not None else 0
        self._complete(active, [Completion([], scores=token_scores(scores, best))])

    def _read_beams(self) -> None:
        """Take the oldest beam search that is over."""
        found = self._finished_beams.popleft()
        found.wait()
        active = found.request
        # it may have been cancelled or put back meanwhile
        if active.rows is found.rows:
            self._end(active)
            completions = beam_completions(active.request, found.beams.tolist(), found.history.tolist())
            self._complete(active, completions)

    def _read_all(self) -> None:
        while self._launched:
            self._read()
        while self._finished_beams:
            self._read_beams()

    def _tell_begin(self, active: ActiveRequest) -> None:
        if active.submission.partial and not active.has_begun:
            active.has_begun = True
            active.submission.deliver(Delta(active.index, []))

    def _emit(self, active: ActiveRequest, ids: list[int]) -> None:
        if ids:
            active.emitted += len(ids)
            active.submission.deliver(Delta(active.index, ids))

    def _complete(self, active: ActiveRequest, completions: list[Completion]) -> None:
        best = completions[0]
        rest = best.ids[active.emitted :]
        active.submission.deliver(Delta(active.index, rest, best.finish_reason, completions))

    def _end(self, active: ActiveRequest) -> None:
        self.scheduler.end(active)

    def _fail(self, active: ActiveRequest, error: BaseException) -> None:
        submission = active.submission
        if not submission.cancelled:
            submission.cancelled = True
            submission.deliver(error)


def explained(error: BaseException, device: torch.device) -> BaseException:
    if isinstance(error, torch.OutOfMemoryError):
        return DeviceError(f"{device} ran out of memory: run fewer requests at once, or shorter ones.")
    if isinstance(error, PolyLMError) or not isinstance(error, Exception):
        return error
    explained = DeviceError(
        f"A step on {device} failed ({type(error).__name__}: {error}); the request was not answered."
    )
    explained.__cause__ = error
    return explained


def _float_of(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<i", bits))[0]
    return value
