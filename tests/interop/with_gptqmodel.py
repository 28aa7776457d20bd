"""Quantises a package with GPTQModel, and reads one: python with_gptqmodel.py PACKAGE OUT QUANTISED IDS.json"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ["GPTQMODEL_CPU_WORKERS"] = "2"  # with a single one, as on two cores, it does not start

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig

TEXT = "Rome is the capital of Italy. Tokyo is the capital of Japan. Paris is the capital of France. " * 4


def quantise(package: str, out: str) -> None:
    """Write a folder in 4 bits, and what GPTQModel leaves out of it."""
    model: Any = GPTQModel.load(package, QuantizeConfig(bits=4, group_size=128, sym=True, desc_act=False))
    model.quantize([TEXT] * 16, batch_size=1)
    model.save(out)
    shutil.copyfile(Path(package) / "tokenizer.model", Path(out) / "tokenizer.model")


def logits(quantised: str, ids: list[int]) -> list[list[float]]:
    """What GPTQModel computes of token ids, [tokens, vocabulary], in bfloat16."""
    model: Any = GPTQModel.load(quantised, backend=BACKEND.TORCH, device="cpu", dtype=torch.bfloat16)
    with torch.no_grad():
        found: list[list[float]] = model.model(torch.tensor([ids])).logits[0].float().tolist()
    return found


if __name__ == "__main__":
    package, out, quantised, ids = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        quantise(package, out)
        found = {
            name: logits(folder, json.loads(Path(ids).read_text()))
            for name, folder in (("own", out), ("ours", quantised))
        }
    print("\n" + json.dumps(found))
