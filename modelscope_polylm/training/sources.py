"""Fine-tuning data as data: the nine sources of PolyLM-Assistant's model card, and three general ones.

Fields, file names and traps: the published files. Numbers of rows: the model card of
damo/nlp_polylm_assistant_13b_text_generation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from modelscope_polylm.errors import InputError, suggestion
from modelscope_polylm.text.prompts import ASSISTANT, USER
from modelscope_polylm.text.tokenizer import check_text
from modelscope_polylm.training.layouts import (
    Conversations,
    Layout,
    LeftOut,
    Pairs,
    Record,
    Texts,
    Trees,
    kind_of,
)

MULTIALPACA_LANGUAGES = ("ar", "de", "es", "fr", "id", "ja", "ko", "pt", "ru", "th", "vi")
ROLES_OF_SHARE_GPT = {"human": USER, "user": USER, "gpt": ASSISTANT, "chatgpt": ASSISTANT}
SCRIPTS = {
    "ar": re.compile(r"[\u0600-\u06ff]"),
    "he": re.compile(r"[\u0590-\u05ff]"),
    "ja": re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]"),
    "ko": re.compile(r"[\uac00-\ud7af]"),
    "ru": re.compile(r"[\u0400-\u04ff]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
    "zh": re.compile(r"[\u4e00-\u9fff]"),
}
"""Letters of the languages that have letters of their own."""


@dataclass(frozen=True)
class Source:
    """A data set by its name.

    Attributes:
        name: as in `polylm data NAME=PATH`.
        layout: reads its rows.
        licence: its name, and what is doubtful about it.
        commercial: whether the licence allows commercial use; None where that is unclear.
        files: what the publisher calls its files.
        card_rows: rows of the model card of Assistant.
        language: of all rows, where a row does not tell.
        languages: where each file is one language's and named after it: these languages.
        hub_id: its id on ModelScope, None where none is known.
    """

    name: str
    layout: Layout
    licence: str
    commercial: bool | None
    files: str
    card_rows: int | None = None
    language: str = ""
    languages: tuple[str, ...] = ()
    hub_id: str | None = None

    def records(self, row: Any, language: str = "") -> Iterator[Record | LeftOut]:
        """The records of a row, and what is left out of it and why."""
        language = language or self.language
        if not isinstance(row, Mapping):
            yield LeftOut("not a JSON object", language)
            return
        missing = [name for name in self.layout.required if name not in row]
        if missing:
            yield LeftOut(f"no field {missing[0]}", language)
            return
        for record in self.layout.records(row, language):
            yield _checked(record)

    def fits(self, row: Any) -> bool:
        """Whether a row has the fields of this source."""
        return isinstance(row, Mapping) and all(name in row for name in self.layout.required)


def _checked(record: Record | LeftOut) -> Record | LeftOut:
    """The record, unless a text of it cannot be encoded; with a note where the answer is of another language."""
    if isinstance(record, LeftOut):
        return record
    texts = [record.text, *(message["content"] for message in record.messages)]
    try:
        check_text("".join(texts))
    except InputError:
        return LeftOut("a lone surrogate, which is no character", record.language)
    script = SCRIPTS.get(record.language)
    if script and not script.search(texts[-1]):
        record.notes.append(f"no letter of {record.language} in the answer, kept")
    return record


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source(
            name="code_alpaca",
            layout=Pairs(only_with_code=True),
            licence="unclear: answers of GPT-3.5",
            commercial=None,
            files="code_alpaca_20k.json",
            card_rows=28,
            language="en",
        ),
        Source(
            name="dolly",
            layout=Pairs(context="context", answer="response", other=("category",)),
            licence="CC BY-SA 3.0",
            commercial=True,
            files="databricks-dolly-15k.jsonl",
            card_rows=15_011,
            language="en",
            hub_id="AI-ModelScope/databricks-dolly-15k",
        ),
        Source(
            name="flan_v2",
            layout=Pairs(question="inputs", context=None, answer="targets"),
            licence="unclear: a sample of many data sets",
            commercial=None,
            files="flan_v2_resampled_100k.jsonl",
            card_rows=100_000,
        ),
        Source(
            name="gpt4_alpaca_en",
            layout=Pairs(),
            licence="CC BY-NC 4.0",
            commercial=False,
            files="alpaca_gpt4_data.json",
            card_rows=52_002,
            language="en",
            hub_id="AI-ModelScope/alpaca-gpt4-data-en",
        ),
        Source(
            name="gpt4_alpaca_zh",
            layout=Pairs(context_prefixes=("输入：", "输入:")),
            licence="CC BY-NC 4.0",
            commercial=False,
            files="alpaca_gpt4_data_zh.json",
            card_rows=48_818,
            language="zh",
            hub_id="AI-ModelScope/alpaca-gpt4-data-zh",
        ),
        Source(
            name="multilingual_alpaca",
            layout=Pairs(unquoted=True),
            licence="Apache-2.0 by the hub, research only by the paper; answers of GPT-3.5",
            commercial=False,
            files="ar.jsonl, de.jsonl, ... vi.jsonl",
            card_rows=132_701,
            languages=MULTIALPACA_LANGUAGES,
            hub_id="damo/nlp_polylm_multialpaca_sft",
        ),
        Source(
            name="open_assistant",
            layout=Trees(),
            licence="Apache-2.0",
            commercial=True,
            files="2023-04-12_oasst_ready.trees.jsonl.gz",
            card_rows=55_668,
        ),
        Source(
            name="share_gpt",
            layout=Conversations("conversations", "from", "value", ROLES_OF_SHARE_GPT, refused=("system", "bing")),
            licence="unclear: conversations that users of ChatGPT published",
            commercial=None,
            files="sg_90k_part1_html_cleaned.json, sg_90k_part2_html_cleaned.json",
            card_rows=140_591,
        ),
        Source(
            name="gpteacher_codegen",
            layout=Pairs(answer="response"),
            licence="MIT",
            commercial=True,
            files="codegen-instruct.json",
            card_rows=4_535,
            language="en",
        ),
        Source(
            name="messages",
            layout=Conversations(leading=("system", "developer")),
            licence="yours",
            commercial=True,
            files="any JSON lines with 'messages', as OpenAI's fine-tuning takes them",
        ),
        Source(
            name="alpaca",
            layout=Pairs(needs_context=False),
            licence="yours",
            commercial=True,
            files="any JSON, JSON lines, CSV or parquet with 'instruction', 'input' and 'output'",
        ),
        Source(
            name="text",
            layout=Texts(),
            licence="yours",
            commercial=True,
            files="any JSON lines, CSV or parquet with 'text', or text files with empty lines between documents",
        ),
    )
}
GENERAL = ("messages", "alpaca", "text")
CARD_ROWS = sum(source.card_rows or 0 for source in SOURCES.values())


def find_source(name: str) -> Source:
    """The source of that name. Raises InputError with the nearest name."""
    if name not in SOURCES:
        raise InputError(f"{name!r} is no data source: {suggestion(name, SOURCES)}")
    return SOURCES[name]


def source_of_row(row: Any) -> Source:
    """The general source whose fields a row has. Raises InputError where none does."""
    found = next((SOURCES[name] for name in GENERAL if SOURCES[name].fits(row)), None)
    if found is None:
        fields = ", ".join(map(str, row)) if isinstance(row, Mapping) else kind_of(row)
        raise InputError(
            f"A row with the fields {fields} is neither 'messages', nor 'instruction', 'input' and 'output', nor "
            "'text': name its source, as in `polylm data NAME=PATH`."
        )
    return found
