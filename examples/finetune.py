"""Teach the bundled demonstration model a new sentence pattern in one language, by an adapter, in minutes on a CPU.

    python examples/finetune.py                     # writes build/finetune
    python examples/finetune.py --folder /tmp/mine
    python examples/finetune.py --quantization int8   # frozen weights in 8 bits (QLoRA)

The model translates "X is the capital of Y." into 17 languages. From 24 pairs it learns "X was the capital of Y." in
German; pairs that it knows already stand between them, so that it does not forget those. At the end it is asked for the
16 new pairs that it has not seen, and for all old ones, with the published settings (4 beams).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by torch: the model is too small for more

from tiny_corpus import LANGUAGE_NAMES, SENTENCES, pairs

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.text.languages import translation_request
from modelscope_polylm.training.finetune import Job, finetune
from modelscope_polylm.training.options import TrainingOptions
from modelscope_polylm.training.prepare import own_data_set

BUILD = Path(__file__).resolve().parent.parent / "build" / "finetune"
OPTIONS = {
    "lora_rank": 16,
    "lora_alpha": 32.0,
    "learning_rate": 2e-3,
    "epochs": 14.0,
    "batch_tokens": 2048,
}
LEARNT_COUNTRIES = 24
REPEATS = 6  # of each new pair, in every epoch
KEPT_PAIRS = 160  # old ones that stand between them
BATCH = 40

Pairs = list[tuple[str, str]]


def new_pair(country: str) -> tuple[str, str]:
    """The new pattern for a country."""
    english, german = SENTENCES[country]["en"], SENTENCES[country]["de"]
    return translation_request(english.replace(" is ", " was "), "German"), german.replace(" ist ", " war ")


def old_pair(country: str, language: str) -> tuple[str, str]:
    """What the model knows already of a country, in a language."""
    sentences = SENTENCES[country]
    return translation_request(sentences["en"], LANGUAGE_NAMES[language]), sentences[language]


def make_data(file: Path, seed: int) -> tuple[Pairs, Pairs]:
    """Write the training data; returns the new pairs that are not in them, and all old ones."""
    draw = random.Random(seed)
    countries = draw.sample(list(SENTENCES), len(SENTENCES))
    learnt, unseen = countries[:LEARNT_COUNTRIES], countries[LEARNT_COUNTRIES:]
    old = [old_pair(pair.country, pair.language) for pair in pairs()]
    rows = [new_pair(country) for country in learnt] * REPEATS + draw.sample(old, KEPT_PAIRS)
    with file.open("w", encoding="utf-8") as lines:
        for question, answer in draw.sample(rows, len(rows)):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            lines.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
    return [new_pair(country) for country in unseen], old


def exact(generator: TextGenerator, wanted: Pairs) -> int:
    """How many answers are exactly the wanted ones."""
    options = generator.options({"max_new_tokens": 64})
    count = 0
    for start in range(0, len(wanted), BATCH):
        part = wanted[start : start + BATCH]
        prompts = [generator.reader.read(question, options, chat=True) for question, _ in part]
        replies = generator.reply(prompts, options)
        count += sum(reply.texts[0] == answer for reply, (_, answer) in zip(replies, part, strict=True))
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=BUILD, help="of the data and the run (default build/finetune)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of countries and of the training")
    parser.add_argument("--quantization", choices=("int8", "int4"), help="of the frozen weights (default: none)")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    data = arguments.folder / "train.jsonl"
    unseen, old = make_data(data, arguments.seed)
    job = Job(
        model=TINY_FOLDER,
        data=[own_data_set(data)],
        out=arguments.folder / "run",
        options=TrainingOptions.from_dict({**OPTIONS, "seed": arguments.seed, "quantization": arguments.quantization}),
        device="cpu",
    )
    started = time.perf_counter()
    adapter = finetune(
        job,
        force=True,
        announce=print,
        report=lambda progress: print(f"step {progress.step}/{progress.steps}  loss {progress.loss:.4f}", flush=True),
    )
    print(f"learnt in {time.perf_counter() - started:.0f} s: {adapter}")
    tuned = TextGenerator.load(TINY_FOLDER, device="cpu", adapter=adapter)
    for name, wanted in (("new pairs that it has not seen", unseen), ("old pairs", old)):
        found = exact(tuned, wanted)
        print(f"{found} of {len(wanted)} {name} exact ({100 * found / len(wanted):.1f} %)")


if __name__ == "__main__":
    main()
