"""Runs a package with vLLM on the CPU: python with_vllm.py PACKAGE EXPECTED.json"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_HOST_IP="127.0.0.1", VLLM_NO_USAGE_STATS="1")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def run(package: str, expected: dict[str, Any]) -> dict[str, Any]:
    """Greedy answers of vLLM to the questions, asked as chats, and its token ids of the texts."""
    import vllm

    model = vllm.LLM(model=package, dtype="float32", enforce_eager=True, max_model_len=512, max_num_seqs=8)
    settings = vllm.SamplingParams(temperature=0.0, max_tokens=24)
    chats = [[{"role": "user", "content": question}] for question in expected["questions"]]
    outputs = model.chat(chats, settings, use_tqdm=False)
    end = 2
    answers = [list(output.outputs[0].token_ids) for output in outputs]
    tokenizer = model.get_tokenizer()
    return {
        "version": vllm.__version__,
        "prompts": [list(output.prompt_token_ids) for output in outputs],
        "greedy": [ids[:-1] if ids and ids[-1] == end else ids for ids in answers],
        "text_ids": [list(tokenizer.encode(text)) for text in expected["texts"]],
    }


if __name__ == "__main__":
    with open(sys.argv[2], encoding="utf-8") as file:
        found = run(sys.argv[1], json.load(file))
    print()
    print(json.dumps(found))
