"""What clients send besides OpenAI's own fields: benchmarks, agents, and conversations that are sent back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from tests.serve.running import (
    ANSWER,
    CHAT,
    COMPLETIONS,
    PROMPT,
    QUESTION,
    Running,
    chat,
    completion,
    error_of,
    serving,
)
from tests.serve.test_answers import events

USER = {"role": "user", "content": QUESTION}
NOTE = "x-polylm-note"


def answered(server: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def text_of(server: Running, messages: list[dict[str, Any]], **more: Any) -> str:
    return str(answered(server, CHAT, chat(messages=messages, **more))["choices"][0]["message"]["content"])


def test_a_body_of_guidellm(server: Running) -> None:
    prompt = "Rome is the capital of Italy. Translate this sentence from English to German."
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_completion_tokens": 20,
        "max_tokens": 20,
        "stop": None,
        "ignore_eos": True,
    }
    stream = events(server, CHAT, {"model": "tiny", **body})
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"]["completion_tokens"] == 20
    counts = [event["usage"]["completion_tokens"] for event in stream]
    assert counts == sorted(counts)
    assert all(event["usage"]["prompt_tokens"] == stream[-1]["usage"]["prompt_tokens"] for event in stream)


@pytest.mark.parametrize("beams", [1, 3])
def test_ignore_eos_goes_on_to_the_most_tokens(server: Running, beams: int) -> None:
    body = answered(server, COMPLETIONS, completion(num_beams=beams, max_tokens=30, ignore_eos=True))
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 30
    without = answered(server, COMPLETIONS, completion(num_beams=beams, max_tokens=30, ignore_eos=False))
    assert without["choices"][0]["text"] == ANSWER
    # without a limit of its own a request has the server's
    assert answered(server, COMPLETIONS, completion(num_beams=1, ignore_eos=True))["usage"]["completion_tokens"] == 128


@pytest.mark.parametrize(
    ("more", "tokens"),
    [
        ({"min_tokens": 12, "max_tokens": 12}, 12),
        ({"min_tokens": 0}, 8),
        ({"min_new_tokens": 12, "min_tokens": 12, "max_tokens": 12}, 12),
        ({"stop": []}, 8),
        ({"stop": None}, 8),
        ({"top_k": -1, "temperature": 1e-6}, 8),
        ({"top_k": -1}, 8),
        ({"skip_special_tokens": True, "spaces_between_special_tokens": True}, 8),
        ({"include_stop_str_in_output": False, "stop_token_ids": [], "truncate_prompt_tokens": None}, 8),
        ({"use_beam_search": False, "priority": 0, "prompt_logprobs": None}, 8),
    ],
    ids=str,
)
def test_fields_of_benchmarks(server: Running, more: dict[str, Any], tokens: int) -> None:
    assert answered(server, COMPLETIONS, completion(**more))["usage"]["completion_tokens"] == tokens
    assert answered(server, CHAT, chat(**more))["usage"]["completion_tokens"] == tokens


def test_top_k_of_vllm_samples_among_all_tokens(server: Running) -> None:
    sampled = {"temperature": 3.0, "seed": 5, "max_tokens": 12}
    every, off = (answered(server, COMPLETIONS, completion(**sampled, top_k=top_k)) for top_k in (-1, 0))
    assert every["choices"] == off["choices"]


def test_a_system_message_stands_before_the_user(server: Running) -> None:
    first, rest = QUESTION.split("\n")
    joined = f"{first}\n\n{rest}"
    wanted = text_of(server, [{"role": "user", "content": joined}])
    for role in ("system", "developer"):
        messages = [{"role": role, "content": first}, {"role": "user", "content": rest}]
        response = server.post(CHAT, chat(messages=messages))
        assert response.json()["choices"][0]["message"]["content"] == wanted
        assert response.json()["usage"] == answered(server, CHAT, chat(messages=[{**USER, "content": joined}]))["usage"]
        assert "not trained with system messages" in response.headers[NOTE]
    parts = [{"type": "text", "text": first}]
    assert text_of(server, [{"role": "system", "content": parts}, {"role": "user", "content": rest}]) == wanted


def test_a_stream_has_the_note_as_well(server: Running) -> None:
    body = chat(messages=[{"role": "system", "content": "Be brief."}, USER], stream=True, max_tokens=2)
    with server.http.stream("POST", CHAT, json=body) as response:
        assert NOTE in response.headers
        response.read()


@pytest.mark.parametrize("content", ["", " \n", None, []])
def test_an_empty_system_message_is_nothing(server: Running, content: Any) -> None:
    response = server.post(CHAT, chat(messages=[{"role": "system", "content": content}, USER]))
    assert response.json()["choices"][0]["message"]["content"] == ANSWER
    assert NOTE not in response.headers


def test_system_messages_can_be_refused(tiny: TextGenerator) -> None:
    with serving(tiny, system_message="refuse") as server:
        for role in ("system", "developer"):
            response = server.post(CHAT, chat(messages=[{"role": role, "content": "Be brief."}, USER]))
            assert response.status_code == 400
            assert f"{role!r}, which PolyLM was not trained with" in error_of(response)["message"]
        assert text_of(server, [{"role": "system", "content": ""}, USER]) == ANSWER


def test_two_user_turns_are_one(server: Running) -> None:
    first, rest = QUESTION.split("\n")
    wanted = text_of(server, [{"role": "user", "content": f"{first}\n\n{rest}"}])
    assert text_of(server, [{"role": "user", "content": first}, {"role": "user", "content": rest}]) == wanted


def test_an_answer_that_is_sent_back_with_all_that_is_known_of_it(server: Running) -> None:
    back = {
        "role": "assistant",
        "content": "Rom.",
        "id": "msg_1",
        "name": "tiny",
        "reasoning_content": "I know this.",
        "reasoning": "I know this.",
        "tool_calls": [],
        "refusal": None,
    }
    plain = {"role": "assistant", "content": "Rom."}
    named = {**USER, "name": "Ann", "id": "1"}
    assert text_of(server, [named, back, named]) == text_of(server, [USER, plain, USER])


def test_the_prompt_format_is_what_it_was(server: Running) -> None:
    assert answered(server, COMPLETIONS, {"model": "tiny", "prompt": PROMPT})["choices"][0]["text"] == ANSWER
    assert json.loads(server.post(CHAT, chat()).text)["choices"][0]["message"]["content"] == ANSWER
