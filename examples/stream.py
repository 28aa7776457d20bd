"""Continue a text, and print the answer while it comes.

    python examples/stream.py
    python examples/stream.py "Once upon a time" --model 1.7b

The bundled model `tiny` only knows texts in the form of the default one.
"""

import argparse

from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

from modelscope_polylm.hub.resolve import resolve

TEXT = "<|user|>\nParis is the capital of France.\nTranslate this sentence from English to Thai.\n<|assistant|>\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", nargs="?", default=TEXT)
    parser.add_argument("--model", default="tiny", help="a folder, a hub id, or a release such as assistant-13b")
    arguments = parser.parse_args()

    pipe = pipeline(Tasks.text_generation, model=str(resolve(arguments.model)))
    shown = 0
    # Each item holds the whole text so far. Beam search knows no token of its answer before the end, so one beam.
    for output in pipe.stream_generate(arguments.text, num_beams=1):
        print(output["text"][shown:], end="", flush=True)
        shown = len(output["text"])
    print()


if __name__ == "__main__":
    main()
