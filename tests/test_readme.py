"""README and docs: their code runs and prints what they say, and their tables are those of the code.

In a block, a comment after `print(...)`, or a comment line below a command, is what it prints. The blocks of a page
share their names. A block below `<!-- not run: reason -->` is left out.
"""

from __future__ import annotations

import argparse
import re
import shlex
import socket
import subprocess
import unicodedata
from typing import NamedTuple

import pytest

from modelscope_polylm.hub.resolve import TINY_FOLDER
from tests.local_hub import LocalHub
from tests.page_tables import CHINESE, MARKED, PAGES, PAGES_WITH_TABLES, ROOT, TABLES, TRANSLATED, cells, renewed

BLOCK = re.compile(
    r"(?P<skip><!-- not run: [^>]+ -->\n+)?^```(?P<kind>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
PORT = "8765"
"""The port that pages name; the tests take a free one."""
PUBLISHED = ("damo/nlp_polylm_assistant_13b_text_generation", "v1.0.0")


class Block(NamedTuple):
    """A fenced block of a page."""

    line: int
    kind: str
    code: str
    runs: bool = True


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    text = read(page)
    return [
        Block(text.count("\n", 0, found.start("code")), found["kind"], found["code"], not found["skip"])
        for found in BLOCK.finditer(text)
    ]


def width(line: str) -> int:
    """How many columns a line takes; a wide character takes two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def check_printed(block: Block, printed: str, page: str) -> None:
    """Every expected line begins a printed line, in the same order."""
    pattern = r"^\s*print\(.*\)  # (.+)$" if block.kind == "python" else r"^# (.+)$"
    lines = iter(printed.splitlines())
    for expected in re.findall(pattern, block.code, re.MULTILINE):
        found = any(line.startswith(expected) for line in lines)
        assert found, f"{page}, block at line {block.line}: {expected!r} is not what it prints:\n{printed}"


def run_commands(block: Block) -> None:
    """Run the block's `polylm` and `modelscope polylm` commands in this process."""
    from modelscope_polylm.__main__ import main
    from modelscope_polylm.modelscope_command import PolyLMCommand

    commands = re.split(r"^(?=(?:modelscope )?polylm )", block.code, flags=re.MULTILINE)
    for words in filter(None, (shlex.split(command, comments=True) for command in commands)):
        with pytest.raises(SystemExit) as ended:
            if words[0] == "modelscope":
                PolyLMCommand(argparse.Namespace(arguments=words[2:])).execute()
            else:
                main(words[1:])
        assert not ended.value.code, f"{words} ended with {ended.value.code}"


@pytest.fixture
def published(hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub on which the bundled model stands for the published one; the repository's root is the current folder."""
    hub.publish(TINY_FOLDER, *PUBLISHED)
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in CHINESE])
def test_code_runs(page: str, published: None, capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {"__name__": "page"}
    port = str(free_port())
    try:
        for block in blocks(page):
            capsys.readouterr()
            if block.runs and block.kind == "python":
                code = block.code.replace(PORT, port)
                exec(compile("\n" * block.line + code, page, "exec"), namespace)
            elif block.runs and re.match(r"(modelscope )?polylm ", block.code):
                run_commands(block)
            else:
                continue
            check_printed(block, capsys.readouterr().out, page)
    finally:
        for value in namespace.values():
            if isinstance(value, subprocess.Popen):
                value.kill()


@pytest.mark.parametrize("page", PAGES_WITH_TABLES)
def test_tables_are_those_of_the_code(page: str) -> None:
    text = read(page)
    assert renewed(text, page in CHINESE) == text, "run: python -m tests.page_tables"
    for found in MARKED.finditer(text):
        if found["name"] in TABLES and TABLES[found["name"]]().by_hand:
            assert "|  |" not in found["table"], f"a column of the table {found['name']} is not filled in"


@pytest.mark.parametrize("page", CHINESE)
def test_chinese_tables_are_in_chinese(page: str) -> None:
    for found in MARKED.finditer(read(page)):
        for row in found["table"].splitlines()[2:] if TABLES[found["name"]]().translated else []:
            assert re.search(r"[\u4e00-\u9fff]", cells(row)[-1]), f"translate the last column of: {row}"


@pytest.mark.parametrize("page", PAGES)
def test_prose_is_at_most_120_columns_wide(page: str) -> None:
    """Tables, code and links that are longer alone are not prose."""
    prose = re.sub(r"^```.*?^```$|^\|.*?$", "", read(page), flags=re.MULTILINE | re.DOTALL)
    assert [line for line in prose.splitlines() if width(line) > 120 and " " in line.strip()] == []


@pytest.mark.parametrize("page", PAGES)
def test_what_pages_name_exists(page: str) -> None:
    text = read(page)
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []
    targets = re.findall(r"^make (\w+)", text, re.MULTILINE)
    assert set(targets) <= set(re.findall(r"^(\w+):", read("Makefile"), re.MULTILINE))
    files = re.findall(r"(?<![\w/])(?:examples|tests|benchmarks|modelscope_polylm)/[\w/.]*\w", text)
    assert [file for file in files if not (ROOT / file).exists()] == []
    modules = re.findall(r"python -m ((?:tests|benchmarks)[\w.]+)", text)
    assert [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").exists()] == []


def test_modules_that_inside_names_exist() -> None:
    named = re.findall(r"`((?:\w+/)*\w+\.py)`", read("docs/inside.md"))
    files = [name if name.startswith("tests/") else f"modelscope_polylm/{name}" for name in named]
    assert len(files) > 30
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("page", TRANSLATED)
def test_translations_have_the_same_parts(page: str) -> None:
    original = TRANSLATED[page]
    assert [block[1:] for block in blocks(page)] == [block[1:] for block in blocks(original)]
    for part in (r"^#+ ", r"^- ", r"^<!-- ", r"\]\((?!README)[^)]+\)"):
        assert len(re.findall(part, read(page), re.MULTILINE)) == len(re.findall(part, read(original), re.MULTILINE)), (
            part
        )


def test_a_wrong_output_is_noticed() -> None:
    block = Block(1, "python", "print(1 + 1)  # 2\nprint('b')  # b\n")
    check_printed(block, "2\nx\nb\n", "page")
    for wrong in ("3\nb\n", "b\n2\n", "2\n"):
        with pytest.raises(AssertionError, match="is not what it prints"):
            check_printed(block, wrong, "page")


def test_a_wrong_table_is_noticed() -> None:
    whole = renewed("<!-- errors: begin -->\n<!-- errors: end -->")
    assert renewed(whole) == whole
    assert renewed(whole.replace("`OSError`", "`KeyError`")) == whole
    assert "| Run again. |" in renewed(whole.replace("disk. |  |", "disk. | Run again. |"))
