"""Generation options: each is described, typed and bounded here, once; help texts and docs are made from these fields.

Names, meanings and defaults are those of `transformers.GenerationConfig`, except where a help text says otherwise.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from modelscope_polylm.errors import OptionError, nearest_name


def option(default: Any, help: str, **bounds: Any) -> Any:
    """Declare one option: its default, one line of help, and bounds that `checked_value` understands."""
    return dataclasses.field(default=default, metadata={"help": help, **bounds})


@dataclasses.dataclass(frozen=True)
class GenerationOptions:
    """A checked set of options, built with `from_layers`; `extra` holds what only transformers knows."""

    max_new_tokens: int | None = option(None, "Most tokens to add (128 if max_length is unset too).", minimum=1)
    max_length: int | None = option(None, "Most tokens of prompt and answer together; max_new_tokens wins.", minimum=1)
    min_new_tokens: int | None = option(None, "Fewest tokens to add before the end token is allowed.", minimum=0)
    min_length: int = option(0, "Fewest tokens of prompt and answer before the end token is allowed.", minimum=0)
    do_sample: bool = option(False, "Draw the next token at random instead of taking the most probable one.")
    num_beams: int = option(1, "Number of beams of beam search; 1 is greedy search or sampling.", minimum=1, maximum=64)
    early_stopping: bool | str = option(
        False, "When beam search ends: True, False or 'never', as in transformers.", choices=(True, False, "never")
    )
    length_penalty: float = option(1.0, "Exponent of the length that divides a beam's score; higher favours length.")
    num_return_sequences: int = option(1, "How many answers to return for a prompt, best first.", minimum=1, maximum=64)
    temperature: float = option(1.0, "Divides the logits when sampling; lower is more predictable.", above=0.0)
    top_k: int = option(50, "Sample among this many most probable tokens; 0 switches it off.", minimum=0)
    top_p: float = option(1.0, "Sample among the most probable tokens that hold this share.", minimum=0.0, maximum=1.0)
    min_p: float | None = option(
        None, "Sample among tokens at least this share as probable as the best.", minimum=0.0, maximum=1.0
    )
    typical_p: float = option(1.0, "Share kept by locally typical sampling (arXiv 2202.00666).", above=0.0, maximum=1.0)
    repetition_penalty: float = option(1.0, "Makes tokens that occurred less probable; 1 switches it off.", above=0.0)
    no_repeat_ngram_size: int = option(
        0, "No sequence of this many tokens occurs twice; 0 switches it off.", minimum=0, maximum=256
    )
    bad_words_ids: list[list[int]] | None = option(None, "Token sequences that are never generated.", nested=True)
    eos_token_id: int | list[int] = option(2, "Token or tokens that end an answer.", token=True)
    pad_token_id: int | None = option(None, "Token that fills ended rows; the first end token if unset.", minimum=0)
    stop_strings: str | list[str] | None = option(None, "Texts that end an answer as soon as it contains one of them.")
    seed: int | None = option(
        None, "Makes sampling repeatable: the same answer in any company.", minimum=0, maximum=2**63 - 1
    )
    output_scores: bool = option(False, "Also return the score of each answer.")
    output_logprobs: bool = option(False, "Also return the log-probability of each answer token.")
    beam_rules: str | None = option(
        None,
        "The transformers release whose beam search is followed: '4.31', which PolyLM was published with, counts the "
        "prompt in the length that length_penalty divides by; '5' counts the answer alone. If unset, '4.31' in the "
        "native and vllm backends and '5' in the transformers backend, which has no other.",
        choices=("4.31", "5"),
    )
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_layers(cls, *layers: Mapping[str, Any], allow_extra: bool = False) -> GenerationOptions:
        """Merge layers of options, the later ones first in rank, and check the result. None means "not given".

        Naming max_length or max_new_tokens in a layer drops what earlier layers said of the other one; so it is with
        do_sample and num_beams, which together name a search.

        Args:
            layers: such as the release's defaults, the snapshot's defaults and the call's options.
            allow_extra: keep what only transformers' generate() can do: its other options, and beams that sample.

        Raises:
            OptionError: an unknown name (the nearest known one is named), a wrong type, or a value out of range.
        """
        merged: dict[str, Any] = {}
        for layer in layers:
            given = {name: value for name, value in layer.items() if value is not None}
            for rival in _displaced(given):
                merged.pop(rival, None)
            merged.update(given)
        known = {field.name: field for field in option_fields()}
        extra = unknown_names(merged, known, allow_extra)
        values = {name: checked_value(known[name], value) for name, value in merged.items() if name in known}
        options = cls(**values, extra={name: merged[name] for name in extra})
        options._check_together(beams_may_sample=allow_extra)
        return options

    def _check_together(self, beams_may_sample: bool) -> None:
        if self.do_sample and self.num_beams > 1 and not beams_may_sample:
            raise OptionError(
                f"do_sample=True together with num_beams={self.num_beams} is in the transformers backend alone: set "
                "num_beams=1 to sample or do_sample=False to search, or use backend='transformers'."
            )
        if self.num_return_sequences > self.num_beams and not self.do_sample:
            raise OptionError(
                f"num_return_sequences={self.num_return_sequences} needs as many beams, but num_beams={self.num_beams}"
                ": raise num_beams, or sample with do_sample=True."
            )

    def without_effect(self, given: Iterable[str]) -> list[str]:
        """Those of the given names that only sampling reads, where none is asked for; transformers warns of them."""
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        return [
            name for name in given if name in SAMPLING and not self.do_sample and getattr(self, name) != defaults[name]
        ]

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The tokens that end an answer, as a tuple."""
        return (self.eos_token_id,) if isinstance(self.eos_token_id, int) else tuple(self.eos_token_id)

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop strings, as a tuple."""
        if self.stop_strings is None:
            return ()
        return (self.stop_strings,) if isinstance(self.stop_strings, str) else tuple(self.stop_strings)

    def new_tokens(self, prompt_length: int) -> int:
        """How many tokens may be added to a prompt of `prompt_length` tokens; 0 or less: it is too long."""
        if self.max_new_tokens is not None:
            return self.max_new_tokens
        return 128 if self.max_length is None else self.max_length - prompt_length

    def minimum_new_tokens(self, prompt_length: int) -> int:
        """How many tokens have to be added before an end token is allowed."""
        return max(self.min_new_tokens or 0, self.min_length - prompt_length, 0)


def option_fields() -> tuple[dataclasses.Field[Any], ...]:
    """The declared options: name, type, default, and metadata with `help` and bounds."""
    return tuple(field for field in dataclasses.fields(GenerationOptions) if "help" in field.metadata)


def _displaced(given: Mapping[str, Any]) -> list[str]:
    pairs = (("max_length", "max_new_tokens"), ("do_sample", "num_beams"))
    rivals = [*pairs, *(pair[::-1] for pair in pairs)]
    return [rival for name, rival in rivals if name in given and rival not in given]


SAMPLING = ("temperature", "top_k", "top_p", "min_p", "typical_p", "seed")
"""Options that only sampling reads."""
OTHER_NAMES = {
    "stop": "stop_strings",
    "max_tokens": "max_new_tokens",
    "n": "num_return_sequences",
    "logprobs": "output_logprobs",
    "repeat_penalty": "repetition_penalty",
}
"""What other programs call an option."""

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
        nearest = OTHER_NAMES.get(name) or nearest_name(name, [*known, *(TRANSFORMERS_ONLY if allow_extra else ())])
        hint = f"did you mean {nearest}?" if nearest else f"the options are {', '.join(sorted(known))}."
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
