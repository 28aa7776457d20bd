"""The texts of a Markdown document, found by markdown-it-py; everything else of it stays as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from modelscope_polylm.errors import DependencyError, install_command
from modelscope_polylm.translation.segments import TAGS, VALUES, unwrapped

EMPHASIS = r"\*{1,3}|~~|(?<!\w)_{1,3}(?=\w)|(?<=\w)_{1,3}(?!\w)"
SYNTAX = (
    r"(?<!`)(?P<ticks>`+)(?!`).{1,1000}?(?<!`)(?P=ticks)(?!`)"  # code
    r"|!?\[(?=[^\[\]]{0,500}\][(\[])|\]\([^()\s]{0,2000}(?:\([^()\s]{0,500}\)[^()\s]{0,500})?(?:\s+\"[^\"]{0,500}\")?\)"
    r"|\]\[[^\[\]]{0,200}\]|\[\^[^\[\]\s]{1,100}\]|\[[ xX]\](?=\s)"  # references, footnotes, tasks
    r"|<(?:https?|mailto):[^<>\s]{1,2000}>|\\[!-/:-@\[-`{-~]"
)
MARKDOWN_KEPT = re.compile(f"{SYNTAX}|{TAGS}|{VALUES}|{EMPHASIS}")
"""What the translation of a Markdown text has to hold as it is, in addition to `KEPT`."""
MARKDOWN_MARKS = re.compile(f"{TAGS}|{EMPHASIS}")
FRONT_MATTER = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.DOTALL)
HARD_BREAK = re.compile(r"(?: {2,}|\\)$")


@dataclass(frozen=True)
class Place:
    """Where a text stands: in the lines from `first` on, between `start` in the first and `end` in the last one."""

    first: int
    start: int
    last: int
    end: int


class Markdown:
    """A Markdown document (CommonMark with tables): paragraphs, headings, list items and cells are its texts.

    Lines of a paragraph become one, except after a hard break. Code, HTML blocks, front matter, link targets and
    definitions stay.

    Attributes:
        texts: in order.
        places: their lines.
        kept, marks: see `split_text`.
    """

    kept, marks = MARKDOWN_KEPT, MARKDOWN_MARKS

    def __init__(self, content: str) -> None:
        """Read a document. Raises DependencyError if markdown-it-py is missing."""
        front = FRONT_MATTER.match(content)
        self._front = front.group() if front else ""
        self._lines = content[len(self._front) :].split("\n")
        found = list(self._texts())
        self._places = [place for place, _ in found]
        self.texts = [text for _, text in found]
        offset = self._front.count("\n")
        self.places = [f"line {place.first + offset + 1}" for place in self._places]

    def render(self, translations: Sequence[str]) -> str:
        """The document with its texts translated."""
        lines: list[str] = []
        line, column = 0, 0
        begun = ""
        for place, text in zip(self._places, translations, strict=True):
            for whole in self._lines[line : place.first]:
                lines.append(begun + whole[column:])
                begun, column = "", 0
            begun += self._lines[place.first][column : place.start] + self._indented(place, text)
            line, column = place.last, place.end
        rest = self._lines[line:]
        lines += [begun + rest[0][column:], *rest[1:]] if rest else [begun]
        return self._front + "\n".join(lines)

    def _indented(self, place: Place, text: str) -> str:
        """A text whose hard breaks are followed by what its lines began with, such as a quote's mark."""
        own = self._lines[place.first + 1] if place.last > place.first else ""
        prefix = re.match(r"[\s>]*", own)
        return text.replace("\n", "\n" + (prefix.group() if prefix else ""))

    def _texts(self) -> Iterator[tuple[Place, str]]:
        line, column = 0, 0
        for first, last, content in self._inlines():
            if first > line:
                line, column = first, 0
            parts = content.split("\n")
            start = self._lines[first].find(parts[0], column)
            ending = self._lines[last].rfind(parts[-1]) if last > first else start
            if start < 0 or ending < 0:  # a cell with an escaped bar: it stays
                continue
            place = Place(first, start, last, ending + len(parts[-1]))
            line, column = last, place.end
            yield place, _paragraph(parts)

    def _inlines(self) -> Iterator[tuple[int, int, str]]:
        """The first and last line of each text, and its lines without marks of lists and quotes."""
        try:
            from markdown_it import MarkdownIt
        except ImportError as error:
            raise DependencyError(
                f"Reading Markdown needs markdown-it-py ({error}): install it with {install_command('translate')}."
            ) from error
        parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
        for token in parser.parse("\n".join(self._lines)):
            if token.type == "inline" and token.map and token.content.strip():
                first = token.map[0]
                yield first, first + token.content.count("\n"), token.content


def _paragraph(lines: Sequence[str]) -> str:
    """The lines of a paragraph as one; a line break stays where it is a hard one."""
    found: list[list[str]] = [[]]
    for line in lines:
        found[-1].append(line)
        if HARD_BREAK.search(line):
            found.append([])
    return "\n".join(unwrapped(each) for each in found if each)
