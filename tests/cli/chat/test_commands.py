"""The chat's commands, and its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelscope_polylm.cli.chat.commands import COMMANDS, is_command, run_command
from modelscope_polylm.conversation import Conversation
from modelscope_polylm.errors import InputError, OptionError, PolyLMError
from modelscope_polylm.generator import TextGenerator
from tests.cli.chat.conftest import FRENCH, GERMAN, ask


@pytest.mark.parametrize(("line", "command"), [("/help", True), ("//comment", False), ("a /b", False), ("", False)])
def test_is_command(line: str, command: bool) -> None:
    assert is_command(line) == command


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("/set temperature 0.7", "temperature", 0.7),
        ("/set do_sample true", "do_sample", True),
        ("/set do-sample yes", "do_sample", True),
        ("/set max_new_tokens 5", "max_new_tokens", 5),
        ("/set num_beams 4", "num_beams", 4),
        ("/set early_stopping never", "early_stopping", "never"),
        ("/set stop_strings the end", "stop_strings", "the end"),
        ('/set stop_strings ["a", "b"]', "stop_strings", ["a", "b"]),
        ("/set bad_words_ids [[3]]", "bad_words_ids", [[3]]),
        ("/set eos_token_id [2, 7]", "eos_token_id", [2, 7]),
    ],
)
def test_set(conversation: Conversation, line: str, name: str, value: object) -> None:
    outcome = run_command(conversation, line)
    assert getattr(conversation.options, name) == value
    assert outcome.message == f"{name} is {value}."
    run_command(conversation, f"/set {name}")
    assert conversation.settings == {}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/set temperature hot", "cannot be read"),
        ("/set temperature 0", "temperature=0"),
        ("/set temprature 1", "did you mean temperature?"),
        ("/set do_sample perhaps", "do_sample='perhaps'"),
        ("/set max_new_tokens 1.5", "whole number"),
        ("/set bad_words_ids [[1", "cannot be read"),
        ("/set output_scores true", "Unknown option"),
        ("/hlep", "did you mean /help?"),
        ("/", "/help lists"),
        ("/system be brief", "without system messages"),
        ("/undo", "Nothing has been asked"),
        ("/retry", "Nothing has been asked"),
        ("/save", "Which file?"),
        ("/load", "Which file?"),
        ("/load /nowhere/chat.json", "cannot be read: No such file"),
        ("/load a\0b", "is no saved chat"),
        ("/save /nowhere/chat.json", "Nothing was saved: there is no folder /nowhere. Make it first"),
        ("/save /", "Nothing was saved: / is a folder. Add a name, as in /save /talk.json."),
        ("/save /proc/chat.json", "Nothing was saved"),
        ("/save /etc/hosts/chat.json", "cannot be written (Not a directory)"),
        (f"/save {'x' * 300}", "cannot be written (File name too long)"),
        ("/save a\0b", "cannot be written (embedded null byte)"),
        ("/save ~nobody-of-this-name/chat.json", "there is no such user"),
        ("/undo two", "write how many questions"),
        ("/undo 0", "write how many questions"),
        ("/undo -1", "write how many questions"),
        ("/exti", "did you mean /exit?"),
    ],
)
def test_refusals(conversation: Conversation, line: str, reason: str) -> None:
    with pytest.raises(PolyLMError) as caught:
        run_command(conversation, line)
    assert isinstance(caught.value, (InputError, OptionError))
    assert reason in str(caught.value)
    assert (conversation.settings, conversation.messages) == ({}, [])


def test_help_has_every_command(conversation: Conversation) -> None:
    lines = run_command(conversation, "/help").message.splitlines()
    assert [line.split()[0].rstrip(":") for line in lines[:-1]] == [f"/{name}" for name in COMMANDS]


def test_settings_are_listed(conversation: Conversation) -> None:
    conversation.change({"no_repeat_ngram_size": 3})
    lines = run_command(conversation, "/set").message.splitlines()
    assert "max_new_tokens 128" in lines
    assert "no_repeat_ngram_size 3" in lines


def test_turns(conversation: Conversation) -> None:
    ask(conversation, FRENCH)
    outcome = run_command(conversation, "/retry")
    assert outcome.answer is not None and "the answer will be the same" in outcome.message
    list(outcome.answer)
    run_command(conversation, "/set do_sample true")
    assert run_command(conversation, "/retry").message == ""
    assert run_command(conversation, "/undo").message.startswith("Taken back: Beijing is the capital")
    assert run_command(conversation, "/clear").message


@pytest.mark.parametrize("line", ["/quit", "/exit", "/bye", " /bye "])
def test_the_end(conversation: Conversation, line: str) -> None:
    assert run_command(conversation, line).ends


def test_several_turns_are_taken_back(conversation: Conversation) -> None:
    for question in (FRENCH, GERMAN, "One", "Two"):
        ask(conversation, question)
    assert run_command(conversation, "/undo 2").message == "Taken back: Two\nTaken back: One"
    with pytest.raises(InputError, match="there are 2 questions"):
        run_command(conversation, "/undo 3")
    assert [message["content"] for message in conversation.messages[::2]] == [FRENCH, GERMAN]


def test_save_where_one_may_not(conversation: Conversation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")  # root may write everywhere

    monkeypatch.setattr("modelscope_polylm.cli.chat.commands.write_atomically", refuse)
    with pytest.raises(InputError, match=f"you may not write into the folder {tmp_path}"):
        run_command(conversation, f"/save {tmp_path / 'chat.json'}")


def test_save_and_load(conversation: Conversation, tiny: TextGenerator, tmp_path: Path) -> None:
    file = tmp_path / "a chat.json"
    conversation.change({"max_new_tokens": 9})
    ask(conversation, FRENCH)
    run_command(conversation, f"/save {file}")
    other = Conversation(tiny, {"top_k": 2})
    assert "Loaded 2 messages" in run_command(other, f"/load {file}").message
    assert (other.messages, other.settings) == (conversation.messages, {"max_new_tokens": 9})
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert "Loaded 2 messages" in run_command(other, f"/load {file}").message
    assert other.messages == conversation.messages
    ask(conversation, GERMAN)
    run_command(conversation, f"/save {file}")
    assert len(json.loads(file.read_text(encoding="utf-8"))["messages"]) == 4
    assert list(tmp_path.iterdir()) == [file]


def test_save_replaces_no_other_file(conversation: Conversation, tmp_path: Path) -> None:
    for name, content in (("notes.txt", "my notes"), ("data.json", '{"a": 1}'), ("list.json", "[]"), ("empty", "")):
        file = tmp_path / name
        file.write_text(content)
        with pytest.raises(InputError, match="is no saved chat"):
            run_command(conversation, f"/save {file}")
        assert file.read_text() == content


USER, ASSISTANT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is no saved chat"),
        ("[" * 100_000, "is no saved chat"),
        ({"messages": [], "settings": {}}, "is no saved chat"),
        ({"kind": "polylm chat"}, "damaged"),
        ({"kind": "polylm chat", "messages": [USER], "settings": {}}, "'assistant' is expected"),
        ({"kind": "polylm chat", "messages": [ASSISTANT, USER], "settings": {}}, "'user' is expected"),
        ({"kind": "polylm chat", "messages": [1], "settings": {}}, "messages[0]"),
        ({"kind": "polylm chat", "messages": [USER, ASSISTANT], "settings": {"top_p": 3}}, "top_p=3"),
        ({"kind": "polylm chat", "messages": [USER, ASSISTANT], "settings": {"device": "x"}}, "device"),
    ],
)
def test_damaged_files(conversation: Conversation, tmp_path: Path, content: object, reason: str) -> None:
    file = tmp_path / "chat.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    ask(conversation, FRENCH)
    before = list(conversation.messages)
    with pytest.raises(PolyLMError) as caught:
        run_command(conversation, f"/load {file}")
    assert reason in str(caught.value)
    assert (conversation.messages, conversation.settings) == (before, {})
