"""Checks of option names and values, driven by the metadata that the options are declared with."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from modelscope_polylm.errors import OptionError

TRANSFORMERS_ONLY = frozenset(
    {
        "assistant_early_exit",
        "assistant_model",
        "assistant_tokenizer",
        "begin_suppress_tokens",
        "cache_config",
        "cache_implementation",
        "constraints",
        "custom_generate",
        "decoder_start_token_id",
        "diversity_penalty",
        "dola_layers",
        "encoder_no_repeat_ngram_size",
        "encoder_repetition_penalty",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "force_words_ids",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "guidance_scale",
        "is_assistant",
        "logits_processor",
        "low_memory",
        "max_time",
        "negative_prompt_ids",
        "num_assistant_tokens",
        "num_beam_groups",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "penalty_alpha",
        "prefix_allowed_tokens_fn",
        "prompt_lookup_num_tokens",
        "remove_invalid_values",
        "renormalize_logits",
        "return_dict_in_generate",
        "sequence_bias",
        "stopping_criteria",
        "streamer",
        "suppress_tokens",
        "synced_gpus",
        "token_healing",
        "top_h",
        "use_cache",
        "use_model_defaults",
        "watermarking_config",
    }
)


def unknown_names(given: Iterable[str], known: Iterable[str], allow_extra: bool) -> list[str]:
    """The names that are no options of ours; refuses them unless they are transformers' and `allow_extra` is set.

    Raises:
        OptionError: names the nearest known option, or the backend that has this one.
    """
    unknown = [name for name in given if name not in set(known)]
    for name in unknown:
        if name in TRANSFORMERS_ONLY:
            if allow_extra:
                continue
            raise OptionError(
                f"{name} is in the transformers backend alone: load the model with backend='transformers' to use it."
            )
        nearest = difflib.get_close_matches(str(name), [*known, *(TRANSFORMERS_ONLY if allow_extra else ())], n=1)
        hint = f"did you mean {nearest[0]}?" if nearest else f"the options are {', '.join(sorted(known))}."
        raise OptionError(f"Unknown option {name!r}: {hint}")
    return unknown


def checked_value(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value in the field's type; raises OptionError with the name, the value and what is allowed."""
    kind, metadata = str(field.type), field.metadata
    if "choices" in metadata:
        return _choice(field.name, value, metadata["choices"])
    if metadata.get("nested"):
        return _token_sequences(field.name, value)
    if metadata.get("token"):
        return _tokens(field.name, value)
    if kind.startswith("str"):
        return _texts(field.name, value)
    if kind.startswith("bool"):
        return _choice(field.name, value, (True, False))
    number = _integer(field.name, value) if kind.startswith("int") else _real(field.name, value)
    _check_bounds(field.name, number, metadata)
    return number


def _choice(name: str, value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if value == choice and type(value) is type(choice):
            return choice
    raise OptionError(f"{name}={value!r} is not one of {', '.join(repr(choice) for choice in choices)}.")


def _integer(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise OptionError(f"{name}={value!r} must be a whole number.")
    return int(value)


def _real(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise OptionError(f"{name}={value!r} must be a finite number.")
    return float(value)


def _check_bounds(name: str, value: float, metadata: Mapping[str, Any]) -> None:
    if value < metadata.get("minimum", value):
        raise OptionError(f"{name}={value} must be at least {metadata['minimum']}.")
    if value > metadata.get("maximum", value):
        raise OptionError(f"{name}={value} must be at most {metadata['maximum']}.")
    if "above" in metadata and value <= metadata["above"]:
        advice = " To always take the most probable token, set do_sample=False." if name == "temperature" else ""
        raise OptionError(f"{name}={value} must be greater than {metadata['above']}.{advice}")


def _tokens(name: str, value: Any) -> int | list[int]:
    if isinstance(value, (list, tuple)):
        if not value:
            raise OptionError(f"{name}=[] names no token: give at least one, or leave it out.")
        return [_token(name, token) for token in value]
    return _token(name, value)


def _token(name: str, value: Any) -> int:
    token = _integer(name, value)
    if token < 0:
        raise OptionError(f"{name}={token} must not be negative: token ids count from 0.")
    return token


def _token_sequences(name: str, value: Any) -> list[list[int]]:
    if not isinstance(value, (list, tuple)) or not all(
        isinstance(tokens, (list, tuple)) and tokens for tokens in value
    ):
        raise OptionError(f"{name}={value!r} must be a list of non-empty lists of token ids.")
    return [[_token(name, token) for token in tokens] for tokens in value]


def _texts(name: str, value: Any) -> str | list[str]:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, (list, tuple)) and value and all(isinstance(text, str) and text for text in value):
        return list(value)
    raise OptionError(f"{name}={value!r} must be a non-empty text or a list of such texts.")
