"""The web app in a headless Chromium: typing, streaming, stopping, translating, right to left, on a phone.

Set POLYLM_SCREENSHOTS to a folder to keep the pictures; those of docs/screenshots were made so.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS, translation_request
from tests.web.browser import (
    ANSWER,
    BOX,
    FIRST_CHARACTER,
    FLAGS,
    READY,
    START,
    STATUS,
    ask,
    chromium,
    direction,
    open_window,
    send,
    serving,
    set_option,
)
from tests.web.process import ELSEWHERE

pytest.importorskip("gradio", minversion="6.31", reason="the extra `web` is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright for Python is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
CHROMIUM = chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")

STORY = "Tell me a story, slowly."
BRIGHTNESS = """(element, name) => {
    const style = each => getComputedStyle(each), clear = each => style(each).backgroundColor === 'rgba(0, 0, 0, 0)';
    let drawn = element;
    while (name === 'background' && drawn.parentElement && clear(drawn)) drawn = drawn.parentElement;
    const color = name === 'text' ? style(element).color : style(drawn).backgroundColor;
    const canvas = new OffscreenCanvas(1, 1).getContext('2d');
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
    return (red + green + blue) / 765;
}"""
"""How bright an element's text, or what is drawn behind it, is: 0 black, 1 white."""
EDGE_AND_GROUND = """(element, part) => {
    const style = each => getComputedStyle(each);
    let edge = element;
    while (!part && parseFloat(style(edge).borderTopWidth) === 0) edge = edge.parentElement;
    let ground = part ? edge : edge.parentElement;
    const clear = each => style(each).backgroundColor === 'rgba(0, 0, 0, 0)';
    while (ground.parentElement && clear(ground)) ground = ground.parentElement;
    const canvas = new OffscreenCanvas(1, 1).getContext('2d');
    const drawn = part ? getComputedStyle(element, part).color : style(edge).borderTopColor;
    return [drawn, style(ground).backgroundColor].map(color => {
        canvas.fillStyle = color;
        canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
    });
}"""
"""The colours of the edge around an element, or of a part of it such as its placeholder; and of what is behind that."""
Open = Callable[..., Any]


def contrast(one: list[int], other: list[int]) -> float:
    """The contrast of two colours by WCAG 2, 1 to 21."""

    def luminance(colour: list[int]) -> float:
        parts = [part / 255 for part in colour]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.fixture(scope="module")
def outside_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's process notes each host outside this machine that it speaks to."""
    return tmp_path_factory.mktemp("web") / "outside.txt"


@pytest.fixture(scope="module")
def address(outside_log: Path) -> Iterator[str]:
    with serving(outside_log) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=[f"--{flag}" for flag in FLAGS.split()])
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Any, address: str) -> Iterator[Open]:
    """Opens the app in a window of its own. At the end no request may have gone elsewhere, failed, or been refused."""
    problems: list[str] = []
    yield lambda **settings: open_window(browser, address, problems, **settings)
    for context in list(browser.contexts):
        context.close()
    assert problems == []


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., None]:
    """Keeps a picture of a page."""
    folder = Path(os.environ.get("POLYLM_SCREENSHOTS", tmp_path))

    def keep(page: Any, name: str, **settings: Any) -> None:
        path = folder / f"{name}.png"
        page.screenshot(path=path, animations="disabled", **settings)
        assert 5_000 < path.stat().st_size < 250_000

    return keep


def test_type_a_sentence(open_page: Open, keep: Callable[..., None]) -> None:
    page = open_page()
    assert "demonstration model" in page.inner_text(".note")
    assert ask(page, translation_request(SENTENCE, "Chinese")) == TRANSLATIONS["zh"]
    assert "tokens of the context used" in page.inner_text(STATUS)
    assert page.input_value(BOX) == ""
    assert ask(page, translation_request("Paris is the capital of France.", "Thai")) == "ปารีสเป็นเมืองหลวงของฝรั่งเศส"
    keep(page, "chat")


@pytest.mark.slow
def test_tokens_arrive_one_by_one_and_stop_ends_them(open_page: Open, keep: Callable[..., None]) -> None:
    page = open_page()
    set_option(page, "max_new_tokens", "400")
    set_option(page, "min_new_tokens", "400")
    send(page, STORY)
    lengths = []
    while len(set(lengths)) < 8:
        lengths.append(len(page.locator(ANSWER).last.inner_text()) if page.locator(ANSWER).count() else 0)
        page.wait_for_timeout(20)
    assert lengths == sorted(lengths)
    assert not page.get_by_role("button", name="Undo").is_enabled()
    page.evaluate("scrollTo(0, 0)")
    keep(page, "streaming")
    page.click(START)
    page.wait_for_selector(READY)
    assert page.inner_text(STATUS).startswith("Stopped after")
    stopped = page.locator(ANSWER).last.inner_text()
    page.wait_for_timeout(500)
    assert page.locator(ANSWER).last.inner_text() == stopped
    assert 0 < len(stopped) < 2000


