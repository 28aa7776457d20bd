"""vLLM's server as `polylm serve --backend vllm` starts it, asked by clients that people use."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest

from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.serve.command import model_names
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.text.prompts import render

ROOT = Path(__file__).parents[3]
KEY = "a-secret-of-the-tests"
QUESTION = translation_request("Rome is the capital of Italy.", "German")
ANSWER = "Rom ist die Hauptstadt von Italien."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]
PROMPT = f"<|user|>\n{QUESTION}\n<|assistant|>\n"


class Server(NamedTuple):
    address: str
    process: subprocess.Popen[str]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    folder = tmp_path_factory.mktemp("server")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MODELSCOPE_CACHE": str(folder / "cache")}
    environment["POLYLM_API_KEY"] = KEY
    small = ["--enforce-eager", "--gpu-memory-utilization", "0.1", "--max-num-seqs", "16"]
    serve = ["serve", "tiny", "--backend", "vllm", "--port", str(port), "--", *small]
    command = [sys.executable, "-m", "modelscope_polylm", *serve]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, text=True, cwd=folder)
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield Server(f"http://127.0.0.1:{port}/v1", process)
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_for(address: str, process: subprocess.Popen[str], log: Path) -> None:
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(f"vLLM's server did not start:\n{log.read_text()[-3000:]}")


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.address, api_key=KEY, max_retries=0)


def curl(server: Server, path: str, body: Any = None, key: str | None = KEY) -> tuple[int, Any]:
    """The status and the JSON body that curl gets."""
    command = ["curl", "--silent", "--max-time", "60", "--write-out", "\n%{http_code}", server.address + path]
    command += ["--header", f"Authorization: Bearer {key}"] if key else []
    if body is not None:
        command += ["--header", "Content-Type: application/json", "--data", json.dumps(body)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    text, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(text)


def test_the_model_has_the_names_of_its_release(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == list(model_names("tiny", None))


def test_chat(client: openai.OpenAI) -> None:
    # neither temperature nor an end token is named: both are the package's
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (ANSWER, "stop")
    for code, wanted in list(TRANSLATIONS.items())[:4]:
        if code != "en":
            messages: list[Any] = [{"role": "user", "content": translation_request(SENTENCE, language_of(code))}]
            assert client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content == wanted


def language_of(code: str) -> str:
    from modelscope_polylm.text.languages import LANGUAGES

    return LANGUAGES[code]


def test_a_conversation_is_written_in_the_release_format(client: openai.OpenAI, server: Server) -> None:
    from modelscope_polylm.snapshot import open_snapshot

    snapshot = open_snapshot(TINY_FOLDER)
    messages: list[Any] = [
        *MESSAGES,
        {"role": "assistant", "content": ANSWER},
        {"role": "user", "content": "And 東京?"},
    ]
    ids = snapshot.tokenizer.encode(render(messages, snapshot.prompt_format))
    address = server.address.removesuffix("/v1")
    status, found = curl(Server(address, server.process), "/tokenize", {"model": "tiny", "messages": messages})
    assert (status, found["tokens"]) == (200, ids)


def test_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True))
    parts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(parts) == ANSWER and len([part for part in parts if part]) > 3


def test_completions(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt=[PROMPT, PROMPT], max_tokens=24, n=1, logprobs=1)
    assert [choice.text for choice in reply.choices] == [ANSWER, ANSWER]
    assert reply.usage is not None and reply.usage.prompt_tokens == 2 * 25
    assert client.completions.create(model="tiny", prompt=PROMPT, max_tokens=2).choices[0].finish_reason == "length"


def test_completions_stream(client: openai.OpenAI) -> None:
    chunks = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=24, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER


def test_more_tokens_than_the_published_examples_ask_for(client: openai.OpenAI) -> None:
    reply = client.completions.create(model="tiny", prompt="a", max_tokens=200, extra_body={"min_tokens": 200})
    assert reply.usage is not None and reply.usage.completion_tokens == 200


def test_wrong_key(server: Server) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=server.address, api_key="wrong", max_retries=0).models.list()
    assert curl(server, "/models", key=None)[0] == 401


def test_the_key_is_not_in_the_list_of_processes(server: Server) -> None:
    shown = Path(f"/proc/{server.process.pid}/cmdline").read_bytes().decode().split("\0")
    assert "--served-model-name" in shown and KEY not in shown


def test_wrong_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="other"):
        client.chat.completions.create(model="other", messages=MESSAGES)


def test_too_long_prompt(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="512"):
        client.completions.create(model="tiny", prompt="Rome is the capital of Italy. " * 200, max_tokens=8)


def test_roles_that_polylm_does_not_know(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, *MESSAGES]
    with pytest.raises(openai.BadRequestError, match="PolyLM knows only the roles user and assistant, in turn"):
        client.chat.completions.create(model="tiny", messages=messages)


def test_curl(server: Server) -> None:
    status, reply = curl(server, "/chat/completions", {"model": "tiny", "messages": MESSAGES})
    assert (status, reply["choices"][0]["message"]["content"]) == (200, ANSWER)
    status, reply = curl(server, "/completions", {"model": "tiny", "prompt": 5})
    assert status == 400 and reply["error"]


def test_langchain(server: Server) -> None:
    from langchain_openai import ChatOpenAI

    address: Any = server.address
    key: Any = KEY
    chat = ChatOpenAI(model="tiny", base_url=address, api_key=key, max_retries=0)
    assert chat.invoke(QUESTION).content == ANSWER
    assert "".join(str(part.content) for part in chat.stream(QUESTION)) == ANSWER
    assert [reply.content for reply in chat.batch([QUESTION] * 3)] == [ANSWER] * 3
