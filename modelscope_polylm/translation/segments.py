"""Texts -> segments for the model, and back: sentences, the white space around them, and what has to stay as it is.

Sentences are found by sentencex, Wikimedia's segmenter: it is kept up, knows the sentence marks of all 18 languages and
many abbreviations, gives back every character, and needs no model. (pysbd is not kept up and knows 10 of the 18,
wtpsplit loads a network, ICU's rules cut after "Mr." and "3.".) Thai has no sentence marks: there a line is
one segment while it fits the context.
"""

from __future__ import annotations

import bisect
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from modelscope_polylm.errors import DependencyError, install_command
from modelscope_polylm.text.languages import WITHOUT_SPACES

LINE_ENDS = re.compile(r"([\n\r\t\v\f\x85\u2028\u2029]+)")
"""What ends a segment wherever it stands, and stays: line breaks, and tabs, which separate columns."""
BULLET = re.compile(r"\s*(?:(?:[-*+•‣–—>#]+|\d+[.)])\s+)*")
TAGS = r"</?[A-Za-z][^<>]*>|<!--.{0,200}?-->"
VALUES = (
    r"(?:https?|ftp)://[!#-;=?-~]*[A-Za-z0-9/=&#~%+_-]"  # URLs
    r"|(?<![A-Za-z0-9.+_-])[A-Za-z0-9.+_-]{1,64}@[A-Za-z0-9-]{1,64}(?:\.[A-Za-z0-9-]{1,64})+"  # addresses
    r"|\{\{[^{}\n]{1,64}\}\}|\$?\{[^{}\s]{0,64}\}"  # {name}, {{ name }}, ${name}
    r"|(?<!\d)%(?:\(\w{1,64}\))?(?:\d{1,3}\$)?[-+#0]{0,4}\d{0,4}(?:\.\d{1,4})?"
    r"(?:hh|ll|[hlqLjzt])?[diouxXeEfFgGcrsa@%]"  # %s, %(name)d, %1$s
    r"|&(?:[A-Za-z]\w*|\#\d+|\#x[0-9A-Fa-f]+);"  # &amp;
    r"|<\|\w+\|>"  # what begins a turn of a chat
)
KEPT = re.compile(f"{TAGS}|{VALUES}")
"""What a translation has to hold as it is: HTML tags, placeholders, URLs, addresses."""
MARKS = re.compile(TAGS)
"""What of it the model need not see where it stands around a whole sentence."""
CLAUSE_ENDS = (r"[.!?]+\s+|[。！？؟…]+\s*", r"[,;:،؛)]\s+|[、，；：—–]\s*", r"\s+")
"""Where a sentence that is too long is cut, the best first."""
LONG_LINE = 10_000
"""Characters of a line that are split into sentences at once."""
WINDOW = 4000
"""How far from its middle a text is cut at most, in characters."""


@dataclass(frozen=True)
class Segment:
    """What the model translates at once.

    Attributes:
        text: a sentence, or a part of a long one.
        source, target: ISO 639-1 codes of its language and of the wanted one.
        kept: what its translation has to hold as it is, in order.
    """

    text: str
    source: str
    target: str
    kept: tuple[str, ...] = ()


@dataclass(frozen=True)
class SplitText:
    """A text as segments and what stands between them.

    Attributes:
        source, target: ISO 639-1 codes.
        parts: segments, and texts that stay; one text stands between two segments.
    """

    source: str
    target: str
    parts: tuple[str | Segment, ...]

    @property
    def segments(self) -> list[Segment]:
        """What is to be translated, in order."""
        return [part for part in self.parts if isinstance(part, Segment)]

    def join(self, translations: Sequence[str]) -> str:
        """The text with its segments translated."""
        left = iter(translations)
        return "".join(
            next(left) if isinstance(part, Segment) else self._between(index, part)
            for index, part in enumerate(self.parts)
        )

    def _between(self, index: int, part: str) -> str:
        """What stays between two segments; the target language decides about a space between sentences."""
        before = self.parts[index - 1] if index else None
        after = self.parts[index + 1] if index + 1 < len(self.parts) else None
        if part not in ("", " ") or not isinstance(before, Segment) or not isinstance(after, Segment):
            return part
        if self.target not in WITHOUT_SPACES:
            return " "
        return part if self.source in WITHOUT_SPACES else ""


def split_text(
    text: str,
    source: str,
    target: str,
    fits: Callable[[str], bool] = lambda text: True,
    kept: re.Pattern[str] = KEPT,
    marks: re.Pattern[str] = MARKS,
) -> SplitText:
    """Split a text into sentences.

    Args:
        text: of any length.
        source, target: ISO 639-1 codes.
        fits: whether the model can take a text as one segment.
        kept: what has to stay as it is.
        marks: which of it the model need not see around a sentence.

    Raises:
        DependencyError: sentencex is missing.
    """
    parts: list[str | Segment] = []
    for line in LINE_ENDS.split(text):
        if LINE_ENDS.fullmatch(line):
            parts.append(line)
            continue
        for sentence in _sentences(line, source, kept):
            start, end = _core(sentence, marks)
            parts.append(sentence[:start])
            for piece in _fitting(sentence[start:end], fits, kept):
                parts += _part(piece, source, target, kept)
            parts.append(sentence[end:])
    return SplitText(source, target, _joined(parts))


