"""A chat of several turns. Answers are printed as they are generated, and each turn sees the turns before it.

    python examples/chat.py
    python examples/chat.py "Wer war Ada Lovelace?" "Was hat sie erfunden?" --model assistant-13b

The bundled model `tiny` can only translate sentences such as those below.
"""

import argparse

from modelscope.pipelines import pipeline
from modelscope.utils.constant import Tasks

from modelscope_polylm.hub.resolve import resolve

QUESTIONS = [
    "Paris is the capital of France.\nTranslate this sentence from English to German.",
    "Tokyo is the capital of Japan.\nTranslate this sentence from English to Korean.",
    "Rome is the capital of Italy.\nTranslate this sentence from English to Arabic.",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="*", default=QUESTIONS, help="what the user says, one turn after the other")
    parser.add_argument("--model", default="tiny", help="a folder, a hub id, or a release such as assistant-13b")
    arguments = parser.parse_args()

    chat = pipeline(Tasks.chat, model=str(resolve(arguments.model)))
    history = []
    for question in arguments.questions:
        print(f"user: {question}\nassistant: ", end="")
        messages = [*history, {"role": "user", "content": question}]
        shown = 0
        # greedy search, because beam search knows its answer only at the end
        for output in chat.stream_generate({"messages": messages}, num_beams=1):
            print(output["response"][shown:], end="", flush=True)
            shown = len(output["response"])
        history = output["history"]
        print("\n")


if __name__ == "__main__":
    main()
