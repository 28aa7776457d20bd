"""DeepL's interface, asked by DeepL's own Python client and by forms, as its other clients send them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import deepl
import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.serve.middleware import Access
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS
from tests.http.running import wait_for
from tests.serve.running import CHAT, Running, chat, serving

ROME, ROM = "Rome is the capital of Italy.", "Rom ist die Hauptstadt von Italien."
KEY = {"Authorization": "DeepL-Auth-Key sécret".encode()}


@pytest.fixture(scope="module")
def locked(tiny: TextGenerator) -> Iterator[Running]:
    with serving(tiny, Access(("sécret", "plain"))) as running:
        yield running


@pytest.fixture(scope="module")
def client(locked: Running) -> deepl.DeepLClient:
    return deepl.DeepLClient("plain", server_url=locked.url)


def test_a_text(client: deepl.DeepLClient) -> None:
    found = client.translate_text(SENTENCE, target_lang="DE")
    assert isinstance(found, deepl.TextResult)
    assert (found.text, found.detected_source_lang) == (TRANSLATIONS["de"], "EN")
    assert found.billed_characters == len(SENTENCE)


def test_several_texts_keep_their_form(client: deepl.DeepLClient) -> None:
    texts = [f"<p>{SENTENCE}</p>\n\n{ROME}", SENTENCE]
    found = client.translate_text(
        texts, source_lang="EN", target_lang="PT-BR", tag_handling="html", formality="prefer_more"
    )
    assert isinstance(found, list)
    portuguese = TRANSLATIONS["pt"]
    assert [each.text for each in found] == [f"<p>{portuguese}</p>\n\nRoma é a capital da Itália.", portuguese]


def test_languages(client: deepl.DeepLClient, server: Running) -> None:
    sources, targets = client.get_source_languages(), client.get_target_languages()
    assert len(sources) == 18
    assert ("EN", "English") in {(each.code, each.name) for each in sources}
    for target in targets:
        assert target.supports_formality is False
        if not target.code.startswith("EN"):
            assert client.translate_text(SENTENCE, target_lang=target).text == TRANSLATIONS[target.code[:2].lower()]  # type: ignore[union-attr]
    assert server.http.get("/v2/languages", params={"type": "target"}).json()[0]["language"] == "EN-GB"
    assert "must be 'source' or 'target'" in server.http.get("/v2/languages", params={"type": "x"}).json()["message"]


def test_forms_as_javas_client_sends_them(locked: Running) -> None:
    form = {"text": [ROME, SENTENCE], "target_lang": "de", "show_billed_characters": "1"}
    found = locked.http.post("/v2/translate", data=form, headers=KEY).json()["translations"]
    assert [each["text"] for each in found] == [ROM, TRANSLATIONS["de"]]
    assert found[0]["billed_characters"] == len(ROME)
    assert locked.http.post(CHAT, data={"model": "tiny"}, headers=KEY).status_code == 415


def test_the_same_key_for_both_interfaces(locked: Running) -> None:
    bearer = {"Authorization": "Bearer plain"}
    body = {"text": [ROME], "target_lang": "DE"}
    assert locked.http.post("/v2/translate", json=body, headers=bearer).json()["translations"][0]["text"] == ROM
    assert locked.http.post(CHAT, json=chat(), headers=KEY).status_code == 200
    for wrong in ({}, {"Authorization": "DeepL-Auth-Key x"}):
        refused = locked.http.post("/v2/translate", json=body, headers=wrong)
        assert refused.status_code == 403
        assert "API key" in refused.json()["message"]
    with pytest.raises(deepl.AuthorizationException):
        deepl.DeepLClient("wrong", server_url=locked.url).translate_text(ROME, target_lang="DE")


def test_other_pages_cannot_send_forms(server: Running) -> None:
    headers = {"Origin": "https://evil.example"}
    refused = server.http.post("/v2/translate", data={"text": ROME, "target_lang": "DE"}, headers=headers)
    assert refused.status_code == 403


def test_a_long_text_runs_in_parts_with_others(server: Running) -> None:
    """A request of many sentences; another one is answered while it runs."""
    cities = [f"City{number} is the capital of Italy." for number in range(150)]
    texts = ["\n".join(cities), ROME]
    found: list[Any] = []

    def ask() -> None:
        found.append(server.post("/v2/translate", {"text": texts, "target_lang": "DE", "source_lang": "EN"}).json())

    thread = threading.Thread(target=ask)
    thread.start()
    assert server.post(CHAT, chat()).status_code == 200
    thread.join(120)
    first, second = found[0]["translations"]
    assert second["text"] == ROM
    assert first["text"].count("\n") == 149
    assert server.is_idle()
    assert server.metric("polylm_prompt_tokens_total") > 150 * 10


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"text": [ROME], "target_lang": "XX"}, "none of PolyLM's 18 languages"),
        ({"text": [ROME], "target_lang": "Germn"}, "did you mean German"),
        ({"text": [ROME], "target_lang": "ZH-HANT"}, "none of PolyLM's 18 languages"),
        ({"text": [ROME], "target_lang": "DE", "source_lang": "DE"}, "both German"),
        ({"text": [ROME], "target_lang": "EN-US"}, "seems to be in English already"),
        ({"text": [ROME, ""], "target_lang": "DE"}, "Text 1: The text is empty"),
        ({"text": [], "target_lang": "DE"}, "text must be a list of at least 1"),
        ({"text": [ROME] * 51, "target_lang": "DE"}, "at most 50"),
        ({"text": ROME, "target_lang": "DE"}, "must be a list"),
        ({"text": [ROME]}, "target_lang is missing"),
        ({"text": [ROME], "target_lang": "DE", "context": "x"}, "context is not supported"),
        ({"text": [ROME], "target_lang": "DE", "split_sentences": "0"}, "split_sentences='0' must be '1'"),
        ({"text": [ROME], "target_lang": "DE", "formality": "less"}, "formality='less' must be"),
        ([1], "must be a JSON object"),
    ],
)
def test_bad_requests(server: Running, body: Any, said: str) -> None:
    refused = server.post("/v2/translate", body)
    assert refused.status_code == 400
    assert set(refused.json()) == {"message"}
    assert said in refused.json()["message"]


def test_bad_bodies_and_paths(server: Running, client: deepl.DeepLClient) -> None:
    kinds = {"json": "application/json", "form": "application/x-www-form-urlencoded"}
    for kind, said in (("json", "not valid JSON"), ("form", "not a valid form")):
        refused = server.http.post("/v2/translate", content=b"\xff{", headers={"Content-Type": kinds[kind]})
        assert refused.status_code == 400
        assert said in refused.json()["message"]
    large = {"text": ["Rome is big. " * 800_000], "target_lang": "DE"}  # 10 MB
    assert server.post("/v2/translate", large).status_code == 413
    with pytest.raises(deepl.DeepLException, match="of DeepL's interface there are /v2/translate"):
        client.get_usage()


def test_a_server_with_few_rows() -> None:
    own = TextGenerator.load(TINY_FOLDER, device="cpu")  # its engine keeps the number of rows
    with serving(own, defaults={"num_beams": 1}, rows=2) as server:
        found = server.post("/v2/translate", {"text": [ROME], "target_lang": "DE"}).json()
        assert found["translations"][0]["text"] == ROM


def test_a_translation_for_which_nobody_waits_ends(server: Running) -> None:
    cancelled = server.metric("polylm_cancelled_requests_total")
    text = "\n".join(f"City{number} is the capital of Italy." for number in range(4000))
    body = json.dumps({"text": [text], "target_lang": "DE", "source_lang": "EN"}).encode()
    head = "POST /v2/translate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with server.connect() as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: server.metric("polylm_running_rows") > 0)
    wait_for(lambda: server.metric("polylm_cancelled_requests_total") == cancelled + 1)
    wait_for(server.is_idle)
