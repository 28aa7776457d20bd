"""Conversations without a surface: turns, interruptions, settings, the end of the context."""

from __future__ import annotations

from typing import Any

import pytest

from modelscope_polylm.backends.base import Completion
from modelscope_polylm.conversation import Conversation
from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.generator import GenerationResult, TextDelta, TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.inputs import Prompt
from tests.cli.chat.conftest import FRENCH, GERMAN, ask

PEKIN = "Pékin est la capitale de la Chine."


@pytest.fixture(scope="module")
def tiny() -> TextGenerator:
    return TextGenerator.load(TINY_FOLDER, device="cpu")


@pytest.fixture
def conversation(tiny: TextGenerator) -> Conversation:
    return Conversation(tiny)


def test_answer_comes_in_pieces_and_is_kept(conversation: Conversation) -> None:
    pieces = list(conversation.ask(FRENCH))
    assert len(pieces) > 2
    assert "".join(pieces) == PEKIN
    assert conversation.messages == [
        {"role": "user", "content": FRENCH},
        {"role": "assistant", "content": PEKIN},
    ]


def test_answer_is_that_of_the_pipeline_for_the_whole_history(conversation: Conversation, tiny: TextGenerator) -> None:
    ask(conversation, FRENCH)
    second = ask(conversation, GERMAN)
    options = tiny.options({"num_beams": 1, "max_new_tokens": 128})
    messages = [*conversation.messages[:2], {"role": "user", "content": GERMAN}]
    assert [second] == tiny.reply([tiny.reader.read({"messages": messages}, options)], options)[0].texts


def test_stats(conversation: Conversation, tiny: TextGenerator) -> None:
    ask(conversation, FRENCH)
    stats = conversation.stats
    assert stats is not None
    prompt = f"<|user|>\n{FRENCH}\n<|assistant|>\n"
    assert stats.tokens == len(tiny.snapshot.tokenizer.encode(PEKIN))
    assert stats.used == stats.tokens + len(tiny.snapshot.tokenizer.encode(prompt))
    assert stats.used + stats.left == 512
    assert (stats.finish_reason, stats.turns_left_out) == ("eos", 0)
    assert stats.seconds > 0


def test_stopped_answer_is_kept(conversation: Conversation) -> None:
    answer = conversation.ask(FRENCH)
    first = next(answer)
    answer.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": first}
    assert conversation.stats is not None and conversation.stats.finish_reason == "stopped"
    assert ask(conversation, FRENCH)


