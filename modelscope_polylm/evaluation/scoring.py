"""Scores of written answers: F1 of TyDiQA, ROUGE of MTG, BLEU of WMT20; all in percent."""

from __future__ import annotations

import collections
import re
import string
import unicodedata
from collections.abc import Sequence
from typing import Any

from modelscope_polylm.errors import DependencyError, install_command
from modelscope_polylm.text.languages import words

ARTICLES = re.compile(r"\b(a|an|the)\b")
RESAMPLES = 1000
"""Of sacrebleu's bootstraps."""
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL")


def f1(answer: str, references: Sequence[str]) -> float:
    """Words in common with the nearest reference, as SQuAD's script counts them, which TyDiQA-GoldP uses."""
    return max((_f1(answer, reference) for reference in references), default=0.0)


def _f1(answer: str, reference: str) -> float:
    ours, theirs = _normalized(answer), _normalized(reference)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 100.0 * 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _normalized(text: str) -> list[str]:
    plain = "".join(each for each in text.lower() if each not in string.punctuation)
    return ARTICLES.sub(" ", plain).split()


def rouge(answer: str, references: Sequence[str]) -> float:
    """The mean F-score of ROUGE-1, 2 and L against the nearest reference, on the words of all scripts."""
    scorer = _rouge_scorer()
    found = [scorer.score(reference, answer) for reference in references]
    return max((100.0 * sum(each[kind].fmeasure for kind in ROUGE_TYPES) / 3 for each in found), default=0.0)


class _Words:
    """The tokenizer that rouge_score is given."""

    def tokenize(self, text: str) -> list[str]:
        """The words without punctuation marks, which rouge_score does not count either."""
        return [word for word in words(text) if unicodedata.category(word[0])[0] != "P"]


def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise DependencyError(f"rouge_score computes ROUGE: {install_command('eval')}") from error
    return RougeScorer(ROUGE_TYPES, tokenizer=_Words())


class Bleu:
    """sacrebleu's BLEU.

    Args:
        tokenize: the name of its tokenizer; 'ja-mecab' needs MeCab.
    """

    def __init__(self, tokenize: str) -> None:
        try:
            from sacrebleu.metrics.bleu import BLEU

            self.corpus_metric: Any = BLEU(tokenize=tokenize)
            self._sentence_metric: Any = BLEU(tokenize=tokenize, effective_order=True)
        except (ImportError, RuntimeError) as error:
            raise DependencyError(f"sacrebleu computes BLEU ({tokenize}): {install_command('eval')}") from error

    def corpus(self, answers: Sequence[str], references: Sequence[str]) -> tuple[float, str]:
        """BLEU of all answers together, and sacrebleu's signature of how it was computed."""
        score = float(self.corpus_metric.corpus_score(list(answers), [list(references)]).score)
        return score, str(self.corpus_metric.get_signature())

    def sentence(self, answer: str, reference: str) -> float:
        """BLEU of one answer, to tell where two runs differ; the mean of these is not the BLEU of a corpus."""
        return float(self._sentence_metric.sentence_score(answer, [reference]).score)

    def margin(self, answers: Sequence[str], references: Sequence[str]) -> float:
        """Half of the 95 % confidence interval of `corpus`, by sacrebleu's bootstrap, whose seed is fixed."""
        scored = self.corpus_metric.corpus_score(list(answers), [list(references)], n_bootstrap=RESAMPLES)
        return float(scored._ci)

    def probability(self, first: Sequence[str], second: Sequence[str], references: Sequence[str]) -> float:
        """How probable it is that equally good models differ so much, by sacrebleu's paired bootstrap."""
        from sacrebleu.significance import PairedTest

        systems: list[tuple[str, Sequence[str]]] = [("first", list(first)), ("second", list(second))]
        _, scores = PairedTest(systems, {"BLEU": self.corpus_metric}, [list(references)], "bs", RESAMPLES)()
        compared: Any = scores["BLEU"][1]
        return float(compared.p_value)
