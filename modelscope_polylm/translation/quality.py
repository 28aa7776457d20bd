"""What makes a translation suspicious, as far as the two texts alone tell."""

from __future__ import annotations

from collections import Counter

from modelscope_polylm.text.languages import SCRIPTS, WITHOUT_SPACES, script
from modelscope_polylm.translation.segments import Segment

EMPTY, COPIED, WRONG_SCRIPT = "empty", "copied", "wrong script"
TOO_SHORT, TOO_LONG, CUT_OFF = "too short", "too long", "cut off"

CHARACTERS = {"zh": 0.35, "ja": 0.5, "ko": 0.55}
"""Roughly how many characters a language has for one of English; 1 where none is given."""
MOST_TIMES = 3
"""A translation that is so many times longer or shorter than expected is suspicious."""
SHORT = 12
"""Below this difference in characters, a length says nothing."""


def problem_of(segment: Segment, translation: str, finish_reason: str = "eos") -> str | None:
    """What is suspicious about a translation; None if nothing is.

    Args:
        segment: what was translated.
        translation: one line.
        finish_reason: why the model's answer ended.
    """
    source = _without(segment.text, segment.kept)
    found = _without(translation, segment.kept)
    if not found.strip():
        return EMPTY
    if finish_reason == "length":
        return CUT_OFF
    if _is_copied(source, found, segment.source):
        return COPIED
    if not _has_script(found, segment.target):
        return WRONG_SCRIPT
    return _length_problem(len(source), len(found), segment)


def _without(text: str, kept: tuple[str, ...]) -> str:
    for each in kept:
        text = text.replace(each, "", 1)
    return text


def _is_copied(source: str, found: str, language: str) -> bool:
    """Whether two texts are the same; a single word, such as a name, may be."""
    several_words = len(source.split()) > 1 or (language in WITHOUT_SPACES and len(source) > 4)
    return several_words and source.casefold().split() == found.casefold().split()


def _has_script(text: str, language: str) -> bool:
    """Whether at least half of the letters are of a script of the language."""
    scripts = Counter(script(each) for each in text if each.isalpha())
    return sum(scripts[name] for name in SCRIPTS[language]) * 2 >= scripts.total()


def _length_problem(source: int, found: int, segment: Segment) -> str | None:
    expected = source * CHARACTERS.get(segment.target, 1) / CHARACTERS.get(segment.source, 1)
    if abs(found - expected) < SHORT:
        return None
    if found * MOST_TIMES < expected:
        return TOO_SHORT
    return TOO_LONG if found > expected * MOST_TIMES else None
