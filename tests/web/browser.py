"""The web app in a process of its own, a headless Chromium in front of it, and what a person does there."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.processes import environment

ROOT = Path(__file__).parents[2]
FLAGS = "no-sandbox headless disable-gpu disable-quic no-first-run disable-background-networking "
FLAGS += "disable-component-update disable-sync"
BOX, STATUS, ANSWER = "#message textarea", "#status", "#chat .bot .message-content"
START, READY = "#message .stop-button", "#message .submit-button"

LEFT = re.compile("signal is aborted without reason|Connection errored out")
"""What gradio says of a page that is left while an answer comes."""
FIRST_CHARACTER = """() => {
    window.first = null;
    const box = document.querySelector('#message textarea'), before = document.querySelectorAll('#chat .bot').length;
    let entered = null;
    box.addEventListener('keydown', event => { if (event.key === 'Enter') entered = performance.now(); }, {once: true});
    const watch = new MutationObserver(() => {
        const bubbles = document.querySelectorAll('#chat .bot');
        const text = bubbles.length ? bubbles[bubbles.length - 1].innerText.trim() : '';
        if (entered !== null && bubbles.length > before && text && text !== '…') {
            window.first = performance.now() - entered;
            watch.disconnect();
        }
    });
    watch.observe(document.querySelector('#chat'), {subtree: true, childList: true, characterData: true});
}"""


@contextlib.contextmanager
def serving(outside_log: Path) -> Iterator[str]:
    """Runs the web app with the bundled model, and gives its address; the log is that of process.py."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("process.py")), str(port), str(outside_log)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        yield wait_for(f"http://127.0.0.1:{port}", process)
    finally:
        process.terminate()
        _, errors = process.communicate(timeout=30)
        assert "Traceback" not in errors, errors


def wait_for(address: str, process: subprocess.Popen[str]) -> str:
    """The address, as soon as the process answers there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return address
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"The web app did not start: {process.stderr.read() if process.stderr else ''}")


def chromium() -> str | None:
    """The path of an installed Chromium, or of the one that Playwright has downloaded; None without one."""
    installed = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    return next(filter(None, installed), None) or _downloaded_chromium()


def _downloaded_chromium() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        path = play.chromium.executable_path
    return path if Path(path).exists() else None


def open_window(browser: Any, address: str, problems: list[str], **settings: Any) -> Any:
    """The app in a window of its own; requests to elsewhere, failed ones and errors of scripts become problems."""

    def check(response: Any) -> None:
        if urlsplit(response.url).hostname not in ("127.0.0.1", None) or response.status >= 400:
            problems.append(f"{response.status} {response.url}")

    page = browser.new_context(**{"viewport": {"width": 960, "height": 920}, **settings}).new_page()
    page.set_default_timeout(20_000)
    page.on("request", lambda sent: sent.url.startswith(address) or problems.append(sent.url))
    page.on("response", check)
    page.on("console", lambda note: note.type == "error" and (LEFT.search(note.text) or problems.append(note.text)))
    page.on("pageerror", lambda error: LEFT.search(str(error)) or problems.append(str(error)))
    page.goto(address)
    page.wait_for_selector(BOX)
    page.wait_for_selector("#examples button")
    return page


def send(page: Any, text: str) -> None:
    page.fill(BOX, text)
    page.press(BOX, "Enter")


def ask(page: Any, text: str) -> str:
    """Send a message and wait for the whole answer."""
    count = page.locator(ANSWER).count()
    send(page, text)
    page.wait_for_function(
        "([count, answers, ready]) => document.querySelectorAll(answers).length > count"
        " && document.querySelector(ready)",
        arg=[count, ANSWER, READY],
    )
    return str(page.locator(ANSWER).last.inner_text())


def set_option(page: Any, name: str, value: str) -> None:
    if not page.locator("#option-seed").is_visible():
        page.get_by_role("button", name="Options").click()
        page.wait_for_timeout(500)  # a value that is typed while gradio builds the fields is lost
    field = page.locator(f"#option-{name} :is(textarea, input)").first
    field.fill(value)
    assert field.input_value() == value


def direction(page: Any, selector: str) -> str:
    """Where the text of an element begins: 'left' or 'right', measured."""
    return str(
        page.locator(selector).last.evaluate(
            """element => {
                const range = document.createRange(), node = element.querySelector('span') ?? element;
                const text = document.createTreeWalker(node, NodeFilter.SHOW_TEXT).nextNode();
                const letter = index => { range.setStart(text, index); range.setEnd(text, index + 1);
                    return range.getBoundingClientRect().left; };
                return letter(0) < letter(2) ? 'left' : 'right';
            }"""
        )
    )
