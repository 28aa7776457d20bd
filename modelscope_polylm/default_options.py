"""The generation options that a snapshot starts from: its release's, then those of its own generation_config.json."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.releases import Release
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)

# Names of transformers.GenerationConfig that choose what is generated.
OPTION_NAMES = (
    *("max_new_tokens", "max_length", "min_new_tokens", "min_length"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("num_beams", "early_stopping", "length_penalty", "num_return_sequences"),
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("eos_token_id", "pad_token_id", "stop_strings"),
)
# Names that say how or with what the file was written, and change no answer of a decoder.
WITHOUT_EFFECT = (
    *("_from_model_config", "transformers_version", "bos_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
)


def default_options(
    release: Release | None, generation_config: Mapping[str, Any], tokenizer: PolyLMTokenizer, config: PolyLMConfig
) -> dict[str, Any]:
    """Merge the release's options with those of generation_config.json, which win.

    The end token is the tokenizer's `</s>` unless generation_config.json names others that are possible. The published
    config.json names the vocabulary's last id, which is wrong, and transformers copies it into a generation_config.json
    derived from a config.json; so neither such a file nor that id is believed.
    """
    options = dict(release.generation) if release else {}
    own = {name: value for name, value in generation_config.items() if value is not None and name in OPTION_NAMES}
    if generation_config.get("_from_model_config"):
        own = {name: value for name, value in own.items() if not name.endswith("_token_id")}
    ends = own.pop("eos_token_id", None)
    is_possible = ends is not None and all(_is_possible_end(end, tokenizer, config) for end in _as_list(ends))
    if ends is not None and not is_possible:
        logger.warning("generation_config.json: eos_token_id %r is not used; </s> is.", ends)
    ignored = [name for name in generation_config if name not in OPTION_NAMES + WITHOUT_EFFECT]
    if ignored:
        logger.warning("generation_config.json: %s are not used; pass them to the call.", ", ".join(sorted(ignored)))
    return {**options, **own, "eos_token_id": ends if is_possible else tokenizer.eos_token_id}


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) and value else [value]


def _is_possible_end(end: Any, tokenizer: PolyLMTokenizer, config: PolyLMConfig) -> bool:
    if isinstance(end, bool) or not isinstance(end, int) or not 0 <= end < tokenizer.vocab_size:
        return False
    return end == tokenizer.eos_token_id or end != config.vocab_size - 1
