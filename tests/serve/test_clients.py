"""Real clients: the `openai` package and curl."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.serve.middleware import Access
from tests.serve.running import ANSWER, CHAT, PROMPT, QUESTION, Running, serving

KEY = "a-key"
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="module")
def protected(tiny: TextGenerator) -> Iterator[Running]:
    with serving(tiny, Access((KEY,))) as running:
        yield running


@pytest.fixture
def client(protected: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{protected.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    again = [*MESSAGES, answer.choices[0].message, {"role": "user", "content": QUESTION}]
    assert client.chat.completions.create(model="tiny", messages=again).choices


def test_chat_stream(client: openai.OpenAI) -> None:
    counts = {"include_usage": True}
    chunks = list(
        client.chat.completions.create(
            model="tiny", messages=MESSAGES, temperature=0, stream=True, stream_options=counts
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage is not None
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_its_own_collector_of_streams(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, temperature=0, logprobs=True) as stream:
        completion = stream.get_final_completion()
    assert completion.choices[0].message.content == ANSWER
    assert completion.choices[0].logprobs is not None
    assert "".join(token.token for token in completion.choices[0].logprobs.content or []) == ANSWER


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt=PROMPT, n=2, temperature=0, logprobs=0)
    assert [choice.text for choice in answer.choices] == [ANSWER, ANSWER]
    assert answer.choices[0].logprobs is not None
    stream = client.completions.create(model="tiny", prompt=PROMPT, stream=True, stop=" von")
    assert "".join(chunk.choices[0].text for chunk in stream) == "Rom ist die Hauptstadt"


def test_beams_through_extra_body(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, n=3, extra_body={"num_beams": 4, "length_penalty": 0.5, "output_scores": True}
    )
    scores = [choice.score for choice in answer.choices]  # type: ignore[attr-defined]
    assert answer.choices[0].message.content == ANSWER
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"


def test_errors(client: openai.OpenAI, protected: Running) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    assert unknown.value.code == "model_not_found"
    long = [{"role": "user", "content": "a " * 600}]
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="tiny", messages=long)
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, tools=[{"type": "function"}])
    stranger = openai.OpenAI(base_url=f"{protected.url}/v1", api_key="another", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def curl(server: Running, *arguments: str) -> str:
    command = ["curl", "--silent", "--show-error", "--max-time", "60", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(protected: Running) -> None:
    body = f'{{"model": "tiny", "stream": true, "messages": [{{"role": "user", "content": {_json(QUESTION)}}}]}}'
    arguments = (f"{protected.url}{CHAT}", "--json", body)
    streamed = curl(protected, "--no-buffer", "--header", f"Authorization: Bearer {KEY}", *arguments)
    assert ANSWER in streamed
    assert streamed.endswith("data: [DONE]\n\n")
    refused = curl(protected, "--write-out", "%{http_code}", *arguments)
    assert refused.endswith("401")
    assert "invalid_api_key" in refused
    assert curl(protected, f"{protected.url}/health") == '{"status":"ok"}'


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_asks_for_http_2(protected: Running) -> None:
    body = f'{{"model": "tiny", "messages": [{{"role": "user", "content": {_json(QUESTION)}}}]}}'
    key = ("--header", f"Authorization: Bearer {KEY}")
    assert ANSWER in curl(protected, "--http2", *key, f"{protected.url}{CHAT}", "--json", body)


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] arguments) throws Exception {
        for (HttpClient.Version version : HttpClient.Version.values()) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "application/json").header("Authorization", "Bearer " + arguments[1])
                .POST(HttpRequest.BodyPublishers.ofString(arguments[2])).build();
            HttpClient client = HttpClient.newBuilder().version(version).build();
            for (int number = 0; number < 2; number++) {
                HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
                System.out.println(response.statusCode() + " " + response.body());
            }
        }
    }
}
"""


@pytest.mark.skipif(shutil.which("java") is None, reason="no JDK is installed")
def test_a_java_client(protected: Running, tmp_path: Path) -> None:
    source = tmp_path / "Ask.java"
    source.write_text(JAVA)
    body = json.dumps({"model": "tiny", "messages": MESSAGES})
    command = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", str(source), f"{protected.url}{CHAT}", KEY, body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if "Unable to find" in done.stderr or "compiler" in done.stderr:
        pytest.skip("only a Java runtime is installed")
    lines = done.stdout.splitlines()
    assert len(lines) >= 4, done.stderr
    assert all(line.startswith("200 ") and ANSWER in line for line in lines)


def _json(text: str) -> str:
    return '"' + text.replace("\n", "\\n") + '"'
