"""Translate a sentence, and show the best translations with their scores.

    python examples/translate.py
    python examples/translate.py "Rome is the capital of Italy." --to Japanese --best 2 --model assistant-13b

The bundled model `tiny` knows only sentences such as "Rome is the capital of Italy." A score is the beam's
log-probability divided by its length: 0 would be certainty.
"""

import argparse

from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

from modelscope_polylm.hub.resolve import resolve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sentence", nargs="?", default="Beijing is the capital of China.")
    parser.add_argument("--to", default="Chinese", help="a language's code or name")
    parser.add_argument("--best", type=int, default=3, help="how many translations")
    parser.add_argument("--model", default="tiny", help="a folder, a hub id, or a release such as assistant-13b")
    arguments = parser.parse_args()

    pipe = pipeline(Tasks.translation, model=str(resolve(arguments.model)))
    output = pipe(arguments.sentence, target=arguments.to, alternatives=arguments.best, output_scores=True)
    for text, score in zip(output["translations"], output["scores"], strict=True):
        print(f"{score:8.4f}  {text}")


if __name__ == "__main__":
    main()
