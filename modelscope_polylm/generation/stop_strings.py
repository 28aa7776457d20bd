"""Ends an answer as soon as its text contains a stop string (transformers' StopStringCriteria, on the text itself)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from modelscope_polylm.generation.rows import Request
from modelscope_polylm.generation.stopping import StopTest
from modelscope_polylm.text.detokenizer import IncrementalDetokenizer
from modelscope_polylm.text.tokenizer import PolyLMTokenizer


def stop_test_factory(tokenizer: PolyLMTokenizer, texts: Sequence[str]) -> Callable[[Request], StopTest] | None:
    """Makes a fresh test for each answer; None if there are no stop strings."""
    if not texts:
        return None
    longest = max(len(text) for text in texts)

    def new_test(request: Request) -> StopTest:
        detokenizer = IncrementalDetokenizer(tokenizer, request.prompt)
        tail = ""

        def test(token: int) -> bool:
            nonlocal tail
            tail += detokenizer.push([token])
            found = any(text in tail for text in texts)
            tail = tail[max(len(tail) - longest + 1, 0) :]
            return found

        return test

    return new_test
