"""The bundled model answers on every device, without ModelScope."""

from __future__ import annotations

from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.text.languages import translation_request

SENTENCES = {"German": "Rom ist die Hauptstadt von Italien.", "Chinese": "罗马是意大利的首都。"}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16"])
@pytest.mark.parametrize("given", [{}, {"num_beams": 1}, {"num_beams": 1, "do_sample": True, "top_k": 1}], ids=str)
def test_answers(device: str, dtype: str | None, given: dict[str, Any]) -> None:
    generator = TextGenerator.load(TINY_FOLDER, device=device, dtype=dtype)
    options = generator.options(given)
    requests = [translation_request("Rome is the capital of Italy.", language) for language in SENTENCES]
    prompts = [generator.reader.read(request, options, chat=True) for request in requests]
    assert [reply.texts[0] for reply in generator.reply(prompts, options)] == list(SENTENCES.values())
    assert [generator.reply([prompt], options)[0].texts[0] for prompt in prompts] == list(SENTENCES.values())
