"""`polylm demo`: the published snippet on the bundled model, then the same sentence in every language."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from modelscope_polylm.text.sample_texts import LANGUAGES, SENTENCE, translation_request

OPTIONS: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 4,
    "max_new_tokens": 128,
    "early_stopping": True,
    "eos_token_id": 2,
}


def demo(
    *,
    model: Annotated[
        str, typer.Option(help="A folder, a hub id, or a release such as tiny or assistant-13b.")
    ] = "tiny",
    device: Annotated[str | None, typer.Option(help="cpu, gpu, cuda:1, ...; a GPU if there is one.")] = None,
) -> None:
    """Translate a sentence into all 18 languages with the bundled demonstration model, by ModelScope's pipeline."""
    os.environ.setdefault("MODELSCOPE_LOG_LEVEL", "40")  # ModelScope's own notices would hide the answers
    from modelscope.pipelines import pipeline
    from modelscope.utils.constant import Tasks

    from modelscope_polylm.hub.resolve import resolve
    from modelscope_polylm.plugin.placement import choose_device

    pipe = pipeline(Tasks.text_generation, model=str(resolve(model)), device=str(choose_device(device)))
    typer.echo(f"{translate(pipe, 'Chinese')}\n")
    width = max(map(len, LANGUAGES.values()))
    for language in LANGUAGES.values():
        text = SENTENCE if language == "English" else translate(pipe, language)
        typer.echo(f"{language:{width}}  {text}")


def translate(pipe: Any, language: str) -> str:
    """The sentence in another language, with the published prompt and settings; what follows the prompt."""
    prompt = f"<|user|>\n{translation_request(SENTENCE, language)}\n<|assistant|>\n"
    answer: str = pipe(prompt, return_full_text=False, **OPTIONS)["text"]
    return answer
