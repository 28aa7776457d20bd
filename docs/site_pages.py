"""Hooks of mkdocs: the pages outside docs/, and the links that lead there.

In the repository a page links to files next to it, as Git hosts show them. On the site all pages are in one folder, and
the other files that they link to are copied there.
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
    "benchmarks/HISTORY.md": "history.md",
}
"""Pages outside docs/, by their path in the repository."""

CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)#\s]+)")


def on_files(files: Any, config: Any) -> Any:
    """Add the pages outside docs/, and the files that pages link to."""
    for page, name in PAGES.items():
        files.append(File.generated(config, name, content=(ROOT / page).read_text(encoding="utf-8")))
    pages = [*PAGES, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
    linked = {path for page in pages for path in linked_paths(page) if site_path(path) == path}
    for path in sorted(linked):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to their targets on the site, and write code in tables as mkdocs reads it."""
    markdown = "\n".join(map(_table_row, markdown.split("\n")))
    return LINK.sub(lambda link: site_path(repository_path(source(page.file.src_uri), link[1])), markdown)


def _table_row(line: str) -> str:
    """Unescape bars in the code of a table: Git hosts need the backslash, mkdocs shows it."""
    return CODE.sub(lambda code: code[0].replace(r"\|", "|"), line) if line.startswith("|") else line


def source(name: str) -> str:
    """The path in the repository of a page of the site."""
    return next((page for page, site_name in PAGES.items() if site_name == name), f"docs/{name}")


def linked_paths(page: str) -> set[str]:
    """The paths in the repository to which a page links."""
    return {repository_path(page, link) for link in LINK.findall((ROOT / page).read_text(encoding="utf-8"))}


def repository_path(page: str, link: str) -> str:
    """The path in the repository to which a link of a page leads."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def site_path(path: str) -> str:
    """The path on the site of a file of the repository."""
    return PAGES.get(path, path.removeprefix("docs/"))
