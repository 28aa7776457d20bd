"""The engine: one loop in which requests join a running batch, are computed together, and leave it.

It runs in a thread of its own, which starts with the first request and ends when nothing is left to do. A request
shares the weights with those next to it, and nothing else.
"""

from __future__ import annotations

import atexit
import dataclasses
import functools
import itertools
import logging
import os
import threading
import weakref
from collections.abc import Sequence

import torch

from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.loop import MAX_ROWS, EngineLoop, explained
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import (
    Deliver,
    DeltaStream,
    TokenCollector,
)
from modelscope_polylm.generation.requests import Request
from modelscope_polylm.generation.scheduler import ActiveRequest, Submission
from modelscope_polylm.generation.slots import PAGE, slot_count
from modelscope_polylm.generation.strategies import StrategyKey
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)

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
        reuse_prefixes: keep what was computed for a text, so that texts that start alike need not compute it again.
        max_pages: most pages of the cache; None takes what the device has room for.
        cache_dtype: of keys and values, the decoder's or int8; None: the decoder's.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: PolyLMTokenizer,
        max_rows: int = MAX_ROWS,
        reuse_prefixes: bool = True,
        max_pages: int | None = None,
        cache_dtype: torch.dtype | None = None,
    ):
        self.decoder, self.tokenizer = decoder, tokenizer
        self._cache_dtype = cache_dtype or decoder.dtype
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
        self._loop: EngineLoop | None = None

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

    @property
    def vocab_size(self) -> int:
        """Ids below it have probabilities."""
        return min(self.tokenizer.vocab_size, self.decoder.config.vocab_size)

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
        size = slot_count(pool.pages) * loop.slot_bytes
        return EngineStatus(
            scheduler.rows, len(scheduler.waiting) + len(self._inbox), PAGE * pool.used, PAGE * pool.pages, size,
            len(loop.graphs), scheduler.put_backs, scheduler.reused_tokens,
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
            self._loop = EngineLoop(
                self.decoder, self.vocab_size, self._reuse_prefixes, self._max_pages, self._cache_dtype
            )
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
            loop.fail_all(explained(error, self.decoder.device))
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
