"""pipeline(chat): conversations in, message, response and history out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

from modelscope_polylm import PolyLMChatPipeline, PolyLMTextGenerationPipeline
from modelscope_polylm.errors import OptionError

GREEDY = {"do_sample": False, "num_beams": 1, "max_new_tokens": 8}
USER = {"role": "user", "content": "Hi"}


def test_conversation(chat: PolyLMChatPipeline, pipe: PolyLMTextGenerationPipeline) -> None:
    answer = pipe({"messages": [USER]}, **GREEDY)["text"]
    message = {"role": "assistant", "content": answer}
    expected = {"message": message, "response": answer, "history": [USER, message]}
    assert chat({"messages": [USER]}, **GREEDY) == expected
    assert chat([USER], **GREEDY) == chat("Hi", **GREEDY) == chat({"text": "Hi"}, **GREEDY) == expected


def test_the_history_is_the_next_input(chat: PolyLMChatPipeline, pipe: PolyLMTextGenerationPipeline) -> None:
    first = chat({"messages": [USER]}, **GREEDY)
    second = chat({"messages": [*first["history"], {"role": "user", "content": "And?"}]}, **GREEDY)
    assert [message["role"] for message in second["history"]] == ["user", "assistant"] * 2
    prompt = f"<|user|>\nHi\n<|assistant|>\n{first['response']}\n<|user|>\nAnd?\n<|assistant|>\n"
    assert second["response"] == pipe(prompt, return_full_text=False, **GREEDY)["text"]


def test_a_long_history_is_returned_whole(chat: PolyLMChatPipeline) -> None:
    history = [USER, {"role": "assistant", "content": "ok"}] * 60
    output = chat({"messages": [*history, USER]}, **GREEDY)
    assert output["history"][:-1] == [*history, USER]


def test_lists_and_batches(chat: PolyLMChatPipeline) -> None:
    inputs = [{"messages": [USER]}, "Paris", [{"role": "user", "content": "北京"}]]
    assert chat(inputs, batch_size=3, **GREEDY) == chat(inputs, **GREEDY) == [chat(item, **GREEDY) for item in inputs]


def test_several_answers(chat: PolyLMChatPipeline) -> None:
    output = chat([USER], **{**GREEDY, "num_beams": 3, "num_return_sequences": 2})
    assert output["texts"][0] == output["response"]
    assert len(output["scores"]) == 2


def test_stream(chat: PolyLMChatPipeline) -> None:
    outputs = list(chat.stream_generate({"messages": [USER]}, **GREEDY))
    assert outputs[-1] == chat({"messages": [USER]}, **GREEDY)
    responses = [output["response"] for output in outputs]
    assert all(later.startswith(earlier) for earlier, later in pairwise(responses))
    assert len(outputs) > 1


def test_the_factory(random_snapshot: Path) -> None:
    chat = pipeline(Tasks.chat, model=str(random_snapshot), device="cpu", prompt_format="assistant")
    assert type(chat) is PolyLMChatPipeline
    assert chat([USER], **GREEDY)["message"]["role"] == "assistant"


def test_there_is_no_prompt_to_return(chat: PolyLMChatPipeline) -> None:
    with pytest.raises(OptionError, match="return_full_text"):
        chat([USER], return_full_text=True)
