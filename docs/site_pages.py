"""Hooks of mkdocs: pages of the repository that lie outside docs/, and links that lead there.

In the repository a page links to files beside it, as Git hosts show them; on the site all pages are in one folder, and
other files that they link to are copied to it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "zh-CN.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/RESULTS.md": "results.md",
}
"""Pages outside docs/, by their path in the repository."""

CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside docs/, and what is linked to."""
    for page, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / page).read_text(encoding="utf-8")))
    pages = [*PAGES, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    linked = {path for page in pages for path in linked_paths(page) if place(path) == path}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links lead to where their targets are on the site, and write code in tables as mkdocs reads it."""
    markdown = "\n".join(map(_table_row, markdown.split("\n")))
    return LINK.sub(lambda link: place(repository_path(source(page.file.src_uri), link[1])), markdown)


def _table_row(line: str) -> str:
    """Git hosts want a bar in a table escaped, mkdocs shows the backslash."""
    return CODE.sub(lambda code: code[0].replace(r"\|", "|"), line) if line.startswith("|") else line


def source(name: str) -> str:
    """Where a page of the site lies in the repository."""
    return next((page for page, site_name in PAGES.items() if site_name == name), f"docs/{name}")


def linked_paths(page: str) -> set[str]:
    """The paths in the repository to which a page links."""
    return {repository_path(page, link) for link in LINK.findall((ROOT / page).read_text(encoding="utf-8"))}


def repository_path(page: str, link: str) -> str:
    """The target of a page's link."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def place(path: str) -> str:
    """Where a file of the repository is on the site."""
    return PAGES.get(path, path.removeprefix("docs/"))
