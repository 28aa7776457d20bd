"""How each release is asked for a translation, as data, and what of its answer is the translation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from modelscope_polylm.releases import BEAM_SEARCH
from modelscope_polylm.text.languages import LANGUAGES, TRANSLATIONS, translation_request
from modelscope_polylm.text.prompts import PromptFormat, known_format


@dataclass(frozen=True)
class TranslationPrompt:
    """How a prompt format asks for a translation.

    Attributes:
        template: what the model continues, with {request}; or, of a release that takes messages, the message itself.
        example: what stands before it, with {request} and {translation} of an example; empty where there is none.
        is_message: whether the text is a user's message, to be written in the release's format.
    """

    template: str = "{request}"
    example: str = ""
    is_message: bool = True


PROMPTS: Mapping[str, TranslationPrompt] = {
    # the published example, and the prompt of the paper's tables 4 and 17
    "assistant": TranslationPrompt(),
    "multialpaca": TranslationPrompt(),
    "ecomm": TranslationPrompt(),  # trained for another task: nothing is published about its translations
    # the paper's one-shot form (section 5.2): an answered example first, and the answer ends with its line
    "base": TranslationPrompt("{request}\n", example="{request}\n{translation}\n\n", is_message=False),
}
"""By the name of a release's prompt format."""

SEARCH = {name: BEAM_SEARCH[name] for name in ("do_sample", "num_beams", "early_stopping")}
"""How all releases translate, also those that sample by default: as the published translations, with 4 beams."""


def translation_prompt(format: PromptFormat | None) -> TranslationPrompt:
    """How a release is asked. Raises InputError where its prompt format is not known."""
    return PROMPTS[known_format(format).name]


def write_prompt(prompt: TranslationPrompt, text: str, source: str, target: str) -> str:
    """The text that asks for a translation.

    Args:
        prompt: the form of the release.
        text: one sentence.
        source, target: ISO 639-1 codes.
    """

    def request(sentence: str) -> str:
        return translation_request(sentence, LANGUAGES[target], LANGUAGES[source])

    example = prompt.example.format(request=request(TRANSLATIONS[source]), translation=TRANSLATIONS[target])
    return example + prompt.template.format(request=request(text))


def search_options(call: Mapping[str, Any], alternatives: int = 1) -> dict[str, Any]:
    """The options of a translation: those of a call over the search that the published translations use.

    Args:
        call: generation options; one that asks for sampling gets no beams.
        alternatives: how many translations are wanted; there are at least as many beams.
    """
    several = {"num_return_sequences": alternatives} if alternatives > 1 else {}
    if call.get("do_sample"):
        return {**several, **call}
    beams = max(int(SEARCH["num_beams"]), alternatives)
    return {**SEARCH, "num_beams": beams, **several, **call}


def read_answer(text: str, prompt: TranslationPrompt) -> str:
    """The translation in an answer, on one line; a base model goes on with lines of its own."""
    return " ".join(text.split()) if prompt.is_message else text.strip().partition("\n")[0].strip()