def unwrapped(lines: Sequence[str]) -> str:
    """Lines of one sentence as one line: with spaces between them, but not between characters such as Chinese ones."""
    text = ""
    for line in lines:
        is_wide = text and line and all(unicodedata.east_asian_width(each) in "WF" for each in (text[-1], line[0]))
        text += line if is_wide or not text else f" {line}"
    return text


def around_kept(segment: Segment) -> SplitText:
    """The segment in parts between the texts that it has to keep, for a model that does not keep them."""
    parts: list[str | Segment] = []
    rest, languages = segment.text, (segment.source, segment.target)
    for each in segment.kept:
        before, _, rest = rest.partition(each)
        parts += [*_part(before, *languages), each]
    return SplitText(*languages, _joined([*parts, *_part(rest, *languages)]))


def _sentences(line: str, language: str, kept: re.Pattern[str]) -> Iterator[str]:
    """The sentences of a line, each with the white space after it; none ends within a text that is kept."""
    spans = [match.span() for match in kept.finditer(line)]
    begun, position, next_span = "", 0, 0
    for sentence in _segmented(line, language):
        begun, position = begun + sentence, position + len(sentence)
        while next_span < len(spans) and spans[next_span][1] <= position:
            next_span += 1
        if next_span == len(spans) or spans[next_span][0] >= position:
            yield begun
            begun = ""


def _segmented(line: str, language: str) -> Iterator[str]:
    """What sentencex makes of a line; of a long one in parts, as it takes time by the square of the length."""
    try:
        from sentencex import segment
    except ImportError as error:
        raise DependencyError(
            f"Translation needs sentencex ({error}): install it with {install_command('translate')}."
        ) from error
    start = 0
    while start < len(line):
        part = line[start : start + LONG_LINE]
        found: list[str] = segment(language, part)
        if "".join(found) != part:  # a segmenter that loses characters must not lose those of a document
            found = [part]
        if len(found) > 1 and start + len(part) < len(line):
            found.pop()  # it may go on
        yield from found
        start += sum(map(len, found))


def _core(sentence: str, marks: re.Pattern[str]) -> tuple[int, int]:
    """Where a sentence begins and ends without white space, a bullet, and marks that stand around the whole of it."""
    bullet = BULLET.match(sentence)
    start = bullet.end() if bullet else 0
    start, end = _stripped(sentence, start, max(start, len(sentence)))
    inner_start, inner_end = start, end
    spans = [match.span() for match in marks.finditer(sentence, start, end)]
    while spans and spans[0][0] == inner_start:
        inner_start, inner_end = _stripped(sentence, spans.pop(0)[1], inner_end)
    while spans and spans[-1][1] == inner_end:
        inner_start, inner_end = _stripped(sentence, inner_start, spans.pop()[0])
    return (start, end) if spans else (inner_start, inner_end)


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    inner = text[start:end]
    start += len(inner) - len(inner.lstrip())
    return start, start + len(inner.strip())


def _fitting(text: str, fits: Callable[[str], bool], kept: re.Pattern[str]) -> list[str]:
    """The text in pieces that fit, cut near their middles; one that cannot be cut stays whole."""
    if fits(text) or (cut := _cut(text, kept)) is None:
        return [text]
    return [*_fitting(text[:cut], fits, kept), *_fitting(text[cut:], fits, kept)]


def _cut(text: str, kept: re.Pattern[str]) -> int | None:
    """Where to cut a text: in its middle half, after a sentence, a clause or a word, or else between two letters."""
    first = max(len(text) // 2 - WINDOW, 0)
    near = text[first : len(text) // 2 + WINDOW]
    middle, quarter = len(text) // 2 - first, len(near) // 4
    spans = [match.span() for match in kept.finditer(near)]
    for pattern in CLAUSE_ENDS:
        ends = (match.end() for match in re.finditer(pattern, near))
        fit = [end for end in ends if quarter < end < len(near) - quarter and _outside(end, spans)]
        if fit:
            return first + min(fit, key=lambda end: abs(end - middle))
    cut = middle
    while cut < len(near) and unicodedata.combining(near[cut]):
        cut += 1
    possible = [cut, *(end for span in spans if span[0] < cut < span[1] for end in span)]
    return next((first + end for end in possible if 0 < first + end < len(text) and _outside(end, spans)), None)


def _outside(position: int, spans: Sequence[tuple[int, int]]) -> bool:
    after = bisect.bisect_left(spans, (position, 0))
    return after == 0 or spans[after - 1][1] <= position


def _part(text: str, source: str, target: str, kept: re.Pattern[str] = KEPT) -> list[str | Segment]:
    """A text as a segment between its white space; one without a word outside what is kept stays."""
    if not any(each.isalpha() for each in kept.sub("", text)):
        return [text]
    start, end = _stripped(text, 0, len(text))
    found = tuple(match.group() for match in kept.finditer(text))
    return [text[:start], Segment(text[start:end], source, target, found), text[end:]]


def _joined(parts: Sequence[str | Segment]) -> tuple[str | Segment, ...]:
    """The parts with neighbouring texts joined, so that one text stands between two segments."""
    joined: list[str | Segment] = []
    for part in parts:
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return tuple(joined)
