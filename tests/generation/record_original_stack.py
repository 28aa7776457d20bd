"""Records what PolyLM's original stack generates, to be compared with in test_original_stack.py.

Run it from the repository's root in an environment of its own, with Python 3.8 - 3.11:

    pip install transformers==4.31.0 'numpy<2' torch
    python -m tests.generation.record_original_stack
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers

from tests.generation.random_gpt2 import PROMPTS, answer_of, random_model

RECORD = Path(__file__).with_name("original_stack.json")
ENDS = (4, 77, 264, 2)
OPTIONS = [
    {},
    {"repetition_penalty": 1.3},
    {"repetition_penalty": 1.02, "no_repeat_ngram_size": 3},
    {"no_repeat_ngram_size": 2},
    {"min_length": 14},
    {"min_new_tokens": 9},
    {"num_beams": 3},
    {"num_beams": 4, "early_stopping": True},
    {"num_beams": 4, "early_stopping": "never"},
    {"num_beams": 5, "early_stopping": True, "num_return_sequences": 5},
    {"num_beams": 3, "num_return_sequences": 3},
    {"num_beams": 4, "length_penalty": 2.0, "early_stopping": True},
    {"num_beams": 4, "length_penalty": 2.0},
    {"num_beams": 4, "length_penalty": 0.5},
    {"num_beams": 4, "length_penalty": -1.0, "early_stopping": "never"},
    {"num_beams": 3, "length_penalty": 0.0},
    {"num_beams": 4, "repetition_penalty": 1.2, "early_stopping": True},
    {"num_beams": 4, "no_repeat_ngram_size": 2, "early_stopping": True},
    {"num_beams": 4, "min_length": 14, "early_stopping": True},
    {"num_beams": 4, "min_new_tokens": 9},
    {"num_beams": 8, "early_stopping": True, "num_return_sequences": 2},
]


def main() -> None:
    """Generate every case and write the record."""
    torch.set_num_threads(1)
    model = random_model()
    cases = []
    for options in OPTIONS:
        for end in ENDS:
            arguments = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": end, "pad_token_id": 0, **options}
            cases.append({"options": arguments, "answers": [answers(model, prompt, arguments) for prompt in PROMPTS]})
    versions = {"transformers": transformers.__version__, "torch": torch.__version__}
    lines = ",\n".join(json.dumps(case) for case in cases)
    RECORD.write_text(f'{{"versions": {json.dumps(versions)}, "cases": [\n{lines}\n]}}\n')


def answers(model: transformers.GPT2LMHeadModel, prompt: list[int], arguments: dict) -> list[list[int]]:
    """The answers that the original stack returns for a prompt."""
    ids = torch.tensor([prompt])
    sequences = model.generate(ids, attention_mask=torch.ones_like(ids), **arguments)
    return [answer_of(sequence, prompt, [arguments["eos_token_id"]]) for sequence in sequences.tolist()]


if __name__ == "__main__":
    main()
