"""Random adapters, made by peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2LMHeadModel


def peft_model(snapshot: Path, targets: tuple[str, ...] = ("c_attn", "c_proj", "c_fc"), **settings: Any) -> Any:
    """A snapshot in transformers with a random adapter of rank 4 around it."""
    base = GPT2LMHeadModel.from_pretrained(snapshot, dtype=torch.float32)
    torch.manual_seed(1)
    chosen = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": True, "task_type": "CAUSAL_LM", **settings}
    model = get_peft_model(base, LoraConfig(target_modules=list(targets), **chosen))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) * 0.05)
    return model.eval()


def save_adapter(snapshot: Path, folder: Path, **settings: Any) -> Any:
    """Write peft's folder; returns the model."""
    model = peft_model(snapshot, **settings)
    model.save_pretrained(folder)
    return model
