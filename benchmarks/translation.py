"""`python -m benchmarks.translation`: the lines of a document together, one at a time, and by the engine alone.

A document of sentences that all differ is translated as `polylm translate` does, without a file for the output. Then
some of its lines are translated one at a time, and last the backend alone gets the prompts of the whole document, as it
did once before to warm up. The three take turns. With `--shape 13b` the network has a published shape, random weights
and the bundled tokenizer, so that nearly every answer is as long as it may be.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import statistics

from modelscope_polylm.backends import create_backend
from modelscope_polylm.backends.placement import choose_device, choose_dtype
from modelscope_polylm.cli.bench.run import timed
from modelscope_polylm.cli.bench.workloads import SHAPES, RandomWeights, shape_config
from modelscope_polylm.cli.translate.job import TranslationJob
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.inputs import Prompt
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.translation.documents import PlainText
from modelscope_polylm.translation.translator import TranslationRun, Translator

CAPITALS = (
    "Beijing Tokyo Seoul Ulaanbaatar Hanoi Bangkok Manila Tehran Baghdad Ankara Cairo Rabat Nairobi Athens "
    "Rome Madrid Lisbon Paris Berlin Vienna Warsaw Budapest Bucharest Sofia Stockholm Oslo Helsinki "
    "Copenhagen Dublin Amsterdam Brussels London"
)
COUNTRIES = (
    "China Japan Mongolia Vietnam Thailand India Iran Iraq Turkey Egypt Morocco Kenya Greece Italy Spain "
    "Portugal France Germany Austria Poland Hungary Romania Bulgaria Sweden Norway Finland Denmark Ireland "
    "Belgium Russia Canada Mexico"
)
"""Names that the bundled model knows."""


def main() -> None:
    """Parse the arguments and time the three ways."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape, in place of a model")
    parser.add_argument("--device")
    parser.add_argument("--to", default="vi")
    parser.add_argument("--lines", type=int, default=1000)
    parser.add_argument("--alone", type=int, default=50, help="lines that are translated one at a time")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    shape, device = arguments.shape, arguments.device
    translator = Translator(random_model(shape, device) if shape else load_model(arguments.model, device=device))
    lines = sentences(arguments.lines)
    requests = TranslationRun(translator, translator.split_all(lines, arguments.to, "en")).requests()
    run_engine(translator, requests)
    speeds: dict[str, list[float]] = {"document": [], "one at a time": [], "engine alone": []}
    for _ in range(arguments.repeats):
        seconds = timed(lambda: translate_document(translator, lines, arguments.to))
        speeds["document"].append(len(lines) / seconds)
        seconds = timed(lambda: translate_alone(translator, lines[: arguments.alone], arguments.to))
        speeds["one at a time"].append(arguments.alone / seconds)
        speeds["engine alone"].append(len(lines) / timed(lambda: run_engine(translator, requests)))
    for name, found in speeds.items():
        print(f"{name}: {statistics.median(found):,.1f} sentences/s ({min(found):,.1f} - {max(found):,.1f})")


def random_model(shape: str, device: str | None) -> TextGenerator:
    """Random weights in a published shape, for texts of the bundled tokenizer."""
    target = choose_device(device)
    tiny = open_snapshot(TINY_FOLDER)
    snapshot = dataclasses.replace(tiny, config=shape_config(shape), weight_files=RandomWeights())
    return TextGenerator(snapshot, create_backend("native", snapshot, target, choose_dtype(None, target)))


def sentences(count: int) -> list[str]:
    """So many sentences that all differ, of the pattern that the bundled model knows; there are 1,024."""
    pairs = list(itertools.product(CAPITALS.split(), COUNTRIES.split()))
    if count > len(pairs):
        raise SystemExit(f"--lines {count}: there are {len(pairs)} sentences that differ.")
    return [f"{capital} is the capital of {country}." for capital, country in pairs[:count]]


def translate_document(translator: Translator, lines: list[str], target: str) -> None:
    """All lines as one document."""
    summary = TranslationJob(PlainText("\n".join(lines)), target, "en").run(translator, None)
    assert summary.written == len(lines)


def translate_alone(translator: Translator, lines: list[str], target: str) -> None:
    """Each line when the one before is ready."""
    for line in lines:
        translator.translate([line], target, "en")


def run_engine(translator: Translator, requests: list[tuple[Prompt, GenerationOptions]]) -> None:
    """The prompts of all lines, without what comes before and after."""
    backend = translator.generator.backend
    prompts = [prompt.ids for prompt, _ in requests]
    backend.submit(backend.requests(prompts, [options for _, options in requests]), partial=False).completions()


if __name__ == "__main__":
    main()
