"""PolyLM's options in vLLM's terms: the engine's arguments, and the sampling parameters of a call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

from modelscope_polylm.errors import DeviceError, OptionError, nearest_name
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.requests import Request
from modelscope_polylm.snapshot import Snapshot

LEAST_TEMPERATURE, GREATEST_TEMPERATURE = 0.01, 2.0
"""vLLM raises what is lower, with no more than a log line, and refuses what is higher."""
LEAST_TOP_P = 1e-9
"""Stands for 0, which vLLM refuses: the most probable token alone remains."""


class Rule(NamedTuple):
    """How one of SamplingParams' fields follows from our options.

    Attributes:
        parameter: vLLM's name.
        options: ours that it follows from; none where it is the same in every call.
        value: its value for a request.
    """

    parameter: str
    options: tuple[str, ...]
    value: Callable[[GenerationOptions, Request], Any]


RULES = (
    Rule("max_tokens", ("max_new_tokens", "max_length"), lambda options, request: request.max_new_tokens),
    Rule("min_tokens", ("min_new_tokens", "min_length"), lambda options, request: request.min_new_tokens),
    Rule("temperature", ("do_sample", "temperature"), lambda options, _: options.temperature * options.do_sample),
    Rule("top_k", ("top_k",), lambda options, _: options.top_k),
    Rule("top_p", ("top_p",), lambda options, _: max(options.top_p, LEAST_TOP_P)),
    Rule("min_p", ("min_p",), lambda options, _: options.min_p or 0.0),
    Rule("repetition_penalty", ("repetition_penalty",), lambda options, _: options.repetition_penalty),
    Rule("n", ("num_return_sequences",), lambda options, _: options.num_return_sequences),
    Rule("stop_token_ids", ("eos_token_id",), lambda options, _: list(options.end_tokens)),
    Rule("seed", ("seed",), lambda options, _: options.seed),
    Rule("logprobs", ("output_scores", "output_logprobs"), lambda options, _: 0 if wants_logprobs(options) else None),
    # The end tokens are those of the options alone, and texts are made here.
    Rule("ignore_eos", (), lambda options, _: True),
    Rule("detokenize", (), lambda options, _: False),
)

ELSEWHERE = {
    "pad_token_id": "plugin/model.py fills rows of different lengths with it",
    "stop_strings": "the answer is read here, and its request aborted",
    "num_beams": "backends/vllm/beams.py",
    "early_stopping": "backends/vllm/beams.py",
    "length_penalty": "backends/vllm/beams.py",
    "beam_rules": "backends/vllm/beams.py",
}
"""Options that are followed here and not in vLLM, and where."""


class Refusal(NamedTuple):
    """What this backend does not have.

    Attributes:
        option: its name.
        is_met: whether a call asks for it.
        reason: why vLLM cannot give it.
        backends: who can.
    """

    option: str
    is_met: Callable[[GenerationOptions], bool]
    reason: str
    backends: str = "backend='native' or backend='transformers'"


REFUSALS = (
    Refusal("no_repeat_ngram_size", lambda options: options.no_repeat_ngram_size > 0, "vLLM has no such rule"),
    Refusal("bad_words_ids", lambda options: bool(options.bad_words_ids), "vLLM takes bad words as texts only"),
    Refusal("typical_p", lambda options: options.do_sample and options.typical_p < 1.0, "vLLM has no such rule"),
    Refusal(
        "temperature",
        lambda options: options.do_sample and not LEAST_TEMPERATURE <= options.temperature <= GREATEST_TEMPERATURE,
        f"vLLM takes {LEAST_TEMPERATURE} to {GREATEST_TEMPERATURE}",
    ),
    Refusal(
        "min_p",
        lambda options: options.do_sample and bool(options.min_p) and options.top_p < 1.0,
        "together with top_p, vLLM applies min_p first and transformers last, so the distributions differ",
    ),
    Refusal(
        "repetition_penalty",
        lambda options: options.num_beams > 1 and options.repetition_penalty != 1.0,
        "together with num_beams it needs scores of tokens that vLLM does not report",
    ),
    Refusal(
        "stop_strings",
        lambda options: options.num_beams > 1 and bool(options.stop_texts),
        "together with num_beams it is not supported",
        backends="backend='transformers'",
    ),
)


def check_options(options: GenerationOptions) -> None:
    """Raise OptionError for what this backend does not have."""
    for refusal in REFUSALS:
        if refusal.is_met(options):
            value = getattr(options, refusal.option)
            raise OptionError(
                f"{refusal.option}={value!r} is not in the vllm backend ({refusal.reason}): use {refusal.backends}."
            )


def wants_logprobs(options: GenerationOptions) -> bool:
    """Whether vLLM has to report log-probabilities: for scores, too, and to find the best of several answers."""
    return options.output_scores or options.output_logprobs or options.num_return_sequences > 1


def sampling_parameters(request: Request, allowed_ids: list[int] | None) -> Mapping[str, Any]:
    """The fields of SamplingParams for a request.

    Args:
        request: the prompt, its limits and its options.
        allowed_ids: the only token ids that may be generated; None where these are all.
    """
    fields = {rule.parameter: rule.value(request.options, request) for rule in RULES}
    if allowed_ids is not None:
        fields["allowed_token_ids"] = allowed_ids
    return fields


CPU_MEMORY_UTILIZATION = 0.4
"""vLLM's own 0.92 is meant for a GPU, and refused where other programs use more than the rest of the memory."""


