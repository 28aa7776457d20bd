"""`polylm demo`: the published snippet on the bundled model, then the same sentence in every language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelscope_polylm.releases import BEAM_SEARCH
from modelscope_polylm.terminal.flags import DeviceFlag, ModelFlag
from modelscope_polylm.terminal.models import find_model, limit_threads
from modelscope_polylm.terminal.output import write
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, translation_request


def demo(*, model: ModelFlag = "tiny", device: DeviceFlag = None) -> None:
    """Translate a sentence into 18 languages.

    With the bundled demonstration model, by ModelScope's pipeline.
    """
    from modelscope.pipelines import pipeline
    from modelscope.utils.constant import Tasks

    from modelscope_polylm.backends.placement import choose_device

    pipe = pipeline(Tasks.text_generation, model=str(find_model(model)), device=str(choose_device(device)))
    limit_threads(pipe.model.generator)
    write(f"{translate(pipe, ['Chinese'])[0]}\n\n")
    others = [language for language in LANGUAGES.values() if language != "English"]
    texts = {"English": SENTENCE, **dict(zip(others, translate(pipe, others), strict=True))}
    width = max(map(len, texts))
    write("".join(f"{language:{width}}  {texts[language]}\n" for language in LANGUAGES.values()))


def translate(pipe: Any, languages: Sequence[str]) -> list[str]:
    """Translate the sentence with the published prompt and settings; returns what follows the prompt."""
    prompts = [f"<|user|>\n{translation_request(SENTENCE, language)}\n<|assistant|>\n" for language in languages]
    outputs = pipe(prompts, batch_size=len(prompts), return_full_text=False, **BEAM_SEARCH)
    return [output["text"] for output in outputs]
