"""Converts a package with CTranslate2 and runs it: python with_ctranslate2.py PACKAGE EXPECTED.json FOLDER."""

from __future__ import annotations

import json
import sys
from typing import Any

import ctranslate2
from ctranslate2.converters import TransformersConverter
from transformers import AutoTokenizer


def run(package: str, expected: dict[str, Any], folder: str) -> dict[str, Any]:
    """The answers of CTranslate2's GPT-2, greedy and with four beams."""
    TransformersConverter(package).convert(folder, quantization="float32", force=True)
    generator = ctranslate2.Generator(folder, device="cpu", inter_threads=1, intra_threads=1)
    tokenizer = AutoTokenizer.from_pretrained(package)
    prompts = [tokenizer.convert_ids_to_tokens(ids) for ids in expected["prompts"]]
    found: dict[str, Any] = {"version": ctranslate2.__version__}
    for name, beams in (("greedy", 1), ("beams", 4)):
        results = generator.generate_batch(
            prompts, max_length=24, beam_size=beams, include_prompt_in_result=False, end_token="</s>", max_batch_size=8
        )
        found[name] = [result.sequences_ids[0] for result in results]
    return found


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        print(json.dumps(run(sys.argv[1], json.load(file), sys.argv[3])))