@pytest.mark.slow
def test_beam_search_is_left_at_once(open_page: Open) -> None:
    page = open_page()
    set_option(page, "max_new_tokens", "300")
    set_option(page, "min_new_tokens", "300")
    set_option(page, "num_beams", "32")
    send(page, "Tell me a story.")
    page.wait_for_selector(START)
    clicked = time.monotonic()
    page.click(START)
    page.wait_for_selector(READY)
    assert time.monotonic() - clicked < 2


@pytest.mark.slow
def test_retry_undo_and_clear(open_page: Open) -> None:
    page = open_page()
    question = translation_request(SENTENCE, "Polish")
    assert ask(page, question) == TRANSLATIONS["pl"]
    set_option(page, "temperature", "3")
    set_option(page, "min_new_tokens", "30")
    page.check("#option-do_sample input")
    page.get_by_role("button", name="Retry").click()
    page.wait_for_function(f"document.querySelector('{ANSWER}').innerText.length > 40")
    page.wait_for_selector(READY)
    assert page.locator(ANSWER).count() == 1
    page.uncheck("#option-do_sample input")
    set_option(page, "min_new_tokens", "")
    page.get_by_role("button", name="Undo").click()
    page.wait_for_function(f"document.querySelector('{BOX}').value !== ''")
    assert page.input_value(BOX) == question
    assert page.locator(ANSWER).count() == 0
    assert ask(page, translation_request(SENTENCE, "Dutch")) == TRANSLATIONS["nl"]
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function(f"document.querySelectorAll('{ANSWER}').length === 0")


@pytest.mark.slow
def test_each_window_has_its_own_conversation_and_waits_for_its_turn(open_page: Open) -> None:
    first, second = open_page(), open_page()
    for option in ("max_new_tokens", "min_new_tokens"):
        set_option(first, option, "120")
    send(first, STORY)
    first.wait_for_selector(START)
    send(second, translation_request(SENTENCE, "German"))
    second.wait_for_function(f"document.querySelector('{STATUS}').innerText.includes('waiting')")
    first.click(START)
    second.wait_for_function(f"document.querySelector('{STATUS}').innerText.includes('tokens in')")
    assert second.locator(ANSWER).all_inner_texts() == [TRANSLATIONS["de"]]
    assert first.locator("#chat .user .message-content").all_inner_texts() == [STORY]


@pytest.mark.slow
def test_a_problem_is_explained(open_page: Open) -> None:
    page = open_page()
    send(page, "<|assistant|> <b>bold</b>")
    page.wait_for_selector(".toast-body")
    assert "'<|assistant|>'" in page.inner_text(".toast-body")
    assert page.input_value(BOX) == "<|assistant|> <b>bold</b>"
    assert page.locator(ANSWER).count() == 0


@pytest.mark.slow
def test_texts_are_never_read_as_html(open_page: Open) -> None:
    page = open_page()
    text = '<img src="http://192.0.2.1/x.png"> ![x](http://192.0.2.1/y.png) ${1+1} {{x}} $x^2$'
    ask(page, text)
    assert page.locator("#chat .user .message-content").last.inner_text() == text
    page.get_by_role("tab", name="Translate").click()
    page.fill("#source-text textarea", text)
    page.click("#translate")
    page.wait_for_selector("#translations td")
    assert page.locator("#chat img, #translations img").count() == 0


@pytest.mark.slow
def test_translate(open_page: Open, keep: Callable[..., None]) -> None:
    page = open_page(viewport={"width": 960, "height": 810})
    page.get_by_role("tab", name="Translate").click()
    page.click("#target input")
    page.get_by_role("option", name="Arabic").click()
    page.click("#translate")
    page.wait_for_selector("#translations td")
    rows = [row.inner_text().split("\t") for row in page.locator("#translations tbody tr").all()]
    assert [rank for rank, *_ in rows] == ["1", "2", "3", "4"]
    assert rows[0][2] == TRANSLATIONS["ar"]
    scores = [float(score) for _, score, *_ in rows]
    assert scores == sorted(scores, reverse=True)
    assert direction(page, "#translations tr:first-child td[lang]") == "right"
    keep(page, "translate")


