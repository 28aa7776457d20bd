"""The engine's loop: streams, mixed requests that come and go, threads, faults, and prompts that cannot be run."""

from __future__ import annotations

import gc
import math
import os
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch

from modelscope_polylm.errors import DeviceError, InputError, OptionError, SnapshotError
from modelscope_polylm.generation.engine import Engine, check_native
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Completion, Delta
from modelscope_polylm.generation.requests import Request, checked_requests
from modelscope_polylm.generation.runner import Runner
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from tests.generation.models import engine_of, generate, submit
from tests.generation.random_gpt2 import PROMPTS, random_model
from tests.snapshots import tokenizer_bytes

MIXED: list[dict[str, Any]] = [
    {"max_new_tokens": 17, "eos_token_id": 299},
    {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2},
    {"max_new_tokens": 30, "repetition_penalty": 1.3, "eos_token_id": [4, 39]},
    {"max_new_tokens": 9, "num_beams": 4, "early_stopping": True, "eos_token_id": 190},
    {"max_new_tokens": 20, "do_sample": True, "seed": 7, "top_k": 20, "num_return_sequences": 3},
    {"max_new_tokens": 12, "do_sample": True, "seed": 8, "top_k": 0, "top_p": 0.8, "temperature": 0.7},
    {"max_new_tokens": 1},
    {"max_new_tokens": 14, "no_repeat_ngram_size": 2, "min_new_tokens": 6, "eos_token_id": 77},
    {"max_new_tokens": 8, "num_beams": 2, "bad_words_ids": [[44], [7, 8]], "length_penalty": 2.0},
]


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def engine(model):
    return engine_of(model)


def requests_of(engine: Engine) -> list[Request]:
    """A request of each of MIXED, with different prompts."""
    options = [GenerationOptions.from_layers(case) for case in MIXED]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(len(options))]
    return checked_requests(prompts, options, engine.decoder.config)


def exact(completions: list[list[Completion]]) -> list[list[tuple[list[int], str, int | None]]]:
    """What must not depend on the batch, on a CPU: all except the last bits of scores."""
    return [[(each.ids, each.finish_reason, each.end_token) for each in group] for group in completions]


def alone(engine: Engine, requests: list[Request]) -> list[list[Completion]]:
    return [engine.submit([request], partial=False).completions()[0] for request in requests]


def test_a_stream_yields_every_token_as_it_comes(engine):
    deltas = list(submit(engine, PROMPTS, max_new_tokens=9, eos_token_id=77))
    for index in range(len(PROMPTS)):
        own = [delta for delta in deltas if delta.request == index]
        last = own[-1]
        assert last.completions is not None and last.finish_reason == last.completions[0].finish_reason
        assert all(delta.completions is None and delta.finish_reason is None for delta in own[:-1])
        assert [token for delta in own for token in delta.ids] == last.completions[0].ids
        assert max(len(delta.ids) for delta in own) == 1


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"do_sample": True, "seed": 3}])
def test_several_answers_come_at_the_end(engine, options):
    deltas = list(submit(engine, PROMPTS[:2], num_return_sequences=2, max_new_tokens=6, **options))
    begins = [delta.request for delta in deltas if delta.completions is None and not delta.ids]
    ends = [delta for delta in deltas if delta.completions is not None]
    assert begins == [0, 1] and len(deltas) == 4
    assert sorted(delta.request for delta in ends) == [0, 1]
    assert all(delta.ids == delta.completions[0].ids for delta in ends)


def test_without_partial_deltas_only_ends_are_told(engine):
    deltas = list(submit(engine, PROMPTS, partial=False, max_new_tokens=9))
    assert len(deltas) == len(PROMPTS) and all(delta.completions is not None for delta in deltas)


