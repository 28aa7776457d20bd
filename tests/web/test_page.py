"""The web app as gradio and its server make it: what the page holds, what it loads, and what it refuses."""

from __future__ import annotations

import ast
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.web.answers import StopSign, status_line
from modelscope_polylm.web.chat import ChatView
from modelscope_polylm.web.model import PLAIN_NAMES, TINY_NOTE, shown_fields
from modelscope_polylm.web.page import application, build_pages
from modelscope_polylm.web.words import WORDS, Words
from tests.processes import environment

gradio = pytest.importorskip("gradio", minversion="6.31", reason="the extra `web` is not installed")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generator() -> TextGenerator:
    return load_model("tiny", device="cpu")


@pytest.fixture(scope="module")
def pages(generator: TextGenerator) -> Any:
    return build_pages(generator)


@pytest.fixture(scope="module")
def page(pages: Any) -> Any:
    return pages["en"]


@pytest.fixture(scope="module")
def client(pages: Any) -> Iterator[Any]:
    """Speaks to the English page without a network."""
    from starlette.testclient import TestClient

    with TestClient(application(pages), base_url="http://localhost/en/") as client:
        yield client


def components(page: Any, kind: type) -> list[Any]:
    return [block for block in page.blocks.values() if isinstance(block, kind)]


def callback(page: Any, name: str) -> Any:
    return next(function.fn for function in page.fns.values() if function.name == name)


def test_the_page_says_what_the_model_is(page: Any) -> None:
    shown = [str(block.value) for block in components(page, gradio.HTML)]
    assert any(TINY_NOTE in text.replace("&#x27;", "'") for text in shown)
    assert any("4,058,624" in text for text in shown)
    assert page.title == "PolyLM tiny"


def test_every_option_is_shown_with_its_help(page: Any) -> None:
    shown = {block.elem_id: block for block in page.blocks.values() if getattr(block, "info", None)}
    assert set(PLAIN_NAMES) == {field.name for field in shown_fields()}
    for field in shown_fields():
        block = shown[f"option-{field.name}"]
        assert block.label == PLAIN_NAMES[field.name]
        assert block.info.startswith(field.metadata["help"]) and block.info.endswith(f"({field.name})")


def test_nothing_is_uploaded_and_no_file_is_shown(page: Any, client: Any) -> None:
    kinds = {type(block) for block in page.blocks.values()}
    files = {gradio.File, gradio.UploadButton, gradio.MultimodalTextbox, gradio.Image, gradio.Audio, gradio.Video}
    assert not kinds & {*files, gradio.DownloadButton, gradio.FileExplorer}
    assert (page.allowed_paths, page.enable_monitoring, page.analytics_enabled) == ([], False, False)


def test_the_chat_callback_streams(page: Any, generator: TextGenerator) -> None:
    options = [
        block.value for label in shown_fields() for block in page.blocks.values() if is_option(block, label.name)
    ]
    question = translation_request(SENTENCE, "Hebrew")
    updates = list(callback(page, "on_send")(question, ChatView([]).saved, StopSign(), *options))
    bubbles, box, saved, status, *tools = updates[-1]
    conversation = saved["messages"]
    assert (bubbles, saved["answer"]) == (conversation, "")
    assert conversation[-1] == {"role": "assistant", "content": TRANSLATIONS["he"]}
    assert (box["submit_btn"], box["stop_btn"]) == ("Send", False)
    assert 'role="status"' in status
    assert [tool["interactive"] for tool in tools] == [True] * 3
    first_bubbles, first_box, *_ = updates[0]
    assert (first_bubbles[-1]["content"], first_box["value"], first_box["stop_btn"]) == ("…", "", "Stop")


def test_messages_are_shown_as_they_are(page: Any, generator: TextGenerator) -> None:
    text = "<img src=x> & 'it' \"is\""
    options = [None] * len(shown_fields())
    bubbles, _, saved, *_ = next(callback(page, "on_send")(text, None, StopSign(), *options))
    assert bubbles[0]["content"] == "&lt;img src=x&gt; &amp; 'it' \"is\""
    assert saved["messages"][0]["content"] == text
    assert saved["answer"]


def is_option(block: Any, name: str) -> bool:
    return getattr(block, "elem_id", None) == f"option-{name}"


def test_the_translation_callback_makes_a_table(page: Any) -> None:
    shown, status, stop = on_click(page, SENTENCE, "", "ar", 4, 3)[-1]
    assert shown.count("<tr>") == 4
    assert TRANSLATIONS["ar"] in shown
    assert "4 beams" in status and "from English, as detected" in status
    assert not stop["interactive"]


def on_click(page: Any, *values: Any) -> list[tuple[str, str, Any]]:
    return list(callback(page, "on_click")(*values, StopSign()))


@pytest.mark.parametrize("typed", ["ar", "Arabic", "arab", "العربية", "Arabic · العربية", " ARABIC "])
def test_a_language_may_be_typed(page: Any, typed: str) -> None:
    assert TRANSLATIONS["ar"] in on_click(page, SENTENCE, "English", typed, 4, 1)[-1][0]


@pytest.mark.parametrize(
    ("source", "typed"), [("en", "Chinese · 中文Ger"), ("en", "Klingon"), ("en", ""), ("Latin", "ar")]
)
def test_a_language_that_is_unknown_is_not_replaced_by_another(
    page: Any, monkeypatch: pytest.MonkeyPatch, source: str, typed: str
) -> None:
    said: list[str] = []
    monkeypatch.setattr("modelscope_polylm.web.translate.show_problem", said.append)
    assert [each[:2] for each in on_click(page, SENTENCE, source, typed, 4, 1)] == [("", status_line(""))]
    assert "is not one of the languages here" in said[0]