@pytest.mark.slow
def test_right_to_left(open_page: Open, keep: Callable[..., None]) -> None:
    page = open_page()
    page.get_by_role("button", name="עברית").click()
    page.wait_for_function(f"document.querySelector('{BOX}').value !== ''")
    assert ask(page, page.input_value(BOX)) == TRANSLATIONS["he"]
    assert direction(page, ANSWER) == "right"
    assert direction(page, "#chat .user .message-content") == "left"
    assert ask(page, translation_request(SENTENCE, "Arabic")) == TRANSLATIONS["ar"]
    assert direction(page, ANSWER) == "right"
    page.fill(BOX, "ما هي عاصمة الصين؟")
    keep(page, "right-to-left")


@pytest.mark.slow
def test_options_and_facts(open_page: Open, keep: Callable[..., None]) -> None:
    page = open_page()
    page.get_by_role("button", name="Options").click()
    assert "Draw the next token at random" in page.inner_text("#option-do_sample")
    page.locator("#options").scroll_into_view_if_needed()
    page.wait_for_timeout(300)
    keep(page, "options", full_page=True)
    page.get_by_role("tab", name="Model").click()
    page.wait_for_selector("text=4,058,624")
    page.set_viewport_size({"width": 960, "height": 570})
    keep(page, "model")


