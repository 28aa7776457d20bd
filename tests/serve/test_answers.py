"""Answers of the server are those of the engine, whole or streamed, alone or among others."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.text.languages import LANGUAGES, translation_request
from tests.serve.running import ANSWER, CHAT, COMPLETIONS, PROMPT, Running, chat, completion


def events(server: Running, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a stream, which ends with [DONE]."""
    with server.http.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def texts_of(stream: list[dict[str, Any]]) -> dict[int, str]:
    """The text of each choice of a stream."""
    texts: dict[int, str] = {}
    for event in stream:
        for choice in event["choices"]:
            new = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            texts[choice["index"]] = texts.get(choice["index"], "") + new
    return texts


def whole(server: Running, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = server.post(path, body)
    assert response.status_code == 200, response.text
    return dict(response.json())


def choice_texts(body: dict[str, Any]) -> list[str]:
    return [choice["message"]["content"] if "message" in choice else choice["text"] for choice in body["choices"]]


SEARCHES: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"num_beams": 3, "n": 3},
    {"temperature": 0, "n": 2},
    {"temperature": 1.5, "seed": 5, "n": 3, "top_k": 0},
    {"temperature": 0, "max_tokens": 3},
    {"temperature": 0, "stop": [" die", "von"]},
    {"stop": " von"},
    {"temperature": 0, "logprobs": True},
    {"num_beams": 2, "output_scores": True},
]


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_stream_and_whole_are_the_same(server: Running, search: dict[str, Any]) -> None:
    body = whole(server, CHAT, chat(**search))
    stream = events(server, CHAT, chat(**search, stream_options={"include_usage": True}))
    assert list(texts_of(stream).values()) == choice_texts(body)
    ends = {choice["index"]: choice for event in stream for choice in event["choices"] if choice["finish_reason"]}
    for choice in body["choices"]:
        end = ends[choice["index"]]
        for name in ("finish_reason", "logprobs", "score"):
            assert end.get(name) == choice.get(name)
    assert stream[-1]["choices"] == []
    assert stream[-1]["usage"] == body["usage"]
    assert all("usage" not in event for event in stream[:-1])
    assert {event["id"] for event in stream} == {stream[0]["id"]}


def test_greedy_streams_token_by_token(server: Running) -> None:
    pieces = [
        choice["delta"]["content"]
        for event in events(server, CHAT, chat(num_beams=1))
        for choice in event["choices"]
        if choice["delta"].get("content")
    ]
    assert "".join(pieces) == ANSWER
    assert len(pieces) > 3


def test_finish_reasons_and_usage(server: Running, tiny: TextGenerator) -> None:
    body = whole(server, CHAT, chat())
    tokens = len(tiny.snapshot.tokenizer.encode(PROMPT))
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["usage"] == {"prompt_tokens": tokens, "completion_tokens": 8, "total_tokens": tokens + 8}
    for more in ({"temperature": 0}, {"num_beams": 2}, {"temperature": 0, "logprobs": True}):
        cut = whole(server, CHAT, chat(max_completion_tokens=3, **more))
        assert cut["choices"][0]["finish_reason"] == "length"
        assert cut["usage"]["completion_tokens"] == 3
    stopped = whole(server, CHAT, chat(temperature=0, stop=" von"))
    assert choice_texts(stopped) == ["Rom ist die Hauptstadt"]
    assert stopped["choices"][0]["finish_reason"] == "stop"


def test_beams_with_scores_are_those_of_the_engine(server: Running, tiny: TextGenerator) -> None:
    options = tiny.options({"num_beams": 4, "num_return_sequences": 4})
    prompt = tiny.reader.read(PROMPT, options)
    reply = tiny.reply([prompt], options)[0]
    body = whole(server, COMPLETIONS, completion(num_beams=4, n=4, output_scores=True))
    assert choice_texts(body) == reply.texts
    assert [choice["score"] for choice in body["choices"]] == [answer.score for answer in reply.completions]


def test_logprobs_are_those_of_the_engine(server: Running, tiny: TextGenerator) -> None:
    options = tiny.options({"num_beams": 1, "output_logprobs": True})
    answer = tiny.reply([tiny.reader.read(PROMPT, options)], options)[0].completions[0]
    content = whole(server, CHAT, chat(num_beams=1, logprobs=True))["choices"][0]["logprobs"]["content"]
    assert [token["logprob"] for token in content] == pytest.approx(answer.logprobs)
    assert b"".join(bytes(token["bytes"]) for token in content).decode() == ANSWER
    columns = whole(server, COMPLETIONS, completion(num_beams=1, logprobs=0))["choices"][0]["logprobs"]
    assert "".join(columns["tokens"]) == ANSWER
    assert columns["token_logprobs"] == pytest.approx(answer.logprobs)
    places = zip(columns["text_offset"], columns["tokens"], strict=True)
    assert all(ANSWER[offset:].startswith(token) for offset, token in places)


