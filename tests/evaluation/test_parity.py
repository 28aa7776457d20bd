"""The same requests to this engine and to the harness's own model of transformers, on the same package in fp32."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import InputError
from modelscope_polylm.evaluation.harness import EvaluationTask, _definition
from modelscope_polylm.evaluation.language_model import language_model
from modelscope_polylm.evaluation.task_data import TaskGroup, task_groups
from modelscope_polylm.generator import TextGenerator
from tests.evaluation.published import LANGUAGES

Build = Callable[[TaskGroup, str, int], Any]


@pytest.fixture(scope="module")
def build(data: Path) -> Build:
    """Makes the harness's task of a group in a language, with its requests."""
    from lm_eval.api.task import ConfigurableTask

    def built(group: TaskGroup, language: str, shots: int = 0) -> Any:
        task = ConfigurableTask(config=_definition(EvaluationTask("task", group, language, shots), data))
        task.set_config(key="num_fewshot", value=shots)
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests()
        return task

    return built


def tasks(is_answered: bool) -> Iterator[tuple[TaskGroup, str]]:
    for name, group in task_groups().items():
        if group.is_answered == is_answered:
            yield from ((group, language) for language in LANGUAGES[name.partition("_")[0]])


def test_log_likelihoods_and_decisions(generator: TextGenerator, stock_model: Any, build: Build) -> None:
    built = [build(group, language, 0) for group, language in tasks(False)]
    asked = [request for task in built for request in task.instances]
    model = language_model(generator)
    found = model.loglikelihood(asked)
    # the harness's own model cannot take what is longer than the context without a context of its own
    fits = [index for index, request in enumerate(asked) if len(request.args[1]) < 1000]
    assert len(asked) - len(fits) == 3 and len(fits) == 48
    expected = stock_model.loglikelihood([asked[index] for index in fits], disable_tqdm=True)
    for index, other in zip(fits, expected, strict=True):
        assert found[index][0] == pytest.approx(other[0], abs=1e-4), asked[index].args
        assert found[index][1] == other[1], asked[index].args
    cut = [request.args for request in asked if model.is_cut(*request.args)]
    assert len(cut) == 5 and all(len("".join(args)) > 1000 for args in cut)


def test_choices_of_any_company_have_the_same_likelihoods(generator: TextGenerator, build: Build) -> None:
    asked = [request for group, language in tasks(False) for request in build(group, language, 0).instances]
    model = language_model(generator)
    together = [value for value, _ in model.loglikelihood(asked)]
    alone = [model.loglikelihood([request])[0][0] for request in reversed(asked)]
    assert together == pytest.approx(alone[::-1], abs=1e-4)


def test_a_text_longer_than_the_context_keeps_its_end(generator: TextGenerator, build: Build) -> None:
    request = build(task_groups()["xnli"], "en", 0).instances[9]
    ids = generator.snapshot.tokenizer.encode(request.args[1])
    (scores,) = generator.log_likelihood([ids[-512:-511]], [ids[-511:]])
    assert language_model(generator).loglikelihood([request])[0][0] == pytest.approx(sum(scores.logprobs), abs=1e-4)


def test_examples_before_a_choice(generator: TextGenerator, stock_model: Any, build: Build) -> None:
    asked = [request for request in build(task_groups()["xwinograd"], "en", 2).instances if request.doc_id != 3]
    assert "\n\n" in asked[0].args[0]
    found, expected = language_model(generator).loglikelihood(asked), stock_model.loglikelihood(asked)
    assert [value for value, _ in found] == pytest.approx([value for value, _ in expected], abs=1e-4)


def test_answers(generator: TextGenerator, stock_model: Any, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import GenerationConfig

    asked = [request for group, language in tasks(True) for request in build(group, language, 0).instances]
    found = language_model(generator).generate_until(asked)
    # it would take the package's beam search and its 128 tokens, and count the context one token shorter
    monkeypatch.setattr(stock_model.model, "generation_config", GenerationConfig(eos_token_id=2, pad_token_id=2))
    monkeypatch.setattr(stock_model, "_max_length", 512)
    assert found == stock_model.generate_until(asked, disable_tqdm=True)
    assert len(set(found)) > 5


def test_rolling_log_likelihoods(generator: TextGenerator, stock_model: Any) -> None:
    from lm_eval.api.instance import Instance

    texts = ["Beijing", "ปักกิ่งเป็นเมืองหลวง " * 90, "and on " * 400]
    asked = [Instance("loglikelihood_rolling", {}, (text,), 0, ("texts", index, 1)) for index, text in enumerate(texts)]
    found = language_model(generator).loglikelihood_rolling(asked)
    assert found == pytest.approx(stock_model.loglikelihood_rolling(asked, disable_tqdm=True), abs=1e-3)


def test_empty_texts(generator: TextGenerator) -> None:
    from lm_eval.api.instance import Instance

    def asked(context: str, continuation: str) -> Instance:
        return Instance("loglikelihood", {}, (context, continuation), 0, ("texts", 0, 1))

    model, tokenizer = language_model(generator), generator.snapshot.tokenizer
    for context in ("", "The capital"):
        with pytest.raises(InputError, match="1 continuations are empty"):
            model.loglikelihood([asked(context, ""), asked("a", "b")])
    (scores,) = generator.log_likelihood([[tokenizer.eos_token_id or 0]], [tokenizer.encode("   the")])
    assert model.loglikelihood([asked("  ", " the")])[0][0] == pytest.approx(sum(scores.logprobs), abs=1e-5)
