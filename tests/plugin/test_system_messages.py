"""System messages in pipelines."""

from __future__ import annotations

from typing import Any

import pytest

from modelscope_polylm import PolyLMTextGenerationPipeline
from modelscope_polylm.errors import InputError, OptionError

GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": 4}
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


def test_a_system_message_is_refused_or_prepended(pipe: PolyLMTextGenerationPipeline) -> None:
    with pytest.raises(InputError, match="was not trained with"):
        pipe(MESSAGES, **GREEDY)
    prepended = pipe({"messages": MESSAGES}, system_message="prepend", **GREEDY)
    assert prepended == pipe([{"role": "user", "content": "Be brief.\n\nHi"}], **GREEDY)
    assert pipe([MESSAGES], system_message="prepend", **GREEDY) == [prepended]
    with pytest.raises(OptionError, match="system_message='ignore' is not one of 'refuse', 'prepend'"):
        pipe(MESSAGES, system_message="ignore", **GREEDY)
