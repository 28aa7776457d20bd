"""The documentation site: built without a warning, complete, and nothing in it comes from elsewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.page_tables import PAGES, ROOT, commands


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; every page is in the navigation and every link leads somewhere, else the build fails."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there(site: Path) -> None:
    names = {Path(page).with_suffix(".html").name for page in PAGES}
    special = {"README.html": "index.html", "README.zh-CN.html": "zh-CN.html"}
    assert {special.get(name, name) for name in names} <= {file.name for file in site.glob("*.html")}
    assert not list(site.glob("*.py"))


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    scripts = r"<(?:script|img|iframe)[^>]+src=\"?(?:https?:)?//"
    sheets = r"<link(?=[^>]+rel=\"?(?:stylesheet|preload|icon))[^>]+href=\"?(?:https?:)?//"
    for page in site.rglob("*.html"):
        assert not re.findall(f"{scripts}|{sheets}", page.read_text(encoding="utf-8")), page.name
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(\"?https?:|@import", sheet.read_text(encoding="utf-8")), sheet.name


def test_links_out_of_docs_lead_to_copies(site: Path) -> None:
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="quickstart.html"' in home
    assert 'href="results.html"' in home
    assert 'href="examples/translate.py"' in home
    assert (site / "examples" / "translate.py").read_bytes() == (ROOT / "examples" / "translate.py").read_bytes()


def test_code_in_tables_is_shown_as_it_is(site: Path) -> None:
    page = (site / "prompts-and-chat.html").read_text(encoding="utf-8")
    assert "&lt;|user|&gt;" in page
    assert r"\|" not in page


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for name in ("hooks: [docs/site_pages.py]\n", "exclude_docs: site_pages.py\n"):
        settings = settings.replace(name, "")
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text("[nowhere](nowhere.md)")
    (tmp_path / "mkdocs.yml").write_text(settings.split("nav:\n  -")[0] + "nav: [index.md]\n")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


def test_every_command_has_its_section() -> None:
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert re.findall(r"^## polylm ([\w-]+)$", page, re.MULTILINE) == list(commands())
