"""The kernel of beam search leaves what its twin leaves, step by step and in whole searches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from modelscope_polylm.generation import beam
from modelscope_polylm.generation.beam import IMPOSSIBLE, PARENT, POSITION, SCORE, TOKEN, BeamSearch
from modelscope_polylm.generation.lm_head import OutputLayer
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import Request, Rows
from modelscope_polylm.network.kernels.dispatch import kernel_settings
from tests.generation.models import engine_of, generate
from tests.generation.random_gpt2 import PROMPTS, random_model
from tests.generation.test_parity import options_of

VOCABULARY, FIRST_END = 40, 11
REQUESTS = [Request([5, 6, 7], 7), Request([8] * 12, 4)]
RULES = list(itertools.product(("4.31", "5"), (True, False, "never")))
# beams, end tokens, length penalty, whether ids are read
SHAPES = [(2, 3, 1.0, True), (3, 1, -1.0, False), (4, 1, 0.0, False), (4, 2, 0.5, True), (8, 1, 2.0, False)]
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 2, "eos_token_id": 47, "early_stopping": "never"},
    {"num_beams": 4, "min_new_tokens": 5, "eos_token_id": [39, 247]},
    {"num_beams": 3, "beam_rules": "5", "no_repeat_ngram_size": 2, "length_penalty": -1.0, "eos_token_id": 32},
    {"num_beams": 4, "beam_rules": "5", "early_stopping": True, "num_return_sequences": 4, "eos_token_id": 39},
]


class GivenOutput(OutputLayer):
    """Hands out the best of given log-probabilities."""

    def __init__(self, reads_ids: bool):
        super().__init__(torch.empty(0), VOCABULARY)
        self._reads_ids = reads_ids

    @property
    def reads_ids(self) -> bool:
        return self._reads_ids

    def best(self, hidden: Tensor, rows: Rows, count: int) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, ids = hidden.topk(count)
        return 1.25 * logprobs, logprobs, ids.int()


def new_search(device: torch.device, ends: int = 1, reads_ids: bool = False, **options: Any) -> BeamSearch:
    # one prompt more than there are requests: it is finished from the start
    rows = Rows(len(REQUESTS) + 1, options["num_beams"], 20, device)
    rows.begin(REQUESTS)
    end_tokens = torch.arange(FIRST_END, FIRST_END + ends, device=device)
    search = BeamSearch(rows, GivenOutput(reads_ids), end_tokens, GenerationOptions.from_layers(options))
    search.begin()
    return search


def states(search: BeamSearch, every_logprobs: Tensor, mode: str) -> Iterator[dict[str, Tensor]]:
    """What the search and its rows hold after each step."""
    for logprobs in every_logprobs:
        with kernel_settings(mode):
            search.select(logprobs)
        tensors = {**vars(search.rows), **vars(search), "finished rows": search.rows.finished}
        # what an empty place among the finished beams holds beside its score is not specified
        empty = search.finished[..., SCORE, None] == IMPOSSIBLE
        tensors["finished"] = torch.where(empty, IMPOSSIBLE, search.finished)
        yield {name: tensor.clone() for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
        search.rows.advance()


@pytest.mark.parametrize(("rules", "early_stopping"), RULES)
@pytest.mark.parametrize(("beams", "ends", "penalty", "reads_ids"), SHAPES)
def test_steps_leave_what_the_twin_leaves(rules, early_stopping, beams, ends, penalty, reads_ids, device, monkeypatch):
    from modelscope_polylm.generation import beam_triton as beam_step_triton

    # so that a few positions take several rounds
    monkeypatch.setattr(beam_step_triton, "MOVED", 16)
    options = {"num_beams": beams, "beam_rules": rules, "early_stopping": early_stopping, "length_penalty": penalty}
    logits = torch.randn(REQUESTS[0].limit, (len(REQUESTS) + 1) * beams, VOCABULARY) * 2
    logits[..., FIRST_END : FIRST_END + ends] += 1.5
    logprobs = logits.log_softmax(-1).to(device)
    pair = [states(new_search(device, ends, reads_ids, **options), logprobs, mode) for mode in ("triton", "torch")]
    for step, (kernel, twin) in enumerate(zip(*pair, strict=True)):
        different = [name for name, value in twin.items() if not torch.equal(kernel[name], value)]
        assert not different, f"step {step}"
    assert twin["report"].all() and (twin["finished"][: len(REQUESTS), :, SCORE] > IMPOSSIBLE).all()


def test_of_equals_the_first_are_taken(device):
    search = new_search(device, num_beams=3)
    search.running_scores.zero_()
    same = torch.zeros(9, 6, device=device)
    tokens = torch.tensor([10, 11, 12, 13, 14, 15]).to(device).repeat(9, 1)
    from modelscope_polylm.generation.beam_triton import launch_beam_step

    for _ in range(2):
        launch_beam_step(search, same, same, tokens)
        search.rows.advance()
    assert search.rows.tokens.view(3, 3)[:2].tolist() == [[10, 12, 13]] * 2
    assert search.finished[:2, :2, TOKEN].tolist() == [[11, 11]] * 2
    assert search.finished[:2, :2, POSITION].tolist() == [[3, 4], [12, 13]]


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_parents_stay_in_their_group_whatever_the_scores_are(value, device):
    from modelscope_polylm.generation.beam_triton import launch_beam_step

    search = new_search(device, num_beams=3)
    same = torch.full((9, 6), value, device=device)
    launch_beam_step(search, same, same, torch.ones(9, 6, dtype=torch.int32, device=device))
    for prompt, request in enumerate(REQUESTS):
        parents = search.history[prompt, len(request.prompt), :, PARENT - 1]
        assert torch.equal(parents // 3, torch.full_like(parents, prompt))


@pytest.mark.parametrize("case", SEARCHES, ids=str)
def test_whole_searches_give_the_ids_of_the_twin(case, device, monkeypatch):
    model, answers = random_model(), []
    for uses_kernel in (True, False):
        monkeypatch.setattr(beam, "uses_triton", lambda *tensors, uses_kernel=uses_kernel: uses_kernel)
        # on a CPU the network's kernels are tested elsewhere
        with kernel_settings("auto"):
            engine = engine_of(model, str(device))
            answers.append(generate(engine, PROMPTS[:3], **{**options_of(case), "max_new_tokens": 9}))
    assert answers[0] == answers[1]
    assert any(answer.finish_reason == "eos" for group in answers[0] for answer in group)
