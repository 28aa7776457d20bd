"""From the engine's token ids to what a client reads: texts while they grow, and whole answers at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelscope_polylm.serve.requests import Choice, FinishReason, ParsedRequest, Token
from modelscope_polylm.text.detokenizer import IncrementalDetokenizer

if TYPE_CHECKING:
    from modelscope_polylm.backends.base import Completion
    from modelscope_polylm.inputs import Prompt
    from modelscope_polylm.text.tokenizer import PolyLMTokenizer


class GrowingText:
    """The text of one answer while its tokens come, without stop strings.

    Args:
        prompt: what it answers.
        stops: the stop strings.
        tokenizer: the model's.
    """

    def __init__(self, prompt: Prompt, stops: Sequence[str], tokenizer: PolyLMTokenizer) -> None:
        self._detokenizer = IncrementalDetokenizer(tokenizer, prompt.ids)
        self._stop_text = StopText(stops)

    def push(self, ids: Sequence[int], is_end: bool) -> str:
        """Take new tokens; the text that they add for certain."""
        text = self._stop_text.push(self._detokenizer.push(ids))
        return text + self._stop_text.push(self._detokenizer.finish()) + self._stop_text.finish() if is_end else text


def whole_choices(
    request: ParsedRequest, completions: Sequence[Sequence[Completion]], tokenizer: PolyLMTokenizer
) -> list[Choice]:
    """The choices of a request whose answers, those of each of its prompts, are complete."""
    choices = []
    for first in range(0, len(completions), request.copies):
        found = [each for group in completions[first : first + request.copies] for each in group]
        if request.candidates > request.wanted:
            found = sorted(found, key=_mean_logprob, reverse=True)[: request.wanted]
        choices += [whole_choice(request, request.prompts[first], completion, tokenizer) for completion in found]
    return choices


def whole_choice(request: ParsedRequest, prompt: Prompt, completion: Completion, tokenizer: PolyLMTokenizer) -> Choice:
    """The choice of a complete answer to one of the prompts."""
    detokenizer, stop_text = IncrementalDetokenizer(tokenizer, prompt.ids), StopText(request.stops)
    texts, raw = [], []
    for token in completion.ids:
        texts.append(detokenizer.push([token]))
        byte = tokenizer.byte_value(token)
        raw.append(texts[-1].encode() if byte is None else bytes([byte]))
    text = stop_text.push("".join(texts) + detokenizer.finish()) + stop_text.finish()
    tokens = None
    if completion.logprobs is not None:
        tokens = [Token(*each) for each in zip(texts, raw, completion.logprobs, strict=True)]
        tokens = _up_to(len(text), tokens) if stop_text.found else tokens
    reason: FinishReason = "length" if completion.finish_reason == "length" and not stop_text.found else "stop"
    return Choice(text, len(completion.ids), reason, completion.score if request.scored else None, tokens)


def _mean_logprob(completion: Completion) -> float:
    return (completion.score or 0.0) / max(len(completion.ids), 1)


def _up_to(length: int, tokens: Sequence[Token]) -> list[Token]:
    """The tokens that begin before a text of this length ends."""
    kept, position = [], 0
    for token in tokens:
        if position >= length:
            break
        kept.append(token)
        position += len(token.text)
    return kept


class StopText:
    """Passes text on up to the first stop string.

    Args:
        stops: the stop strings; with none, all text passes at once.

    Attributes:
        found: whether a stop string was complete. Text after it is dropped.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Take more text; return what is certain to stand before any stop string."""
        if self.found or not self._stops:
            return "" if self.found else text
        text = self._held + text
        starts = [start for stop in self._stops if (start := text.find(stop)) >= 0]
        if starts:
            self.found, self._held = True, ""
            return text[: min(starts)]
        kept = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]

    def finish(self) -> str:
        """What was held back; the text has ended without a stop string."""
        rest, self._held = self._held, ""
        return rest


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins the stop string."""
    longest = min(len(text), len(stop) - 1)
    return next((length for length in range(longest, 0, -1) if text.endswith(stop[:length])), 0)
