"""Files in the layouts in which the nine sources are published, traps included."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def task(instruction: Any, output: Any, input: Any = "", **more: Any) -> dict[str, Any]:
    return {"instruction": instruction, "input": input, "output": output, **more}


def write_json(file: Path, rows: Sequence[Any], indent: int | None = None) -> Path:
    """A JSON array; gzip's if the name says so."""
    return _write(file, json.dumps(rows, ensure_ascii=False, indent=indent))


def write_lines(file: Path, rows: Sequence[Any]) -> Path:
    """JSON lines; gzip's if the name says so."""
    return _write(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


def node(text: Any, role: str, *replies: Any, lang: str = "en", deleted: bool = False) -> dict[str, Any]:
    """A message of an OpenAssistant tree."""
    return {"text": text, "role": role, "lang": lang, "deleted": deleted, "replies": list(replies)}


def tree(prompt: Any) -> dict[str, Any]:
    return {"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": prompt}


def said(*messages: tuple[str, Any]) -> dict[str, Any]:
    """A conversation of ShareGPT."""
    return {"id": "x_0", "conversations": [{"from": role, "value": value} for role, value in messages]}


FENCED = "```python\nprint(1)\n```"
TREE = tree(
    node(
        "Hi",
        "prompter",
        node("Hello", "assistant", node("How are you?", "prompter", node("Well", "assistant"))),
        node("Hallo", "assistant", lang="de"),
        node("gone", "assistant", node("lost", "prompter"), deleted=True),
        node("again", "prompter"),
    )
)


def write_all(folder: Path) -> dict[str, Path]:
    """A file, or a folder of files, for each of the nine; by name."""
    multilingual = folder / "multilingual_alpaca"
    write_lines(multilingual / "ja.jsonl", [task("「猫とは何ですか」", "動物です", None), task("code?", "print(1)")])
    write_lines(multilingual / "es.jsonl", [task("¿Qué?", "Nada", "<noinput>"), task("Vacío", "")])
    return {
        "code_alpaca": write_json(
            folder / "code_alpaca_20k.json",
            [task("a", FENCED), task("b", "x = 1"), task("c", "one ```", "two ```"), task("d", "e", FENCED)],
        ),
        "dolly": write_lines(
            folder / "databricks-dolly-15k.jsonl",
            [{"instruction": "Who?", "context": "Ada.", "response": "Ada", "category": "closed_qa"}],
        ),
        "flan_v2": write_lines(folder / "flan_v2_resampled_100k.jsonl", [{"inputs": "1+1?", "targets": "2"}]),
        "gpt4_alpaca_en": write_json(folder / "alpaca_gpt4_data.json", [task("Say hi", "hi")], indent=4),
        "gpt4_alpaca_zh": write_json(
            folder / "alpaca_gpt4_data_zh.json", [task("翻译", "你好", "输入：hello"), task("说", "好", "输入")]
        ),
        "multilingual_alpaca": multilingual,
        "open_assistant": write_lines(folder / "2023-04-12_oasst_ready.trees.jsonl.gz", [TREE]),
        "share_gpt": write_json(
            folder / "sg_90k_part1_html_cleaned.json",
            [
                said(("gpt", "left over"), ("human", "Q"), ("gpt", "A1"), ("chatgpt", "A2"), ("user", "more?")),
                said(("system", "S"), ("human", "Q"), ("gpt", "A")),
                said(("human", "Q"), ("bing", "A")),
                said(("human", "only a question")),
                said(("human", "Q"), ("gpt", None)),
            ],
        ),
        "gpteacher_codegen": write_json(
            folder / "codegen-instruct.json", [{"instruction": "Sum", "input": "1 2", "response": "3"}]
        ),
    }
