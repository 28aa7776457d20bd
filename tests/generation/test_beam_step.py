"""The kernel of beam search leaves what its reference leaves, step by step and in whole searches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from modelscope_polylm.generation import beam
from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.lm_head import LMHead
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import IMPOSSIBLE, POSITION, SCORE, TOKEN, BatchState, NewRow
from modelscope_polylm.network.kernels.dispatch import kernel_settings
from tests.generation.models import engine_of, generate
from tests.generation.random_gpt2 import PROMPTS, random_model
from tests.generation.test_parity import options_of

VOCABULARY, FIRST_END = 40, 11
# tokens of the prompts and of the answers, and the first row of each
REQUESTS = [([5, 6, 7], 7, 0), ([8] * 12, 4, 9)]
ROWS = 17
RULES = list(itertools.product(("4.31", "5"), (True, False, "never")))
# beams, end tokens, length penalty, whether ids are read
SHAPES = [(2, 3, 1.0, True), (3, 1, -1.0, False), (4, 1, 0.0, False), (4, 2, 0.5, True), (8, 1, 2.0, False)]
SEARCHES: list[dict[str, Any]] = [
    {"num_beams": 2, "eos_token_id": 47, "early_stopping": "never"},
    {"num_beams": 4, "min_new_tokens": 5, "eos_token_id": [39, 247]},
    {"num_beams": 3, "beam_rules": "5", "no_repeat_ngram_size": 2, "length_penalty": -1.0, "eos_token_id": 32},
    {"num_beams": 4, "beam_rules": "5", "early_stopping": True, "num_return_sequences": 4, "eos_token_id": 39},
]


class GivenHead(LMHead):
    """Hands out the best of given log-probabilities."""

    def __init__(self, reads_ids: bool):
        super().__init__(torch.empty(0), VOCABULARY)
        self._reads_ids = reads_ids

    @property
    def reads_ids(self) -> bool:
        return self._reads_ids

    def best(self, hidden: Tensor, state: BatchState, rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        logprobs, ids = hidden.topk(count)
        return 1.25 * logprobs, logprobs, ids.int()


def new_search(device: torch.device, ends: int = 1, reads_ids: bool = False, **options: Any) -> BeamSearch:
    checked = GenerationOptions.from_layers({**options, "eos_token_id": list(range(FIRST_END, FIRST_END + ends))})
    state, beams = BatchState(ROWS, 20, device), checked.num_beams
    for prompt, limit, first in REQUESTS:
        rows = list(range(first, first + beams))
        state.begin(rows, [NewRow(prompt, len(prompt), limit, 0, checked)] * beams, [list(range(1, 20))] * beams)
        state.begin_beams([rows], [checked.length_penalty])
    return BeamSearch(state, GivenHead(reads_ids), beams, ends, checked.beam_rules != "5", checked.early_stopping)


def rows_of(search: BeamSearch) -> Tensor:
    """The rows of all groups, and one group of padding."""
    firsts = [*(first for *_, first in REQUESTS), search.state.scratch_row]
    rows = [first + beam for first in firsts for beam in range(search.beams)]
    return torch.tensor(rows, device=search.state.device)


def states(search: BeamSearch, every_logprobs: Tensor, mode: str) -> Iterator[dict[str, Tensor]]:
    """What the real rows hold after each step."""
    rows = rows_of(search)
    for logprobs in every_logprobs:
        with kernel_settings(mode):
            search.select(logprobs, rows)
        tensors = {name: value for name, value in vars(search.state).items() if isinstance(value, Tensor)}
        # what an empty entry among the finished beams holds next to its score is not specified
        finished = search.state.finished_beams
        tensors["finished_beams"] = torch.where(finished[:, SCORE, None] == IMPOSSIBLE, IMPOSSIBLE, finished)
        yield {name: value[:ROWS].clone() for name, value in tensors.items()}
        search.state.advance(rows)


@pytest.mark.parametrize(("rules", "early_stopping"), RULES)
@pytest.mark.parametrize(("beams", "ends", "penalty", "reads_ids"), SHAPES)
def test_steps_leave_what_the_reference_leaves(
    rules, early_stopping, beams, ends, penalty, reads_ids, device, monkeypatch
):
    from modelscope_polylm.generation import beam_triton

    # so that a few positions take several rounds
    monkeypatch.setattr(beam_triton, "MOVED", 16)
    options = {"num_beams": beams, "beam_rules": rules, "early_stopping": early_stopping, "length_penalty": penalty}
    logits = torch.randn(REQUESTS[0][1], (len(REQUESTS) + 1) * beams, VOCABULARY) * 2
    logits[..., FIRST_END : FIRST_END + ends] += 1.5
    logprobs = logits.log_softmax(-1).to(device)
    pair = [states(new_search(device, ends, reads_ids, **options), logprobs, mode) for mode in ("triton", "torch")]
    for step, (kernel, reference) in enumerate(zip(*pair, strict=True)):
        different = [name for name, value in reference.items() if not torch.equal(kernel[name], value)]
        assert not different, f"step {step}"
    for *_, first in REQUESTS:
        assert reference["finished"][first] and reference["step_output"][first, 0] == 1
        assert (reference["finished_beams"][first : first + beams, SCORE] > IMPOSSIBLE).all()


def test_of_equals_the_first_are_taken(device):
    from modelscope_polylm.generation.beam_triton import launch_beam_step

    search = new_search(device, num_beams=3)
    state, rows = search.state, rows_of(search)
    state.running_scores.zero_()
    same = torch.zeros(9, 6, device=device)
    tokens = torch.tensor([10, 11, 12, 13, 14, 15]).to(device).repeat(9, 1)
    for _ in range(2):
        launch_beam_step(search, same, same, tokens, rows)
        state.advance(rows)
    assert state.tokens[rows].view(3, 3)[:2].tolist() == [[10, 12, 13]] * 2
    finished = state.finished_beams[rows].view(3, 3, 5)[:2, :2]
    assert finished[..., TOKEN].tolist() == [[11, 11]] * 2
    assert finished[..., POSITION].tolist() == [[3, 4], [12, 13]]


@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_parents_stay_in_their_group_whatever_the_scores_are(value, device):
    from modelscope_polylm.generation.beam_triton import launch_beam_step

    search = new_search(device, num_beams=3)
    same = torch.full((9, 6), value, device=device)
    launch_beam_step(search, same, same, torch.ones(9, 6, dtype=torch.int32, device=device), rows_of(search))
    for prompt, _, first in REQUESTS:
        parents = search.state.history[first : first + 3, len(prompt), -1]
        assert ((parents >= 0) & (parents < 3)).all()


@pytest.mark.parametrize("case", SEARCHES, ids=str)
def test_whole_searches_give_the_ids_of_the_reference(case, device, monkeypatch):
    model, answers = random_model(), []
    for uses_kernel in (True, False):
        monkeypatch.setattr(beam, "uses_triton", lambda *tensors, uses_kernel=uses_kernel: uses_kernel)
        # on a CPU the network's kernels are tested elsewhere
        with kernel_settings("auto"):
            engine = engine_of(model, str(device))
            answers.append(generate(engine, PROMPTS[:3], **{**options_of(case), "max_new_tokens": 9}))
    assert answers[0] == answers[1]
    assert any(answer.finish_reason == "eos" for group in answers[0] for answer in group)
