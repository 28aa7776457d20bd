"""Regular expressions, in Oniguruma's syntax, that find texts of a set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Carriage return is left out: it makes one grapheme with a line feed.
PLAIN = r"[\x00-\x0c\x0e-\x7f]"
ANY = "(?m:.)"


def cut_pattern(texts: Iterable[str]) -> str:
    """An expression whose empty matches are the ends of units: the longest of `texts` that matches, or one character.

    Runs of ASCII are stepped over but for their last character, which may be the first of a longer unit. No text may
    have ASCII after its first character.
    """
    tree = _tree(texts)
    run = f"(?>(?:{PLAIN}+(?={PLAIN}))?)"
    if not tree:
        return rf"{run}{ANY}\K"
    seconds = {character for node in tree.values() for character in node if character}
    return rf"{run}(?>(?={ANY}{_characters(seconds)})(?:{_alternatives(tree)})|{ANY})\K"


def one_of(texts: Iterable[str]) -> str:
    """An expression that matches one of the texts, the longest where several match."""
    return _alternatives(_tree(texts))


def _tree(texts: Iterable[str]) -> dict[str, Any]:
    """The texts by their characters; an empty key ends a text."""
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return tree


def _alternatives(tree: Mapping[str, Any]) -> str:
    """Characters that go on alike are written together."""
    alike: dict[str, list[str]] = {}
    for character, node in tree.items():
        if character:
            alike.setdefault(_rest(node), []).append(character)
    return "|".join(_characters(characters) + rest for rest, characters in alike.items())


def _rest(node: Mapping[str, Any]) -> str:
    longer = _alternatives(node)
    return f"(?:{longer})" + ("?" if "" in node else "") if longer else ""


def _characters(characters: Iterable[str]) -> str:
    """A character class with runs of code points as ranges."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(_code(low) + (f"-{_code(high)}" if high > low else "") for low, high in ranges) + "]"


def _code(code: int) -> str:
    return f"\\x{{{code:X}}}"
