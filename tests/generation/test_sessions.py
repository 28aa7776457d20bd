"""What is kept on a GPU between calls is bounded and reported; a batch too large for it is refused before it starts."""

from __future__ import annotations

import pytest

from modelscope_polylm.errors import DeviceError
from modelscope_polylm.generation import scheduler as sessions
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import Request
from modelscope_polylm.network.kv_cache import bytes_per_slot
from tests.generation.models import engine_of
from tests.generation.random_gpt2 import random_model

REQUESTS = [Request([5, 6, 7], 4), Request([8] * 10, 4)]
BEAMS = GenerationOptions(num_beams=4)


@pytest.fixture(scope="module")
def decoder():
    return engine_of(random_model()).decoder


@pytest.fixture
def arena(decoder):
    # on a CPU its sessions are made, but no step is captured
    return sessions._Arena(decoder, decoder.config.vocab_size)


def room_for(slots, decoder, monkeypatch):
    size = slots * bytes_per_slot(decoder.config, decoder.dtype)
    monkeypatch.setattr(sessions, "_available_bytes", lambda device: size)


def test_a_batch_too_large_is_refused_with_rows_tokens_and_bytes(arena, decoder, monkeypatch):
    # the scratch slot, 3 + 10 tokens of prompts, and 4 for each of 8 beams
    room_for(45, decoder, monkeypatch)
    needed = f"{46 * bytes_per_slot(decoder.config, decoder.dtype):,}"
    with pytest.raises(
        DeviceError, match=f"8 rows with 46 tokens.* need {needed} bytes.*room for 45 tokens: use a smaller"
    ):
        arena.session(REQUESTS, BEAMS)
    assert (arena.cache_bytes, arena.captured_steps) == (0, 0)
    room_for(46, decoder, monkeypatch)
    arena.session(REQUESTS, BEAMS)
    assert arena.cache_bytes == 46 * bytes_per_slot(decoder.config, decoder.dtype)


def test_a_cache_serves_every_later_call_that_fits(arena, decoder, monkeypatch):
    room_for(10_000, decoder, monkeypatch)
    first = arena.session(REQUESTS, BEAMS)
    assert first.cache.slots == sessions.CONTEXTS_AT_FIRST * decoder.config.max_positions
    assert arena.session([Request([9], 90)], BEAMS).cache is first.cache
    assert arena.session(REQUESTS, GenerationOptions(num_beams=4, length_penalty=2.0)) is first
    assert arena.captured_steps == 2
    larger = arena.session([Request([9], 90)] * 8, BEAMS)
    assert larger.cache.slots == 4096 and arena.captured_steps == 1


def test_captured_steps_are_bounded(arena, decoder, monkeypatch):
    room_for(10_000, decoder, monkeypatch)
    shapes = [GenerationOptions(no_repeat_ngram_size=size) for size in range(1, sessions.CAPTURED_STEPS + 3)]
    made = [arena.session(REQUESTS, options) for options in shapes]
    assert arena.captured_steps == sessions.CAPTURED_STEPS
    # the one that was not used for longest went first
    assert arena.session(REQUESTS, shapes[-1]) is made[-1]
    assert arena.session(REQUESTS, shapes[0]) is not made[0]
