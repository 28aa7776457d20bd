"""The vLLM backend gives what the native backend gives, on vLLM's CPU build in fp32."""

from __future__ import annotations

import collections
import itertools
import threading
import time
from itertools import chain
from typing import Any

import pytest
import torch
from transformers import (
    GPT2LMHeadModel,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from modelscope_polylm.backends import create_backend
from modelscope_polylm.backends.vllm.engine import QUIET, SPAWN
from modelscope_polylm.backends.vllm.options import REFUSALS
from modelscope_polylm.errors import DeviceError, InputError, OptionError, SnapshotError
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.snapshot import Snapshot, open_snapshot
from tests.interop.inside_vllm.conftest import CONTEXT, options
from tests.searches import Search, Tokens, beam_searches, greedy_searches

ENDS = [2, 5, 40, 77, 300, 333, 397, 742]
TOKENS = Tokens(ENDS, bad_words=[[7], [8], [5, 6], [9, 10], [11]])


def accepted(searches: list[Search]) -> list[Search]:
    """Those that this backend does not refuse."""
    return [search for search in searches if not any(refusal.is_met(options(**search)) for refusal in REFUSALS)]


STOPS: list[Search] = [{"stop_strings": ["st ", "。", "on"]}, {"stop_strings": "a", "min_new_tokens": 6}]
GREEDY = [{}, *STOPS, *({"eos_token_id": ENDS, **search} for search in accepted(greedy_searches(TOKENS)))]
BEAMS = [
    {"eos_token_id": ENDS, "beam_rules": rules, **search}
    for rules, search in zip(itertools.cycle(("4.31", "5")), accepted(beam_searches(TOKENS)), strict=False)
]


def facts(answers: list[list[Any]]) -> list[list[tuple[Any, ...]]]:
    return [[(answer.ids, answer.finish_reason, answer.end_token) for answer in group] for group in answers]


def collect(backend: Any, prompts: list[list[int]], checked: Any) -> tuple[list[list[int]], list[list[Any]], int]:
    """The streamed ids of each prompt, the answers, and how many deltas there were."""
    deltas = list(backend.submit(backend.requests(prompts, checked)))
    streamed: list[list[int]] = [[] for _ in prompts]
    answers: list[list[Any]] = [[] for _ in prompts]
    for delta in deltas:
        streamed[delta.request] += delta.ids
        answers[delta.request] = delta.completions or []
    return streamed, answers, len(deltas)


@pytest.mark.parametrize("given", GREEDY, ids=str)
def test_greedy_ids_equal_the_native_ones(vllm: Any, native: Any, prompts: list[list[int]], given: Any) -> None:
    checked = options(**given)
    wanted = facts(native.generate(prompts, checked))
    assert facts(vllm.generate(prompts, checked)) == wanted
    streamed, answers, _ = collect(vllm, prompts, checked)
    assert facts(answers) == wanted
    assert streamed == [group[0].ids for group in answers]
    assert facts(vllm.generate(prompts[:1], checked)) == wanted[:1]


@pytest.mark.parametrize("given", BEAMS, ids=str)
def test_beams_equal_the_native_ones(vllm: Any, native: Any, prompts: list[list[int]], given: Any) -> None:
    checked = options(output_logprobs=True, **given)
    wanted, found = native.generate(prompts, checked), vllm.generate(prompts, checked)
    assert facts(found) == facts(wanted)
    for ours, theirs in zip(chain(*found), chain(*wanted), strict=True):
        assert ours.score == pytest.approx(theirs.score, abs=1e-3)
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=1e-3)
    streamed, answers, count = collect(vllm, prompts[:2], checked)
    assert (facts(answers), count) == (facts(wanted[:2]), 2)
    assert streamed == [group[0].ids for group in answers]


def test_beams_warn_once(vllm: Any, prompts: list[list[int]], caplog: pytest.LogCaptureFixture) -> None:
    vllm._is_warned = False
    for _ in range(2):
        vllm.generate(prompts[:1], options(num_beams=2, max_new_tokens=2))
    warnings = [record.message for record in caplog.records if "backend='native' is faster" in record.message]
    assert len(warnings) == 1


def test_scores_and_logprobs(vllm: Any, native: Any, prompts: list[list[int]]) -> None:
    checked = options(output_logprobs=True, repetition_penalty=1.2)
    for ours, theirs in zip(vllm.generate(prompts, checked), native.generate(prompts, checked), strict=True):
        assert ours[0].logprobs == pytest.approx(theirs[0].logprobs, abs=1e-3)
        assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-2)
    assert vllm.generate(prompts[:1], options())[0][0].score is None


def test_a_stream_comes_in_parts(vllm: Any, prompts: list[list[int]]) -> None:
    _, answers, count = collect(vllm, prompts[:1], options(min_new_tokens=24))
    assert count > 5 and len(answers[0][0].ids) == 24


def test_more_prompts_than_run_at_once(vllm: Any, native: Any, prompts: list[list[int]]) -> None:
    many = prompts * 4
    assert facts(vllm.generate(many, options())) == facts(native.generate(prompts, options())) * 4


