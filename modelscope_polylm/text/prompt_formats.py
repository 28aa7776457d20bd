"""The releases' prompt formats as data.

The texts are those of the published examples: the model cards, the MultiAlpaca demo, and ModelScope's own PolyLM test
(`tests/pipelines/test_polylm_text_generation.py`) for the e-commerce release. PolyLM has no chat tokens: role markers
are ordinary text.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PromptFormat:
    """How a release writes a conversation.

    Attributes:
        name: key in FORMATS.
        last_turn: template of the turn to be answered, with {question}.
        earlier_turn: template of an answered turn, with {question} and {answer}; None where no format for several turns
            exists.
        role_markers: texts that begin a turn; in a message they would forge one.
        one_line_breaks: whether a question is stripped and its runs of line breaks become one.
    """

    name: str
    last_turn: str
    earlier_turn: str | None = None
    role_markers: tuple[str, ...] = ()
    one_line_breaks: bool = False


FORMATS: dict[str, PromptFormat] = {
    prompt_format.name: prompt_format
    for prompt_format in (
        PromptFormat(name="base", last_turn="{question}"),
        PromptFormat(
            name="multialpaca",
            last_turn="{question}\n\n",
            earlier_turn="{question}\n\n{answer}\n",
            one_line_breaks=True,
        ),
        PromptFormat(
            name="assistant",
            last_turn="<|user|>\n{question}\n<|assistant|>\n",
            earlier_turn="<|user|>\n{question}\n<|assistant|>\n{answer}\n",
            role_markers=("<|user|>", "<|assistant|>"),
        ),
        PromptFormat(
            name="ecomm",
            last_turn=(
                "Below is an instruction that describes the attribute value detection task. "
                "Write a response that appropriately completes the request.\n"
                "### Instruction:\n{question}\n### Response:\n\n"
            ),
            role_markers=("### Instruction:", "### Response:"),
        ),
    )
}