def test_results_go_when_what_they_were_made_from_changes(page: Any) -> None:
    dependencies = page.get_config_file()["dependencies"]
    click = next(number for number, function in page.fns.items() if function.name == "on_click")
    fields = {block._id for block in page.fns[click].inputs if not block.stateful}
    outputs = [block._id for block in page.fns[click].outputs][:2]
    checks = [each for each in dependencies if each["js"] == "keepOwn"]
    assert all((each["inputs"][-2:], each["outputs"]) == (outputs, outputs) for each in checks)
    assert {target[0] for each in checks for target in each["targets"] if target[1] == "input"} == fields
    swap = next(each["id"] for each in dependencies if each["js"] == "swap")
    assert [each["trigger_after"] for each in checks if each["trigger_after"] is not None] == [click, swap]


def test_the_page_loads_from_its_own_host_only(client: Any) -> None:
    answer = client.get("")
    assert answer.status_code == 200
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']([^\"']+)", answer.text)
    assert loaded
    assert [address for address in loaded if "//" in address] == []
    assert not re.search(r"@import|url\((?!.?data:)", client.get("theme.css").text)


def test_the_page_is_a_light_one(client: Any) -> None:
    assert len(client.get("", headers={"accept-encoding": "br"}).content) < 200_000


@pytest.mark.parametrize(
    "path", ["gradio_api/file=/etc/passwd", "gradio_api/file=README.md", "gradio_api/runs", "docs", "../openapi.json"]
)
def test_files_are_not_served(client: Any, path: str) -> None:
    assert client.get(path).status_code == 404


def test_uploads_are_refused(client: Any) -> None:
    assert client.post("gradio_api/upload", files={"files": ("a.txt", b"text")}).status_code == 404


def test_the_model_runs_through_the_queue_only(client: Any, page: Any) -> None:
    number = next(number for number, function in page.fns.items() if function.name == "on_click")
    call = {"fn_index": number, "data": [SENTENCE, "en", "ar", 4, 4, None], "session_hash": "session"}
    assert client.post("gradio_api/run/predict", json=call).status_code in (401, 404)
    joined = client.post("gradio_api/queue/join", json=call)
    assert joined.status_code == 200
    events = client.get("gradio_api/queue/data", params={"session_hash": "session"}).text
    messages = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line.startswith("data: ")]
    assert messages[-2]["msg"] == "process_completed"
    assert messages[-2]["success"]


def test_nothing_is_offered_to_programs(page: Any) -> None:
    assert page.get_api_info()["named_endpoints"] == {}


def texts(page: Any) -> set[str]:
    """What a page says in its components."""
    names = ("label", "info", "placeholder", "value", "submit_btn")
    found = [getattr(block, name, None) for block in page.blocks.values() for name in names]
    return {text for text in found if isinstance(text, str)}


@pytest.mark.parametrize("language", ["zh", "vi"])
def test_every_text_is_in_the_language_of_the_page(pages: Any, language: str) -> None:
    english, translated, words = texts(pages["en"]), texts(pages[language]), Words(language)
    assert len(english - translated) > 50
    # the value of a choice is no text, and the sentence to translate is the same for all
    kept = {"(unset)", SENTENCE, "# PolyLM tiny"}
    same = {text for text in english & translated if re.search("[a-z]{3}", text) and "<p class" not in text} - kept
    assert {text for text in same if words(text) == text or text in WORDS} == set()


def test_translations_have_the_same_values() -> None:
    for text, word in WORDS.items():
        for translated in word:
            assert sorted(re.findall(r"{\w+}", translated)) == sorted(re.findall(r"{\w+}", text)), text
            assert translated.strip() == translated != ""


def test_what_the_app_says_is_translated() -> None:
    """Every text that the modules hand to `words` is among WORDS."""
    said = {
        text
        for file in (ROOT / "modelscope_polylm" / "web").glob("*.py")
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("words", "self._words")
        for text in [call.args[0].value if isinstance(call.args[0], ast.Constant) else None]
        if text is not None
    }
    assert len(said) > 40
    assert said - set(WORDS) == set()


def test_the_page_names_its_language(pages: Any) -> None:
    from starlette.testclient import TestClient

    with TestClient(application(pages), base_url="http://localhost") as client:
        for language, code in (("en", "en"), ("zh", "zh-CN"), ("vi", "vi")):
            assert rf"\"lang\": \"{code}\"" in client.get(f"/{language}/").text


@pytest.mark.slow
@pytest.mark.parametrize(("place", "host"), [("studio", "0.0.0.0"), ("", "127.0.0.1")])
def test_a_studio_runs_the_example_as_it_is(tmp_path: Path, place: str, host: str) -> None:
    for name in ("app.py", "requirements.txt"):
        shutil.copy(ROOT / "examples" / name, tmp_path)
    (tmp_path / "modelscope_polylm").symlink_to(ROOT / "modelscope_polylm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    changes = {"MODELSCOPE_ENVIRONMENT": place, "GRADIO_SERVER_PORT": str(port), "PYTHONPATH": ""}
    command = [sys.executable, "app.py"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment(**changes), stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        said = [process.stderr.readline()]
        while said[-1] and "Ctrl-C" not in said[-1]:
            said.append(process.stderr.readline())
        assert f"http://{host}:{port}" in said[-1], said
        answer = connect(f"http://127.0.0.1:{port}")
        assert "PolyLM tiny" in answer
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert "Traceback" not in errors
    assert process.returncode == 0


def connect(address: str) -> str:
    """What a web server answers, as soon as it does."""
    for _ in range(100):
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.URLError:
            time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")
