"""What every engine must agree on."""

from __future__ import annotations

from typing import Any


def check_transformers(found: dict[str, Any], expected: dict[str, Any], splits_special_tokens: bool = True) -> None:
    """Assert that an installation of transformers did what this package's engine does.

    Below 4.43, transformers does not know `split_special_tokens` and finds `</s>` in text.
    """
    for index, text in enumerate(expected["texts"]):
        is_plain = splits_special_tokens or "s>" not in text
        assert (found["text_ids"][index] == expected["text_ids"][index]) == is_plain, text
        assert found["decoded"][index] == text or not is_plain
    assert found["end_in_text"] == 1
    assert found["inputs"] == ["attention_mask", "input_ids"]
    assert found["ends"] == [2, 2, 2, 2, 2]
    assert found["prompts"] == expected["prompts"]
    assert found["greedy"] == expected["greedy"]
    assert found["beams"] == expected["beams"]