def test_a_listener_gets_the_deltas(engine):
    got: list[Delta | BaseException] = []
    ended = threading.Event()

    def listen(item: Delta | BaseException) -> None:
        got.append(item)
        if isinstance(item, BaseException) or item.completions is not None:
            ended.set()

    request = checked_requests([PROMPTS[0]], GenerationOptions(max_new_tokens=7), engine.decoder.config)
    handle = engine.submit(request, listener=listen)
    assert ended.wait(60)
    assert [token for delta in got for token in delta.ids] == generate(engine, [PROMPTS[0]], max_new_tokens=7)[0][0].ids
    handle.close()


def test_requests_of_different_options_run_together(engine):
    requests = requests_of(engine)
    expected = exact(alone(engine, requests))
    assert exact(engine.submit(requests, partial=False).completions()) == expected
    backwards = engine.submit(requests[::-1], partial=True).completions()[::-1]
    assert exact(backwards) == expected


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_at_once_bounds_what_runs_together(engine, at_once, monkeypatch):
    seen = []
    step = Runner.step
    monkeypatch.setattr(Runner, "step", lambda self, active: (seen.append(len(active)), step(self, active))[1])
    requests = requests_of(engine)
    together = exact(engine.submit(requests, partial=False, at_once=at_once).completions())
    assert together == exact(alone(engine, requests))
    assert max(seen) <= at_once


@pytest.mark.parametrize("pages", [11, 14])
def test_requests_that_are_put_back_give_the_same(model, engine, pages):
    small = engine_of(model, max_pages=pages)
    cases = ({}, {"num_beams": 2}, {"do_sample": True, "seed": 1}, {"do_sample": True, "num_return_sequences": 2}, {})
    options = [
        GenerationOptions.from_layers({"max_new_tokens": 50, "eos_token_id": 299, "seed": 5, **case}) for case in cases
    ]
    requests = checked_requests(PROMPTS[: len(options)], options, engine.decoder.config)
    expected = exact(alone(engine, requests))
    assert exact(small.submit(requests, partial=False).completions()) == expected
    status = small.status()
    assert status.put_backs > 0
    assert (status.running_rows, status.used_cache_tokens) == (0, 0)


def test_a_stream_goes_on_where_it_was_put_back(model, engine):
    small = engine_of(model, max_pages=5, reuse_prefixes=False)
    config = engine.decoder.config
    prompts, options = [PROMPTS[0], PROMPTS[1], PROMPTS[2]], GenerationOptions(max_new_tokens=60, eos_token_id=299)
    streams = [small.submit(checked_requests([prompt], options, config)) for prompt in prompts]
    for prompt, stream in zip(prompts, streams, strict=True):
        ids = [token for delta in stream for token in delta.ids]
        assert ids == generate(engine, [prompt], max_new_tokens=60, eos_token_id=299)[0][0].ids
    assert small.status().put_backs > 0


def test_a_text_is_found_again(model):
    engine = engine_of(model)
    prompt = list(range(10, 60))
    first = generate(engine, [prompt], max_new_tokens=20, eos_token_id=299)[0][0].ids
    assert engine.status().reused_tokens == 0
    assert generate(engine, [prompt], max_new_tokens=20, eos_token_id=299)[0][0].ids == first
    assert engine.status().reused_tokens == 48
    # the next turn of a chat finds the answer, too
    longer = [*prompt, *first, 7]
    expected = generate(engine_of(model, reuse_prefixes=False), [longer], max_new_tokens=9)[0][0].ids
    assert generate(engine, [longer], max_new_tokens=9)[0][0].ids == expected
    assert engine.status().reused_tokens == 48 + 64


def test_reuse_can_be_switched_off(model):
    engine = engine_of(model, reuse_prefixes=False)
    for _ in range(2):
        generate(engine, [list(range(10, 60))], max_new_tokens=3)
    assert engine.status().reused_tokens == 0


