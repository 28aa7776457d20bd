"""OpenAI's batch files: requests with options of their own in, responses out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion
from openai.types.completion import Completion

from modelscope_polylm.cli.batch.openai_batch import CHAT, COMPLETION, OpenAIBatch
from modelscope_polylm.errors import InputError
from modelscope_polylm.generator import TextGenerator
from tests.cli.batch.test_job import lines

SENTENCE = "Rome is the capital of Italy."
TASK = {"role": "user", "content": "Translate this sentence from English to German."}
QUESTION = f"{SENTENCE}\n{TASK['content']}"
ANSWER = "Rom ist die Hauptstadt von Italien."
MESSAGES = [{"role": "user", "content": QUESTION}]
PROMPT = f"<|user|>\n{QUESTION}\n<|assistant|>\n"


def request(custom_id: str = "a", url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"messages": MESSAGES} if url == CHAT else {"prompt": PROMPT}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "tiny", **asked, **body}}


def write_requests(file: Path, *requests: Any) -> Path:
    file.write_text("".join(f"{json.dumps(each)}\n" for each in requests))
    return file


def test_requests_get_responses(polylm: Callable[..., Any], tiny: TextGenerator, tmp_path: Path) -> None:
    source = write_requests(
        tmp_path / "in.jsonl",
        request("beams"),
        request("greedy", temperature=0, max_completion_tokens=3),
        request("wrong", max_tokens=0),
        request("stop", temperature=0, stop=[" die"]),
        request("beams with a stop", num_beams=4, n=2, stop="Haupt"),
        request("text", COMPLETION, temperature=0, echo=True),
        request("long", max_tokens=5000),
        request("seeded", temperature=1.5, seed=-3, max_tokens=4),
        request("system", temperature=0, messages=[{"role": "system", "content": SENTENCE}, TASK]),
        {"custom_id": "no body", "method": "POST", "url": CHAT},
    )
    outcome = polylm("batch", str(source), str(tmp_path / "out.jsonl"), "--device", "cpu")
    assert (outcome.exit_code, outcome.errors) == (0, "3 of 10 lines hold an error.\n")
    records = lines(tmp_path / "out.jsonl")
    assert [record["custom_id"] for record in records] == [json.loads(line)["custom_id"] for line in source.open()]
    assert [record["id"] for record in records] == [f"batch_req_{number}" for number in range(1, 11)]
    assert {record["error"] for record in records} == {None}
    assert [record["response"]["status_code"] for record in records] == [
        200,
        200,
        400,
        200,
        200,
        200,
        400,
        200,
        200,
        400,
    ]
    bodies = [record["response"]["body"] for record in records]
    beams, greedy, wrong, stop, several, text, long, _, system, nothing = bodies
    completion = ChatCompletion.model_validate(beams)
    assert (completion.choices[0].message.content, completion.choices[0].finish_reason) == (ANSWER, "stop")
    tokenizer = tiny.snapshot.tokenizer
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == len(tokenizer.encode(PROMPT))
    assert completion.usage.completion_tokens == len(tokenizer.encode(ANSWER))
    assert (greedy["usage"]["completion_tokens"], greedy["choices"][0]["finish_reason"]) == (3, "length")
    assert "max_new_tokens=0" in wrong["error"]["message"]
    assert stop["choices"][0]["message"]["content"] == "Rom ist"
    assert [choice["index"] for choice in several["choices"]] == [0, 1]
    assert several["choices"][0]["message"]["content"] == "Rom ist die "
    assert several["choices"][0]["finish_reason"] == "stop"
    assert Completion.model_validate(text).choices[0].text == PROMPT + ANSWER
    assert long["error"] == {
        "message": long["error"]["message"],
        "type": "invalid_request_error",
        "param": None,
        "code": None,
    }
    assert "max_new_tokens=5000" in long["error"]["message"]
    merged = tiny.reader.read(
        {"messages": [{"role": "user", "content": f"{SENTENCE}\n\n{TASK['content']}"}]}, tiny.options({})
    )
    assert system["usage"]["prompt_tokens"] == len(merged.ids)
    assert "is no request" in nothing["error"]["message"]


def test_a_continued_run_writes_the_rows_that_are_missing(polylm: Callable[..., Any], tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", *(request(str(number), max_tokens=2) for number in range(40)))
    arguments = ("batch", str(source), str(tmp_path / "out.jsonl"), "--device", "cpu", "--batch-size", "1")
    assert polylm(*arguments).exit_code == 0
    whole = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").write_bytes(whole[: len(whole) // 2])
    assert polylm(*arguments).exit_code == 0
    assert [record["custom_id"] for record in lines(tmp_path / "out.jsonl")] == [str(number) for number in range(40)]
    assert (tmp_path / "out.jsonl").read_bytes().startswith(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"method": "GET"}, "method 'GET' is unknown: use 'POST'"),
        ({"url": "/v1/chat/completion"}, "did you mean /v1/chat/completions?"),
        ({"url": "/v1/embeddings"}, "url '/v1/embeddings' is unknown"),
        ({"url": None}, "url None is unknown"),
        ({"custom_id": 5}, "'custom_id' must be a text"),
        ({"body": []}, "'body' an object"),
        ({"priority": 1}, "'priority': a request has custom_id"),
    ],
)
def test_rows_that_are_no_requests(changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        OpenAIBatch(["tiny"]).read({**request(), **changed})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"model": "gpt-4o"}, "model 'gpt-4o' is not loaded"),
        ({"stream": True}, "stream is not supported"),
        ({"logprobs": True}, "logprobs is not supported"),
        ({"temprature": 1}, "Unknown field 'temprature'. Did you mean temperature?"),
        ({"tools": [{}]}, "tools is not supported"),
        ({"max_tokens": 3, "max_new_tokens": 4}, "max_tokens=3 contradicts max_new_tokens=4"),
        ({"num_beams": 4, "temperature": 0.5}, "are for sampling"),
        ({"allow_role_markers": "no"}, "must be true or false"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "PolyLM reads text alone"),
        ({"echo": True}, "Unknown field 'echo'"),
    ],
)
def test_bodies_that_cannot_be_asked(body: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        OpenAIBatch(["tiny"]).read(request(**body))


@pytest.mark.parametrize("prompt", [None, 5, [], ["a", "b"], [1, 2]])
def test_prompts_that_are_not_one_text(prompt: Any) -> None:
    with pytest.raises(InputError, match="must be one text"):
        OpenAIBatch(["tiny"]).read(request(url=COMPLETION, prompt=prompt))


def test_fields_that_ask_for_nothing(tiny: TextGenerator) -> None:
    neutral = {"user": "me", "metadata": {"a": "b"}, "tools": [], "stop": [], "stream": False, "logit_bias": {}}
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    read = OpenAIBatch(["tiny"]).read(request(**neutral, messages=parts, n=None))
    assert read.value == {"messages": [{"role": "user", "content": "Hello"}]}
    assert read.options == {}
    assert OpenAIBatch(["tiny"]).read(request(url=COMPLETION, prompt=["a"])).value == "a"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--column", "body"], "need no --column"),
        (["--template", "{text}"], "need no --template"),
        (["--chat"], "need no --chat"),
    ],
)
def test_flags_that_requests_do_not_need(
    polylm: Callable[..., Any], tmp_path: Path, flags: list[str], reason: str
) -> None:
    source = write_requests(tmp_path / "in.jsonl", request())
    outcome = polylm("batch", str(source), str(tmp_path / "out.jsonl"), *flags)
    assert (outcome.exit_code, outcome.output) == (2, "")
    assert reason in outcome.errors


def test_responses_are_no_table_and_ids_are_not_there_twice(polylm: Callable[..., Any], tmp_path: Path) -> None:
    source = write_requests(tmp_path / "in.jsonl", request("a"), request("b"), request("a"))
    outcome = polylm("batch", str(source), str(tmp_path / "out.csv"))
    assert outcome.exit_code == 2
    assert "OpenAI's responses are JSON lines: call the output out.jsonl." in outcome.errors
    outcome = polylm("batch", str(source), str(tmp_path / "out.jsonl"), "--device", "cpu")
    assert outcome.exit_code == 2
    assert "The rows 1 and 3 have the custom_id 'a'." in outcome.errors
