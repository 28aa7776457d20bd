"""Documents: what of them is translated, and that the rest stays."""

from __future__ import annotations

import re
from pathlib import Path

import polib
import pytest
import srt

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.text.languages import LANGUAGES
from modelscope_polylm.translation.documents import PLURAL_FORMS, TextFile, read_document, wrapped

ROOT = Path(__file__).parents[2]
MARKDOWN = """---
title: Kept
---
# Head *line*

Para one
line two.  
After a hard break, `code` and <b>tag</b>.

> Quote line
> goes on

- item one
  goes on
- [ ] task
1. First

| a | b |
|---|--:|
| x y | `z` |
| a \\| b | last |

    code block

```python
print("kept")
```

[ref]: https://kept.example
Setext
======

<div>
kept
</div>
"""
SUBTITLES = """1
00:00:01,000 --> 00:00:02,500
Beijing is the capital
of China.

7
00:00:03,000 --> 00:00:04,000 X1:1
- Hello.
- <i>Hi!</i>

"""
CATALOG = """# Kept comment
msgid ""
msgstr ""
"Content-Type: text/plain; charset=UTF-8\\n"

#: a.py:1
#, python-format
msgid "Hello %s"
msgstr ""

msgid "Done"
msgstr "Kept"

#, fuzzy
msgid "Old"
msgstr "Kept too"

msgctxt "menu"
msgid "%d file"
msgid_plural "%d files"
msgstr[0] ""
msgstr[1] ""

#~ msgid "Gone"
#~ msgstr ""
"""


def test_plain_text_line_by_line() -> None:
    document = read_document("\n  One. Two.\n\n\tThree\n", "txt", "de")
    assert document.texts == ["  One. Two.", "\tThree"]
    assert document.places == ["line 2", "line 4"]
    assert document.render(["  Eins.", "\tDrei"]) == "\n  Eins.\n\n\tDrei\n"


def test_markdown() -> None:
    document = read_document(MARKDOWN, "md", "de")
    assert dict(zip(document.texts, document.places, strict=True)) == {
        "Head *line*": "line 4",
        "Para one line two.  \nAfter a hard break, `code` and <b>tag</b>.": "line 6",
        "Quote line goes on": "line 10",
        "item one goes on": "line 13",
        "[ ] task": "line 15",
        "First": "line 16",
        "a": "line 18",
        "b": "line 18",
        "x y": "line 20",
        "`z`": "line 20",
        "last": "line 21",
        "Setext": "line 30",
    }
    shown = document.render([text.upper() for text in document.texts])
    expected = MARKDOWN
    for before, after in (
        ("# Head *line*", "# HEAD *LINE*"),
        ("Para one\nline two.  \nAfter a hard break, `code` and <b>tag</b>.",
         "PARA ONE LINE TWO.  \nAFTER A HARD BREAK, `CODE` AND <B>TAG</B>."),
        ("> Quote line\n> goes on", "> QUOTE LINE GOES ON"),
        ("- item one\n  goes on\n- [ ] task\n1. First", "- ITEM ONE GOES ON\n- [ ] TASK\n1. FIRST"),
        ("| a | b |", "| A | B |"),
        ("| x y | `z` |", "| X Y | `Z` |"),
        ("| last |", "| LAST |"),
        ("Setext", "SETEXT"),
    ):  # fmt: skip
        assert before in expected
        expected = expected.replace(before, after)
    assert shown == expected


def test_hard_breaks_in_quotes_keep_the_quote() -> None:
    document = read_document("> one  \n> two\n", "md", "de")
    assert document.render(["eins  \nzwei"]) == "> eins  \n> zwei\n"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_our_own_pages_keep_everything_but_the_breaks_of_lines(page: Path) -> None:
    content = page.read_text(encoding="utf-8")
    document = read_document(content, "md", "de")
    assert len(document.texts) > 3
    shown = document.render(document.texts)
    without_breaks = [re.sub(r"[\s>]+", "", text) for text in (content, shown)]
    assert without_breaks[0] == without_breaks[1]


