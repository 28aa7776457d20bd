"""Which tasks are kept: the checks of PolyLM's paper (section 4.2 and appendix A.2), and one of the language.

Where the paper had a tokenizer for each language, words are those of ICU. Its ROUGE-L is computed on them by rapidfuzz.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from modelscope_polylm.errors import InputError
from modelscope_polylm.self_instruct.tasks import Dropped, Task
from modelscope_polylm.text.languages import LANGUAGES, words
from modelscope_polylm.translation.detection import detect_language

LINK = re.compile(r"https?://|www\.\w", re.IGNORECASE)


@dataclass(frozen=True)
class Thresholds:
    """ROUGE-L F-scores of a language.

    Attributes:
        repetition: an input may resemble its instruction up to this one.
        similarity: an instruction has to stay below this one with each that was kept before.
    """

    repetition: float = 0.5
    similarity: float = 0.7


THRESHOLDS = {
    **dict.fromkeys(LANGUAGES, Thresholds()),
    "ko": Thresholds(repetition=0.3),
    "vi": Thresholds(repetition=0.3),
    "ar": Thresholds(repetition=0.2),
}
"""By ISO 639-1 code; those other than 0.5 and 0.7 are of appendix A.2."""


def rouge_l(one: Sequence[str], other: Sequence[str]) -> float:
    """ROUGE-L's F-score of two lists of words: twice their longest common subsequence by the sum of their lengths."""
    from rapidfuzz.distance import LCSseq

    return 2 * int(LCSseq.similarity(one, other)) / (len(one) + len(other) or 1)


def wrong_language(text: str, language: str) -> str | None:
    """What to say of a text that is not in this language; None if it is, or has no letters."""
    if not any(map(str.isalpha, text)):
        return None
    try:
        found = detect_language(text)
    except InputError:  # in none of the 18 languages' scripts
        return "in another language"
    return f"in another language ({found})" if found != language else None


class TaskFilter:
    """Decides about the tasks of one language, and remembers those that are kept.

    Args:
        language: ISO 639-1 code.
    """

    def __init__(self, language: str) -> None:
        self.language, self.thresholds = language, THRESHOLDS[language]
        self._instructions: list[list[str]] = []

    def keep(self, task: Task) -> None:
        """Remember a task: instructions that resemble its own are dropped from now on."""
        self._instructions.append(words(task.instruction))

    def checked(self, task: Task) -> Task | Dropped:
        """The task, with an empty input where its instruction holds the input; or why it is not kept."""
        if task.input and task.input in task.instruction:
            task = replace(task, input="")
        reason = self._reason(task)
        return Dropped(reason, task.instruction) if reason else task

    def _reason(self, task: Task) -> str | None:
        if any(LINK.search(text) for text in (task.instruction, task.input, task.output)):
            return "a link"
        instruction = words(task.instruction)
        if rouge_l(instruction, words(task.input)) > self.thresholds.repetition:
            return "the input repeats the instruction"
        if self._resembles(instruction):
            return "resembles an earlier task"
        return wrong_language(task.instruction, self.language)

    def _resembles(self, instruction: list[str]) -> bool:
        """Whether an instruction is too similar to a kept one; 100,000 of these take 40 ms."""
        from rapidfuzz import process
        from rapidfuzz.distance import Indel

        # of two sequences, Indel's normalized similarity is ROUGE-L's F-score
        limit, scorer = self.thresholds.similarity, Indel.normalized_similarity
        return process.extractOne(instruction, self._instructions, scorer=scorer, score_cutoff=limit) is not None
