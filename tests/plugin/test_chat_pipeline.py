"""pipeline(chat): conversations in, message, response and history out."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

from modelscope_polylm import PolyLMChatPipeline, PolyLMTextGenerationPipeline
from modelscope_polylm.errors import InputError, OptionError

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


@pytest.mark.parametrize("form", ["messages", "pairs"])
def test_a_text_goes_on_with_its_history(chat: PolyLMChatPipeline, form: str) -> None:
    first = chat({"text": "Hi", "history": []}, **GREEDY)
    earlier = first["history"] if form == "messages" else [("Hi", first["response"])]
    second = chat({"text": "And?", "history": earlier}, **GREEDY)
    assert second == chat([*first["history"], {"role": "user", "content": "And?"}], **GREEDY)
    assert [message["content"] for message in second["history"][:3]] == ["Hi", first["response"], "And?"]


def test_a_history_makes_a_conversation_of_a_text(chat: PolyLMChatPipeline, pipe: PolyLMTextGenerationPipeline) -> None:
    value = {"text": "And?", "history": [("Hi", "Hello")]}
    assert pipe(value, **GREEDY)["message"] == chat(value, **GREEDY)["message"]


def test_nulls_of_a_table_are_no_values(chat: PolyLMChatPipeline) -> None:
    expected = chat([USER], **GREEDY)
    assert chat({"text": None, "messages": [USER], "history": None}, **GREEDY) == expected
    assert chat({"text": "Hi", "messages": None}, **GREEDY) == expected


def test_system_messages(chat: PolyLMChatPipeline) -> None:
    value = [{"role": "system", "content": "Be short."}, USER]
    with pytest.raises(InputError, match="system"):
        chat(value, **GREEDY)
    joined = chat([{"role": "user", "content": "Be short.\n\nHi"}], **GREEDY)
    assert chat(value, system_message="prepend", **GREEDY) == joined
    with pytest.raises(OptionError, match="system_message='keep' is not one of 'refuse', 'prepend'"):
        chat(value, system_message="keep", **GREEDY)
