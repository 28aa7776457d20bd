"""The arguments of vLLM's engine: which are fixed, which are the caller's, and whether they fit this machine."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import torch

from modelscope_polylm.errors import DeviceError, OptionError
from modelscope_polylm.snapshot import Snapshot

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


def check_names(engine_options: Mapping[str, Any]) -> None:
    """Raise OptionError for an engine option that vLLM does not have, or that is not the caller's."""
    from vllm.engine.arg_utils import AsyncEngineArgs

    known = [field.name for field in dataclasses.fields(AsyncEngineArgs)]
    for name in engine_options:
        if name in RESERVED:
            raise OptionError(f"{name!r} cannot be given to the vllm backend: {RESERVED[name]}.")
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "see the engine arguments in vLLM's documentation."
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