def test_requests_that_are_submitted_together_share_their_begin(model):
    engine, plain = engine_of(model), engine_of(model, reuse_prefixes=False)
    prompts = [[*range(10, 58), last] for last in range(100, 108)]
    options = {"max_new_tokens": 8, "eos_token_id": 299}
    assert exact(generate(engine, prompts, **options)) == exact(generate(plain, prompts, **options))
    assert engine.status().reused_tokens == 7 * 48


def test_a_thousand_short_requests(engine):
    answers = generate(engine, [[1 + index % 290] for index in range(1000)], max_new_tokens=1, eos_token_id=299)
    assert len(answers) == 1000
    assert answers[0][0].ids == answers[290][0].ids and all(len(group[0].ids) <= 1 for group in answers)


def test_threads_share_steps_and_get_what_they_would_get_alone(engine):
    requests = requests_of(engine)
    expected = exact(alone(engine, requests))
    results: dict[int, Any] = {}

    def work(index: int) -> None:
        results[index] = exact(alone(engine, [requests[index]]))[0]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [results[index] for index in range(len(requests))] == expected


def wait_until_idle(engine: Engine) -> None:
    for _ in range(600):
        status = engine.status()
        if not (status.running_rows or status.waiting_requests):
            return
        time.sleep(0.01)
    raise AssertionError(f"still busy: {engine.status()}")


@pytest.mark.parametrize("how", ["close", "drop"])
def test_a_stream_that_nobody_reads_is_cancelled(engine, how):
    expected = exact(generate(engine, [PROMPTS[1]], max_new_tokens=8))
    stream = submit(engine, PROMPTS, max_new_tokens=60, eos_token_id=299)
    next(stream)
    assert exact(generate(engine, [PROMPTS[1]], max_new_tokens=8)) == expected
    if how == "close":
        stream.close()
    else:
        del stream
        gc.collect()
    wait_until_idle(engine)
    assert engine.status().used_cache_tokens == 0


def test_a_newcomer_gets_its_first_token_within_two_steps(model, monkeypatch):
    engine = engine_of(model)
    steps, step = [], Runner.step

    def counted(self, active):
        steps.append(len(active))
        time.sleep(0.02)
        return step(self, active)

    monkeypatch.setattr(Runner, "step", counted)
    running = submit(engine, [[1 + row] for row in range(64)], max_new_tokens=90, eos_token_id=299)
    while 64 not in steps:
        time.sleep(0.001)
    first, seen = threading.Event(), []

    def listen(item):
        if item.ids and not seen:
            seen.append(len(steps))
            first.set()

    before = len(steps)
    request = checked_requests([PROMPTS[0]], GenerationOptions(max_new_tokens=5), engine.decoder.config)
    handle = engine.submit(request, listener=listen)
    assert first.wait(60)
    # the step that ran when it came, and the one that its prefill precedes
    assert seen[0] - before <= 2
    handle.close()
    running.close()


def test_cancelling_what_waits(model):
    engine = engine_of(model, max_rows=1)
    first = submit(engine, [PROMPTS[0]], max_new_tokens=40, eos_token_id=299)
    second = submit(engine, [PROMPTS[1]], max_new_tokens=40, eos_token_id=299)
    second.close()
    assert list(second) == []
    assert len(first.completions()[0][0].ids) == 40
    wait_until_idle(engine)


class Injected(Exception):
    """Raised inside a step."""


def test_an_exception_in_a_step_ends_its_requests_and_the_loop_lives_on(engine, monkeypatch):
    expected = exact(generate(engine, PROMPTS, max_new_tokens=12))
    calls = []
    step = Runner.step

    def fails_once(self, active):
        calls.append(1)
        if len(calls) == 3:
            raise Injected("broken")
        return step(self, active)

    monkeypatch.setattr(Runner, "step", fails_once)
    with pytest.raises(DeviceError, match="Injected: broken"):
        generate(engine, PROMPTS, max_new_tokens=12)
    assert exact(generate(engine, PROMPTS, max_new_tokens=12)) == expected
    assert engine.status().used_cache_tokens == 0


