"""`python -m benchmarks.evaluation`: multiple-choice questions by this package and by lm-evaluation-harness's own HFLM.

Both get the same requests through the harness's interface: HFLM with its best batch size, which a part of the questions
finds, or with `--batches 1`, its default. Seconds are the median of some runs. Without `--shape` it is the bundled
model, packaged, and texts; with `--shape 13b` random weights and random ids.
"nli" are questions like XNLI's, which three whole texts answer; "cause" like XCOPA's, two short ends of a short text;
"long" like few-shot questions, four short ends of 1,000 tokens.

    python -m benchmarks.evaluation --questions 2000
    python -m benchmarks.evaluation --shape 13b --kinds nli cause long --questions 200
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.fresh_process import in_fresh_process
from modelscope_polylm.backends.native import NativeBackend
from modelscope_polylm.backends.placement import choose_device, choose_dtype
from modelscope_polylm.cli.bench.engines import TransformersEngine
from modelscope_polylm.cli.bench.workloads import SHAPES, RandomWeights, shape_config
from modelscope_polylm.evaluation.language_model import language_model
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.snapshot import open_snapshot

KINDS = {"nli": (0, 50, 10, 3), "cause": (13, 0, 9, 2), "long": (1000, 0, 9, 4)}
"""Tokens before the choices, tokens that all choices begin with, tokens of their own, and how many there are."""
BATCHES = (1, 8, 32, 64, 128)
SAMPLE = 96
"""Questions that choose HFLM's batch size."""
Request = tuple[tuple[str, str], list[int], list[int]]


def main() -> None:
    """Run both with each kind of questions, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights; the bundled model if unset")
    parser.add_argument("--device")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=["nli"])
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES), help="sizes that HFLM tries")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    counts = (arguments.questions, arguments.kinds, arguments.batches, arguments.repeats)
    setting = (arguments.shape, str(device), *counts)
    found = {name: list(in_fresh_process(measured, name, *setting)) for name in MODELS}
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    figures = []
    for ours, theirs in zip(found["polylm"], found["hflm"], strict=True):
        figures.append({"device": card, **line(ours, theirs, same_weights=not arguments.shape)})
        print(json.dumps(figures[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def questions(kind: str, count: int, vocabulary: int) -> list[Request]:
    """Requests of so many questions, those of a question one after the other."""
    before, common, own, choices = KINDS[kind]
    source = random.Random(kind)

    def drawn(size: int) -> list[int]:
        # lengths differ by up to a half, as those of questions do
        return [source.randrange(259, vocabulary) for _ in range(round(size * source.uniform(0.5, 1.5)))]

    found = []
    for _ in range(count):
        context, start = drawn(before) or [2], drawn(common)
        found += [(("", ""), context, start + drawn(own)) for _ in range(choices)]
    return found


def own_model(shape: str | None, device: torch.device, dtype: torch.dtype) -> Any:
    """This package as a model of the harness."""
    snapshot = open_snapshot(TINY_FOLDER)
    if shape:
        snapshot = dataclasses.replace(snapshot, config=shape_config(shape), weight_files=RandomWeights())
        # ids of the whole vocabulary, which the bundled tokenizer has no texts for
        snapshot.tokenizer.vocab_size = snapshot.config.vocab_size
    return language_model(TextGenerator(snapshot, NativeBackend(snapshot, device, dtype)))


def hugging_face_model(shape: str | None, device: torch.device, dtype: torch.dtype) -> Any:
    """lm_eval's HFLM on transformers' GPT2LMHeadModel."""
    from lm_eval.models.huggingface import HFLM

    if shape:
        snapshot = dataclasses.replace(open_snapshot(TINY_FOLDER), config=shape_config(shape))
        model = TransformersEngine(dataclasses.replace(snapshot, weight_files=RandomWeights()), device, dtype).model
        return HFLM(model, tokenizer=_tokenizer(), prefix_token_id=2, max_length=2047)
    from modelscope_polylm.packaging.package import package_snapshot

    with tempfile.TemporaryDirectory() as folder:
        package_snapshot(TINY_FOLDER, Path(folder, "tiny"))
        return HFLM(str(Path(folder, "tiny")), device=str(device), dtype="float32", prefix_token_id=2, max_length=511)


def _tokenizer() -> Any:
    """One that HFLM can ask for its special tokens; no text is cut."""
    import transformers
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    words = {"<unk>": 0, "<s>": 1, "</s>": 2}
    special = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "</s>"}
    make: Any = transformers.PreTrainedTokenizerFast
    return make(tokenizer_object=Tokenizer(WordLevel(words, unk_token="<unk>")), **special)


def measured(
    name: str, shape: str | None, device: str, count: int, kinds: Sequence[str], batches: Sequence[int], repeats: int
) -> Iterator[dict[str, Any]]:
    """Seconds of each kind, the batch size that was fastest, and the likelihoods."""
    target = torch.device(device)
    model = MODELS[name](shape, target, choose_dtype(None, target))
    gc.freeze()  # as `polylm eval` does
    vocabulary = SHAPES[shape]["vocab_size"] if shape else 3000
    for kind in kinds:
        requests = questions(kind, count, vocabulary)
        size = fastest(model, requests, [None] if name == "polylm" else batches)
        answers: list[float] = []
        times = [timed(lambda: answers.extend(answered(model, requests, size))) for _ in range(repeats)]  # noqa: B023
        tokens = sum(len(context) + len(ids) for _, context, ids in requests)
        facts = {"kind": kind, "requests": len(requests), "tokens": tokens}
        yield {**facts, "seconds": statistics.median(times), "batch_size": size, "answers": answers[: len(requests)]}


def fastest(model: Any, requests: Sequence[Request], batches: Sequence[int | None]) -> int | None:
    """The batch size that answers a part of the requests in the shortest time; the first run warms up."""
    part = requests[:SAMPLE]
    seconds = {}
    for size in (batches[0], *batches):
        try:
            seconds[size] = timed(lambda: answered(model, part, size))  # noqa: B023
        except torch.OutOfMemoryError:
            continue
    return min(seconds, key=lambda size: seconds[size])


def answered(model: Any, requests: Sequence[Request], size: int | None) -> list[float]:
    """The log-likelihoods of all requests."""
    if size is not None:
        model.batch_size_per_gpu = size
    found = model._loglikelihood_tokens(list(requests), disable_tqdm=True)
    return [float(likelihood) for likelihood, _ in found]


def timed(run: Callable[[], object]) -> float:
    """Seconds of a call, whose results are on the host when it ends."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def line(ours: dict[str, Any], theirs: dict[str, Any], same_weights: bool) -> dict[str, Any]:
    """The figures of a kind; `differs` is the largest difference of two likelihoods."""
    pairs = zip(ours["answers"], theirs["answers"], strict=True)
    return {
        **{name: ours[name] for name in ("kind", "requests", "tokens")},
        "polylm_seconds": round(ours["seconds"], 3),
        "polylm_tokens_per_second": round(ours["tokens"] / ours["seconds"], 1),
        "hflm_seconds": round(theirs["seconds"], 3),
        "hflm_batch_size": theirs["batch_size"],
        "ratio": round(theirs["seconds"] / ours["seconds"], 2),
        "differs": max(abs(mine - other) for mine, other in pairs) if same_weights else None,
    }


MODELS: dict[str, Callable[..., Any]] = {"polylm": own_model, "hflm": hugging_face_model}


if __name__ == "__main__":
    main()