def test_subtitles() -> None:
    document = read_document(SUBTITLES, "srt", "vi")
    assert document.texts == ["Beijing is the capital of China.", "- Hello.", "- <i>Hi!</i>"]
    assert document.places == ["cue 1", "cue 7", "cue 7"]
    shown = document.render(["Bắc Kinh là thủ đô của Trung Quốc.", "- Chào.", "- <i>Chào!</i>"])
    cues = list(srt.parse(shown))
    assert [cue.content for cue in cues] == ["Bắc Kinh là thủ đô\ncủa Trung Quốc.", "- Chào.\n- <i>Chào!</i>"]
    assert [(cue.index, cue.start, cue.end, cue.proprietary) for cue in cues] == [
        (cue.index, cue.start, cue.end, cue.proprietary) for cue in srt.parse(SUBTITLES)
    ]


@pytest.mark.parametrize(
    ("text", "lines", "shown"),
    [
        ("one two three", 1, "one two three"),
        ("one two three four", 2, "one two\nthree four"),
        ("北京是首都", 2, "北京是首都"),
    ],
)
def test_lines_of_a_cue(text: str, lines: int, shown: str) -> None:
    assert wrapped(text, lines) == shown


def test_catalog() -> None:
    document = read_document(CATALOG, "po", "ru")
    assert document.texts == ["Hello %s", "%d file", "%d files"]
    assert document.places == ["line 6", "line 18", "line 18"]
    file = polib.pofile(document.render(["Привет, %s", "%d файл", "%d файлов"]))
    assert file.header == "Kept comment"
    assert file.metadata["Language"] == "ru"
    assert file.metadata["Plural-Forms"].startswith("nplurals=3;")
    assert [entry.msgstr for entry in file if not entry.obsolete] == ["Привет, %s", "Kept", "Kept too", ""]
    assert file.find("%d file", msgctxt="menu").msgstr_plural == {0: "%d файл", 1: "%d файлов", 2: "%d файлов"}
    assert [entry.msgid for entry in file.obsolete_entries()] == ["Gone"]
    again = read_document(str(file), "po", "ru")
    assert again.texts == []


def test_every_language_has_plural_forms() -> None:
    assert set(PLURAL_FORMS) == set(LANGUAGES)
    one = polib.pofile(read_document(CATALOG, "po", "ja").render(["%s", "%d", "%d 件"]))
    assert one.find("%d file", msgctxt="menu").msgstr_plural == {0: "%d 件"}


@pytest.mark.parametrize(
    ("format", "content", "said"),
    [
        ("txt", " \n", "nothing to translate"),
        ("srt", "hello", "line 1 is not the start of a cue"),
        ("srt", SUBTITLES + "8\n00:00:09 -> 00:00:10\nbroken\n\n", "line 11 is not"),
        ("srt", SUBTITLES + "8\n00:00 -> 00:01\nbroken\n\n", "is not|broken"),
        ("po", 'msgid "a\nmsgstr', "no gettext catalog"),
        ("po", "hello", "no gettext catalog"),
        ("po", 'msgid "a"\nmsgstr "b"\ngarbage\n', "no gettext catalog"),
    ],
)
def test_broken_documents(format: str, content: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_document(content, format, "vi")


def test_an_unknown_format() -> None:
    with pytest.raises(OptionError, match="did you mean srt"):
        read_document("a", "str", "vi")


@pytest.mark.parametrize("content", [b"a\r\nb\r\n", b"\xef\xbb\xbfa\nb", "\ufeffa\nb".encode(), b"a\r\nb\n", b"a\rb"])
def test_files_keep_their_line_ends_and_marks(content: bytes) -> None:
    file = TextFile.decoded(content)
    assert file.written(file.text).encode() == content
    assert not file.text.startswith("\ufeff")


def test_encodings() -> None:
    assert TextFile.decoded("Hà Nội".encode("cp1258", "ignore"), "cp1258").text.startswith("H")
    assert TextFile.decoded("\ufeffa\nb".encode("utf-16-le")).text == "a\nb"
    for content, encoding, said in (
        (b"\xff\xd8\xff\xe0", "utf-8", "binary or not utf-8"),
        (b"a\0b", "utf-8", "binary"),
        (b"a", "klingon", "encoding='klingon' is unknown"),
    ):
        with pytest.raises(InputError, match=said):
            TextFile.decoded(content, encoding)
