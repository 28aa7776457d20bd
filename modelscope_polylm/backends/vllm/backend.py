"""The vLLM backend: many prompts at once, tensor and pipeline parallel, several machines through Ray."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import torch

from modelscope_polylm.backends.base import Backend, Completion, Delta, DeltaStream, Request
from modelscope_polylm.backends.vllm.beams import search_beams
from modelscope_polylm.backends.vllm.engine import BackgroundEngine, import_vllm
from modelscope_polylm.backends.vllm.options import (
    CPU_MEMORY_UTILIZATION,
    check_device,
    check_names,
    check_options,
    check_quantization,
    fixed_arguments,
    sampling_parameters,
)
from modelscope_polylm.errors import DeviceError, OptionError, SnapshotError
from modelscope_polylm.files import read_json
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Deliver, TokenCollector
from modelscope_polylm.snapshot import Snapshot
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)


EXECUTORS = ("mp", "ray")


class VLLMBackend(Backend):
    """Runs a snapshot with vLLM's asynchronous engine.

    Token ids go in and come out: prompts, texts, defaults and ends of answers are this package's. All requests of all
    calls, from any thread, are scheduled together. In bf16 the residual stream is bf16 too, unlike in the native
    backend. Beam search follows the native backend's rules. Log-probabilities are vLLM's: where a network has rows for
    more ids than the tokenizer, which no published one has, they count in the sum over all tokens, as in transformers.

    Attributes:
        engine: vLLM's engine.
    """

    name = "vllm"

    def __init__(
        self,
        snapshot: Snapshot,
        device: torch.device,
        dtype: torch.dtype,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        gpu_memory_utilization: float | None = None,
        max_model_len: int | None = None,
        quantization: str | None = None,
        distributed_executor_backend: str | None = None,
        **engine_options: Any,
    ) -> None:
        """Start vLLM.

        Args:
            snapshot: an opened snapshot that vLLM can read, as `polylm package` writes it.
            device: 'cpu' for vLLM's CPU build; otherwise the first GPU, and as many after it as are needed.
            dtype: of the weights and the computation.
            tensor_parallel_size: GPUs that share each layer.
            pipeline_parallel_size: groups of GPUs that share the layers.
            gpu_memory_utilization: share of each GPU's memory for weights and KV cache; vLLM's default if None. On a
                CPU it is the share of the memory of a NUMA node, 0.4 if None.
            max_model_len: most tokens of prompt and answer together; all positions if None.
            quantization: one of vLLM's methods, such as 'fp8'; the native backend's int8 and int4 are not.
            distributed_executor_backend: 'mp' for processes of this machine, 'ray' for several machines.
            engine_options: other arguments of vLLM's AsyncEngineArgs, such as `max_num_seqs` or `enforce_eager`.

        Raises:
            DependencyError: vLLM is missing or of an unsupported release.
            SnapshotError: the snapshot has to be packaged first.
            OptionError: an option that vLLM does not know or refuses.
            DeviceError: a device that vLLM does not run on, too few GPUs, or too little memory.
        """
        check_quantization(quantization)
        import_vllm()
        if engine_options.get("load_format") != "dummy":
            check_packaged(snapshot)
        check_names(engine_options)
        if distributed_executor_backend not in (None, *EXECUTORS):
            raise OptionError(f"distributed_executor_backend={distributed_executor_backend!r} is not 'mp' or 'ray'.")
        own = {
            "tensor_parallel_size": tensor_parallel_size,
            "pipeline_parallel_size": pipeline_parallel_size,
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": max_model_len,
            "quantization": quantization,
            "distributed_executor_backend": distributed_executor_backend,
        }
        check_device(device, own)
        if device.type == "cpu" and own["gpu_memory_utilization"] is None:
            own["gpu_memory_utilization"] = CPU_MEMORY_UTILIZATION
        given = {name: value for name, value in own.items() if value is not None}
        if engine_options.get("load_format") != "dummy":
            snapshot.weight_files.check_finite(snapshot.config, dtype)
        self.engine = BackgroundEngine({**fixed_arguments(snapshot, dtype), **given, **engine_options})
        positions = min(snapshot.config.max_positions, self.engine.max_model_len)
        self.config = dataclasses.replace(snapshot.config, max_positions=positions)
        self.device, self.dtype, self._tokenizer = device, dtype, snapshot.tokenizer
        self._vocabulary = min(snapshot.tokenizer.vocab_size, snapshot.config.vocab_size)
        self._unused = snapshot.config.vocab_size - self._vocabulary
        self._is_warned = False

    def check_options(self, options: GenerationOptions) -> None:
        """See the table REFUSALS of `backends.vllm.options`."""
        check_options(options)

    def submit(
        self,
        requests: Sequence[Request],
        partial: bool = True,
        at_once: int | None = None,
        listener: Deliver | None = None,
    ) -> DeltaStream:
        """Hand requests to vLLM, which runs them together with all others."""
        futures: list[Future[None]] = []
        stream = DeltaStream(len(requests), lambda: _cancel_all(futures))
        deliver = listener or stream.deliver
        if any(request.options.num_beams > 1 for request in requests):
            self._warn_of_beams()
        future = self.engine.submit(self._answer(requests, partial, at_once or len(requests), deliver))
        futures.append(future)
        future.add_done_callback(functools.partial(_deliver_error, deliver))
        return stream

    def close(self) -> None:
        """Stop vLLM and its processes, which otherwise end with the program."""
        self.engine.close()

    async def _answer(self, requests: Sequence[Request], partial: bool, at_once: int, deliver: Deliver) -> None:
        """Run all requests; the first one that fails ends the others."""
        allowed = list(range(self._vocabulary)) if self._unused else None
        turn = asyncio.Semaphore(at_once)

        async def answer(index: int) -> None:
            async with turn:
                request = requests[index]
                if request.options.num_beams > 1:
                    found = await search_beams(self.engine, request, self._vocabulary, self._unused)
                    deliver(Delta(index, found[0].ids, found[0].finish_reason, found))
                else:
                    call = VLLMCall(self.engine, request, self._tokenizer, allowed)
                    await call.answer(partial, functools.partial(_deliver_part, deliver, index))

        tasks = [asyncio.ensure_future(answer(index)) for index in range(len(requests))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    def _warn_of_beams(self) -> None:
        if not self._is_warned:
            self._is_warned = True
            logger.warning(
                "num_beams: vLLM has no beam search on the GPU, and every step of a beam is a request of its own. "
                "backend='native' is faster; num_beams=1 is what vLLM is made for."
            )


def _cancel_all(futures: Sequence[Future[None]]) -> None:
    for future in futures:
        future.cancel()


def _deliver_error(deliver: Deliver, future: Future[None]) -> None:
    error = CancelledError() if future.cancelled() else future.exception()
    if error is not None:
        deliver(error)


def _deliver_part(deliver: Deliver, index: int, ids: list[int], completions: list[Completion] | None) -> None:
    reason = None if completions is None else completions[0].finish_reason
    deliver(Delta(index, ids, reason, completions))


def packaging_reasons(snapshot: Snapshot) -> list[str]:
    """Why a snapshot has to be packaged for vLLM, a line each; empty for what `polylm package` wrote."""
    folder = snapshot.folder
    config = read_json(folder / "config.json")
    reasons = []
    if prefix := snapshot.weight_files.wrapper_prefix():
        reasons.append(f"its tensors have names that begin with {prefix!r}")
    if not snapshot.weight_files.is_conv1d(snapshot.config):
        reasons.append("its projections are nn.Linear's [out, in]")
    if not list(folder.glob("*.safetensors")):
        reasons.append("its weights are not safetensors")
    if config.get("architectures") != ["GPT2LMHeadModel"]:
        reasons.append(f"config.json names the class {config.get('architectures')}, not GPT2LMHeadModel")
    if config.get("eos_token_id") != snapshot.tokenizer.eos_token_id:
        reasons.append(f"config.json names the end token {config.get('eos_token_id')}, which is not </s>")
    for name in ("tokenizer.json", "generation_config.json"):
        if not (folder / name).is_file():
            reasons.append(f"{name} is missing")
    return reasons


def check_packaged(snapshot: Snapshot) -> None:
    """Raise SnapshotError if the snapshot has to be packaged first."""
    if reasons := packaging_reasons(snapshot):
        raise SnapshotError(
            f"vLLM cannot read {snapshot.folder} as it is: {'; '.join(reasons)}. Package it first: "
            f"`polylm package {snapshot.folder} OUT`, then load OUT."
        )


Report = Callable[[list[int], "list[Completion] | None"], None]
"""Takes the new tokens of the best answer and, at the end, all answers."""


class VLLMCall:
    """Greedy search or sampling for one prompt.

    Args:
        engine: what runs it.
        request: the prompt and its options.
        tokenizer: reads the text for stop strings.
        allowed_ids: the only ids that may be generated; None where these are all.
    """

    def __init__(
        self, engine: BackgroundEngine, request: Request, tokenizer: PolyLMTokenizer, allowed_ids: list[int] | None
    ) -> None:
        self._engine, self._request = engine, request
        self._fields = sampling_parameters(request, allowed_ids)
        self._rows = range(request.options.num_return_sequences)
        self._collector = TokenCollector(request, tokenizer)

    async def answer(self, partial: bool, report: Report) -> None:
        """Take tokens until all answers have ended, perhaps by a stop string that vLLM does not know."""
        reports = partial and len(self._rows) == 1
        streaming = reports or bool(self._request.options.stop_texts)
        told = 0
        generated = self._engine.outputs(self._request.prompt, self._fields, streaming)
        async with contextlib.aclosing(generated) as parts:
            async for part in parts:
                new = self._take(part)
                if not any(map(self._collector.is_open, self._rows)):
                    completions = self._collector.completions()
                    report(completions[0].ids[told:], completions)
                    return
                if reports and new:
                    told += len(new)
                    report(new, None)
        raise DeviceError(
            "vLLM ended a request before its answer was complete: its log says why; load the model again."
        )

    def _take(self, part: Any) -> list[int]:
        """Collect new tokens of an answer; returns those that belong to it."""
        taken: list[int] = []
        for position, token in enumerate(part.token_ids):
            if not self._collector.is_open(part.index):
                break
            logprob = None if part.logprobs is None else part.logprobs[position][token].logprob
            if self._collector.take(part.index, token, logprob):
                taken.append(token)
        return taken
