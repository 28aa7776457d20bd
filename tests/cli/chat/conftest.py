"""Conversations with the bundled model."""

from __future__ import annotations

import pytest

from modelscope_polylm.conversation import Conversation
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.text.languages import SENTENCE, translation_request

FRENCH, GERMAN = (translation_request(SENTENCE, language) for language in ("French", "German"))


@pytest.fixture
def conversation(tiny: TextGenerator) -> Conversation:
    """A new conversation."""
    return Conversation(tiny)


def ask(conversation: Conversation, question: str) -> str:
    """The whole answer to a question."""
    return "".join(conversation.ask(question))