def test_out_of_memory_in_a_prefill_is_tried_one_by_one(engine, monkeypatch):
    expected = exact(generate(engine, PROMPTS, max_new_tokens=6))
    prefill = Runner.prefill

    def small_memory(self, admitted):
        if len(admitted) > 1:
            raise torch.OutOfMemoryError("no memory")
        return prefill(self, admitted)

    monkeypatch.setattr(Runner, "prefill", small_memory)
    assert exact(generate(engine, PROMPTS, max_new_tokens=6)) == expected


def test_a_prompt_that_never_fits_into_memory(engine, monkeypatch):
    def no_memory(self, admitted):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(Runner, "prefill", no_memory)
    with pytest.raises(DeviceError, match="ran out of memory"):
        generate(engine, PROMPTS, max_new_tokens=6)


def test_a_request_that_can_never_fit_is_refused_with_the_numbers(model):
    engine = engine_of(model, max_pages=4)
    with pytest.raises(DeviceError, match=r"1 rows with 96 tokens .* room for 64 tokens"):
        generate(engine, [PROMPTS[3]], max_new_tokens=60)
    with pytest.raises(DeviceError, match="5 beams or samples do not fit into the 4 rows"):
        generate(engine_of(model, max_rows=4), [[1]], num_beams=5, max_new_tokens=3)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True}, {"repetition_penalty": 1.2}])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_results_that_are_not_finite_are_an_error(options, value):
    model = random_model()
    model.transformer.h[1].mlp.c_fc.bias.data[3] = value
    engine = engine_of(model)
    with pytest.raises(SnapshotError, match=r"not finite numbers.*polylm verify"):
        generate(engine, [PROMPTS[0]], max_new_tokens=4, **options)
    assert engine.status().used_cache_tokens == 0


def test_an_engine_that_nobody_holds_goes(model):
    engine = engine_of(model)
    generate(engine, [PROMPTS[0]], max_new_tokens=3)
    gone = weakref.ref(engine)
    del engine
    gc.collect()
    for _ in range(100):
        if gone() is None:
            break
        time.sleep(0.02)
    assert gone() is None


def test_a_closed_engine_starts_again(model):
    engine = engine_of(model)
    expected = generate(engine, [PROMPTS[0]], max_new_tokens=3)
    stream = submit(engine, [PROMPTS[0]], max_new_tokens=90)
    engine.close()
    assert engine.status().running_rows == 0
    assert generate(engine, [PROMPTS[0]], max_new_tokens=3) == expected
    stream.close()


