"""Random GPT-2 models and prompts; imports nothing of this package, so that the original stack can run it too."""

from __future__ import annotations

import torch
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY = 300
END_TOKENS = [4, 39, 77, 100, 190]
PROMPTS = [[7, 8, 9], [200, 11, 12, 13, 14], [299], list(range(30, 60)), [17, 17, 17, 17], [44, 3, 260, 90, 4, 4, 8]]


def random_model(
    width: int = 128,
    heads: int = 1,
    layers: int = 2,
    vocabulary: int = VOCABULARY,
    positions: int = 96,
    scale: float = 0.15,
) -> GPT2LMHeadModel:
    """A GPT-2 with every tensor drawn from a fixed seed, fp32 on the CPU; its config names a wrong end token."""
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
        activation_function="gelu_fast", attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
        bos_token_id=vocabulary - 1, eos_token_id=vocabulary - 1,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.empty_like(parameter).normal_(0, scale if parameter.dim() > 1 else 0.05, generator=generator)
        parameter.data = noise + 1 if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")) else noise
    return model


def answer_of(sequence: list[int], prompt: list[int], end_tokens: list[int]) -> list[int]:
    """The answer's ids in a sequence of generate(), without prompt, end token and padding."""
    ids = sequence[len(prompt) :]
    ends = [index for index, token in enumerate(ids) if token in end_tokens]
    return ids[: ends[0]] if ends else ids
