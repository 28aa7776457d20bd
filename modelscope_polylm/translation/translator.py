"""Segments -> prompts -> the continuous batch -> translations: what every door that translates stands on."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import InputError, OptionError, PolyLMError
from modelscope_polylm.generator import Item
from modelscope_polylm.text.tokenizer import check_text
from modelscope_polylm.translation.detection import language_pair
from modelscope_polylm.translation.prompts import read_answer, search_options, translation_prompt, write_prompt
from modelscope_polylm.translation.quality import EMPTY, problem_of
from modelscope_polylm.translation.segments import KEPT, MARKS, Segment, SplitText, around_kept, split_text

if TYPE_CHECKING:
    import re

    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import GenerationResult, TextGenerator
    from modelscope_polylm.inputs import Prompt

SHORTEST_ANSWER = 128
"""Tokens that every translation may have, as in the published examples."""
EXPANSION = 3
"""So many tokens a translation may have for each of its segment, if these are more."""
NOT_OPTIONS = {
    "num_return_sequences": "ask for alternatives instead",
    "output_logprobs": "translations have scores, but no log-probabilities of tokens",
}
"""Generation options that a translation does not have, and why."""
CHARACTERS_A_TOKEN = 32
"""No piece of the vocabulary is longer; a text that has more characters for its tokens needs not be counted."""


@dataclasses.dataclass(frozen=True)
class SegmentTranslation:
    """The translations of a segment.

    Attributes:
        segment: what was translated.
        texts: best first, at least one; where the model gave none, the segment's own text.
        scores: of each text, as `Completion.score`; None where it is not known.
        problem: what is suspicious about the first text, or why there is none; None if nothing is.
        tokens: how many were generated.
    """

    segment: Segment
    texts: tuple[str, ...]
    scores: tuple[float | None, ...] = (None,)
    problem: str | None = None
    tokens: int = 0


@dataclasses.dataclass(frozen=True)
class TextTranslation:
    """The translation of a text.

    Attributes:
        text: the translation.
        source, target: ISO 639-1 codes.
        segments: its sentences with their translations, in order.
        alternatives: further translations, of which the n-th has the n-th best translation of each sentence that has
            so many; and the mean of its sentences' scores. `text` is the first one.
    """

    text: str
    source: str
    target: str
    segments: tuple[SegmentTranslation, ...]
    alternatives: tuple[tuple[str, float | None], ...]

    @property
    def suspicious(self) -> list[SegmentTranslation]:
        """Segments that somebody should look at."""
        return [each for each in self.segments if each.problem]


class Translator:
    """Translates with one generator.

    Args:
        generator: the loaded model.
        options: generation options; without any, the published translations' beam search.
        alternatives: how many translations of each segment are wanted.

    Raises:
        InputError: the release of the model is not known, and so not how it is asked.
        OptionError: options that cannot be.
    """

    def __init__(
        self, generator: TextGenerator, options: Mapping[str, Any] | None = None, alternatives: int = 1
    ) -> None:
        given = {name: value for name, value in (options or {}).items() if value is not None}
        for name, advice in NOT_OPTIONS.items():
            if name in given:
                raise OptionError(f"{name}: {advice}.")
        self.generator, self._alternatives = generator, alternatives
        self._prompt = translation_prompt(generator.snapshot.prompt_format)
        self.options = generator.options(search_options({**given, "output_scores": True}, alternatives))
        generator.backend.check_options(self.options)
        self._has_limit = any(given.get(name) is not None for name in ("max_new_tokens", "max_length"))
        self._reader = generator.reader

    def split(
        self,
        text: str,
        target: str,
        source: str | None = None,
        kept: re.Pattern[str] = KEPT,
        marks: re.Pattern[str] = MARKS,
    ) -> SplitText:
        """Split a text into segments that fit the context.

        Args:
            text: of any length.
            target, source: languages by code or name; without a source it is detected.
            kept, marks: as in `split_text`.

        Raises:
            InputError: no text, an unknown language, or twice the same one.
        """
        check_text(text)
        source, target = language_pair(text, target, source)
        overhead = self._count(write_prompt(self._prompt, "x", source, target)) + 8
        return split_text(text, source, target, lambda part: self._fits(part, overhead), kept, marks)

    def request(self, segment: Segment) -> Item:
        """The prompt that asks for a segment, and its options; or why there is none."""
        text = write_prompt(self._prompt, segment.text, segment.source, segment.target)
        options = self.options
        if not self._has_limit:
            options = dataclasses.replace(options, max_new_tokens=self._answer_tokens(self._count(segment.text)))
        if segment.kept and options.num_beams > 1:  # one of the beams may keep what the best one loses
            options = dataclasses.replace(options, num_return_sequences=options.num_beams)
        try:
            return self._reader.read(text, options, chat=self._prompt.is_message), options
        except InputError as error:
            return error

    def read(self, segment: Segment, result: GenerationResult | PolyLMError) -> SegmentTranslation:
        """The translations in the answers to a segment's prompt."""
        if isinstance(result, PolyLMError):
            return SegmentTranslation(segment, (segment.text,), problem=str(result))
        found = zip((read_answer(text, self._prompt) for text in result.texts), result.completions, strict=True)
        ranked = sorted(found, key=lambda pair: len(_lost(segment, pair[0])))[: self._alternatives]
        problem = problem_of(segment, ranked[0][0], ranked[0][1].finish_reason)
        if problem is None and (lost := _lost(segment, ranked[0][0])):
            problem = f"lost {' '.join(lost)}"
        tokens = sum(len(completion.ids) for completion in result.completions)
        if problem == EMPTY:
            return SegmentTranslation(segment, (segment.text,), problem=problem, tokens=tokens)
        texts, scores = tuple(text for text, _ in ranked), tuple(each.score for _, each in ranked)
        return SegmentTranslation(segment, texts, scores, problem, tokens)

    def pieces(self, found: SegmentTranslation) -> SplitText | None:
        """The segment in parts around what its translation has lost; None where nothing is lost."""
        is_lost = _lost(found.segment, found.texts[0]) or found.texts[0] == found.segment.text
        return around_kept(found.segment) if is_lost and found.segment.kept else None

    def each(self, segments: Iterable[Segment], at_once: int | None = None) -> Iterator[SegmentTranslation]:
        """Translate any number of segments, in order; so many are in flight that the device has always work.

        Segments that are alike are translated once.

        Args:
            segments: of one text or many.
            at_once: most that run together; None leaves it to the backend.
        """
        known: dict[Segment, SegmentTranslation] = {}
        asked: set[Segment] = set()
        order: deque[Segment] = deque()
        submitted: deque[Segment] = deque()

        def requests() -> Iterator[Item]:
            for segment in segments:
                order.append(segment)
                if segment not in asked:
                    asked.add(segment)
                    submitted.append(segment)
                    yield self.request(segment)

        def ready(segment: Segment) -> SegmentTranslation:
            found = known[segment]
            known[segment] = dataclasses.replace(found, tokens=0)  # they were generated once
            return found

        for result in self.generator.reply_each(requests(), at_once):
            segment = submitted.popleft()
            known[segment] = self._whole(self.read(segment, result))
            while order and order[0] in known:
                yield ready(order.popleft())
        yield from map(ready, order)

    def translate(
        self, texts: Sequence[str], target: str, source: str | None = None, at_once: int | None = None
    ) -> list[TextTranslation]:
        """Translate texts, whose sentences all run together.

        Args:
            texts: of any length.
            target, source: languages by code or name; without a source it is detected, for each text.
            at_once: most sentences that run together; None leaves it to the backend.

        Raises:
            InputError: as `split`; says which of several texts it is about.
        """
        run = TranslationRun(self, self.split_all(texts, target, source))
        while requests := run.requests():
            run.take(list(self.generator.reply_each(requests, at_once)))
        return run.translations()

    def split_all(self, texts: Sequence[str], target: str, source: str | None = None) -> list[SplitText]:
        """Split several texts; see `split`. An error says which one it is about."""
        found = []
        for index, text in enumerate(texts):
            try:
                found.append(self.split(text, target, source))
            except InputError as error:
                raise (InputError(f"Text {index}: {error}") if len(texts) > 1 else error) from error
        return found

    def _whole(self, found: SegmentTranslation) -> SegmentTranslation:
        """The translation, in pieces where it lost what it has to keep."""
        run = TranslationRun(self, ())
        run.found(found)
        while requests := run.requests():
            run.take(list(self.generator.reply_each(requests)))
        return run.translation(found.segment)

    def _count(self, text: str) -> int:
        return len(self._reader.tokenizer.encode(text))

    def _answer_tokens(self, tokens: int) -> int:
        return max(min(SHORTEST_ANSWER, self._reader.max_positions // 2), EXPANSION * tokens)

    def _fits(self, text: str, overhead: int) -> bool:
        if len(text) > self._reader.max_positions * CHARACTERS_A_TOKEN:
            return False
        if text.isascii() and self._has_room(overhead, len(text) + 1):  # no token is shorter than a byte
            return True
        return self._has_room(overhead, self._count(text))

    def _has_room(self, overhead: int, tokens: int) -> bool:
        options, positions = self.options, self._reader.max_positions
        if options.max_new_tokens is not None and self._has_limit:
            return overhead + tokens + options.max_new_tokens <= positions
        limit = min(positions, options.max_length or positions) if self._has_limit else positions
        return overhead + tokens + self._answer_tokens(tokens) <= limit


class TranslationRun:
    """The segments of some texts on their way through the model, for a door that runs requests itself.

    While there are `requests`, it runs them together and hands their results to `take`.

    Args:
        translator: makes the requests and reads the answers.
        texts: split by it.
    """

    def __init__(self, translator: Translator, texts: Sequence[SplitText]) -> None:
        self._translator, self._texts = translator, texts
        self._known: dict[Segment, SegmentTranslation] = {}
        self._pieces: dict[Segment, SplitText] = {}
        self._open = list(dict.fromkeys(segment for text in texts for segment in text.segments))
        self._submitted: list[Segment] = []

    def requests(self) -> list[tuple[Prompt, GenerationOptions]]:
        """What to run next; nothing at the end."""
        requests: list[tuple[Prompt, GenerationOptions]] = []
        self._submitted = []
        while self._open and not requests:
            segments, self._open = self._open, []
            for segment in segments:
                item = self._translator.request(segment)
                if isinstance(item, PolyLMError):
                    self.found(self._translator.read(segment, item))
                else:
                    requests.append(item)
                    self._submitted.append(segment)
        return requests

    def take(self, results: Sequence[GenerationResult | PolyLMError]) -> None:
        """Take the results of the requests, in their order."""
        for segment, result in zip(self._submitted, results, strict=True):
            self.found(self._translator.read(segment, result))

    def found(self, found: SegmentTranslation) -> None:
        """Take the translation of a segment; what it lost is asked for in pieces."""
        self._known[found.segment] = found
        pieces = self._translator.pieces(found)
        if pieces is not None:
            self._pieces[found.segment] = pieces
            self._open += [each for each in dict.fromkeys(pieces.segments) if each not in self._known]

    def translation(self, segment: Segment) -> SegmentTranslation:
        """The translation of one of the segments."""
        found, pieces = self._known[segment], self._pieces.get(segment)
        if pieces is None:
            return found
        parts = [self._known[each] for each in pieces.segments]
        text = pieces.join([part.texts[0] for part in parts])
        problem = next((part.problem for part in parts if part.problem), f"in pieces around {' '.join(segment.kept)}")
        return SegmentTranslation(segment, (text,), (None,), problem, found.tokens + sum(each.tokens for each in parts))

    def translations(self) -> list[TextTranslation]:
        """The texts, translated."""
        return [join_text(text, [self.translation(segment) for segment in text.segments]) for text in self._texts]


def join_text(text: SplitText, segments: Sequence[SegmentTranslation]) -> TextTranslation:
    """A text out of the translations of its segments."""
    count = max((len(each.texts) for each in segments), default=1)
    alternatives = []
    for rank in range(count):
        chosen = [
            (each.texts[place], each.scores[place]) for each in segments for place in [min(rank, len(each.texts) - 1)]
        ]
        scores = [score for _, score in chosen if score is not None]
        mean = sum(scores) / len(scores) if scores else None
        alternatives.append((text.join([translation for translation, _ in chosen]), mean))
    return TextTranslation(alternatives[0][0], text.source, text.target, tuple(segments), tuple(alternatives))


def translate(
    generator: TextGenerator,
    texts: Sequence[str],
    target: str,
    source: str | None = None,
    alternatives: int = 1,
    options: Mapping[str, Any] | None = None,
) -> list[TextTranslation]:
    """Translate texts with a generator.

    Args:
        generator: the loaded model.
        texts: of any length.
        target, source: languages by code or name; without a source it is detected, for each text.
        alternatives: how many translations of each sentence.
        options: generation options.

    Raises:
        InputError: no text, an unknown language, twice the same one, or a model whose release is not known.
        OptionError: options that cannot be.
    """
    return Translator(generator, options, alternatives).translate(texts, target, source)


def _lost(segment: Segment, text: str) -> list[str]:
    """What a translation of the segment should hold and does not."""
    lost = []
    for each in segment.kept:
        if each in text:
            text = text.replace(each, "", 1)
        else:
            lost.append(each)
    return lost
