"""PolyLM as a ModelScope pipeline for the task translation."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelscope.msdatasets import MsDataset
from modelscope.outputs import OutputKeys
from modelscope.pipelines.builder import PIPELINES

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.inputs import as_list, is_many
from modelscope_polylm.plugin.model import PolyLMForTranslation
from modelscope_polylm.plugin.outputs import Output
from modelscope_polylm.plugin.pipelines import PolyLMPipeline, checked_batch_size
from modelscope_polylm.plugin.registration import PIPELINE_TYPE
from modelscope_polylm.translation.segments import Segment, SplitText
from modelscope_polylm.translation.translator import SegmentTranslation, TextTranslation, Translator, join_text

__all__ = ["PolyLMTranslationPipeline"]

KEYS = ("text", "source", "target", "id")
"""What an input that is a mapping may hold; its languages win over those of the call."""


@PIPELINES.register_module("translation", PIPELINE_TYPE, force=True)
class PolyLMTranslationPipeline(PolyLMPipeline):
    """Translates texts between PolyLM's 18 languages: `pipe(text, source='en', target='de')`.

    An input is a text of any length, or `{'text': ..., 'source': ..., 'target': ...}`; a call takes one, several in
    anything that can be iterated over, or an MsDataset. All sentences of a call run together.
    """

    model_class = PolyLMForTranslation

    def __init__(
        self,
        model: str | Path | PolyLMForTranslation,
        *,
        source: str | None = None,
        target: str | None = None,
        **options: Any,
    ) -> None:
        """Load a snapshot folder, or take a loaded model.

        Args:
            model: a folder, or a model.
            source, target: languages of the calls that name none, by code or name.
            options: `device`, `torch_dtype`, `backend`, ... as in `PolyLMForTextGeneration`.

        Raises:
            SnapshotError, DeviceError, OptionError: as `PolyLMTextGenerationPipeline`.
        """
        super().__init__(model, **options)
        self._source, self._target = source, target

    def __call__(
        self,
        input: Any,
        *,
        source: str | None = None,
        target: str | None = None,
        alternatives: int = 1,
        batch_size: int | None = None,
        **options: Any,
    ) -> Any:
        """Translate one text, a list of texts, or the rows of an MsDataset.

        Args:
            input: see the class.
            source, target: languages by code or name; without a source it is detected, for each text.
            alternatives: how many translations of each sentence.
            batch_size: most sentences that run together; None leaves it to the backend.
            options: generation options; without any, beam search with 4 beams.

        Returns:
            For one text `{'translation': str}`, for a list a list of these, for an MsDataset an iterator. Further keys:
            'source', where it was detected; 'translations' and 'scores', best first, for several alternatives or with
            output_scores=True; 'problems', where a sentence is suspicious, with its 'text' and the 'problem'.

        Raises:
            InputError: a text that cannot be used, an unknown language, or twice the same one.
            OptionError: no target, an unknown option or a wrong value.
        """
        translator = Translator(self._generator, options, _checked_count(alternatives))
        size, languages = checked_batch_size(batch_size), (source or self._source, target or self._target)
        shows_scores = bool(options.get("output_scores"))

        def split(value: Any, index: int | None = None) -> tuple[SplitText, bool]:
            return _split(translator, value, languages, index)

        if is_many(input) and not isinstance(input, MsDataset):
            texts = [split(value, index) for index, value in enumerate(as_list(input))]  # checked before any runs
            return [_output(*each, shows_scores) for each in _translated(translator, texts, size)]
        if not isinstance(input, MsDataset):
            return _output(*next(_translated(translator, [split(input)], size)), shows_scores)
        rows = (split(row, index) for index, row in enumerate(input))
        return (_output(*each, shows_scores) for each in _translated(translator, rows, size))


def _translated(
    translator: Translator, texts: Iterable[tuple[SplitText, bool]], size: int | None
) -> Iterator[tuple[TextTranslation, bool]]:
    """Texts in their order, each as soon as its sentences are translated; further ones are read meanwhile."""
    waiting: deque[tuple[SplitText, bool]] = deque()

    def segments() -> Iterator[Segment]:
        for text in texts:
            waiting.append(text)
            yield from text[0].segments

    found: list[SegmentTranslation] = []
    for each in translator.each(segments(), size):
        found.append(each)
        while waiting and len(found) >= len(waiting[0][0].segments):
            text, is_detected = waiting.popleft()
            own, found = found[: len(text.segments)], found[len(text.segments) :]
            yield join_text(text, own), is_detected
    yield from ((join_text(text, ()), is_detected) for text, is_detected in waiting)


def _split(
    translator: Translator, value: Any, languages: tuple[str | None, str | None], index: int | None
) -> tuple[SplitText, bool]:
    """A text as segments, and whether its language was detected. Raises InputError or OptionError."""
    try:
        text, source, target = _read(value, *languages)
        return translator.split(text, target, source), source is None
    except (InputError, OptionError) as error:
        raise (error if index is None else type(error)(f"Input {index}: {error}")) from error


def _read(value: Any, source: str | None, target: str | None) -> tuple[Any, str | None, str]:
    text = value
    if isinstance(value, Mapping):
        if unknown := [name for name in value if name not in KEYS]:
            raise InputError(
                f"The input has {str(unknown[0])!r:.80}, which would not be used: it may have {', '.join(KEYS)}."
            )
        if "text" not in value:
            raise InputError(f"An input needs 'text', but this one has the keys {sorted(map(str, value))}.")
        text, source, target = value["text"], value.get("source") or source, value.get("target") or target
    if target is None:
        raise OptionError("The language to translate to is missing: pass target='de', or another code or name.")
    return text, source, target


def _output(found: TextTranslation, is_detected: bool, shows_scores: bool) -> Output:
    output: Output = {OutputKeys.TRANSLATION: found.text}
    if is_detected:
        output["source"] = found.source
    if shows_scores or len(found.alternatives) > 1:
        output["translations"] = [text for text, _ in found.alternatives]
        output["scores"] = [score for _, score in found.alternatives]
    if found.suspicious:
        output["problems"] = [{"text": each.segment.text, "problem": each.problem} for each in found.suspicious]
    return output


def _checked_count(alternatives: Any) -> int:
    if isinstance(alternatives, bool) or not isinstance(alternatives, int) or alternatives < 1:
        raise OptionError(f"alternatives={alternatives!r} must be a whole number of at least 1.")
    return alternatives
