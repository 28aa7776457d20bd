"""A package of the tiny snapshot, and what this package's own engine answers with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.packaging.package import package_snapshot
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, translation_request

SPELLED = ("a</s>b", "<s><unk></s>", "<|user|>\n<0x0A>\n", "  two  spaces\n\n\ttab ", "Ａ①e\u0301 👩‍💻 บ้าน", "")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny snapshot, packaged. Do not write to it."""
    folder = tmp_path_factory.mktemp("interop") / "tiny"
    package_snapshot(TINY_FOLDER, folder)
    return folder


@pytest.fixture(scope="session")
def questions() -> list[str]:
    """What the published examples ask, for every language."""
    return [translation_request(SENTENCE, LANGUAGES[code]) for code in LANGUAGES if code != "en"]


@pytest.fixture(scope="session")
def expected(package: Path, questions: list[str]) -> dict[str, Any]:
    """Token ids of prompts and answers of this package's engine, in fp32 on the CPU."""
    generator = TextGenerator.load(package, device="cpu", dtype="float32")
    found: dict[str, Any] = {"questions": questions, "texts": list(SPELLED)}
    found["text_ids"] = [generator.snapshot.tokenizer.encode(text) for text in SPELLED]
    for name, beams in (("greedy", 1), ("beams", 4)):
        options = generator.options({"num_beams": beams, "max_new_tokens": 24})
        prompts = [generator.reader.read([{"role": "user", "content": question}], options) for question in questions]
        answers = generator.backend.generate([prompt.ids for prompt in prompts], options)
        found["prompts"] = [prompt.ids for prompt in prompts]
        found[name] = [group[0].ids for group in answers]
    return found


@pytest.fixture(scope="session")
def expected_file(expected: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, for programs that run in an environment of their own."""
    file = tmp_path_factory.mktemp("expected") / "expected.json"
    file.write_text(json.dumps(expected), encoding="utf-8")
    return file
