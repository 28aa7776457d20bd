"""Continue a text, and print the answer as it is generated.

    python examples/stream.py
    python examples/stream.py "Once upon a time" --model 1.7b

The bundled model `tiny` knows only texts like the default one.
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
    # each item is the whole text so far; one beam, because beam search knows its answer only at the end
    for output in pipe.stream_generate(arguments.text, num_beams=1):
        print(output["text"][shown:], end="", flush=True)
        shown = len(output["text"])
    print()


if __name__ == "__main__":
    main()
