"""How many tokens the same sentence takes in each language, as bars."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from modelscope_polylm.app.terminal import NARROW, console
from modelscope_polylm.text.languages import LANGUAGES, TRANSLATIONS

if TYPE_CHECKING:
    from modelscope_polylm.text.tokenizer import PolyLMTokenizer

BLOCK = "█"


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
        return "#"
    return BLOCK