def fixed_arguments(snapshot: Snapshot, dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of AsyncEngineArgs that are the same in every backend of a snapshot."""
    return {
        "model": str(snapshot.folder),
        "dtype": str(dtype).removeprefix("torch."),
        # token ids go in and come out
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        # beam search asks for more than the usual 20
        "max_logprobs": -1,
        "logprobs_mode": "raw_logprobs",
        "disable_log_stats": True,
    }


RESERVED = {
    "model": "name the model where the pipeline is made",
    "tokenizer": "the snapshot's own tokenizer is used",
    "tokenizer_mode": "the snapshot's own tokenizer is used",
    "skip_tokenizer_init": "the snapshot's own tokenizer is used",
    "generation_config": "defaults are those of the snapshot",
    "max_logprobs": "there is no limit",
    "logprobs_mode": "log-probabilities are always the model's own",
}
"""Arguments of vLLM that are not the caller's, and why."""


def check_quantization(quantization: str | None) -> None:
    """Raise OptionError for a quantization of the native backend that vLLM does not have."""
    if quantization in ("int8", "int4"):
        raise OptionError(
            f"quantization={quantization!r} is the native backend's: vLLM quantises to 'fp8' while it loads. Take that "
            "or load the model with backend='native'."
        )


def check_names(engine_options: Mapping[str, Any]) -> None:
    """Raise OptionError for an engine option that vLLM does not have, or that is not the caller's."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
    for name in engine_options:
        if name in RESERVED:
            raise OptionError(f"{name!r} cannot be given to the vllm backend: {RESERVED[name]}.")
        if name not in known:
            nearest = nearest_name(name, known)
            hint = f"did you mean {nearest}?" if nearest else "see the engine arguments in vLLM's documentation."
            raise OptionError(f"Backend 'vllm' has no option {name!r}: {hint}")


def check_device(device: torch.device, own: Mapping[str, Any]) -> None:
    """Raise DeviceError where the installed vLLM or this machine's GPUs do not fit what is asked for."""
    from vllm.platforms import current_platform

    built_for = current_platform.device_type or "no device of this machine"
    if built_for != device.type:
        raise DeviceError(f"device={device.type!r}, but the installed vLLM runs on {built_for}: choose that device.")
    if device.type != "cuda":
        return
    if device.index:
        raise DeviceError(
            f"device={str(device)!r}: vLLM takes the first GPUs that it sees. Start the program with "
            f"CUDA_VISIBLE_DEVICES={device.index} and device='gpu'."
        )
    needed, count = own["tensor_parallel_size"] * own["pipeline_parallel_size"], torch.cuda.device_count()
    if needed > count and own["distributed_executor_backend"] != "ray":
        raise DeviceError(
            f"tensor_parallel_size x pipeline_parallel_size = {needed} GPUs are needed and {count} are here: lower "
            "them, or use distributed_executor_backend='ray' over several machines."
        )