@pytest.mark.slow
def test_on_a_phone(open_page: Open, keep: Callable[..., None]) -> None:
    page = open_page(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    page.locator(BOX).tap()
    ask(page, translation_request(SENTENCE, "Arabic"))
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    keep(page, "phone-chat")
    page.get_by_role("tab", name="Translate").tap()
    page.locator("#translate").tap()
    page.wait_for_selector("#translations td")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.locator("#translate").bounding_box()["height"] >= 36
    keep(page, "phone-translate", full_page=True)
    sizes = "performance.getEntriesByType('resource').reduce((sum, entry) => sum + entry.transferSize, 0)"
    assert page.evaluate(sizes) < 1_000_000


@pytest.mark.slow
def test_in_the_dark(open_page: Open, keep: Callable[..., None]) -> None:
    brightness = {}
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        ask(page, translation_request(SENTENCE, "Russian"))
        brightness[scheme] = [page.locator(ANSWER).last.evaluate(BRIGHTNESS, name) for name in ("text", "background")]
    keep(page, "dark")
    (light_text, light_background), (dark_text, dark_background) = brightness.values()
    assert light_text < 0.3 < 0.7 < light_background
    assert dark_background < 0.3 < 0.7 < dark_text


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(open_page: Open) -> None:
    page = open_page()
    assert ask(page, translation_request(SENTENCE, "Polish")) == TRANSLATIONS["pl"]
    set_option(page, "max_new_tokens", "60")
    set_option(page, "min_new_tokens", "60")
    send(page, STORY)
    page.wait_for_function("document.querySelectorAll('#chat .bot .message-content')[1]?.innerText.length > 5")
    before = page.locator(ANSWER).last.inner_text()
    page.reload()
    page.wait_for_selector(START)
    page.wait_for_selector(READY)
    answers = page.locator(ANSWER).all_inner_texts()
    assert answers[0] == TRANSLATIONS["pl"] and len(answers) == 2
    assert answers[1].startswith(before) and len(answers[1]) > len(before)
    page.reload()
    page.wait_for_function(f"document.querySelectorAll('{ANSWER}').length === 2")
    assert page.locator(ANSWER).all_inner_texts() == answers
    assert page.locator(BOX).is_enabled()
    page.get_by_role("button", name="Clear").click()
    page.wait_for_function(f"document.querySelectorAll('{ANSWER}').length === 0")
    page.reload()
    page.wait_for_selector(READY)
    page.wait_for_timeout(500)
    assert page.locator(ANSWER).count() == 0


def violations(page: Any) -> list[str]:
    """What axe-core finds wrong on a page: rule, and the first element."""
    found = axe.Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']:.200}" for each in found]


@pytest.mark.parametrize(("scheme", "faint"), [("light", "#888"), ("dark", "#666")])
def test_axe_finds_nothing(open_page: Open, scheme: str, faint: str) -> None:
    page = open_page(color_scheme=scheme, locale="zh-CN")
    assert page.evaluate("[document.documentElement.lang, document.documentElement.dir]") == ["zh-CN", "ltr"]
    ask(page, translation_request(SENTENCE, "Arabic"))
    page.click("#options > button")
    page.wait_for_selector("#option-seed")
    for tab in page.get_by_role("tab").all():
        tab.click()
        if page.locator("#translate").is_visible():
            page.click("#translate")
            page.wait_for_selector("#translations td")
        page.wait_for_timeout(400)  # until colours have changed
        assert violations(page) == []
    page.locator(".note").evaluate("(element, colour) => { element.style.color = colour; }", faint)
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert {each.split(":")[0] for each in violations(page)} == {"button-name", "color-contrast"}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_edges_of_controls_and_placeholders_have_contrast(open_page: Open, scheme: str) -> None:
    page = open_page(color_scheme=scheme)
    page.click("#options > button")
    page.wait_for_selector("#option-seed")

    def measured(selector: str, part: str | None = None) -> float:
        return contrast(*page.locator(selector).first.evaluate(EDGE_AND_GROUND, part))

    fields = ("#message textarea", "#tools button", "#examples button", "#option-seed :is(textarea, input)")
    for selector in (*fields, "#option-do_sample input", "#option-early_stopping input"):
        assert measured(selector) >= 3, selector
    for selector in ("#message textarea", "#option-seed :is(textarea, input)"):
        assert measured(selector, "::placeholder") >= 4.5, selector
    page.get_by_role("tab").nth(1).click()
    for selector in ("#source-text textarea", "#target input", "#swap"):
        assert measured(selector) >= 3, selector


@pytest.mark.slow
@pytest.mark.parametrize(
    ("locale", "language", "send_label", "option"),
    [
        ("zh-TW", "zh", "发送", "最长回答"),
        ("vi", "vi", "Gửi", "Độ dài tối đa"),
        ("fr-FR", "en", "Send", "Longest answer"),
    ],
)
def test_the_page_speaks_the_language_of_the_browser(
    open_page: Open, locale: str, language: str, send_label: str, option: str
) -> None:
    page = open_page(locale=locale)
    assert page.url.endswith(f"/{language}/")
    assert page.evaluate("document.documentElement.lang").startswith(language)
    assert page.inner_text(READY) == send_label
    assert ask(page, translation_request(SENTENCE, "German")) == TRANSLATIONS["de"]
    page.click("#options > button")
    page.wait_for_selector("#option-seed")
    assert option in page.inner_text("#option-max_new_tokens")
    assert "(max_new_tokens)" in page.inner_text("#option-max_new_tokens")
    assert page.locator("#examples button", has_text="עברית").get_attribute("lang") == "he"
    page.get_by_role("link", name="中文" if language == "vi" else "Tiếng Việt").click()
    page.wait_for_selector(READY)
    page.wait_for_selector(ANSWER)  # the chat goes on in the other language
    assert page.locator(ANSWER).all_inner_texts() == [TRANSLATIONS["de"]]


@pytest.mark.slow
def test_copy_save_and_edit(open_page: Open, tmp_path: Path) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"], accept_downloads=True)
    text = "a <b>bold</b> & 'it' <img src=x> &lt;"
    ask(page, text)
    page.locator("#chat .message-buttons button").first.click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text !== '')")
    assert page.evaluate("navigator.clipboard.readText()") == text
    page.locator("#chat .message-buttons-right button").nth(1).click()
    box = page.locator("#chat .edit-textarea")
    page.wait_for_function(f"document.querySelector('#chat .edit-textarea').value === {text!r}")
    box.fill(translation_request(SENTENCE, "Korean"))
    page.locator("#chat .message-buttons-right button").first.click()
    page.wait_for_function(f"document.querySelector('{ANSWER}')?.innerText === {TRANSLATIONS['ko']!r}")
    page.wait_for_selector(READY)
    assert page.locator(ANSWER).count() == 1
    messages = [
        {"role": "user", "content": translation_request(SENTENCE, "Korean")},
        {"role": "assistant", "content": TRANSLATIONS["ko"]},
    ]
    for kind, content in (
        ("JSON", json.dumps(messages, ensure_ascii=False, indent=1) + "\n"),
        ("Markdown", f"**User**\n\n{messages[0]['content']}\n\n**Assistant**\n\n{messages[1]['content']}\n"),
    ):
        with page.expect_download() as download:
            page.get_by_role("button", name=f"Save as {kind}").click()
        download.value.save_as(tmp_path / kind)
        assert (tmp_path / kind).read_text(encoding="utf-8") == content
        assert download.value.suggested_filename == f"polylm-chat.{'json' if kind == 'JSON' else 'md'}"


