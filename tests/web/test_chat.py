"""The chat of the web app without its surface, on the bundled model."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from typing import Any

import pytest

from modelscope_polylm.backends.base import Completion
from modelscope_polylm.generator import GenerationResult, TextDelta, TextGenerator
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.text.prompts import FORMATS
from modelscope_polylm.web.answers import Answers, StopSign
from modelscope_polylm.web.chat import Chat, ChatView
from modelscope_polylm.web.model import shown_fields, starting_values
from modelscope_polylm.web.words import Words

STORY = "Tell me a story."


@pytest.fixture(scope="module")
def answers(tiny: TextGenerator) -> Answers:
    return Answers(tiny)


@pytest.fixture
def chat(answers: Answers) -> Chat:
    return Chat(answers, Words())


def values(generator: TextGenerator, **changed: Any) -> list[Any]:
    """The page's options, some of them changed."""
    return [{**starting_values(generator), **changed}[field.name] for field in shown_fields()]


def last(views: Any) -> ChatView:
    return list(views)[-1]


def test_a_message_is_answered(chat: Chat, tiny: TextGenerator) -> None:
    question = translation_request(SENTENCE, "Arabic")
    views = list(chat.send(question, [], values(tiny), StopSign()))
    asked = {"role": "user", "content": question}
    waiting = ChatView([asked, {"role": "assistant", "content": ""}], views[0].answer, "waiting for the answer", "")
    assert views[0] == waiting
    assert views[-1].messages == [asked, {"role": "assistant", "content": TRANSLATIONS["ar"]}]
    assert [view.answer for view in views] == [views[0].answer] * (len(views) - 1) + [""]
    assert views[-1].draft is None
    assert "of 512 tokens of the context used" in views[-1].status


def test_an_answer_grows(chat: Chat, tiny: TextGenerator) -> None:
    long = values(tiny, min_new_tokens="300", max_new_tokens="300")
    texts = [view.messages[-1]["content"] for view in chat.send(STORY, [], long, StopSign())]
    assert len(set(texts)) > 3
    final = texts[-1]
    assert all(final.startswith(text) for text in texts)
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(texts[:-1])


def test_the_model_is_given_the_conversation(chat: Chat, tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = prompts_of(tiny, monkeypatch)
    first = last(chat.send("One", [], values(tiny), StopSign())).messages
    conversation = last(chat.send("Two", first, values(tiny), StopSign())).messages
    assert [message["role"] for message in conversation] == ["user", "assistant"] * 2
    assert seen[1] == f"<|user|>\nOne\n<|assistant|>\n{first[1]['content']}\n<|user|>\nTwo\n<|assistant|>\n"


def prompts_of(generator: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects the prompts that a generator is given."""
    seen: list[str] = []
    stream = generator.stream
    monkeypatch.setattr(
        generator, "stream", lambda prompts, options: (seen.append(prompts[0].text), stream(prompts, options))[1]
    )
    return seen


def test_without_a_format_for_turns_each_message_stands_alone(
    chat: Chat, tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny.snapshot, "prompt_format", FORMATS["base"])
    monkeypatch.setattr(tiny, "reader", type(tiny.reader)(tiny.snapshot.tokenizer, FORMATS["base"], 512))
    seen = prompts_of(tiny, monkeypatch)
    first = last(chat.send("One", [], values(tiny), StopSign())).messages
    conversation = last(chat.send("Two", first, values(tiny), StopSign())).messages
    assert seen == ["One", "Two"]
    assert len(conversation) == 4


def test_a_long_conversation_loses_its_oldest_turns_only_for_the_model(chat: Chat, tiny: TextGenerator) -> None:
    past = [{"role": role, "content": "a b c " * 30} for _ in range(10) for role in ("user", "assistant")]
    view = last(chat.send("Hello", past, values(tiny), StopSign()))  # type: ignore[arg-type]
    assert view.problem is None
    assert view.messages[:-2] == past


def test_stop_keeps_what_has_come(chat: Chat, tiny: TextGenerator) -> None:
    sign = StopSign()
    long = values(tiny, min_new_tokens="450", max_new_tokens="450")
    views = []
    for view in chat.send(STORY, [], long, sign):
        views.append(view)
        sign.raised = sign.raised or bool(view.messages[-1]["content"])
    assert views[-1].status.startswith("Stopped after")
    assert not views[-1].answer
    assert 0 < len(views[-1].messages[-1]["content"]) < 400
    again = last(chat.send("And then?", views[-1].messages, values(tiny), sign))
    assert again.problem is None
    assert not again.status.startswith("Stopped")


def test_stop_before_the_first_token(chat: Chat, tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step may take long, but nobody has to wait for it."""

    def never(prompts: Any, options: Any) -> Generator[Any, None, Any]:
        time.sleep(3)
        yield [None]

    monkeypatch.setattr(tiny, "stream", never)
    sign, start = StopSign(), time.monotonic()
    views = []
    for view in Chat(Answers(tiny), Words()).send(STORY, [], values(tiny), sign):
        views.append(view)
        sign.raised = True
    assert time.monotonic() - start < 2
    assert views[-1].messages[-1] == {"role": "assistant", "content": ""}


def test_retry_draws_anew(chat: Chat, tiny: TextGenerator) -> None:
    drawn = values(tiny, do_sample=True, temperature=3.0, min_new_tokens="20", seed="")
    first = last(chat.send(STORY, [], drawn, StopSign()))
    second = last(chat.retry(first.messages, drawn, StopSign()))
    assert second.messages[0] == first.messages[0]
    assert second.messages[1] != first.messages[1]
    assert second.draft is None


def test_undo_gives_the_message_back(chat: Chat) -> None:
    turn = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "1"}]
    later = [{"role": "user", "content": "Two"}, {"role": "assistant", "content": "2"}]
    assert chat.undo([*turn, *later]) == ChatView(turn, draft="Two")  # type: ignore[arg-type, list-item]


