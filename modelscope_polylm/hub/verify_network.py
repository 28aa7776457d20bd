"""Checks that need the network to run: how well it predicts text, and the published example."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import PolyLMError
from modelscope_polylm.hub.built_in_texts import LANGUAGES, sentences
from modelscope_polylm.hub.verify_report import Row
from modelscope_polylm.snapshot import Snapshot
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.text.prompts import Message, render

if TYPE_CHECKING:
    from modelscope_polylm.network.gpt2 import Decoder

SENTENCES = 8
# A trained model stays far below this share of the loss of guessing.
DOUBTFUL_SHARE = 0.6


def check_network(snapshot: Snapshot, device: str | None = None) -> Iterator[Row]:
    """Load the weights and run them."""
    from modelscope_polylm.backends import create_backend
    from modelscope_polylm.backends.placement import choose_device, choose_dtype

    try:
        chosen = choose_device(device)
        backend: Any = create_backend("native", snapshot, chosen, choose_dtype(None, chosen))
        decoder = backend.engine.decoder
        yield _translation_loss(snapshot, decoder)
        yield _language_losses(snapshot, decoder)
        yield _published_example(snapshot, backend)
    except PolyLMError as error:
        yield Row("network", "fault", f"The network cannot be run: {error}")


def language_losses(snapshot: Snapshot, decoder: Decoder) -> dict[str, float]:
    """Mean negative log-likelihood per token, in nats, of a few built-in sentences in each of the 18 languages."""
    from modelscope_polylm.network.gpt2 import token_losses

    losses = {}
    for language in LANGUAGES:
        ids = snapshot.tokenizer.encode("\n".join(sentences()[language][:SENTENCES]))
        losses[language] = token_losses(decoder, ids[: snapshot.config.positions]).mean().item()
    return losses


def _language_losses(snapshot: Snapshot, decoder: Decoder) -> Row:
    losses = language_losses(snapshot, decoder)
    if not all(map(math.isfinite, losses.values())):
        return Row(
            "loss by language", "fault", "The network gives numbers that are not finite: the weights are damaged."
        )
    listed = ", ".join(f"{language} {loss:.2f}" for language, loss in losses.items())
    chance = math.log(snapshot.config.vocab_size)
    is_better = sum(losses.values()) / len(losses) < chance
    hint = "" if is_better else " On the whole this is no better than guessing: the model does not know these texts."
    return Row(
        "loss by language",
        "ok" if is_better else "note",
        f"Nats per token, where guessing takes {chance:.2f}: {listed}.{hint}",
    )


def _translation_loss(snapshot: Snapshot, decoder: Decoder) -> Row:
    from modelscope_polylm.backends.plausibility import translation_loss

    loss, chance = translation_loss(decoder, snapshot.tokenizer), math.log(snapshot.config.vocab_size)
    found = f"Translations of a sentence take {loss:.2f} nats per token, guessing takes {chance:.2f}"
    if not loss < chance:
        return Row("prediction", "fault", f"{found}: these weights are not those of a trained GPT-2 network.")
    if loss > DOUBTFUL_SHARE * chance:
        return Row("prediction", "note", f"{found}: check the answers before you rely on them.")
    return Row("prediction", "ok", f"{found}.")


def _published_example(snapshot: Snapshot, backend: Any) -> Row:
    from modelscope_polylm.generation.options import GenerationOptions

    request: Message = {"role": "user", "content": translation_request(SENTENCE, "Chinese")}
    prompt = snapshot.tokenizer.encode(render([request], snapshot.prompt_format))
    call = {"do_sample": False, "num_beams": 4, "early_stopping": True, "max_new_tokens": 32, "max_length": None}
    options = GenerationOptions.from_layers({"eos_token_id": snapshot.generation["eos_token_id"]}, call)
    answer = snapshot.tokenizer.decode(backend.generate([prompt], options)[0][0].ids, skip_special_tokens=True)
    is_expected = answer.strip() == TRANSLATIONS["zh"]
    meaning = f"{SENTENCE!r} into Chinese gives {answer!r}"
    return Row(
        "published example",
        "ok" if is_expected else "note",
        f"{meaning}." if is_expected else f"{meaning}; expected {TRANSLATIONS['zh']!r}.",
    )
