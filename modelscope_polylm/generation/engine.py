"""The engine: one loop in which requests join a running batch, are computed together, and leave it.

It runs in a thread of its own, which starts with the first request and ends when nothing is left to do. A
request shares the weights with those next to it, and nothing else.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import logging
import math
import os
import struct
import threading
import weakref
from collections import deque
from collections.abc import Sequence

import torch

from modelscope_polylm.errors import DeviceError, OptionError, PolyLMError, SnapshotError
from modelscope_polylm.generation.graphs import GraphCache
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import (
    Completion,
    Deliver,
    Delta,
    DeltaStream,
    TokenCollector,
    beam_completions,
)
from modelscope_polylm.generation.requests import Request
from modelscope_polylm.generation.runner import ROW_BUCKETS, Launched, Runner
from modelscope_polylm.generation.scheduler import ActiveRequest, Extension, Scheduler, Submission
from modelscope_polylm.generation.slots import PAGE, SlotPool, pages_for, slot_count
from modelscope_polylm.generation.strategies import StrategyKey
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.network.kv_cache import bytes_per_slot
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)

MAX_ROWS = ROW_BUCKETS[-1]
STEPS_AHEAD = 4
"""How many steps a GPU may run ahead of the host's reading; so many can be wasted when an answer ends early."""
PREFILL_TOKENS = 8192
"""Most prompt tokens of one prefill, which bounds the memory of activations."""
PREFILL_TOKENS_WHILE_RUNNING = 2048
"""Most prompt tokens between two steps of the answers that are running."""
CONTEXTS_AT_FIRST = 4
"""The first cache holds this many full contexts, so that few calls ever make it grow."""
SPARE_BYTES = 1 << 30
"""GPU memory that the cache leaves to activations and captured steps."""
IDLE_SECONDS = 2.0
"""The thread waits so long for more work before it ends."""


@dataclasses.dataclass(frozen=True)
class EngineStatus:
    """What the engine does, and what it keeps on the device between calls.

    Attributes:
        running_rows, waiting_requests: now.
        used_cache_tokens, cache_tokens: of the KV cache.
        cache_bytes: its size.
        captured_steps: pieces of work that are ready to be replayed.
        put_backs: how often a request lost its slots to another one.
        reused_tokens: prompt tokens that were found in the cache.
    """

    running_rows: int
    waiting_requests: int
    used_cache_tokens: int
    cache_tokens: int
    cache_bytes: int
    captured_steps: int
    put_backs: int
    reused_tokens: int


