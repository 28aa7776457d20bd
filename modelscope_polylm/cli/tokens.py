"""`polylm tokens`: how a text is cut into tokens."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelscope_polylm.cli.generate import read_text
from modelscope_polylm.terminal.flags import JsonFlag, ModelFlag, RevisionFlag
from modelscope_polylm.terminal.output import NARROW, console, is_terminal, printable, write
from modelscope_polylm.text.languages import LANGUAGES, TRANSLATIONS

if TYPE_CHECKING:
    from modelscope_polylm.text.tokenizer import PolyLMTokenizer

COLOURS = ("black on bright_cyan", "black on bright_yellow", "black on bright_green")
BLOCK, BLOCK_IN_ASCII = "█", "#"


def tokens(
    *,
    text: Annotated[str | None, typer.Argument(help="The text to cut; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file.")] = None,
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    languages: Annotated[
        bool, typer.Option("--languages", help="Instead count the tokens of one sentence in each of the 18 languages.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Show how a text is cut into tokens.

    On a terminal the pieces in colour, then each token's id, piece and bytes; elsewhere id, piece and bytes, a tab
    between them. Nothing is downloaded.
    """
    given = "" if languages and text is None and file is None else read_text(text, file)
    tokenizer = _tokenizer(model, revision)
    if languages:
        counts = language_counts(tokenizer)
        return write(json.dumps(counts) + "\n") if as_json else show_chart(counts)
    rows = token_rows(tokenizer, given)
    if as_json:
        write(json.dumps({"count": len(rows), "tokens": rows}, ensure_ascii=False) + "\n")
    elif is_terminal(sys.stdout):
        _show(given, rows)
    else:
        write("".join(f"{row['id']}\t{printable(row['piece'])}\t{row['bytes']}\n" for row in rows))


def token_rows(tokenizer: PolyLMTokenizer, text: str) -> list[dict[str, Any]]:
    """For each token its 'id', its 'piece' as the tokenizer writes it, and its 'bytes' in hexadecimal."""
    ids = tokenizer.encode(text)
    pieces = [tokenizer.id_to_piece(token) for token in ids]
    values = [(tokenizer.piece_bytes(token) or b"").hex(" ") for token in ids]
    return [
        {"id": token, "piece": piece, "bytes": value} for token, piece, value in zip(ids, pieces, values, strict=True)
    ]


def _tokenizer(model: str, revision: str | None) -> PolyLMTokenizer:
    from modelscope_polylm import tiny
    from modelscope_polylm.text.tokenizer import FILE_NAME, PolyLMTokenizer

    folder = Path(tiny.__file__).parent if model == "tiny" else Path(model).expanduser()
    if not (folder / FILE_NAME).is_file():
        from modelscope_polylm.hub.resolve import resolve  # loads torch

        # weights of many gigabytes are not fetched to cut a text: what is not in the cache is an error that says how
        folder = resolve(model, revision, local_files_only=True)
    return PolyLMTokenizer.from_pretrained(folder)


def _show(text: str, rows: list[dict[str, Any]]) -> None:
    from rich.text import Text

    screen = console()
    pieces = ((printable(row["piece"]), COLOURS[index % len(COLOURS)]) for index, row in enumerate(rows))
    screen.print(Text.assemble(*pieces))
    width = max((len(str(row["id"])) for row in rows), default=0)
    for index, row in enumerate(rows):
        piece = (printable(row["piece"]), COLOURS[index % len(COLOURS)])
        screen.print(Text.assemble(f"{row['id']:>{width}} ", piece, f" {row['bytes']}"), overflow="fold")
    screen.print(f"{len(rows)} tokens, {len(text)} characters, {len(text.encode())} bytes")


def language_counts(tokenizer: PolyLMTokenizer) -> dict[str, int]:
    """Tokens of the sample sentence by English name of the language, fewest first."""
    counts = {LANGUAGES[code]: len(tokenizer.encode(text)) for code, text in TRANSLATIONS.items()}
    return dict(sorted(counts.items(), key=lambda item: item[1]))


def show_chart(counts: dict[str, int]) -> None:
    """Print a bar for each language, as wide as the screen lets it be."""
    screen = console()
    for line in chart_lines(counts, screen.width):
        screen.print(line, overflow="crop", no_wrap=True)


def chart_lines(counts: dict[str, int], width: int) -> list[str]:
    """The chart in lines of at most `width` columns; narrow screens get short names."""
    names = list(counts) if width >= NARROW // 2 else [name[:3] for name in counts]
    name_width, number_width = max(map(len, names)), len(str(max(counts.values())))
    room = max(width - name_width - number_width - 3, 1)
    most = max(counts.values())
    lines = zip(names, counts.values(), strict=True)
    return [
        f"{name:{name_width}} {count:>{number_width}} {_block() * max(round(room * count / most), 1)}"
        for name, count in lines
    ]


def _block() -> str:
    try:
        BLOCK.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return BLOCK_IN_ASCII
    return BLOCK