def test_a_forked_child_has_an_engine_of_its_own(engine):
    expected = exact(generate(engine, [PROMPTS[1]], max_new_tokens=10))
    running = submit(engine, [PROMPTS[0]], max_new_tokens=90, eos_token_id=299)
    next(running)
    child = os.fork()
    if child == 0:
        is_right = exact(generate(engine, [PROMPTS[1]], max_new_tokens=10)) == expected
        os._exit(0 if is_right else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    running.close()


@pytest.mark.parametrize("dropped", ["", "del engine, stream"], ids=["requests run", "the engine is dropped"])
def test_the_interpreter_ends(dropped):
    script = (
        "from tests.generation.models import engine_of, submit; from tests.generation.random_gpt2 import random_model;"
        "engine = engine_of(random_model()); stream = submit(engine, [[1]], max_new_tokens=90); next(stream);"
        f"print('ends'); {dropped}"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr


def test_a_default_dtype_and_device_of_the_caller_change_nothing(engine):
    expected = [exact(generate(engine, PROMPTS[:2], max_new_tokens=6, **case)) for case in ({}, {"num_beams": 2})]
    fresh = engine_of(random_model())
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
            found = [exact(generate(fresh, PROMPTS[:2], max_new_tokens=6, **case)) for case in ({}, {"num_beams": 2})]
            penalised = generate(fresh, PROMPTS[:2], max_new_tokens=6, no_repeat_ngram_size=2, do_sample=True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == expected and len(penalised) == 2


@pytest.mark.parametrize(
    "option",
    [{"eos_token_id": 300}, {"eos_token_id": [5, 1 << 40]}, {"pad_token_id": 300}, {"bad_words_ids": [[1, 300]]}],
)
def test_token_ids_that_the_network_does_not_have(engine, option):
    with pytest.raises(OptionError, match=f"{next(iter(option))} holds .* give 0..299"):
        generate(engine, [PROMPTS[0]], max_new_tokens=2, **option)


@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.3}, {"num_beams": 3}, {"num_beams": 3, "min_length": 9}]
)
def test_log_probabilities_are_the_models_own(engine, model, options):
    answer = generate(engine, [PROMPTS[1]], max_new_tokens=7, output_logprobs=True, eos_token_id=299, **options)[0][0]
    with torch.no_grad():
        logprobs = model(torch.tensor([PROMPTS[1] + answer.ids])).logits[0].log_softmax(-1)
    start = len(PROMPTS[1]) - 1
    expected = [logprobs[start + index, token].item() for index, token in enumerate(answer.ids)]
    assert answer.logprobs == pytest.approx(expected, abs=1e-4)


def test_samples_are_sorted_by_their_log_probability(engine):
    answers = generate(engine, [PROMPTS[0]], do_sample=True, num_return_sequences=5, max_new_tokens=5, seed=1)[0]
    scores = [answer.score for answer in answers]
    assert scores == sorted(scores, reverse=True)


def test_an_answer_ends_after_a_stop_string(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(tokenizer_bytes())
    tokenizer = PolyLMTokenizer.from_pretrained(tmp_path)
    engine = engine_of(random_model(vocabulary=tokenizer.vocab_size))
    engine.tokenizer = tokenizer
    prompt = tokenizer.encode("Beijing is")
    text = tokenizer.decode(generate(engine, [prompt], max_new_tokens=30)[0][0].ids)
    stop = text[len(text) // 2 : len(text) // 2 + 3]
    answer = generate(engine, [prompt], max_new_tokens=30, stop_strings=["never there", stop])[0][0]
    stopped = tokenizer.decode(answer.ids)
    assert answer.finish_reason == "stop"
    assert stop in stopped and text.startswith(stopped)
    assert stop not in tokenizer.decode(answer.ids[:-1])


def test_a_minimum_above_the_limit_is_refused(engine):
    with pytest.raises(OptionError, match=r"at most 5 new tokens, but .* asks for 9"):
        generate(engine, [[1, 2]], max_new_tokens=5, min_length=11)


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "no prompt"),
        ([[1, 2], []], {"max_new_tokens": 5}, "Prompt 1 has no tokens"),
        ([[1, 300]], {}, "outside 0..299"),
        ([[-1]], {}, "outside 0..299"),
        ([list(range(3, 99))], {"max_new_tokens": 1}, "shorten the prompt"),
        ([[1] * 90], {"max_new_tokens": 20}, "max_new_tokens to at most 6"),
        ([[1] * 10], {"max_length": 10}, "max_length=10"),
        ([[1, 2]], {"max_new_tokens": 2000}, "context of 96"),
    ],
)
def test_prompts_that_cannot_be_run_are_refused(engine, prompts, options, message):
    with pytest.raises(InputError, match=message):
        generate(engine, prompts, **options)


def test_the_last_position_can_be_used(engine):
    assert len(generate(engine, [[5] * 90], max_new_tokens=6, eos_token_id=299)[0][0].ids) == 6


def test_stop_strings_with_beams_are_refused():
    with pytest.raises(OptionError, match="backend='transformers'"):
        check_native(GenerationOptions.from_layers({"stop_strings": "x", "num_beams": 2}))
