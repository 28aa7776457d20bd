"""The character map of a SentencePiece normalizer, and the same map as a sequence of steps of the `tokenizers` library.

SentencePiece applies the longest rule that matches, from left to right. `tokenizers` has a step for the same map,
Precompiled, but it works on grapheme clusters and applies the shortest rule. So marks first cut the text into the units
that SentencePiece rewrites, and every step works between marks: Precompiled sees one character at a time, and NFC
follows the rules for several characters, nearly all of which compose one character.
"""

from __future__ import annotations

import base64
import functools
import struct
from collections.abc import Iterable, Mapping
from typing import Any

Step = dict[str, Any]

# Unassigned code points that separate graphemes and that no rule touches.
CUT, JOIN, ESCAPE = "\ufff0", "\ufff1", "\ufff2"
ESCAPED = {ESCAPE: ESCAPE + "2", CUT: ESCAPE + "0", JOIN: ESCAPE + "1"}
MAX_NODES = 1 << 22
"""Most nodes of a character map that are visited; SentencePiece's largest one has 264,228."""
# Oniguruma's expressions for an ASCII character and for any character. A carriage return is left out of the former: it
# forms one grapheme with a line feed.
ASCII = r"[\x00-\x0c\x0e-\x7f]"
ANY = "(?m:.)"


@functools.lru_cache(maxsize=4)
def read_rules(character_map: bytes) -> dict[str, str]:
    """Text to replacement of each rule in `NormalizerSpec.precompiled_charsmap`, which is a Darts double array.

    Raises:
        ValueError, IndexError, struct.error: the map is damaged.
    """
    (size,) = struct.unpack_from("<I", character_map)
    units = struct.unpack_from(f"<{size // 4}I", character_map, 4)
    outputs = character_map[4 + size :]
    children = _children(units)
    rules: dict[str, str] = {}
    waiting = [(_offset(units[0]), b"")]
    visited = 0
    while waiting:
        base, prefix = waiting.pop()
        visited += 1
        if visited > MAX_NODES:
            raise ValueError("the character map has a cycle, or too many rules")
        for label, position in children.get(base, ()):
            unit, text = units[position], prefix + bytes([label])
            target = position ^ _offset(unit)
            if unit >> 8 & 1:
                start = units[target] & 0x7FFFFFFF
                rules[text.decode()] = outputs[start : outputs.index(b"\0", start)].decode()
            waiting.append((target, text))
    return rules


@functools.lru_cache(maxsize=4)
def character_steps(character_map: bytes) -> tuple[Step, ...]:
    """Normalizer steps of `tokenizers` that rewrite text as SentencePiece does."""
    rules = read_rules(character_map)
    several = [text for text in rules if len(text) > 1]
    return (
        *(replace(mark, escaped) for mark, escaped in ESCAPED.items()),
        replace_pattern(cut_pattern(several), CUT),
        *_explicit_steps(rules),
        replace_pattern(rf"(?<=[^{CUT}])(?=[^{CUT}\x00-\x7f])", JOIN),
        {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(character_map).decode()},
        replace(JOIN, ""),
        {"type": "NFC"},
        replace(CUT, ""),
        *(replace(escaped, mark) for mark, escaped in reversed(ESCAPED.items())),
    )


def inexact_rules(character_map: bytes) -> list[str]:
    """The rules that the steps may follow differently; none in the maps that SentencePiece ships."""
    rules = read_rules(character_map)
    composed = _composed({output: output for output in rules.values()})
    return [text for text, output in rules.items() if not _is_followed(text, output, rules, composed)]


def replace(text: str, content: str) -> Step:
    """A step that replaces a text."""
    return {"type": "Replace", "pattern": {"String": text}, "content": content}


def replace_pattern(pattern: str, content: str) -> Step:
    """A step that replaces the matches of a regular expression (Oniguruma's)."""
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def _is_followed(text: str, output: str, rules: Mapping[str, str], composed: Mapping[str, str]) -> bool:
    is_settled = composed[output] == output and (
        len(text) == 1 or all(rules.get(part, part) == part for part in output)
    )
    is_apart = not set(text) & set(ESCAPED) and text[0] not in "012" and not any(part < "\x80" for part in text[1:])
    return is_settled and is_apart and "  " not in output


def _explicit_steps(rules: Mapping[str, str]) -> list[Step]:
    """Steps for the rules for several characters that do more than compose the replacements of the single ones."""
    concatenated = {text: "".join(rules.get(part, part) for part in text) for text in rules if len(text) > 1}
    composed = _composed(concatenated)
    texts: dict[str, list[str]] = {}
    for text in concatenated:
        if composed[text] != rules[text]:
            texts.setdefault(rules[text], []).append(text)
    return [
        replace_pattern(rf"(?<![^{CUT}\x00-\x7f])(?:{_one_of(group)})(?={CUT})", output)
        for output, group in texts.items()
    ]


def _composed(texts: Mapping[str, str]) -> dict[str, str]:
    """The texts after NFC as the `tokenizers` library does it, which knows fewer characters than Python."""
    from tokenizers import normalizers

    joined = normalizers.NFC().normalize_str(CUT.join(texts.values()))
    return dict(zip(texts, joined.split(CUT), strict=True))


def _children(units: tuple[int, ...]) -> dict[int, list[tuple[int, int]]]:
    """Base of a node to the labels and positions of its children."""
    children: dict[int, list[tuple[int, int]]] = {}
    for position, unit in enumerate(units):
        label = unit & 0xFF
        if label and not unit >> 31:
            children.setdefault(position ^ label, []).append((label, position))
    return children


def _offset(unit: int) -> int:
    return (unit >> 10) << ((unit & 1 << 9) >> 6)


def cut_pattern(texts: Iterable[str]) -> str:
    """An expression whose empty matches are the ends of units: the longest of `texts` that matches, or one character.

    It skips runs of ASCII except for their last character, which may begin a longer unit. No text may have ASCII after
    its first character.
    """
    tree = _tree(texts)
    run = f"(?>(?:{ASCII}+(?={ASCII}))?)"
    if not tree:
        return rf"{run}{ANY}\K"
    seconds = {character for node in tree.values() for character in node if character}
    return rf"{run}(?>(?={ANY}{_characters(seconds)})(?:{_alternatives(tree)})|{ANY})\K"


def _one_of(texts: Iterable[str]) -> str:
    """An expression that matches one of the texts, the longest one if several match."""
    return _alternatives(_tree(texts))


def _tree(texts: Iterable[str]) -> dict[str, Any]:
    """The texts as a trie; an empty key ends a text."""
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for character in text:
            node = node.setdefault(character, {})
        node[""] = {}
    return tree


def _alternatives(tree: Mapping[str, Any]) -> str:
    """An alternation of the trie's branches; characters with the same continuation share one."""
    groups: dict[str, list[str]] = {}
    for character, node in tree.items():
        if character:
            groups.setdefault(_rest(node), []).append(character)
    return "|".join(_characters(characters) + rest for rest, characters in groups.items())


def _rest(node: Mapping[str, Any]) -> str:
    longer = _alternatives(node)
    return f"(?:{longer})" + ("?" if "" in node else "") if longer else ""


def _characters(characters: Iterable[str]) -> str:
    """A character class in which consecutive code points form ranges."""
    ranges: list[list[int]] = []
    for code in sorted(map(ord, characters)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "[" + "".join(_code(low) + (f"-{_code(high)}" if high > low else "") for low, high in ranges) + "]"


def _code(code: int) -> str:
    return f"\\x{{{code:X}}}"
