"""Answer prompts of very different lengths in batches; each gets the answer that it would get alone.

    python examples/batch.py
    python examples/batch.py --batch-size 16 --model assistant-13b

The bundled model `tiny` can only translate sentences such as those below.
"""

import argparse

from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

from modelscope_polylm.hub.resolve import resolve

REQUESTS = [
    ("Rome is the capital of Italy.", "French"),
    ("London is the capital of the United Kingdom.", "Russian"),
    ("Oslo is the capital of Norway.", "Japanese"),
    ("Mexico City is the capital of Mexico.", "Indonesian"),
    ("Paris is the capital of France.", "Hebrew"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=4, help="how many prompts run together")
    parser.add_argument("--model", default="tiny", help="a folder, a hub id, or a release such as assistant-13b")
    arguments = parser.parse_args()

    pipe = pipeline(Tasks.text_generation, model=str(resolve(arguments.model)))
    inputs = [
        {"messages": [{"role": "user", "content": f"{sentence}\nTranslate this sentence from English to {language}."}]}
        for sentence, language in REQUESTS
    ]
    outputs = pipe(inputs, batch_size=arguments.batch_size)
    for (sentence, language), output in zip(REQUESTS, outputs, strict=True):
        print(f"{sentence}  {language}: {output['text']}")


if __name__ == "__main__":
    main()
