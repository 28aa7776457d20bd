"""`python -m benchmarks.vllm_beams`: how often vLLM's own beam search gives transformers' answers.

It runs on vLLM's CPU build in fp32 with the tiny model, on random prompts and on requests that the model knows or half
knows. What it shows is why the backend brings its own search: the share depends on `early_stopping` and on the release
of transformers that is followed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import torch

from modelscope_polylm.backends import create_backend
from modelscope_polylm.backends.vllm.engine import import_vllm
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.packaging.cache import packaged_snapshot
from modelscope_polylm.snapshot import Snapshot, open_snapshot
from modelscope_polylm.text.languages import translation_request

SENTENCES = (
    ("Rome", "Italy", "German"),
    ("Tokyo", "Japan", "Korean"),
    ("Paris", "Franc", "Chines"),
    ("Oslo", "No", "x"),
)
BEAMS, NEW = 4, 24


def prompts(snapshot: Snapshot) -> list[list[int]]:
    """Twenty random sequences and four requests."""
    source = random.Random(0)
    found = [[source.randrange(3, snapshot.config.vocab_size) for _ in range(source.randint(2, 12))] for _ in range(20)]
    for city, country, language in SENTENCES:
        request = translation_request(f"{city} is the capital of {country}.", language)
        found.append(snapshot.tokenizer.encode(f"<|user|>\n{request}\n<|assistant|>\n"))
    return found


def settings() -> Iterator[dict[str, object]]:
    """The beam options that are compared."""
    for penalty in (0.0, 1.0, 2.0):
        for rules in ("4.31", "5"):
            for early_stopping in (True, False, "never"):
                yield {"length_penalty": penalty, "beam_rules": rules, "early_stopping": early_stopping}


def main() -> None:
    """Print a line for each setting."""
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    vllm = import_vllm()
    from vllm.sampling_params import BeamSearchParams

    snapshot = open_snapshot(packaged_snapshot(TINY_FOLDER))
    asked = prompts(snapshot)
    native = create_backend("native", snapshot, torch.device("cpu"), torch.float32)
    engine = vllm.LLM(str(snapshot.folder), dtype="float32", enforce_eager=True, gpu_memory_utilization=0.1)
    for setting in settings():
        own = BeamSearchParams(beam_width=BEAMS, max_tokens=NEW, length_penalty=setting["length_penalty"])
        outputs = engine.beam_search([{"prompt_token_ids": ids} for ids in asked], own)
        found = [output.sequences[0].tokens[len(ids) :] for ids, output in zip(asked, outputs, strict=True)]
        found = [ids[:-1] if ids[-1:] == [snapshot.tokenizer.eos_token_id] else ids for ids in found]
        options = GenerationOptions.from_layers({"num_beams": BEAMS, "max_new_tokens": NEW, **setting})
        wanted = [group[0].ids for group in native.generate(asked, options)]
        equal = sum(ours == theirs for ours, theirs in zip(found, wanted, strict=True))
        print(f"{setting}: {equal} of {len(asked)} answers equal", flush=True)


if __name__ == "__main__":
    main()
