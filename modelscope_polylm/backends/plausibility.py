"""Refuses weights of a class other than GPT-2's own if the network, run as GPT-2, does not predict text."""

from __future__ import annotations

import logging
import math

import torch

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.network.gpt2 import Decoder, token_losses
from modelscope_polylm.snapshot import Snapshot
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.text.prompts import FORMATS, Message, render
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)

DOUBTFUL_SHARE_OF_CHANCE = 0.6
"""A trained model stays far below this share of the loss of guessing."""


def check_plausibility(snapshot: Snapshot, decoder: Decoder) -> None:
    """Measure the loss on translations of a sentence if config.json names another class than GPT2LMHeadModel.

    Base 13B names PolyLMHeadModel, whose code is not public in full: its tensors fit GPT-2, but only a test shows
    whether the computation does.

    Raises:
        SnapshotError: the loss is no better than that of guessing, the logarithm of the vocabulary's size.
    """
    if snapshot.config.architecture == "GPT2LMHeadModel":
        return
    loss, chance = translation_loss(decoder, snapshot.tokenizer), math.log(snapshot.config.vocab_size)
    found = (
        f"{snapshot.folder} names the class {snapshot.config.architecture}; run as GPT-2, it predicts the translations "
        f"of a sentence with {loss:.2f} nats per token, where guessing takes {chance:.2f}"
    )
    if not loss < chance:
        raise SnapshotError(f"{found}: this network is not GPT-2. Use a snapshot whose class is GPT2LMHeadModel.")
    if loss > DOUBTFUL_SHARE_OF_CHANCE * chance:
        logger.warning("%s: check its answers before you rely on them.", found)
    else:
        logger.info("%s.", found)


def translation_loss(decoder: Decoder, tokenizer: PolyLMTokenizer) -> float:
    """Return the mean loss, in nats per token, of the right translations of a sentence into 17 languages."""
    losses = []
    for code, language in LANGUAGES.items():
        request: Message = {"role": "user", "content": translation_request(SENTENCE, language)}
        prompt = tokenizer.encode(render([request], FORMATS["assistant"]))
        answer = tokenizer.encode(TRANSLATIONS[code])
        if code != "en" and len(prompt) + len(answer) <= decoder.config.max_positions:
            losses.append(token_losses(decoder, prompt + answer)[-len(answer) :])
    return torch.cat(losses).mean().item()
