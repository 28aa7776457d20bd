"""Documents -> their texts -> the same documents, translated: plain text, subtitles, catalogs of messages, Markdown."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from modelscope_polylm.errors import DependencyError, InputError, OptionError, install_command, suggestion
from modelscope_polylm.translation.markdown import Markdown
from modelscope_polylm.translation.segments import KEPT, MARKS, unwrapped

PLURAL_FORMS = {
    **dict.fromkeys(("zh", "ja", "ko", "vi", "th", "id"), "nplurals=1; plural=0;"),
    **dict.fromkeys(("en", "de", "nl", "es", "it", "pt", "he"), "nplurals=2; plural=(n != 1);"),
    **dict.fromkeys(("fr", "tr"), "nplurals=2; plural=(n > 1);"),
    "ru": ("nplurals=3; plural=(n%10==1 && n%100!=11 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);"),
    "pl": "nplurals=3; plural=(n==1 ? 0 : n%10>=2 && n%10<=4 && (n%100<10 || n%100>=20) ? 1 : 2);",
    "ar": ("nplurals=6; plural=(n==0 ? 0 : n==1 ? 1 : n==2 ? 2 : n%100>=3 && n%100<=10 ? 3 : n%100>=11 ? 4 : 5);"),
}
"""The header of a gettext catalog by ISO 639-1 code, as gettext's manual has it."""
LINE_OF_SPEAKER = re.compile(r"\s*[-–—]")
CATALOG_LINE = re.compile(r'\s*(?:#.*|(?:msg\w+(?:\[\d+\])?\s*)?"(?:[^"\\]|\\.)*"\s*)?')
TIMES = re.compile(r"^\s*\d+[:.,]\d+\S*\s*-{1,3}>.*", re.MULTILINE)
SENTENCE_END = re.compile(r"[.!?…。！？؟♪][\"'»”’)\]]*\s*(?:</\w+>\s*)*$")


class Document(Protocol):
    """A document as texts, in order, and what stands around them.

    Attributes:
        texts: what is to be translated.
        places: where each stands, such as 'line 3'.
        kept, marks: what its translations have to keep; see `split_text`.
    """

    texts: list[str]
    places: list[str]
    kept: re.Pattern[str]
    marks: re.Pattern[str]

    def render(self, translations: Sequence[str]) -> str:
        """The document with its texts translated."""


class PlainText:
    """Lines of text; each is translated on its own, and empty ones stay."""

    kept, marks = KEPT, MARKS

    def __init__(self, content: str) -> None:
        self._lines = content.split("\n")
        numbers = [number for number, line in enumerate(self._lines) if line.strip()]
        self._numbers = numbers
        self.texts = [self._lines[number] for number in numbers]
        self.places = [f"line {number + 1}" for number in numbers]

    def render(self, translations: Sequence[str]) -> str:
        """The lines, translated."""
        lines = list(self._lines)
        for number, text in zip(self._numbers, translations, strict=True):
            lines[number] = text
        return "\n".join(lines)


class Subtitles:
    """A SubRip file (.srt), read by srt: numbers and times stay.

    A line of a cue that ends no sentence is translated together with the next one, and the translation gets as many
    lines as there were.
    """

    kept, marks = KEPT, MARKS

    def __init__(self, content: str) -> None:
        """Read a file. Raises InputError for what srt cannot read, DependencyError if srt is missing."""
        srt = _library("srt", "subtitles")
        try:
            self._cues = list(srt.parse(content, ignore_errors=False))
        except srt.SRTParseError as error:
            number = content.count("\n", 0, error.expected_start) + 1
            raise InputError(f"These are no SubRip subtitles: line {number} is not the start of a cue.") from error
        for cue in self._cues:
            if found := TIMES.search(cue.content):  # srt takes a cue that it cannot read for text of the one before
                raise InputError(f"The subtitles are broken: in cue {cue.index} stands {found.group().strip()!r:.60}.")
        self._compose: Callable[..., str] = srt.compose
        self._groups = [_lines_of_sentences(cue.content.split("\n")) for cue in self._cues]
        self.texts = [unwrapped(lines) for groups in self._groups for lines in groups]
        self.places = [f"cue {cue.index}" for cue, groups in zip(self._cues, self._groups, strict=True) for _ in groups]

    def render(self, translations: Sequence[str]) -> str:
        """The file with its cues translated."""
        left = iter(translations)
        for cue, groups in zip(self._cues, self._groups, strict=True):
            cue.content = "\n".join(wrapped(next(left), len(lines)) for lines in groups)
        return self._compose(self._cues, reindex=False, strict=False)