def test_bytes_of_logprobs_make_the_text(server: Running) -> None:
    body = completion(temperature=3.0, top_k=0, seed=1, min_new_tokens=200, max_tokens=200, logprobs=0)
    choice = whole(server, COMPLETIONS, body)["choices"][0]
    assert len(choice["logprobs"]["tokens"]) == 200
    assert all(math.isfinite(value) for value in choice["logprobs"]["token_logprobs"])
    kept = [token for token in choice["logprobs"]["tokens"] if not token.startswith("bytes:")]
    assert choice["text"].startswith("".join(kept[:3]))


def test_many_prompts_of_texts_and_tokens(server: Running, tiny: TextGenerator) -> None:
    ids = tiny.snapshot.tokenizer.encode(PROMPT)
    for prompt, count, tokens in (
        (PROMPT, 1, len(ids)),
        ([PROMPT, "a"], 2, len(ids) + 1),
        (ids, 1, len(ids)),
        ([ids, ids], 2, 2 * len(ids)),
    ):
        body = whole(server, COMPLETIONS, {"model": "tiny", "prompt": prompt, "temperature": 0, "n": 2})
        assert [choice["index"] for choice in body["choices"]] == list(range(2 * count))
        assert choice_texts(body)[:2] == [ANSWER, ANSWER]
        assert body["usage"]["prompt_tokens"] == tokens


def test_echo_and_best_of(server: Running) -> None:
    assert choice_texts(whole(server, COMPLETIONS, completion(echo=True))) == [PROMPT + ANSWER]
    assert texts_of(events(server, COMPLETIONS, completion(echo=True, n=2))) == {
        index: PROMPT + text for index, text in enumerate(choice_texts(whole(server, COMPLETIONS, completion(n=2))))
    }
    sampled = {"temperature": 2.0, "seed": 3, "top_k": 0, "max_tokens": 8}
    best = whole(server, COMPLETIONS, completion(**sampled, best_of=8, n=2, output_scores=True))
    every = whole(server, COMPLETIONS, completion(**sampled, n=8, output_scores=True, logprobs=0))

    def by_token(choice: dict[str, Any]) -> float:
        return float(choice["score"]) / max(len(choice["logprobs"]["tokens"]), 1)

    ranked = sorted(every["choices"], key=by_token, reverse=True)
    assert choice_texts(best) == [choice["text"] for choice in ranked[:2]]
    assert best["usage"]["completion_tokens"] == sum(len(each["logprobs"]["tokens"]) for each in every["choices"])


def test_seed_repeats_whatever_runs_beside(server: Running) -> None:
    body = {**completion(temperature=2.0, top_k=0, seed=11, max_tokens=30), "prompt": "a"}
    alone = whole(server, COMPLETIONS, body)["choices"][0]["text"]
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: whole(server, COMPLETIONS, body)["choices"][0]["text"], range(8)))
    assert set(texts) == {alone}
    assert whole(server, COMPLETIONS, {**body, "seed": -12})["choices"][0]["text"] != alone


def test_answers_among_others_are_those_alone(server: Running, tiny: TextGenerator) -> None:
    languages = [language for language in LANGUAGES.values() if language != "English"]
    options = tiny.options({"num_beams": 1})
    requests, expected = [], []
    for language in languages:
        question = translation_request("Rome is the capital of Italy.", language)
        requests.append({**chat(num_beams=1), "messages": [{"role": "user", "content": question}]})
        expected.append(tiny.reply([tiny.reader.read(question, options, chat=True)], options)[0].texts[0])
    most_rows = 0.0
    with ThreadPoolExecutor(len(requests)) as pool:
        streamed = [pool.submit(lambda body: texts_of(events(server, CHAT, body))[0], body) for body in requests]
        wholes = [pool.submit(lambda body: choice_texts(whole(server, CHAT, body))[0], body) for body in requests]
        while not all(answer.done() for answer in (*streamed, *wholes)):
            most_rows = max(most_rows, server.metric("polylm_running_rows"))
    assert [answer.result() for answer in streamed] == expected
    assert [answer.result() for answer in wholes] == expected
    assert most_rows > 1  # some ran together


def test_long_conversations_lose_their_oldest_turns(server: Running) -> None:
    turns = [{"role": "user", "content": "a " * 100}, {"role": "assistant", "content": "b"}] * 20
    body = {**chat(), "messages": [*turns, *chat()["messages"]]}
    assert whole(server, CHAT, body)["choices"][0]["message"]["content"]


def test_contents_in_parts_and_messages_sent_back(server: Running) -> None:
    first = whole(server, CHAT, chat())["choices"][0]["message"]
    question = chat()["messages"][0]["content"]
    parts = [{"type": "text", "text": question[:9]}, {"type": "text", "text": question[9:]}]
    back = {**first, "tool_calls": None, "annotations": []}
    body = {**chat(), "messages": [{"role": "user", "content": parts}, back, {"role": "user", "content": parts}]}
    assert whole(server, CHAT, {**body, "messages": body["messages"][:1]})["choices"][0]["message"]["content"] == ANSWER
    assert whole(server, CHAT, body)["choices"]