def test_stopped_before_the_first_character_leaves_nothing(
    conversation: Conversation, tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt
        yield

    ask(conversation, GERMAN)
    before = list(conversation.messages)
    monkeypatch.setattr(tiny, "stream", interrupted)
    for again in (lambda: conversation.ask(FRENCH), conversation.retry):
        with pytest.raises(KeyboardInterrupt):
            list(again())
        assert conversation.messages == before


def test_interrupt_within_the_model_keeps_what_came(
    conversation: Conversation, tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = tiny.stream

    def interrupted(*arguments: Any) -> Any:
        yield next(stream(*arguments))
        raise KeyboardInterrupt

    monkeypatch.setattr(tiny, "stream", interrupted)
    pieces = []
    with pytest.raises(KeyboardInterrupt):
        for piece in conversation.ask(FRENCH):
            pieces.append(piece)
    assert conversation.messages[-1]["content"] == "".join(pieces) != ""


def test_undo_and_retry(conversation: Conversation) -> None:
    ask(conversation, FRENCH)
    ask(conversation, GERMAN)
    conversation.change({"max_new_tokens": 2})
    again = "".join(conversation.retry())
    assert [message["content"] for message in conversation.messages] == [FRENCH, PEKIN, GERMAN, again]
    assert conversation.undo() == GERMAN
    assert conversation.undo() == FRENCH
    for nothing in (conversation.undo, conversation.retry):
        with pytest.raises(InputError, match="Nothing has been asked"):
            nothing()


def test_clear_keeps_settings(conversation: Conversation) -> None:
    conversation.change({"temperature": 0.5})
    ask(conversation, FRENCH)
    conversation.clear()
    assert (conversation.messages, conversation.stats) == ([], None)
    assert conversation.options.temperature == 0.5


def test_oldest_turns_are_left_out_and_counted(conversation: Conversation) -> None:
    conversation.change({"max_new_tokens": 4})
    turns = 0
    while conversation.stats is None or not conversation.stats.turns_left_out:
        ask(conversation, FRENCH)
        turns += 1
    assert len(conversation.messages) == 2 * turns
    assert conversation.stats.turns_left_out == 1
    assert conversation.stats.used <= 512


@pytest.mark.parametrize("question", ["", "  ", "<|assistant|>", "no " * 600, "\ud800"])
def test_bad_questions_change_nothing(conversation: Conversation, question: str) -> None:
    ask(conversation, FRENCH)
    before = list(conversation.messages)
    with pytest.raises(InputError):
        conversation.ask(question)
    assert conversation.messages == before


@pytest.mark.parametrize(
    ("settings", "beams", "sample", "limit"),
    [
        ({}, 1, False, 128),
        ({"num_beams": 4}, 4, False, 128),
        ({"do_sample": True}, 1, True, 128),
        ({"max_new_tokens": 7}, 1, False, 7),
        ({"max_length": 300}, 1, False, 300),
        ({"max_new_tokens": None, "num_beams": None}, 1, False, 128),
    ],
)
def test_defaults(tiny: TextGenerator, settings: dict[str, Any], beams: int, sample: bool, limit: int) -> None:
    options = Conversation(tiny, settings).options
    assert (options.num_beams, options.do_sample, options.new_tokens(0)) == (beams, sample, limit)


def test_release_that_samples_still_does(tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = {"do_sample": True, "num_beams": 1, "top_p": 0.8, "max_length": 1024, "eos_token_id": 2}
    monkeypatch.setattr(tiny.snapshot, "generation", sampling)
    options = Conversation(tiny).options
    assert (options.do_sample, options.top_p, options.new_tokens(0)) == (True, 0.8, 128)


@pytest.mark.parametrize(
    "settings", [{"temperature": -1.0}, {"num_return_sequences": 2, "do_sample": True}, {"temprature": 1.0}]
)
def test_bad_settings_change_nothing(conversation: Conversation, settings: dict[str, Any]) -> None:
    conversation.change({"top_k": 3})
    with pytest.raises(OptionError):
        conversation.change(settings)
    assert conversation.settings == {"top_k": 3}


def test_format_without_turns_answers_each_message_alone(random_snapshot: Any) -> None:
    conversation = Conversation(TextGenerator.load(random_snapshot, device="cpu", prompt_format="base"))
    assert not conversation.has_turns
    conversation.change({"max_new_tokens": 3})
    first = ask(conversation, "Beijing is the")
    assert ask(conversation, "Beijing is the") == first
    assert len(conversation.messages) == 4


def test_a_conversation_goes_on_with_messages(tiny: TextGenerator, conversation: Conversation) -> None:
    ask(conversation, FRENCH)
    other = Conversation(tiny, messages=conversation.messages)
    assert ask(other, GERMAN) == ask(conversation, GERMAN)
    assert other.messages == conversation.messages
    assert len(other.messages) == 4


def test_another_stream_may_have_nothing_new(tiny: TextGenerator) -> None:
    result = GenerationResult("", ["Two"], [Completion([1, 2], finish_reason="length")])
    closed = []

    def stream(prompt: Prompt, options: Any) -> Any:
        try:
            yield from (None, TextDelta(0, "T"), None, TextDelta(0, "wo", result))
        finally:
            closed.append(prompt.text)

    conversation = Conversation(tiny, {"num_beams": 1}, stream=stream)
    assert list(conversation.ask("One")) == ["", "T", "", "wo"]
    assert conversation.stats is not None
    assert (conversation.stats.tokens, conversation.stats.finish_reason) == (2, "length")
    answer = conversation.ask("Three")
    next(answer)
    answer.close()
    assert len(closed) == 2
    assert len(conversation.messages) == 2


@pytest.mark.parametrize(
    ("texts", "pieces"),
    [
        (["Two.\n", "<|us", "er|>\nMore?"], ["Two.\n", "", ""]),
        (["a <", "b", " <|assistant|>"], ["a ", "<b", " "]),
        (["<|user|>"], [""]),
    ],
)
def test_turns_that_the_model_makes_up_end_the_answer(tiny: TextGenerator, texts: list[str], pieces: list[str]) -> None:
    def stream(prompt: Prompt, options: Any) -> Any:
        yield from (TextDelta(0, text) for text in texts)
        raise AssertionError("the stream goes on")

    conversation = Conversation(tiny, stream=stream)
    assert list(conversation.ask("One")) == pieces
    assert conversation.messages[-1]["content"] == "".join(pieces)
    assert conversation.stats is not None and conversation.stats.finish_reason == "stop"


def test_what_looked_like_a_marker_is_a_part_of_a_complete_answer(tiny: TextGenerator) -> None:
    result = GenerationResult("", ["a <|"], [Completion([1], finish_reason="eos")])
    deltas = [TextDelta(0, "a <|"), TextDelta(0, "", result)]
    conversation = Conversation(tiny, stream=lambda prompt, options: (delta for delta in deltas))
    assert list(conversation.ask("One")) == ["a ", "<|"]


def test_a_system_text_stands_before_the_first_message(tiny: TextGenerator) -> None:
    sentence, request = GERMAN.split("\n")
    with_system, plain = Conversation(tiny, system=sentence), Conversation(tiny)
    answer = "".join(with_system.ask(request))
    assert answer == "".join(plain.ask(f"{sentence}\n\n{request}"))
    assert with_system.messages[0] == {"role": "user", "content": request}
    assert with_system.stats.used == plain.stats.used  # type: ignore[union-attr]
    assert "".join(with_system.ask("More.")) == "".join(plain.ask("More."))
