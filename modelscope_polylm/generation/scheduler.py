"""Hands out sessions: built for the call on a CPU, kept with their cache and captured step on a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator, Sequence

import torch

from modelscope_polylm.errors import DeviceError
from modelscope_polylm.generation.graphs import CapturedSession, ShortPrefills
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.runner import Session
from modelscope_polylm.generation.search import SearchShape
from modelscope_polylm.generation.state import Request, Rows
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.network.kv_cache import SCRATCH_SLOT, KVCache, bytes_per_slot

CONTEXTS_AT_FIRST = 4
"""A GPU's first cache holds this many full contexts, so that few calls ever make it grow."""
SPARE_BYTES = 1 << 30
"""GPU memory that the cache leaves to activations and captured steps."""
CAPTURED_STEPS = 32
"""A cache keeps at most so many captured steps; the one that was not used for longest goes first."""


@dataclasses.dataclass(frozen=True)
class SessionMemory:
    """What is kept on a GPU between calls.

    Attributes:
        cache_bytes: of all KV caches.
        captured_steps: steps that are ready to be replayed.
    """

    cache_bytes: int
    captured_steps: int


class Sessions:
    """Leases sessions for one decoder; a session serves one call at a time, so calls never share state.

    Args:
        decoder: the network.
        vocab_limit: ids at or above it are never generated.
    """

    def __init__(self, decoder: Decoder, vocab_limit: int):
        self._decoder, self._vocab_limit = decoder, vocab_limit
        self._free: list[_Arena] = []
        self._all: list[_Arena] = []
        self._lock = threading.Lock()

    def memory(self) -> SessionMemory:
        """What the calls so far have left on the GPU, for the next ones to use."""
        with self._lock:
            return SessionMemory(
                sum(arena.cache_bytes for arena in self._all), sum(arena.captured_steps for arena in self._all)
            )

    @contextlib.contextmanager
    def lease(self, requests: Sequence[Request], options: GenerationOptions) -> Iterator[Session]:
        """A session with room for the requests.

        Raises:
            DeviceError: the requests need more cache than the GPU has memory for.
        """
        if self._decoder.device.type != "cuda":
            yield self._session_for_one_call(requests, options)
            return
        with self._lock:
            arena = self._free.pop() if self._free else self._new_arena()
        try:
            yield arena.session(requests, options)
        finally:
            with self._lock:
                self._free.append(arena)

    def _new_arena(self) -> _Arena:
        self._all.append(_Arena(self._decoder, self._vocab_limit))
        return self._all[-1]

    def _session_for_one_call(self, requests: Sequence[Request], options: GenerationOptions) -> Session:
        decoder = self._decoder
        group = SearchShape.of(options, decoder.config.vocab_size).rows_per_prompt
        positions = max(len(request.prompt) + request.limit for request in requests)
        cache = KVCache(decoder.config, _slots(requests, group), decoder.device, decoder.dtype)
        return Session(
            decoder, options, Rows(len(requests), group, positions, decoder.device), cache, self._vocab_limit
        )


class _Arena:
    """A cache on the GPU, and the captured prefills and sessions that are bound to it."""

    def __init__(self, decoder: Decoder, vocab_limit: int):
        self._decoder, self._vocab_limit = decoder, vocab_limit
        self._short_prefills: ShortPrefills | None = None
        # the one used last stands last
        self._sessions: dict[tuple[int, SearchShape], Session] = {}

    @property
    def cache_bytes(self) -> int:
        if self._short_prefills is None:
            return 0
        return self._short_prefills.cache.slots * bytes_per_slot(self._decoder.config, self._decoder.dtype)

    @property
    def captured_steps(self) -> int:
        return len(self._sessions)

    def session(self, requests: Sequence[Request], options: GenerationOptions) -> Session:
        config = self._decoder.config
        shape = SearchShape.of(options, config.vocab_size)
        prompts = 1 << (len(requests) - 1).bit_length()
        prefills = self._prefills_for(_slots(requests, shape.rows_per_prompt), prompts * shape.rows_per_prompt)
        session = self._sessions.pop((prompts, shape), None)
        if session is None:
            rows = Rows(prompts, shape.rows_per_prompt, config.max_positions, self._decoder.device)
            session = CapturedSession(prefills, options, rows, self._vocab_limit)
        self._sessions[prompts, shape] = session
        if len(self._sessions) > CAPTURED_STEPS:
            del self._sessions[next(iter(self._sessions))]
        return session

    def _prefills_for(self, slots: int, rows: int) -> ShortPrefills:
        if self._short_prefills is not None and self._short_prefills.cache.slots >= slots:
            return self._short_prefills
        self._sessions.clear()
        self._short_prefills = None
        decoder = self._decoder
        slot_bytes = bytes_per_slot(decoder.config, decoder.dtype)
        available = _available_bytes(decoder.device) // slot_bytes
        if slots > available:
            raise DeviceError(
                f"{rows} rows with {slots} tokens of prompts and answers need {slots * slot_bytes:,} bytes of KV "
                f"cache, but {decoder.device} has room for {max(available, 0)} tokens: use a smaller batch_size, fewer "
                "beams, shorter texts, or backend='transformers' with offload."
            )
        roomy = max(1 << (slots - 1).bit_length(), CONTEXTS_AT_FIRST * decoder.config.max_positions)
        cache = KVCache(decoder.config, min(roomy, available), decoder.device, decoder.dtype)
        self._short_prefills = ShortPrefills(decoder, cache)
        return self._short_prefills


def _slots(requests: Sequence[Request], group: int) -> int:
    return SCRATCH_SLOT + 1 + sum(request.slots(group) for request in requests)


def _available_bytes(device: torch.device) -> int:
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0] - SPARE_BYTES