def test_nothing_to_do(chat: Chat, tiny: TextGenerator) -> None:
    assert [view.messages for view in chat.send(" \n", [], values(tiny), StopSign())] == [[]]
    assert [view.messages for view in chat.retry([], values(tiny), StopSign())] == [[]]
    assert chat.undo([]).messages == []


@pytest.mark.parametrize(
    ("text", "changed", "problem"),
    [
        ("Hi <|assistant|>", {}, "role marker"),
        ("Hi", {"seed": "x"}, "seed='x'"),
        ("Hi", {"top_p": 1.5}, "top_p=1.5"),
        ("Hi", {"do_sample": True, "num_beams": 2}, "num_beams=2"),
        ("Hi", {"max_new_tokens": "512"}, "leaves no room"),
        ("word " * 600, {}, "too long|shorten"),
    ],
)
def test_a_problem_gives_the_message_back(
    chat: Chat, tiny: TextGenerator, text: str, changed: dict[str, Any], problem: str
) -> None:
    past: list[Any] = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "1"}]
    view = last(chat.send(text, past, values(tiny, **changed), StopSign()))
    assert (view.messages, view.draft, view.answer) == (past, text, "")
    assert any(part in str(view.problem) for part in problem.split("|"))


def test_a_failed_retry_keeps_the_answer(chat: Chat, tiny: TextGenerator) -> None:
    past: list[Any] = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "1"}]
    view = last(chat.retry(past, values(tiny, top_p=2), StopSign()))
    assert (view.messages, view.draft) == (past, None)
    assert "top_p" in str(view.problem)


def test_an_unexpected_error_ends_the_answer(chat: Chat, tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(prompts: Any, options: Any) -> Any:
        raise RuntimeError("out of memory at 0x7f")

    monkeypatch.setattr(tiny, "stream", fail)
    view = last(chat.send("Hi", [], values(tiny), StopSign()))
    assert not view.answer
    assert "went wrong" in str(view.problem)
    assert "0x7f" not in str(view.problem)


def test_turns_that_the_model_makes_up_are_not_shown(
    chat: Chat, tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "Two.\n<|user|>\nMore?\n<|assistant|>\nThree."

    def made_up(prompts: Any, options: Any) -> Generator[TextDelta, None, None]:
        yield TextDelta(0, text[:8])
        yield TextDelta(0, text[8:], GenerationResult("", [text], [Completion([1, 2, 3])]))

    monkeypatch.setattr(tiny, "stream", made_up)
    views = list(chat.send("One", [], values(tiny), StopSign()))
    assert {view.messages[-1]["content"] for view in views} <= {"", "Two.\n"}
    assert views[-1].messages[-1]["content"] == "Two.\n"


def test_a_page_that_is_loaded_again_in_the_middle_of_an_answer_loses_nothing(
    chat: Chat, tiny: TextGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, sampled = (
        prompts_of(tiny, monkeypatch),
        values(tiny, do_sample=True, temperature=0.9, min_new_tokens="400", max_new_tokens="400"),
    )
    past: list[Any] = [{"role": "user", "content": "One"}, {"role": "assistant", "content": "1"}]
    with contextlib.closing(chat.send(STORY, past, sampled, StopSign())) as views:  # type: ignore[type-var]
        before = next(view for view in views if view.messages[-1]["content"])
    after = list(chat.restore(before.saved, sampled, StopSign()))
    answer = after[-1].messages[-1]["content"]
    assert after[-1].messages[:-1] == before.messages[:-1]
    assert answer.startswith(before.messages[-1]["content"]) and len(answer) > len(before.messages[-1]["content"])
    assert (after[-1].answer, after[-1].problem, len(asked)) == ("", None, 1)


def test_an_answer_that_the_server_has_lost_is_given_again(chat: Chat, tiny: TextGenerator) -> None:
    question = translation_request(SENTENCE, "Thai")
    kept = {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": "ปัก"}], "answer": "x"}
    assert last(chat.restore(kept, values(tiny), StopSign())).messages[-1]["content"] == TRANSLATIONS["th"]
    whole = {**kept, "answer": ""}
    assert list(chat.restore(whole, values(tiny), StopSign())) == [ChatView(kept["messages"])]  # type: ignore[arg-type]


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "kept",
    [
        None,
        [],
        "chat",
        {},
        {"messages": "ab"},
        {"messages": [USER]},
        {"messages": [ASSISTANT, USER]},
        {"messages": [USER, {"role": "assistant"}]},
        {"messages": [USER, {"role": "assistant", "content": 1}]},
        {"messages": [USER, ["assistant", "b"]]},
        {"messages": [], "answer": "x"},
    ],
)
def test_what_no_page_has_kept_is_no_conversation(chat: Chat, tiny: TextGenerator, kept: Any) -> None:
    assert list(chat.restore(kept, values(tiny), StopSign())) == [ChatView([])]


def test_the_place_in_the_queue(chat: Chat, answers: Answers, tiny: TextGenerator) -> None:
    long = values(tiny, min_new_tokens="300", max_new_tokens="300")
    with contextlib.closing(chat.send(STORY, [], long, StopSign())) as first:  # type: ignore[type-var]
        assert any(view.messages[-1]["content"] for view in first)
        others = [chat.send(STORY, [], values(tiny), StopSign()) for _ in range(2)]
        shown = [[next(views), next(views)][1].status for views in others]
        assert [f"place {place} in the queue" in line for place, line in enumerate(shown, 1)] == [True, True]
        answers.stop(next(first).answer)
        for views in others:
            assert last(views).problem is None
