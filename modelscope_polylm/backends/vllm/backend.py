"""The vLLM backend: many prompts at once, tensor and pipeline parallel, several machines through Ray."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import queue
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch

from modelscope_polylm.backends.base import Answer, Backend, Update
from modelscope_polylm.backends.vllm.beams import search_beams
from modelscope_polylm.backends.vllm.engine import BackgroundEngine, import_vllm
from modelscope_polylm.backends.vllm.options import (
    CPU_MEMORY_UTILIZATION,
    check_device,
    check_names,
    check_options,
    fixed_arguments,
    sampling_parameters,
    wants_logprobs,
)
from modelscope_polylm.errors import DeviceError, OptionError, SnapshotError
from modelscope_polylm.files import read_json
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import TokenCollector, stop_test_factory
from modelscope_polylm.generation.requests import checked_requests
from modelscope_polylm.generation.state import Request
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
    default_batch_size = None  # vLLM schedules lists of any length

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
            device: 'cpu' for vLLM's CPU build; otherwise the first GPU, and as many behind it as are needed.
            dtype: of the weights and the computation.
            tensor_parallel_size: GPUs that share each layer.
            pipeline_parallel_size: groups of GPUs that share the layers.
            gpu_memory_utilization: share of each GPU's memory for weights and KV cache; vLLM's default if None. On a
                CPU it is the share of the memory of a NUMA node, 0.4 if None.
            max_model_len: most tokens of prompt and answer together; all positions if None.
            quantization: one of vLLM's methods, such as 'fp8'.
            distributed_executor_backend: 'mp' for processes of this machine, 'ray' for several machines.
            engine_options: other arguments of vLLM's AsyncEngineArgs, such as `max_num_seqs` or `enforce_eager`.

        Raises:
            DependencyError: vLLM is missing or of an unsupported release.
            SnapshotError: the snapshot has to be packaged first.
            OptionError: an option that vLLM does not know or refuses.
            DeviceError: a device that vLLM does not run on, too few GPUs, or too little memory.
        """
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

    def stream(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> Generator[Update, None, list[list[Answer]]]:
        """See `Backend.stream`."""
        requests = self._checked(prompts, options)
        return self._stream_beams(requests, options) if options.num_beams > 1 else self._stream(requests, options)

    def generate(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[list[Answer]]:
        """See `Backend.generate`. Nothing is handed over before the end, which spares vLLM work for each token."""
        requests = self._checked(prompts, options)
        if options.num_beams > 1:
            return self._beams(requests, options)
        future = self.engine.submit(self._call(requests, options).answers(report=None))
        try:
            return future.result()
        finally:
            future.cancel()

    def close(self) -> None:
        """Stop vLLM and its processes, which otherwise end with the program."""
        self.engine.close()

    def _checked(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[Request]:
        check_options(options)
        return checked_requests(prompts, options, self.config)

    def _call(self, requests: Sequence[Request], options: GenerationOptions) -> VLLMCall:
        allowed = list(range(self._vocabulary)) if self._unused else None
        return VLLMCall(self.engine, requests, options, self._tokenizer, allowed)

    def _stream(
        self, requests: Sequence[Request], options: GenerationOptions
    ) -> Generator[Update, None, list[list[Answer]]]:
        items: queue.SimpleQueue[tuple[int, list[int]] | None] = queue.SimpleQueue()
        work = self._call(requests, options).answers(lambda index, ids: items.put((index, ids)))
        future = self.engine.submit(work)
        future.add_done_callback(lambda _: items.put(None))
        try:
            is_running = True
            while is_running:
                update, is_running = _waiting(items, len(requests))
                if any(update):
                    yield update
            return future.result()
        finally:
            future.cancel()

    def _stream_beams(
        self, requests: Sequence[Request], options: GenerationOptions
    ) -> Generator[Update, None, list[list[Answer]]]:
        answers = self._beams(requests, options)
        yield [best[0].ids for best in answers]
        return answers

    def _beams(self, requests: Sequence[Request], options: GenerationOptions) -> list[list[Answer]]:
        if not self._is_warned:
            self._is_warned = True
            logger.warning(
                "num_beams=%d: vLLM has no beam search on the GPU, and every step of a beam is a request of its own. "
                "backend='native' is faster; num_beams=1 is what vLLM is made for.",
                options.num_beams,
            )
        return search_beams(self.engine, requests, options, self._vocabulary, self._unused)


def _waiting(items: queue.SimpleQueue[tuple[int, list[int]] | None], count: int) -> tuple[Update, bool]:
    """All that waits in the queue, at least one item, as one update of `count` prompts; and whether more may come."""
    update: Update = [[] for _ in range(count)]
    while (item := items.get()) is not None:
        update[item[0]] += item[1]
        if items.empty():
            return update, True
    return update, False


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


Report = Callable[[int, list[int]], None]
"""Takes the number of a prompt and the new tokens of its first answer."""


class VLLMCall:
    """Greedy search or sampling for some prompts.

    Args:
        engine: what runs them.
        requests: the prompts.
        options: checked options.
        tokenizer: reads the text for stop strings.
        allowed_ids: the only ids that may be generated; None where these are all.
    """

    def __init__(
        self,
        engine: BackgroundEngine,
        requests: Sequence[Request],
        options: GenerationOptions,
        tokenizer: PolyLMTokenizer,
        allowed_ids: list[int] | None,
    ) -> None:
        self._engine, self._requests, self._options, self._allowed_ids = engine, requests, options, allowed_ids
        self._group = options.num_return_sequences
        stop_tests = stop_test_factory(tokenizer, options.stop_texts)
        self._collector = TokenCollector(requests, self._group, options, stop_tests)
        self._logprobs: list[list[float]] = [[] for _ in range(len(requests) * self._group)]

    async def answers(self, report: Report | None) -> list[list[Answer]]:
        """Run all requests; returns the answers of each, best first. Without `report` nothing is known before."""
        tasks = [asyncio.ensure_future(self._follow(index, report)) for index in range(len(self._requests))]
        try:
            await asyncio.gather(*tasks)
        finally:
            # where one has failed, or the caller has gone
            for task in tasks:
                task.cancel()
        return self._scored(self._collector.unscored())

    async def _follow(self, index: int, report: Report | None) -> None:
        """Take the tokens of a request until all its answers have ended, perhaps by a stop string that vLLM ignores."""
        fields = sampling_parameters(self._options, self._requests[index], index, self._allowed_ids)
        streaming = report is not None or bool(self._options.stop_texts)
        rows = range(index * self._group, (index + 1) * self._group)
        generated = self._engine.outputs(self._requests[index].prompt, fields, streaming)
        async with contextlib.aclosing(generated) as completions:
            async for completion in completions:
                new = self._take(rows[completion.index], completion)
                if report and new and completion.index == 0:
                    report(index, new)
                if not any(map(self._collector.is_open, rows)):
                    return
        raise DeviceError(
            "vLLM ended a request before its answer was complete: its log says why; load the model again."
        )

    def _take(self, row: int, completion: Any) -> list[int]:
        """Collect new tokens of an answer; returns those that belong to it."""
        taken: list[int] = []
        for position, token in enumerate(completion.token_ids):
            if not self._collector.is_open(row):
                break
            if self._collector.take(row, token):
                taken.append(token)
                if completion.logprobs is not None:
                    self._logprobs[row].append(completion.logprobs[position][token].logprob)
        return taken

    def _scored(self, answers: list[list[Answer]]) -> list[list[Answer]]:
        if not wants_logprobs(self._options):
            return answers
        every = [answer for group in answers for answer in group]
        for answer, logprobs in zip(every, self._logprobs, strict=True):
            answer.score = sum(logprobs)
            answer.logprobs = logprobs if self._options.output_logprobs else None
        return [sorted(group, key=lambda answer: -(answer.score or 0.0)) for group in answers]