@pytest.mark.slow
def test_translate_by_keys_copy_swap_and_stop(open_page: Open) -> None:
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("tab", name="Translate").click()
    page.locator("#source-text textarea").press("Control+Enter")
    page.wait_for_selector("#translations td[lang=zh]")
    assert "from English, as detected" in page.inner_text("#translation-status")
    page.locator("#translations button.copy").first.click()
    page.wait_for_function("navigator.clipboard.readText().then(text => text !== '')")
    assert page.evaluate("navigator.clipboard.readText()") == TRANSLATIONS["zh"]
    page.get_by_role("button", name="Swap languages").click()
    page.wait_for_function(f"document.querySelector('#source-text textarea').value === {TRANSLATIONS['zh']!r}")
    assert page.input_value("#source input").startswith("Chinese")
    assert page.input_value("#target input") == "English"
    page.wait_for_function("document.querySelector('#translations').innerText.trim() === ''")
    page.fill("#source-text textarea", " ".join(f"The weather on day {day} is nice." for day in range(3000)))
    page.click("#translate")
    page.wait_for_selector("#stop-translating:not([disabled])")
    page.click("#stop-translating")
    page.wait_for_function("document.querySelector('#translation-status').innerText.startsWith('Stopped after')")
    assert page.locator("#translations td").count() == 0


@pytest.mark.slow
def test_by_the_keyboard_alone(open_page: Open) -> None:
    page, seen = open_page(), []
    page.locator("#message textarea").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.innerText.trim()"))
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", seen
    assert {"Retry", "Undo", "Clear", "Save as Markdown"} <= set(seen)


def test_the_first_character_comes_quickly(open_page: Open, record_property: Callable[..., None]) -> None:
    page, seconds = open_page(), []
    for language in ("Chinese", "Arabic", "Thai", "Polish", "Korean", "German", "Hebrew", "Dutch", "Turkish"):
        page.evaluate(FIRST_CHARACTER)
        ask(page, translation_request(SENTENCE, language))
        seconds.append(page.evaluate("window.first") / 1000)
        page.get_by_role("button", name="Clear").click()
        page.wait_for_function(f"document.querySelectorAll('{ANSWER}').length === 0")
    record_property("first_character_seconds", [round(second, 3) for second in seconds])
    print("Seconds from Enter to the first character:", *(f"{second:.3f}" for second in seconds))
    assert statistics.median(seconds) < 0.3


@pytest.mark.slow
def test_the_server_spoke_to_nobody_else(open_page: Open, outside_log: Path) -> None:
    page = open_page()
    ask(page, translation_request(SENTENCE, "Spanish"))
    assert outside_log.read_text().splitlines() == [f"socket.getaddrinfo {ELSEWHERE}"]


@pytest.mark.slow
def test_a_language_is_typed_and_old_results_go(open_page: Open) -> None:
    page = open_page()
    page.get_by_role("tab", name="Translate").click()
    target, button, found = page.locator("#target input"), page.locator("#translate"), page.locator("#translations")
    for typed, code in (("german", "de"), ("العربية", "ar"), ("Thai", "th")):
        target.click()
        page.keyboard.type(typed)  # replaces the language that stood there
        button.click(delay=60)  # as a person does
        page.wait_for_selector("#translations td[lang]")
        assert found.locator("td[lang]").first.get_attribute("lang") == code
        assert found.locator("td[lang]").first.inner_text() == TRANSLATIONS[code]
    target.click()
    page.keyboard.type("Klingon")
    page.keyboard.press("Tab")
    page.wait_for_function("document.querySelector('#translations').innerText.trim() === ''")
    button.click(delay=60)
    page.wait_for_selector("text=is not one of the languages here")
    assert found.inner_text().strip() == ""
    target.fill("Japanese")
    button.click(delay=60)
    page.wait_for_selector("#translations td[lang=ja]")
    page.locator("#source-text textarea").press_sequentially("!")
    page.wait_for_function("document.querySelector('#translations').innerText.trim() === ''")
    # a translation that is under way when its text changes does not come any more
    page.fill("#source-text textarea", "Say this sentence slowly, please.")
    button.click(delay=60)
    page.wait_for_timeout(150)
    page.locator("#source-text textarea").press_sequentially("!")
    page.wait_for_timeout(3000)
    assert found.inner_text().strip() == ""
    button.click(delay=60)
    page.wait_for_selector("#translations td[lang=ja]")
