from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2LMHeadModel, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from modelscope_polylm.backends import create_backend
from modelscope_polylm.backends.base import Completion, DeltaStream
from modelscope_polylm.backends.transformers.backend import TransformersBackend
from modelscope_polylm.errors import DeviceError, InputError, OptionError, SnapshotError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.snapshot import open_snapshot
from tests.searches import Tokens, beam_searches, greedy_searches
from tests.snapshots import LAYOUTS, build_snapshot

CPU = torch.device("cpu")
EXTRA_ROWS = 40
PROMPTS = [[5, 300, 17, 281, 90], [301, 44], [283, 283, 283, 31, 12, 299, 410, 77, 23]]
ENDS = [2, 11, 40, 77, 300, 333]
TOKENS = Tokens(ENDS, bad_words=[[17], [90], [300, 17], [44, 5], [283, 31, 12]])
SEARCHES = [{"eos_token_id": 2}, *greedy_searches(TOKENS), *beam_searches(TOKENS)]


def load(folder: Path, **backend_options: Any) -> TransformersBackend:
    backend = create_backend("transformers", open_snapshot(folder), CPU, torch.float32, **backend_options)
    assert isinstance(backend, TransformersBackend)
    return backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2023 snapshot: .bin with causal masks, a wrong end token in its config, more embeddings than pieces."""
    return build_snapshot(
        tmp_path_factory.mktemp("snapshot"), width=128, heads=2, vocab_size=512 + EXTRA_ROWS, spread=0.2
    )


@pytest.fixture(scope="module")
def backend(folder: Path) -> TransformersBackend:
    return load(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> GPT2LMHeadModel:
    return GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)


def options(**given: Any) -> GenerationOptions:
    return GenerationOptions.from_layers({"max_new_tokens": 12, "eos_token_id": 2}, given, allow_extra=True)


def run(backend: TransformersBackend, prompts: Sequence[Sequence[int]], **given: Any) -> list[list[Completion]]:
    return backend.generate(prompts, options(**given))


def ids(answers: list[list[Completion]]) -> list[list[list[int]]]:
    return [[answer.ids for answer in found] for found in answers]


def reference(model: GPT2LMHeadModel, prompt: list[int], **given: Any) -> list[list[int]]:
    """What transformers alone generates for one prompt, cut at the first end token."""
    arguments = {"max_new_tokens": 12, "eos_token_id": 2, "do_sample": False, "pad_token_id": 2, **given}
    tokens = torch.tensor([prompt])
    output = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        suppress_tokens=list(range(512, 512 + EXTRA_ROWS)),
        **arguments,
    )
    ends = arguments["eos_token_id"] if isinstance(arguments["eos_token_id"], list) else [arguments["eos_token_id"]]
    rows = output[:, len(prompt) :].tolist()
    return [row[: next((place for place, token in enumerate(row) if token in ends), len(row))] for row in rows]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_ids_equal_those_of_transformers_alone_and_in_ragged_batches(
    backend: TransformersBackend, model: GPT2LMHeadModel, search: dict[str, Any]
) -> None:
    given = {"eos_token_id": ENDS, **search}
    expected = [reference(model, prompt, **given) for prompt in PROMPTS]
    assert [ids(run(backend, [prompt], **given))[0] for prompt in PROMPTS] == expected
    assert ids(run(backend, PROMPTS, **given)) == expected
    ragged = submit(backend, [PROMPTS[2], PROMPTS[0], PROMPTS[0]], **given).completions()
    assert ids(ragged) == [expected[2], expected[0], expected[0]]


def test_sampling_is_that_of_transformers(backend: TransformersBackend, model: GPT2LMHeadModel) -> None:
    given = {"do_sample": True, "top_p": 0.8, "temperature": 0.7, "repetition_penalty": 1.02, "top_k": 20}
    torch.manual_seed(7)
    expected = reference(model, PROMPTS[0], **given)
    state = torch.random.get_rng_state()
    assert ids(run(backend, [PROMPTS[0]], seed=7, **given))[0] == expected
    assert torch.equal(torch.random.get_rng_state(), state)
    many = {str(ids(run(backend, [PROMPTS[0]], do_sample=True))) for _ in range(5)}
    assert len(many) > 1


def test_several_samples_come_best_first(backend: TransformersBackend) -> None:
    (answers,) = run(backend, [PROMPTS[0]], do_sample=True, num_return_sequences=4, seed=1)
    scores = [answer.score for answer in answers]
    assert len({str(answer.ids) for answer in answers}) > 1
    assert all(score is not None for score in scores) and scores == sorted(scores, key=lambda score: -(score or 0))


def test_beams_may_sample(backend: TransformersBackend) -> None:
    (first,), (second,) = (
        run(backend, [PROMPTS[0]], do_sample=True, num_beams=3, num_return_sequences=2, seed=3) for _ in range(2)
    )
    assert [answer.ids for answer in first] == [answer.ids for answer in second] and len(first) == 2


def test_beam_scores(backend: TransformersBackend, model: GPT2LMHeadModel) -> None:
    given = {"num_beams": 4, "num_return_sequences": 3, "eos_token_id": ENDS, "length_penalty": 1.5}
    tokens = torch.tensor([PROMPTS[0]])
    output = model.generate(
        tokens,
        max_new_tokens=12,
        do_sample=False,
        pad_token_id=2,
        suppress_tokens=list(range(512, 512 + EXTRA_ROWS)),
        output_scores=True,
        return_dict_in_generate=True,
        **given,
    )
    (answers,) = run(backend, [PROMPTS[0]], **given)
    assert [answer.score for answer in answers] == pytest.approx(output.sequences_scores.tolist(), abs=1e-5)
    assert run(backend, [PROMPTS[0]], num_beams=4)[0][0].score is None


@pytest.mark.parametrize("given", [{}, {"num_beams": 3}, {"repetition_penalty": 1.5}], ids=str)
def test_logprobs(backend: TransformersBackend, model: GPT2LMHeadModel, given: dict[str, Any]) -> None:
    (first, second) = run(backend, PROMPTS[:2], output_logprobs=True, **given)
    for prompt, (answer,) in zip(PROMPTS, (first, second), strict=False):
        logits = model(torch.tensor([prompt + answer.ids])).logits[0, len(prompt) - 1 : -1, :512]
        expected = logits.log_softmax(-1)[range(len(answer.ids)), answer.ids].tolist()
        assert answer.logprobs == pytest.approx(expected, abs=1e-4)
        if "num_beams" not in given:
            assert answer.score == pytest.approx(sum(expected), abs=1e-3)


def test_finish_reasons(backend: TransformersBackend) -> None:
    (answer,) = run(backend, [PROMPTS[0]])[0]
    assert answer.finish_reason == "length" and len(answer.ids) == 12
    for beams in (1, 2):
        (ended,) = run(backend, [PROMPTS[0]], eos_token_id=answer.ids[3], num_beams=beams)[0]
        assert ended.finish_reason == "eos" and answer.ids[3] not in ended.ids


def text(folder: Path, prompt: list[int], answer: list[int]) -> str:
    tokenizer = open_snapshot(folder).tokenizer
    return tokenizer.decode(prompt + answer, True)[len(tokenizer.decode(prompt, True)) :]


def test_stop_strings(backend: TransformersBackend, folder: Path) -> None:
    whole = run(backend, PROMPTS)[0][0].ids
    stop = text(folder, PROMPTS[0], whole)[3:6]
    answer = run(backend, PROMPTS, stop_strings=[stop, "never there"])[0][0]
    assert answer.finish_reason == "stop" and answer.ids == whole[: len(answer.ids)]
    assert stop in text(folder, PROMPTS[0], answer.ids)
    assert stop not in text(folder, PROMPTS[0], answer.ids[:-1])


def test_stop_strings_end_beams(backend: TransformersBackend, folder: Path) -> None:
    reasons = set()
    stops = ["a", "e", "s", "\u4eac"]
    found = run(backend, PROMPTS, num_beams=4, num_return_sequences=4, stop_strings=stops)
    for prompt, answers in zip(PROMPTS, found, strict=True):
        for answer in answers:
            reasons.add(answer.finish_reason)
            has_stop = any(stop in text(folder, prompt, answer.ids) for stop in stops)
            assert has_stop == (answer.finish_reason == "stop")
            assert not any(stop in text(folder, prompt, answer.ids[:-1]) for stop in stops)
    assert "stop" in reasons


def submit(backend: TransformersBackend, prompts: Sequence[Sequence[int]], **given: Any) -> DeltaStream:
    """The deltas of prompts that run together."""
    return backend.submit(backend.requests(prompts, options(**given)), at_once=len(prompts))


@pytest.mark.parametrize(
    "given", [{}, {"do_sample": True, "seed": 5}, {"repetition_penalty": 1.2, "max_time": 60.0}], ids=str
)
def test_tokens_are_streamed_one_by_one(backend: TransformersBackend, given: dict[str, Any]) -> None:
    deltas = list(submit(backend, PROMPTS, eos_token_id=ENDS, **given))
    assert all(len(delta.ids) <= 1 for delta in deltas)
    for index in range(len(PROMPTS)):
        own = [delta for delta in deltas if delta.request == index]
        assert own[-1].completions is not None
        assert [token for delta in own for token in delta.ids] == own[-1].completions[0].ids


def test_beams_are_streamed_once(backend: TransformersBackend) -> None:
    deltas = list(submit(backend, PROMPTS, num_beams=3, num_return_sequences=2))
    assert [delta.request for delta in deltas] == [0, 1, 2]
    assert all(delta.completions and delta.ids == delta.completions[0].ids for delta in deltas)


def test_a_step_is_seen_before_the_next_one_is_done(
    backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_go_on, steps = threading.Semaphore(1), []
    forward = backend.model.forward

    def slow(*args: Any, **kwargs: Any) -> Any:
        assert may_go_on.acquire(timeout=30)
        steps.append(None)
        return forward(*args, **kwargs)

    monkeypatch.setattr(backend.model, "forward", slow)
    deltas = submit(backend, [PROMPTS[0]])
    for count in range(1, 5):
        assert len(next(deltas).ids) == 1 and len(steps) == count
        may_go_on.release()
    deltas.close()
    may_go_on.release(20)
    run(backend, [PROMPTS[1]], max_new_tokens=1)
    assert len(steps) < 12


def test_closing_a_stream_frees_the_backend(backend: TransformersBackend) -> None:
    deltas = submit(backend, [PROMPTS[0]], max_new_tokens=200)
    next(deltas)
    waiting = submit(backend, [PROMPTS[1]])
    deltas.close()
    assert waiting.completions() == run(backend, [PROMPTS[1]])
    for thread in threading.enumerate():
        if thread.name == "polylm-transformers":
            thread.join(30)
            assert not thread.is_alive()


def test_threads_get_what_they_would_get_alone(backend: TransformersBackend) -> None:
    calls = [{"seed": seed, "do_sample": True, "temperature": 2.0} for seed in range(4)] + [{"num_beams": 3}, {}]
    expected = [run(backend, PROMPTS, **call) for call in calls]
    found: dict[int, Any] = {}

    def work(index: int) -> None:
        found[index] = run(backend, PROMPTS, **calls[index])

    threads = [threading.Thread(target=work, args=[index]) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(len(calls))] == expected


def test_two_models_do_not_share_random_numbers(backend: TransformersBackend, folder: Path) -> None:
    other = load(folder)
    given: dict[str, Any] = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 30}
    expected = [run(backend, PROMPTS, seed=seed, **given) for seed in (1, 2)]
    found: list[Any] = [None, None]

    def work(index: int) -> None:
        found[index] = run((backend, other)[index], PROMPTS, seed=index + 1, **given)

    threads = [threading.Thread(target=work, args=[index]) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_ids_without_a_piece_are_never_generated(backend: TransformersBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = backend.model.forward

    def biased(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits[..., 512:] += 1000
        return output

    monkeypatch.setattr(backend.model, "forward", biased)
    for given in ({}, {"num_beams": 3}, {"do_sample": True}, {"suppress_tokens": [5, 6]}, {"repetition_penalty": 1.1}):
        for prompts in (PROMPTS, PROMPTS[:1]):
            found = [token for answers in ids(run(backend, prompts, **given)) for answer in answers for token in answer]
            assert found and max(found) < 512


def test_options_that_only_transformers_knows(backend: TransformersBackend, model: GPT2LMHeadModel) -> None:
    (plain,) = run(backend, [PROMPTS[0]])[0]
    (suppressed,) = run(backend, [PROMPTS[0]], suppress_tokens=[plain.ids[0]])[0]
    assert plain.ids[0] not in suppressed.ids
    allowed = [9, 10, 2]
    constrained = run(backend, PROMPTS, prefix_allowed_tokens_fn=lambda batch, tokens: allowed, num_beams=2)
    assert {token for (answer,) in constrained for token in answer.ids} <= set(allowed)
    processors = LogitsProcessorList([lambda tokens, scores: scores.index_fill(1, torch.tensor([7]), 1e4)])
    assert {token for (answer,) in run(backend, PROMPTS, logits_processor=processors) for token in answer.ids} == {7}
    (looked_up,) = run(backend, [PROMPTS[2]], prompt_lookup_num_tokens=3)[0]
    assert [looked_up.ids] == reference(model, PROMPTS[2], prompt_lookup_num_tokens=3)
    (short,) = run(backend, [PROMPTS[0]], max_time=1e-9)[0]
    assert len(short.ids) == 1 and short.finish_reason == "stop"


def test_a_streamer_of_the_caller_is_used(backend: TransformersBackend) -> None:
    class Streamer(BaseStreamer):  # type: ignore
        def __init__(self) -> None:
            self.seen: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.seen += value.flatten().tolist()

        def end(self) -> None:
            self.seen.append(-1)

    streamer = Streamer()
    (answer,) = run(backend, [PROMPTS[0]], streamer=streamer)[0]
    assert streamer.seen == [*PROMPTS[0], *answer.ids, -1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"output_attentions": True}, "output_attentions has no place in an answer"),
        ({"num_beams": 2, "streamer": BaseStreamer()}, "transformers cannot generate with these options: .*streamer"),
        ({"guidance_scale": "much"}, "transformers cannot generate with these options"),
        ({"num_beam_groups": 2, "num_beams": 4, "diversity_penalty": 0.5}, "transformers cannot generate"),
    ],
)
def test_bad_options(backend: TransformersBackend, given: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run(backend, [PROMPTS[0]], **given)
    assert len(run(backend, [PROMPTS[0]])[0][0].ids) == 12


@pytest.mark.parametrize(
    ("prompts", "given", "message"),
    [
        ([], {}, "no prompt"),
        ([[5], []], {}, "Prompt 1 has no tokens"),
        ([[5, 552]], {}, "outside 0..551"),
        ([[5, -1]], {}, "outside 0..551"),
        ([[5] * 250], {}, "at most 6"),
        ([[5] * 300], {}, "shorten the prompt"),
        ([[5] * 9], {"max_length": 9, "max_new_tokens": None}, "max_length=9"),
    ],
)
def test_bad_prompts(
    backend: TransformersBackend, prompts: list[list[int]], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        backend.requests(prompts, options(**given))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_published_layout(
    tmp_path: Path, layout: str, backend: TransformersBackend, capfd: pytest.CaptureFixture[str]
) -> None:
    sizes: dict[str, Any] = {"width": 128, "heads": 2, "vocab_size": 512 + EXTRA_ROWS, "spread": 0.2}
    logging.getLogger("transformers").setLevel(logging.WARNING)
    loaded = load(build_snapshot(tmp_path, layout=layout, **sizes))
    assert "UNEXPECTED" not in capfd.readouterr().err
    assert run(loaded, PROMPTS, num_beams=2) == run(backend, PROMPTS, num_beams=2)


def test_settings_of_the_folder_are_no_defaults(tmp_path: Path) -> None:
    build_snapshot(tmp_path, width=128, heads=2, vocab_size=512)
    (tmp_path / "generation_config.json").write_text('{"repetition_penalty": 9.0, "max_length": 3, "num_beams": 5}')
    loaded = load(tmp_path)
    assert loaded.model.generation_config.eos_token_id is None
    assert loaded.model.config.eos_token_id == 511
    model = GPT2LMHeadModel.from_pretrained(tmp_path)
    model.generation_config = type(model.generation_config)()
    found = model.generate(torch.tensor([PROMPTS[0]]), max_new_tokens=12, eos_token_id=2, pad_token_id=2)
    assert ids(run(loaded, [PROMPTS[0]]))[0][0] == found[0, 5:].tolist()


DISK = {"transformer.wte": "cpu", "lm_head": "cpu", "transformer.wpe": "cpu", "transformer.drop": "cpu"}
PLACEMENTS: list[dict[str, Any]] = [
    {"device_map": "auto"},
    {"device_map": "cpu"},
    {"device_map": {"": "cpu"}},
    {"device_map": {**DISK, "transformer.h.0": "cpu", "transformer.h.1": "disk", "transformer.ln_f": "cpu"}},
    {"device_map": "auto", "max_memory": {"cpu": "1MB"}},
]


@pytest.mark.parametrize("placement", PLACEMENTS, ids=str)
def test_placements(folder: Path, tmp_path: Path, backend: TransformersBackend, placement: dict[str, Any]) -> None:
    if "disk" in str(placement) or "max_memory" in placement:
        placement = {**placement, "offload_folder": str(tmp_path / "offload")}
    loaded = load(folder, **placement)
    assert loaded.device == CPU
    if "offload_folder" in placement:
        assert "disk" in loaded.model.hf_device_map.values()
    for given in ({"num_beams": 2}, {"output_logprobs": True}):
        assert ids(run(loaded, PROMPTS, **given)) == ids(run(backend, PROMPTS, **given))


@pytest.mark.parametrize(
    ("placement", "error", "message"),
    [
        ({"device_map": "nonsense"}, OptionError, "device_map='nonsense'"),
        ({"device_mapp": "auto"}, OptionError, "did you mean device_map"),
        ({"device_map": {"": "cuda:77"}}, DeviceError, "cuda:77"),
    ],
)
def test_bad_placements(folder: Path, placement: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load(folder, **placement)


def test_linear_layout_is_refused(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, width=128, heads=2)
    tensors = torch.load(folder / "pytorch_model.bin")
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    stored = {name: value.T.contiguous() if name.endswith(turned) else value for name, value in tensors.items()}
    torch.save(stored, folder / "pytorch_model.bin")
    with pytest.raises(SnapshotError, match=r"nn\.Linear.*backend='native'"):
        load(folder)


def test_prefix_of_a_wrapper_is_refused(tmp_path: Path) -> None:
    folder = build_snapshot(tmp_path, width=128, heads=2, prefix="module.transformer.")
    with pytest.raises(SnapshotError, match=r"begin with 'module\.transformer\.'.*backend='native'"):
        load(folder)


@pytest.mark.parametrize("offload", [False, True], ids=["loaded", "offloaded"])
@pytest.mark.parametrize("name", ["wte.weight", "h.0.mlp.c_fc.bias"])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, name: str, offload: bool) -> None:
    folder = build_snapshot(tmp_path / "snapshot", width=128, heads=2)
    tensors = torch.load(folder / "pytorch_model.bin")
    tensors[f"transformer.{name}"][3] = float("nan")
    torch.save(tensors, folder / "pytorch_model.bin")
    placement = {"device_map": {"": "disk"}, "offload_folder": str(tmp_path / "offload")} if offload else {}
    with pytest.raises(SnapshotError, match=rf"tensor {name} holds NaN or infinity"):
        load(folder, **placement)


def test_beam_rules(backend: TransformersBackend) -> None:
    assert run(backend, [PROMPTS[0]], num_beams=2, beam_rules="5") == run(backend, [PROMPTS[0]], num_beams=2)
    asked_for = options(num_beams=2, beam_rules="4.31")
    with pytest.raises(OptionError, match=r"beam_rules='4\.31' is not in the transformers backend.*native"):
        backend.requests([PROMPTS[0]], asked_for)


OFFLOADED = {"transformer.h.0": 0, "transformer.h.1": "cpu", **dict.fromkeys([*DISK, "transformer.ln_f"], 0)}


@pytest.mark.gpu
@pytest.mark.parametrize("device_map", [None, "auto", OFFLOADED], ids=str)
def test_on_a_gpu(folder: Path, backend: TransformersBackend, device_map: Any) -> None:
    gpu, snapshot = torch.device("cuda:0"), open_snapshot(folder)
    loaded = TransformersBackend(snapshot, gpu, torch.float32, device_map=device_map)
    assert loaded.device == gpu
    for given in ({}, {"num_beams": 3, "repetition_penalty": 1.2}, {"stop_strings": ["e"]}, {"output_logprobs": True}):
        assert ids(run(loaded, PROMPTS, **given)) == ids(run(backend, PROMPTS, **given))
    first, second = (run(loaded, PROMPTS, do_sample=True, seed=4) for _ in range(2))
    assert ids(first) == ids(second)