class Catalog:
    """A gettext catalog (.po), read by polib: its messages without a translation get one, the others stay.

    Args:
        content: of the file.
        target: the ISO 639-1 code that the header names.

    Raises:
        InputError: what polib cannot read.
        DependencyError: polib is missing.
    """

    kept, marks = KEPT, MARKS

    def __init__(self, content: str, target: str) -> None:
        polib = _library("polib", "gettext catalogs")
        for number, line in enumerate(content.split("\n"), start=1):
            if not CATALOG_LINE.fullmatch(line):  # polib takes strings without an end
                raise InputError(f"This is no gettext catalog: line {number} is {line.strip()!r:.60}.")
        try:
            self._file = polib.pofile(content + "\n", check_for_duplicates=False)
        except (OSError, ValueError) as error:
            reason = re.sub(r"\s*\(line", " (line", re.sub(r"^Syntax error in po file\s*", "", str(error)))
            raise InputError(f"This is no gettext catalog: {reason.strip() or 'it cannot be read'}.") from error
        self._entries = [each for each in self._file if not each.obsolete and not each.translated() and each.msgid]
        self._entries = [each for each in self._entries if not each.msgstr and not any(each.msgstr_plural.values())]
        own = [[each.msgid, each.msgid_plural] if each.msgid_plural else [each.msgid] for each in self._entries]
        self.texts = [text for texts in own for text in texts]
        lines = [f"line {each.linenum}" for each in self._entries]
        self.places = [line for line, texts in zip(lines, own, strict=True) for _ in texts]
        self._target = target

    def render(self, translations: Sequence[str]) -> str:
        """The file with its messages translated."""
        metadata = self._file.metadata
        metadata["Language"] = self._target
        if "nplurals" not in metadata.get("Plural-Forms", "") or "INTEGER" in metadata["Plural-Forms"]:
            metadata["Plural-Forms"] = PLURAL_FORMS[self._target]
        found = re.search(r"nplurals\s*=\s*(\d+)", metadata["Plural-Forms"])
        forms = int(found[1]) if found else 1
        left = iter(translations)
        for entry in self._entries:
            if entry.msgid_plural:
                one, many = next(left), next(left)
                entry.msgstr_plural = {form: one if form == 0 and forms > 1 else many for form in range(forms)}
            else:
                entry.msgstr = next(left)
        return str(self._file).rstrip("\n") + "\n"


FORMATS = ("txt", "md", "srt", "po")
SUFFIXES = {".txt": "txt", ".text": "txt", ".md": "md", ".markdown": "md", ".srt": "srt", ".po": "po", ".pot": "po"}


def format_of(path: Path) -> str | None:
    """The format that a file's name tells; None for another name."""
    return SUFFIXES.get(path.suffix.lower())


def read_document(content: str, format: str, target: str) -> Document:
    """Read a document.

    Args:
        content: with line feeds as line ends.
        format: one of FORMATS.
        target: ISO 639-1 code of the language that it is to be translated to.

    Raises:
        InputError: empty, or not of its format.
        OptionError: an unknown format.
        DependencyError: the format's library is missing.
    """
    if format not in FORMATS:
        raise OptionError(f"format={format!r:.40} is unknown: {suggestion(format, FORMATS)}")
    if not content.strip():
        raise InputError("It is empty: there is nothing to translate.")
    if format == "po":
        return Catalog(content, target)
    readers: dict[str, Callable[[str], Document]] = {"txt": PlainText, "md": Markdown, "srt": Subtitles}
    return readers[format](content)


@dataclass(frozen=True)
class TextFile:
    """What a file's text is, and how it was written.

    Attributes:
        text: with line feeds as line ends.
        line_end: what the file has in their place.
        mark: its byte order mark, or nothing.
    """

    text: str
    line_end: str = "\n"
    mark: str = ""

    @classmethod
    def decoded(cls, content: bytes, encoding: str = "utf-8") -> TextFile:
        """The text of a file. Raises InputError for what is binary or of another encoding."""
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and encoding == "utf-8":
            encoding = "utf-16"
        try:
            text = content.decode(encoding)
        except LookupError as error:
            raise InputError(
                f"encoding={encoding!r:.40} is unknown: use utf-8, cp1258, gb18030, latin-1, ..."
            ) from error
        except UnicodeDecodeError as error:
            raise InputError(
                f"It is binary or not {encoding} ({error.reason} at byte {error.start}): name its encoding."
            ) from error
        if "\0" in text:
            raise InputError("It is binary, not text.")
        mark = "\ufeff" if text.startswith("\ufeff") else ""
        text = text.removeprefix(mark)
        has_returns = "\r\n" in text and text.count("\r\n") == text.count("\n")
        return cls(text.replace("\r\n", "\n"), "\r\n", mark) if has_returns else cls(text, "\n", mark)

    def written(self, text: str) -> str:
        """Another text, written as this one was."""
        return self.mark + (text if self.line_end == "\n" else text.replace("\n", self.line_end))


def wrapped(text: str, lines: int) -> str:
    """A text on about so many lines of equal length, broken at spaces."""
    words = text.split(" ")
    target, found = len(text) / max(lines, 1), [""]
    for word in words:
        full = len(" ".join(found)) + len(word) / 2 > target * len(found)
        if found[-1] and full and len(found) < lines:
            found.append(word)
        else:
            found[-1] = f"{found[-1]} {word}" if found[-1] else word
    return "\n".join(found)


def _lines_of_sentences(lines: Sequence[str]) -> list[list[str]]:
    """Lines that belong together: up to the end of a sentence, or to the next speaker."""
    groups: list[list[str]] = [[]]
    for line in lines:
        if groups[-1] and (LINE_OF_SPEAKER.match(line) or SENTENCE_END.search(groups[-1][-1])):
            groups.append([])
        groups[-1].append(line)
    return groups


def _library(name: str, purpose: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"Translating {purpose} needs {name} ({error}): install it with {install_command('translate')}."
        ) from error