def test_a_seed_repeats_and_prompts_of_a_call_differ(vllm: Any, prompts: list[list[int]]) -> None:
    given = {"do_sample": True, "temperature": 1.8, "num_return_sequences": 3}
    first, second = (vllm.generate(prompts[-6:], options(seed=7, **given)) for _ in range(2))
    assert facts(first) == facts(second)
    assert facts(vllm.generate(prompts[-6:-5], options(seed=7, **given))) == facts(first[:1])
    assert facts(first) != facts(vllm.generate(prompts[-6:], options(seed=8, **given)))
    same = vllm.generate([prompts[-1]] * 4, options(seed=7, **given))
    assert len({str(answer.ids) for group in same for answer in group}) > 6
    for group in first:
        scores = [answer.score for answer in group]
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("given", [{"temperature": 1.5, "top_k": 0}, {"top_k": 7}, {"top_p": 0.8}, {"top_p": 0.0}])
def test_sampling_has_transformers_distribution(
    vllm: Any, snapshot: Snapshot, prompts: list[list[int]], given: dict[str, Any]
) -> None:
    checked = options(do_sample=True, max_new_tokens=1, num_return_sequences=64, seed=1, eos_token_id=2999, **given)
    model: Any = GPT2LMHeadModel.from_pretrained(snapshot.folder, dtype=torch.float32)
    prompt = prompts[-1]
    with torch.no_grad():
        logits = model(torch.tensor([prompt])).logits[:, -1]
    warpers = [TemperatureLogitsWarper(checked.temperature)]
    warpers += [TopKLogitsWarper(checked.top_k)] if checked.top_k else []
    warpers += [TopPLogitsWarper(checked.top_p)] if checked.top_p < 1 else []
    wanted = LogitsProcessorList(warpers)(torch.tensor([prompt]), logits).softmax(-1)[0]
    drawn = [answer.ids[0] for group in vllm.generate([prompt] * 40, checked) for answer in group if answer.ids]
    counts = collections.Counter(drawn)
    assert all(wanted[token] > 0 for token in counts)
    shares = torch.tensor([counts[token] / len(drawn) for token in range(len(wanted))])
    # half the sum of |share - probability| of 2,560 draws that follow the distribution
    noise = (wanted * (1 - wanted) / len(drawn)).sqrt().sum() * (2 / torch.pi) ** 0.5 / 2
    assert float((shares - wanted).abs().sum()) / 2 < 1.5 * float(noise) + 0.01


def test_closing_a_stream_aborts_its_requests(vllm: Any, prompts: list[list[int]]) -> None:
    updates = vllm.submit(vllm.requests(prompts * 3, options(min_new_tokens=180, max_new_tokens=180)))
    next(updates)
    processor = vllm.engine._held[0].output_processor
    assert processor.get_num_unfinished_requests() > 0
    updates.close()
    deadline = time.monotonic() + 5
    while processor.get_num_unfinished_requests() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert processor.get_num_unfinished_requests() == 0
    assert vllm.generate(prompts[:1], options())[0][0].ids


def test_threads_get_what_they_would_get_alone(vllm: Any, prompts: list[list[int]]) -> None:
    calls = [options(), options(repetition_penalty=1.3), options(num_beams=2), options(do_sample=True, seed=3)] * 2
    alone = [facts(vllm.generate(prompts, call)) for call in calls]
    together: list[Any] = [None] * len(calls)

    def work(index: int) -> None:
        backend_call = collect(vllm, prompts, calls[index])
        together[index] = facts(backend_call[1])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone


def test_vllm_knows_every_setting_that_is_made() -> None:
    from vllm.envs import environment_variables

    assert (QUIET | SPAWN).keys() <= environment_variables.keys()


def test_a_step_takes_as_much_as_in_vllms_own_class(vllm: Any) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.usage.usage_lib import UsageContext

    # the fixture bounds the rows itself
    tokens, _ = EngineArgs.get_batch_defaults(world_size=1)
    assert vllm.engine.config.scheduler_config.max_num_batched_tokens == tokens[UsageContext.LLM_CLASS]


def test_the_context_is_that_of_max_model_len(vllm: Any, snapshot: Snapshot) -> None:
    assert (vllm.config.max_positions, snapshot.config.max_positions) == (CONTEXT, 512)
    with pytest.raises(InputError, match="does not fit the model's 256 positions"):
        vllm.generate([[5] * 250], options())
    assert len(vllm.generate([[5] * (CONTEXT - 8)], options(max_new_tokens=8, min_new_tokens=8))[0][0].ids) == 8


@pytest.mark.parametrize("prompts", [[], [[]], [[3000]], [[-1]]])
def test_bad_prompts(vllm: Any, prompts: list[list[int]]) -> None:
    with pytest.raises(InputError):
        vllm.requests(prompts, options())


def test_refused_options_are_refused_before_anything_runs(vllm: Any) -> None:
    with pytest.raises(OptionError, match=r"no_repeat_ngram_size=2 is not in the vllm backend.*backend='native'"):
        vllm.requests([[5]], options(no_repeat_ngram_size=2))


@pytest.mark.parametrize(
    ("device", "given", "error", "message"),
    [
        ("cpu", {"gpu_memory_utilisation": 0.1}, OptionError, "did you mean gpu_memory_utilization"),
        ("cpu", {"no_such": 1}, OptionError, "no option 'no_such'"),
        ("cpu", {"tokenizer": "x"}, OptionError, "'tokenizer' cannot be given"),
        ("cpu", {"distributed_executor_backend": "dask"}, OptionError, "is not 'mp' or 'ray'"),
        ("cpu", {"quantization": "no_such"}, OptionError, "no_such"),
        ("cpu", {"max_model_len": 513}, OptionError, "513"),
        ("cuda", {}, DeviceError, "runs on cpu"),
    ],
)
def test_bad_engine_options(snapshot: Snapshot, device: str, given: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        create_backend("vllm", snapshot, torch.device(device), torch.float32, **given)


def test_a_snapshot_of_2023_has_to_be_packaged() -> None:
    with pytest.raises(SnapshotError, match=r"tokenizer.json is missing.*polylm package"):
        create_backend("vllm", open_snapshot(TINY_FOLDER), torch.device("cpu"), torch.float32)
