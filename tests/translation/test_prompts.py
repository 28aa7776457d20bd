"""How each release is asked, and the search that answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelscope_polylm.errors import InputError
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.releases import RELEASES
from modelscope_polylm.text.prompts import FORMATS
from modelscope_polylm.translation.prompts import PROMPTS, read_answer, write_prompt
from modelscope_polylm.translation.translator import Translator

REQUEST = "Rome is big.\nTranslate this sentence from English to German."
PROMPT_TEXTS = {
    "tiny": f"<|user|>\n{REQUEST}\n<|assistant|>\n",
    "assistant-13b": f"<|user|>\n{REQUEST}\n<|assistant|>\n",
    "multialpaca-13b": f"{REQUEST}\n\n",
    "13b": (
        "Beijing is the capital of China.\nTranslate this sentence from English to German.\n"
        f"Peking ist die Hauptstadt von China.\n\n{REQUEST}\n"
    ),
}


@pytest.mark.parametrize("release", PROMPT_TEXTS)
def test_the_prompt_of_each_release(random_snapshot: Path, release: str) -> None:
    generator = TextGenerator.load(random_snapshot, device="cpu", release=release)
    translator = Translator(generator)
    [segment] = translator.split("Rome is big.", "de", "en").segments
    request = translator.request(segment)
    assert isinstance(request, tuple)
    prompt, options = request
    assert prompt.text == PROMPT_TEXTS[release]
    assert (options.num_beams, options.do_sample, options.early_stopping) == (4, False, True)
    assert options.max_new_tokens == 128


def test_every_format_has_a_prompt() -> None:
    assert set(PROMPTS) == set(FORMATS) == {release.prompt_format for release in RELEASES.values()}


def test_an_unknown_release_cannot_be_asked(random_snapshot: Path) -> None:
    generator = TextGenerator.load(random_snapshot, device="cpu")
    with pytest.raises(InputError, match="pass release="):
        Translator(generator)


def test_the_translation_in_an_answer() -> None:
    assert read_answer(" Rom ist groß.\n\nBeijing is", PROMPTS["base"]) == "Rom ist groß."
    assert read_answer("Rom ist\n groß. ", PROMPTS["assistant"]) == "Rom ist groß."


def test_the_message_is_the_published_one() -> None:
    assert (
        write_prompt(PROMPTS["assistant"], "你好", "zh", "he")
        == "你好\nTranslate this sentence from Chinese to Hebrew."
    )
