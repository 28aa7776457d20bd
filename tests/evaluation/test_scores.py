"""Scores that were computed by hand: decisions of recorded likelihoods, F1, ROUGE and BLEU."""

from __future__ import annotations

import math

import pytest
import sacrebleu

from modelscope_polylm.evaluation.harness import _chosen, _mean
from modelscope_polylm.evaluation.language_model import cut_at
from modelscope_polylm.evaluation.scoring import Bleu, f1, rouge

XNLI = [([-41.5, -40.25, -43.0], 1, 100.0), ([-12.0, -11.0, -11.5], 2, 0.0), ([-7.0, -7.0, -7.5], 0, 100.0)]
"""Recorded likelihoods of three questions, the right choice and the score; of equal ones the first is taken."""


def test_decisions_take_the_largest_sum() -> None:
    found = [
        _chosen({"filtered_resps": [(value, False) for value in values], "doc": {"id": number, "answer": right}})
        for number, (values, right, _) in enumerate(XNLI)
    ]
    assert [sample.score for sample in found] == [score for _, _, score in XNLI]
    assert [(sample.output, sample.reference) for sample in found] == [("1", "1"), ("1", "2"), ("0", "0")]
    assert _mean(found) == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("answer", "references", "score"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 100.0),  # article and punctuation do not count
        ("in the tower of London", ["Tower", "London Tower"], 200 * 2 / 6),  # in tower of london; 2 of 4 and 2 of 2
        ("서울 시", ["서울"], 200 * 1 / 3),
        ("ปักกิ่ง", ["ปักกิ่ง"], 100.0),
        ("Paris", ["London"], 0.0),
        ("", ["a"], 0.0),  # as SQuAD 1.1, whose script has no word here
    ],
)
def test_f1(answer: str, references: list[str], score: float) -> None:
    assert f1(answer, references) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "reference", "shares"),
    [
        # 4 words of 4 and 5; 3 pairs of 3 and 4; the longest common subsequence has 4
        ("the cat sat down", "the cat sat down .now", (8 / 9, 6 / 7, 8 / 9)),
        # words are 北京 是 中国 首都 and 北京 是 中国 的 首都: 4, 2 pairs of 3 and 4, 4
        ("北京是中国首都", "北京是中国的首都", (8 / 9, 4 / 7, 8 / 9)),
        ("Москва — столица", "москва, столица", (1.0, 1.0, 1.0)),
        ("", "a", (0.0, 0.0, 0.0)),
    ],
)
def test_rouge(answer: str, reference: str, shares: tuple[float, ...]) -> None:
    assert rouge(answer, [reference]) == pytest.approx(100 * sum(shares) / 3)


def test_bleu() -> None:
    # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples are in the reference, which is as long
    answer, reference = "the cat sat on a mat", "the cat sat on the mat"
    value, signature = Bleu("13a").corpus([answer], [reference])
    assert value == pytest.approx(100 * math.exp(sum(map(math.log, (5 / 6, 3 / 5, 2 / 4, 1 / 3))) / 4))
    assert signature == "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:" + sacrebleu.__version__


@pytest.mark.parametrize(("tokenize", "name"), [("ja-mecab", "tok:ja-mecab"), ("zh", "tok:zh")])
def test_bleu_of_texts_without_spaces(tokenize: str, name: str) -> None:
    bleu = Bleu(tokenize)
    same, signature = bleu.corpus(["彼は北京に住んでいます。"], ["彼は北京に住んでいます。"])
    other, _ = bleu.corpus(["彼は北京に住んでいました。"], ["彼は北京に住んでいます。"])
    assert same == pytest.approx(100) and 20 < other < 100
    assert name in signature


def test_an_answer_ends_at_the_first_line_break() -> None:
    assert cut_at(" Berlin\nand\n", ["\n"]) == " Berlin"
    assert cut_at("two\nlines", []) == "two\nlines"