class Engine:
    """Generates with one decoder on one device; safe to use from several threads.

    Attributes:
        max_rows: as below; it may be changed at any time.

    Args:
        decoder: the network.
        tokenizer: bounds the ids that are generated, and reads the text for stop strings.
        max_rows: rows that may run together, from 1 to MAX_ROWS; beams and samples count as rows.
        reuse_prefixes: keep what was computed for a text, so that texts with the same begin need not compute it again.
        max_pages: most pages of the cache; None takes what the device has room for.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PolyLMTokenizer,
        max_rows: int = MAX_ROWS,
        reuse_prefixes: bool = True,
        max_pages: int | None = None,
    ):
        self.decoder, self.tokenizer = decoder, tokenizer
        self._reuse_prefixes, self._max_pages = reuse_prefixes, max_pages
        self.max_rows = max_rows
        self._orders = itertools.count()
        self._reset_after_fork()
        _engines.add(self)

    def _reset_after_fork(self) -> None:
        # also the first state
        self._lock = threading.Lock()
        self._wake, self._ends = threading.Event(), threading.Event()
        # the idle thread of an engine that is dropped ends at once
        weakref.finalize(self, self._wake.set).atexit = False
        self._inbox: list[ActiveRequest] = []
        self._thread: threading.Thread | None = None
        self._loop: _Loop | None = None

    def submit(
        self,
        requests: Sequence[Request],
        partial: bool = True,
        at_once: int | None = None,
        listener: Deliver | None = None,
    ) -> DeltaStream:
        """Begin requests; they run together with all others.

        Args:
            requests: checked requests.
            partial: whether deltas are wanted before the end of a request.
            at_once: most of them that run together; None for no bound.
            listener: gets the deltas in the engine's thread; None leaves them to the stream's reader.

        Returns:
            The deltas; with a listener, what cancels the requests when it is closed or dropped.

        Raises:
            OptionError: an option that this engine does not have.
            DeviceError: a request that the device has not enough memory for, whatever else runs.
        """
        for request in requests:
            check_native(request.options)
        submission = Submission(listener or (lambda item: None), partial, at_once)
        stream = DeltaStream(len(requests), functools.partial(_cancel, submission, self._wake))
        if listener is None:
            submission.deliver = stream.deliver
        actives = [self._active(request, submission, index) for index, request in enumerate(requests)]
        with self._lock:
            self._check_room(actives)
            self._inbox += actives
            self._start()
        self._wake.set()
        return stream

    def close(self) -> None:
        """Cancel all requests and wait for the thread's end; a later request starts it again."""
        with self._lock:
            thread, loop, self._inbox = self._thread, self._loop, []
        if loop is not None:
            for active in [*loop.scheduler.waiting, *loop.scheduler.running]:
                active.submission.cancelled = True
        if thread is not None and thread is not threading.current_thread():
            self._ends.set()
            self._wake.set()
            thread.join()
            self._ends.clear()

    def status(self) -> EngineStatus:
        """What the engine does now."""
        loop = self._loop
        if loop is None:
            return EngineStatus(0, len(self._inbox), 0, 0, 0, 0, 0, 0)
        scheduler, pool = loop.scheduler, loop.scheduler.pool
        size = slot_count(pool.pages) * bytes_per_slot(self.decoder.config, self.decoder.dtype)
        return EngineStatus(
            scheduler.rows, len(scheduler.waiting) + len(self._inbox), PAGE * pool.used, PAGE * pool.pages, size,
            len(loop.graphs), scheduler.put_backs, pool.reused_tokens,
        )  # fmt: skip

    def _active(self, request: Request, submission: Submission, index: int) -> ActiveRequest:
        seed = request.options.seed
        if seed is None:
            # of torch's generator, so that torch.manual_seed repeats a call
            seed = int(torch.randint(1 << 62, (), device="cpu")) if request.options.do_sample else 0
        key = StrategyKey.of(request, self.decoder.config.vocab_size)
        collector = TokenCollector(request, self.tokenizer)
        return ActiveRequest(request, submission, index, next(self._orders), key, seed, collector)

    def _check_room(self, actives: Sequence[ActiveRequest]) -> None:
        if self._loop is None:
            self._loop = _Loop(self.decoder, self.tokenizer, self._reuse_prefixes, self._max_pages)
        self._loop.scheduler.max_rows = self.max_rows
        for active in actives:
            self._loop.check_room(active)

    def _start(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            target = functools.partial(_run, weakref.ref(self), self._wake, self._ends)
            self._thread = threading.Thread(target=target, name="polylm-engine", daemon=True)
            _threads.add(self._thread)
            self._thread.start()

    def _take_inbox(self) -> list[ActiveRequest]:
        with self._lock:
            taken, self._inbox = self._inbox, []
            return taken

    def _work(self) -> bool:
        """One round of the loop; whether anything is left to do."""
        loop = self._loop
        assert loop is not None
        try:
            for active in self._take_inbox():
                loop.scheduler.add(active)
            return loop.round()
        except BaseException as error:
            logger.exception("A step of the engine failed.")
            loop.fail_all(_explained(error, self.decoder.device))
            if not isinstance(error, Exception):
                raise
            return bool(self._inbox)


def check_native(options: GenerationOptions) -> None:
    """Raises OptionError for what this engine does not have."""
    if options.stop_texts and options.num_beams > 1:
        raise OptionError(
            f"stop_strings together with num_beams={options.num_beams} is not in the native backend: set num_beams=1, "
            "or load the model with backend='transformers'."
        )


def _cancel(submission: Submission, wake: threading.Event) -> None:
    submission.cancelled = True
    wake.set()


_engines: weakref.WeakSet[Engine] = weakref.WeakSet()
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _reset_in_child() -> None:
    # the parent's threads and their locks do not exist in a forked child
    _threads.clear()
    for engine in list(_engines):
        engine._reset_after_fork()


def _close_at_exit() -> None:
    # a thread that computes while the interpreter goes would crash it
    for engine in list(_engines):
        engine.close()
    for thread in list(_threads):
        thread.join()


os.register_at_fork(after_in_child=_reset_in_child)
atexit.register(_close_at_exit)


def _run(engine: weakref.ref[Engine], wake: threading.Event, ends: threading.Event) -> None:
    """Work while there is anything to do. It holds the engine only while it works, so that the engine can go."""
    with torch.inference_mode(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
        while (alive := engine()) is not None:
            wake.clear()
            while alive._work():
                pass
            with alive._lock:
                is_done = not alive._inbox
            del alive
            if ends.is_set() or (is_done and not wake.wait(IDLE_SECONDS) and not _has_work(engine)):
                return


def _has_work(engine: weakref.ref[Engine]) -> bool:
    """Whether a request came in the moment in which the thread ends; if not, the next one starts another thread."""
    alive = engine()
    if alive is None:
        return False
    with alive._lock:
        if alive._inbox:
            return True
        alive._thread = None
        return False


def _explained(error: BaseException, device: torch.device) -> BaseException:
    if isinstance(error, torch.OutOfMemoryError):
        return DeviceError(f"{device} ran out of memory: run fewer requests at once, or shorter ones.")
    if isinstance(error, PolyLMError) or not isinstance(error, Exception):
        return error
    explained = DeviceError(
        f"A step on {device} failed ({type(error).__name__}: {error}); the request was not answered."
    )
    explained.__cause__ = error
    return explained


class _Loop:
    """The rounds of the engine's thread: admit, prefill, step, read."""

    def __init__(self, decoder: Decoder, tokenizer: PolyLMTokenizer, reuse_prefixes: bool, max_pages: int | None):
        self._decoder, self._max_pages = decoder, max_pages
        pages = CONTEXTS_AT_FIRST * pages_for(decoder.config.max_positions)
        pages = max(1, min(pages, self._possible_pages()))
        self._vocab_limit = min(tokenizer.vocab_size, decoder.config.vocab_size)
        self.scheduler = Scheduler(MAX_ROWS, SlotPool(pages, reuse_prefixes))
        self.graphs = GraphCache(decoder.device)
        self._launched: deque[Launched] = deque()
        self._steps_ahead = STEPS_AHEAD if decoder.device.type == "cuda" else 1
        self._is_short_of_memory = False  # the next prefill takes one request
        self._may_grow = True  # asking the device for its free memory takes time

    @functools.cached_property
    def runner(self) -> Runner:
        """Made in the engine's thread: torch's threads of a caller's do not survive a fork."""
        return Runner(self._decoder, MAX_ROWS, self._vocab_limit, self.scheduler.pool.pages, self.graphs)

    def check_room(self, active: ActiveRequest) -> None:
        """Raise DeviceError for a request that cannot fit even alone."""
        rows, needed = active.request.rows_per_prompt, active.most_pages
        if rows > self.scheduler.max_rows:
            raise DeviceError(
                f"{rows} beams or samples do not fit into the {self.scheduler.max_rows} rows of a batch: ask for fewer."
            )
        if needed > self.scheduler.pool.pages and needed > (possible := self._possible_pages()):
            size = slot_count(needed) * bytes_per_slot(self._decoder.config, self._decoder.dtype)
            raise DeviceError(
                f"{rows} rows with {needed * PAGE} tokens of prompt and answers need {size:,} bytes of KV cache, but "
                f"{self._decoder.device} has room for {possible * PAGE} tokens: use fewer beams, a shorter text, or "
                "backend='transformers' with offload."
            )

    def round(self) -> bool:
        """One round; whether anything is left to do."""
        self._drop_cancelled()
        self._admit()
        self._step()
        while len(self._launched) >= self._steps_ahead or (self._launched and not self._stepping()):
            self._read()
        return bool(self.scheduler.waiting or self.scheduler.running or self._launched)

    def fail_all(self, error: BaseException) -> None:
        """End the requests that run with an error, or those that wait if none does."""
        self._launched.clear()
        failed = list(self.scheduler.running)
        for active in failed:
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
            self.scheduler.waiting.remove(active)
        for active in [active for active in self.scheduler.running if active.submission.cancelled]:
            self._end(active)

    def _admit(self) -> None:
        if not self.scheduler.waiting:
            return
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

    def _prefill(self, admitted: list[ActiveRequest]) -> None:
        try:
            self._launched.append(self.runner.prefill(admitted))
            self._is_short_of_memory = False
            for active in admitted:
                self._tell_begin(active)
        except torch.OutOfMemoryError as error:
            self._is_short_of_memory = True
            # what is too much for the device together may fit one after the other
            for active in admitted:
                self._end(active)
            self.scheduler.pool.forget()
            if len(admitted) == 1:
                self._fail(admitted[0], _explained(error, self._decoder.device))
                return
            for active in admitted:
                self.scheduler.add(active)
                active.submission.at_once = 1

    def _stepping(self) -> list[ActiveRequest]:
        return [active for active in self.scheduler.running if active.may_step]

    def _step(self) -> None:
        extensions: list[Extension] = []
        for active in self._stepping():
            if active not in self.scheduler.running:
                continue
            while (more := self.scheduler.extend(active)) is None:
                if self._make_room(self.scheduler.pool.pages + 1):
                    continue
                while self._launched:
                    self._read()
                if active not in self.scheduler.running or self.scheduler.put_back() is active:
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
        while self._launched:
            self._read()
        self.runner.grow(wanted)
        pool.grow(wanted)
        return True

    def _possible_pages(self) -> int:
        """Pages that the cache can have at most on this device, with what it has now."""
        own = self.scheduler.pool.pages if hasattr(self, "scheduler") else 0
        bound = self._max_pages if self._max_pages is not None else 1 << 30
        if self._decoder.device.type != "cuda":
            return bound
        torch.cuda.empty_cache()
        free = torch.cuda.mem_get_info(self._decoder.device)[0] - SPARE_BYTES
        return min(bound, own + max(0, free) // (PAGE * bytes_per_slot(self._decoder.config, self._decoder.dtype)))

    def _read(self) -> None:
        """Take what the oldest launched step has chosen."""
        launched = self._launched.popleft()
        launched.wait()
        output = launched.output.tolist()
        for active, rows in launched.requests:
            if active.rows is rows and active in self.scheduler.running:
                self._take(active, [output[row] for row in rows])

    def _take(self, active: ActiveRequest, output: list[list[int]]) -> None:
        # output: of each row, see BatchState.step_output
        if not math.isfinite(_float_of(output[0][1])):
            self._end(active)
            self._fail(active, SnapshotError(NOT_FINITE))
            return
        if active.key.beams is not None:
            if output[0][0]:
                self._complete_beams(active)
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

    def _complete_beams(self, active: ActiveRequest) -> None:
        finished, history = self.runner.read_beams(active.rows, active.length)
        self._end(active)
        self._complete(active, beam_completions(active.request, finished, history))

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


NOT_FINITE = (
    "The network's results are not finite numbers, so no token can be chosen. Its weights may hold NaN or infinite "
    "numbers, or overflow in this precision: check them with `polylm verify`, and use bfloat16 or float32."
)


def _float_of(bits: int) -> float:
    value: float = struct.unpack("<f", struct.pack("<i", bits))[0]
    return value
