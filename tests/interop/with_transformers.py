"""Runs a package with plain transformers, nothing of this project: python with_transformers.py PACKAGE EXPECTED.json"""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def run(package: str, expected: dict[str, Any]) -> dict[str, Any]:
    """What transformers gives for the questions and texts of `expected`, under the same names."""
    tokenizer = AutoTokenizer.from_pretrained(package)
    model = AutoModelForCausalLM.from_pretrained(package, torch_dtype=torch.float32)
    loaded = AutoTokenizer.from_pretrained(package, split_special_tokens=False)
    found: dict[str, Any] = {"version": transformers.__version__, "class": type(tokenizer).__name__}
    found["text_ids"] = [tokenizer(text)["input_ids"] for text in expected["texts"]]
    found["decoded"] = [tokenizer.decode(ids) for ids in found["text_ids"]]
    found["end_in_text"] = loaded("a</s>b")["input_ids"].count(model.config.eos_token_id)
    found["inputs"] = sorted(tokenizer("text"))
    ends = [model.config.eos_token_id, model.generation_config.eos_token_id, tokenizer.eos_token_id]
    found["ends"] = [*ends, tokenizer.pad_token_id, model.generation_config.pad_token_id]
    prompts, greedy, beams = [], [], []
    for question in expected["questions"]:
        messages = [{"role": "user", "content": question}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        prompts.append(inputs["input_ids"][0].tolist())
        greedy.append(_answer(model, inputs, num_beams=1))
        beams.append(_answer(model, inputs))
    return {**found, "prompts": prompts, "greedy": greedy, "beams": beams}


def _answer(model: Any, inputs: Any, **options: Any) -> list[int]:
    if options.get("num_beams") == 1:
        options["early_stopping"] = False
    output = model.generate(**inputs, max_new_tokens=24, **options)[0, inputs["input_ids"].shape[1] :].tolist()
    end = model.config.eos_token_id
    return output[: output.index(end)] if end in output else output


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        print(json.dumps(run(sys.argv[1], json.load(file))))
