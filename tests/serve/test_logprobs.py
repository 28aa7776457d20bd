"""Log-probabilities of prompts and answers with the most probable tokens: those of the API in this process."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from tests.serve.running import ANSWER, CHAT, COMPLETIONS, PROMPT, Running, chat, completion
from tests.serve.test_answers import events, whole

LM_EVAL: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 1, "temperature": 0, "seed": 1234}
"""What lm_eval's local-completions sends to score a text."""


def columns(server: Running, **more: Any) -> dict[str, Any]:
    """The log-probabilities of the first choice."""
    return dict(whole(server, COMPLETIONS, completion(**more))["choices"][0]["logprobs"])


def test_echo_scores_prompt_and_answer(server: Running, tiny: TextGenerator) -> None:
    prompt, answer = (tiny.snapshot.tokenizer.encode(text) for text in (PROMPT, ANSWER))
    ids = [*prompt, *answer, 2]
    choice = whole(server, COMPLETIONS, completion(echo=True, logprobs=3, temperature=0))["choices"][0]
    (scores,) = tiny.log_likelihood([ids[:1]], [ids[1:]], best=3)
    found = choice["logprobs"]
    assert choice["text"] == PROMPT + ANSWER
    assert found["token_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(scores.logprobs, abs=1e-4)
    assert "".join(found["tokens"]) == f"{PROMPT}{ANSWER}</s>"
    assert found["top_logprobs"][0] is None
    for place, best in enumerate(scores.best):
        values = list(found["top_logprobs"][place + 1].values())
        assert values[:3] == pytest.approx([logprob for _, logprob in best], abs=1e-4)
        assert found["top_logprobs"][place + 1][found["tokens"][place + 1]] == found["token_logprobs"][place + 1]
    offsets = zip(found["text_offset"], found["tokens"][:-1], strict=False)
    assert all(choice["text"][offset:].startswith(token) for offset, token in offsets)


def test_what_lm_eval_sends(server: Running, tiny: TextGenerator) -> None:
    """lm_eval leaves out the last token, and takes a text for the greedy one if each token is the best at its place."""
    tokenizer = tiny.snapshot.tokenizer
    context = tokenizer.encode(PROMPT)
    for text, is_greedy in ((ANSWER, True), ("Paris ist die Hauptstadt von Frankreich.", False)):
        continuation = tokenizer.encode(text)
        found = columns(server, prompt=[[*context, *continuation]], **LM_EVAL)
        own = slice(len(context), -1)
        assert len(found["tokens"]) == len(context) + len(continuation) + 1
        (scores,) = tiny.log_likelihood([context], [continuation])
        assert sum(found["token_logprobs"][own]) == pytest.approx(sum(scores.logprobs), abs=1e-4)
        tops = zip(found["tokens"][own], found["top_logprobs"][own], strict=True)
        assert all(max(top, key=top.get) == token for token, top in tops) == is_greedy


def test_a_prompt_alone(server: Running, tiny: TextGenerator) -> None:
    ids = tiny.snapshot.tokenizer.encode(PROMPT)
    for prompt in (PROMPT, ids):
        body = whole(server, COMPLETIONS, completion(prompt=prompt, echo=True, logprobs=0, max_tokens=0))
        choice = body["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (PROMPT, "length")
        assert body["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 0, "total_tokens": len(ids)}
        assert choice["logprobs"]["top_logprobs"] is None
        assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(
            tiny.log_likelihood([ids[:1]], [ids[1:]])[0].logprobs, abs=1e-4
        )
    # a prompt that fills the context, one of a single token, and several
    full = columns(server, prompt=[5] * 512, echo=True, logprobs=1, max_tokens=0)
    assert len(full["tokens"]) == 512 and None not in full["token_logprobs"][1:]
    assert columns(server, prompt=[5], echo=True, logprobs=1, max_tokens=0)["token_logprobs"] == [None]
    several = whole(server, COMPLETIONS, completion(prompt=[[5, 6], [7, 8, 9]], echo=True, logprobs=0, max_tokens=0))
    assert [len(choice["logprobs"]["tokens"]) for choice in several["choices"]] == [2, 3]
    beams = whole(server, COMPLETIONS, completion(echo=True, num_beams=3, n=2, max_tokens=0))
    assert [choice["text"] for choice in beams["choices"]] == [PROMPT, PROMPT]
    without = whole(server, COMPLETIONS, completion(echo=True, max_tokens=0))["choices"][0]
    assert (without["text"], without["logprobs"]) == (PROMPT, None)


def test_best_tokens_of_answers(server: Running, tiny: TextGenerator) -> None:
    prompt, answer = (tiny.snapshot.tokenizer.encode(text) for text in (PROMPT, ANSWER))
    (scores,) = tiny.log_likelihood([prompt], [answer], best=4)
    found = columns(server, temperature=0, logprobs=4)
    assert found["token_logprobs"] == pytest.approx(scores.logprobs, abs=1e-4)
    assert "".join(found["tokens"]) == ANSWER and found["text_offset"][0] == 0
    content = whole(server, CHAT, chat(temperature=0, logprobs=True, top_logprobs=4))["choices"][0]["logprobs"][
        "content"
    ]
    for token, top, best in zip(content, found["top_logprobs"], scores.best, strict=True):
        assert [each["logprob"] for each in token["top_logprobs"]] == pytest.approx(
            [value for _, value in best], abs=1e-4
        )
        assert token["top_logprobs"][0]["token"] == token["token"] == max(top, key=top.get)
        assert bytes(token["bytes"]).decode() == token["token"]


@pytest.mark.parametrize(
    "search",
    [
        {"num_beams": 3, "n": 2},
        {"temperature": 2.0, "seed": 3, "n": 2, "best_of": 4, "max_tokens": 6},
        {"temperature": 0, "stop": [" von"]},
        {"temperature": 3.0, "top_k": 0, "seed": 1, "min_tokens": 60, "max_tokens": 60},
    ],
    ids=str,
)
def test_every_search_has_them(server: Running, search: dict[str, Any]) -> None:
    if "best_of" not in search:
        stream = events(server, COMPLETIONS, completion(**search, echo=True, logprobs=2))
        ends = [choice for event in stream for choice in event["choices"] if choice["finish_reason"]]
        body = whole(server, COMPLETIONS, completion(**search, echo=True, logprobs=2))
        assert [end["logprobs"] for end in ends] == [choice["logprobs"] for choice in body["choices"]]
    plain = whole(server, COMPLETIONS, completion(**search, logprobs=0))
    told = whole(server, COMPLETIONS, completion(**search, logprobs=2))
    for one, other in zip(plain["choices"], told["choices"], strict=True):
        assert one["text"] == other["text"]
        assert one["logprobs"]["tokens"] == other["logprobs"]["tokens"]
        assert one["logprobs"]["token_logprobs"] == pytest.approx(other["logprobs"]["token_logprobs"], abs=1e-3)
        assert all(len(top) in (1, 2, 3) for top in other["logprobs"]["top_logprobs"])
        assert all(map(math.isfinite, other["logprobs"]["token_logprobs"]))
    assert plain["usage"] == told["usage"]


def test_among_others(server: Running) -> None:
    bodies = [
        completion(**LM_EVAL),
        completion(temperature=0),
        completion(prompt="a", **LM_EVAL),
        chat(num_beams=3, logprobs=True, top_logprobs=2),
        completion(echo=True, logprobs=5, max_tokens=0),
    ]
    paths = [CHAT if "messages" in body else COMPLETIONS for body in bodies]
    alone = [whole(server, path, body)["choices"] for path, body in zip(paths, bodies, strict=True)]
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(lambda place: whole(server, paths[place % 5], bodies[place % 5])["choices"], range(40)))
    for place, choices in enumerate(found):
        wanted = alone[place % 5]
        assert [choice.get("text") for choice in choices] == [choice.get("text") for choice in wanted]
        if "text" in choices[0] and choices[0]["logprobs"]:
            assert choices[0]["logprobs"]["tokens"] == wanted[0]["logprobs"]["tokens"]
            assert choices[0]["logprobs"]["token_logprobs"][1:] == pytest.approx(
                wanted[0]["logprobs"]["token_logprobs"][1:], abs=1e-4
            )
    assert server.is_idle()
