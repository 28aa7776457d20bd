"""`python -m benchmarks.kernels --shape 13b`: correctness and speed of every kernel, in one table.

A line for each operation at each size: the relative error (norms) against float64, the time of a call, the rate at
which it moves the bytes that it has to move, that rate as a share of what a product of one row with a large matrix
reaches on the device, and the time of the plain torch reference. Times are medians of replayed CUDA graphs over
arguments far larger than the L2 cache. A wrong result ends the program with status 1.

`--interpret` checks the same kernels with tiny sizes on a CPU, under Triton's interpreter; its times say nothing.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.cli.bench.run import read_bandwidth
from modelscope_polylm.cli.bench.workloads import SHAPES, shape_config
from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.lm_head import LMHead
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import BatchState, NewRow
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.kernels.attention import decode_attention
from modelscope_polylm.network.kernels.dispatch import kernel_settings, use_interpreter
from modelscope_polylm.network.kernels.layer_norm import layer_norm
from modelscope_polylm.network.kernels.linear import add_product_, linear
from modelscope_polylm.network.kernels.lm_head import lm_head_logits, lm_head_topk
from modelscope_polylm.network.kernels.prefill_attention import TILE, prefill_attention

BOUNDS = {torch.bfloat16: 8e-3, torch.float16: 2e-3}
COPIED_BYTES = 1_000_000_000
PROMPTS, TINY_PROMPTS = ((1, 300), (1, 1920), (4, 2000), (64, 128)), ((2, 70),)
"""Prompts and the length of each, for the kernels of prefill."""
BEAMS, TINY_BEAMS = ((1, 2), (1, 4), (16, 4), (1, 8)), ((2, 3),)
"""Prompts and the beams of each, for the step of beam search."""
TINY_SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 64, "vocab_size": 320, "n_positions": 128}
HEADER = f"{'operation':36} {'MB':>9} {'error':>9} {'us':>9} {'TB/s':>7} {'of limit':>9} {'torch us':>10}"

Arguments = tuple[Any, ...]
Result = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Operation:
    """One kernel at one size.

    Attributes:
        name: what it is, and its size.
        bytes: what one call has to read and write.
        arguments: the arguments of calls over different memory.
        call: runs the kernel, or its torch reference, as `kernel_settings` says.
        exact: the same in float64; it is asked before the call, which may write into its arguments.
        torch: what the kernel is compared with, if not its reference.
    """

    name: str
    bytes: int
    arguments: Sequence[Arguments]
    call: Callable[..., Result]
    exact: Callable[..., Result]
    torch: Callable[..., Result] | None = None


class Operations:
    """Makes operations in the sizes of one network, with random arguments."""

    def __init__(self, config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.device, self.dtype = config, device, dtype

    def of_step(self, rows: int, context: int) -> Iterator[Operation]:
        """Yield those of a decode step of some rows, which are the beams of one prompt where they are 2 to 8."""
        hidden_size, inner = self.config.hidden_size, self.config.intermediate_size
        sizes = {"c_attn": (3 * hidden_size, hidden_size), "c_fc": (inner, hidden_size)}
        yield from (self.projection(name, rows, *size) for name, size in sizes.items())
        sizes = {"attn.c_proj": (hidden_size, hidden_size), "mlp.c_proj": (hidden_size, inner)}
        yield from (self.residual_projection(name, rows, *size) for name, size in sizes.items())
        yield self.layer_norm(rows)
        yield self.decode_attention(rows, rows if 1 < rows <= 8 else 1, context // 2, context)
        yield self.lm_head_topk(rows, 1 if rows == 1 else 8)
        yield self.lm_head_logits(rows)

    def of_prefill(self, prompts: int, length: int) -> Iterator[Operation]:
        """Yield those of the prefill of some prompts."""
        yield self.prefill_attention(prompts, length)
        yield self.layer_norm(prompts * length)

    def projection(self, name: str, rows: int, outputs: int, inputs: int) -> Operation:
        """A product with its bias, and GELU for c_fc."""
        x, bias, gelu = self._random(rows, inputs), self._random(outputs), name == "c_fc"

        def exact(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> Tensor:
            y = F.linear(x.double(), weight.double(), bias.double())
            return F.gelu(y, approximate="tanh") if gelu else y

        size = self._product_bytes(rows, outputs, inputs)
        weights = self._weights(outputs, inputs)
        return Operation(
            f"{name}, {counted(rows)}", size, [(x, weight, bias, gelu) for weight in weights], linear, exact
        )

    def residual_projection(self, name: str, rows: int, outputs: int, inputs: int) -> Operation:
        """A product that is added to the residual stream."""
        x, residual = self._random(rows, inputs), self._random(rows, outputs, dtype=torch.float32)

        def call(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
            add_product_(residual, x, weight)
            return residual

        def exact(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
            return residual.double() + F.linear(x.double(), weight.double())

        arguments = [(residual, x, weight) for weight in self._weights(outputs, inputs)]
        size = self._product_bytes(rows, outputs, inputs) + 6 * rows * outputs
        return Operation(f"{name}, {counted(rows)}", size, arguments, call, exact)

    def layer_norm(self, rows: int) -> Operation:
        """LayerNorm of the residual stream and its deferred bias."""
        width = self.config.hidden_size
        x, deferred = self._random(rows, width, dtype=torch.float32), self._random(width, dtype=torch.float32)
        arguments = (x, self._random(width), self._random(width), 1e-5, deferred)

        def exact(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, deferred: Tensor) -> Tensor:
            return F.layer_norm(x.double() + deferred, (width,), weight.double(), bias.double(), epsilon)

        return Operation(f"LayerNorm, {counted(rows)}", 6 * rows * width, [arguments] * 20, layer_norm, exact)

    def decode_attention(self, rows: int, group: int, prompt: int, length: int) -> Operation:
        """Attention of a new token for each row; the rows of a group share the cached prompt."""
        size = 4 * self.config.hidden_size * (rows // group * prompt + rows * (length - prompt))
        arguments = [self._attention_arguments(rows, group, prompt, length) for _ in self._copies(size)]

        def exact(qkv: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Tensor:
            with kernel_settings("torch"):
                return decode_attention(qkv.double(), keys.double(), values.double(), *rest)

        name = f"attention, {counted(rows)} of {rows // group}, {prompt} + {length - prompt}"
        return Operation(name, size, arguments, decode_attention, exact)

    def prefill_attention(self, prompts: int, length: int) -> Operation:
        """Attention of whole prompts, whose keys and values it writes to the cache; torch's writes no cache."""
        tokens, width = prompts * length, self.config.hidden_size
        heads, head_dim = self.config.heads, self.config.head_dim
        table = torch.arange(tokens, dtype=torch.int32, device=self.device).view(prompts, length)
        starts = [(prompt, start) for prompt in range(prompts) for start in range(0, length, TILE)]
        tiles = [(prompt, prompt * length + start, start, min(TILE, length - start), 0) for prompt, start in starts]
        cache = [self._random(heads, tokens, head_dim) for _ in range(2)]
        rest = (*cache, table, torch.tensor(tiles, dtype=torch.int32, device=self.device))
        size = 12 * tokens * width
        arguments = [(self._random(tokens, 3 * width), *rest) for _ in self._copies(size)]

        def exact(qkv: Tensor, keys: Tensor, values: Tensor, table: Tensor, tiles: Tensor) -> Tensor:
            with kernel_settings("torch"):
                return prefill_attention(qkv.double(), keys.double(), values.double(), table, tiles)

        def library(qkv: Tensor, *rest: Tensor) -> Tensor:
            query, key, value = qkv.view(prompts, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)

        name = f"prefill attention, {prompts} x {length}"
        return Operation(name, size, arguments, prefill_attention, exact, library)

    def beam_step(self, prompts: int, beams: int) -> Operation:
        """The choice among the beams of some prompts, 128 tokens after each."""
        count = prompts * beams
        rows = torch.arange(count, device=self.device)
        scores = -self._random(count, 2 * beams, dtype=torch.float32).abs().sort().values
        ids = torch.randint(3, self.config.vocab_size, scores.shape, dtype=torch.int32, device=self.device)
        options = GenerationOptions(num_beams=beams, early_stopping=True)
        state = BatchState(count, 512, self.device)
        for first in range(0, count, beams):
            group = list(range(first, first + beams))
            state.begin(group, [NewRow([5] * 32, 32, 256, 0, options)] * beams, [list(range(32))] * beams)
            state.begin_beams([group], [1.0])
        state.lengths += 128
        search = BeamSearch(state, GivenCandidates(scores, ids), beams, 1, counts_prompt=True, early_stopping=True)

        def call(rows: Tensor, search: BeamSearch) -> Tensor:
            search.select(rows, rows)
            return search.state.running_scores[:count]

        def exact(rows: Tensor, search: BeamSearch) -> Tensor:
            with kernel_settings("torch"):
                return call(rows, copy.deepcopy(search)).double()

        name = f"beam step, {prompts} x {beams} beams"
        return Operation(name, 12 * scores.numel(), [(rows, search)] * 20, call, exact)

    def lm_head_topk(self, rows: int, k: int) -> Operation:
        """The best tokens and the log-sum-exp of the logits."""
        arguments = (*self._lm_head(rows), k, self.config.vocab_size - 3)

        def call(*arguments: Any) -> tuple[Tensor, Tensor]:
            values, _, log_sum = lm_head_topk(*arguments)
            return values, log_sum

        def exact(hidden: Tensor, embedding: Tensor, k: int, limit: int) -> tuple[Tensor, Tensor]:
            logits = F.linear(hidden.double(), embedding.double())[:, :limit]
            return logits.topk(k).values, logits.logsumexp(-1)

        size = self._product_bytes(rows, self.config.vocab_size, self.config.hidden_size)
        return Operation(f"LM head, {counted(rows)}, best {k}", size, [arguments] * 2, call, exact)

    def lm_head_logits(self, rows: int) -> Operation:
        """All logits."""
        limit = self.config.vocab_size - 3

        def call(hidden: Tensor, embedding: Tensor) -> Tensor:
            return lm_head_logits(hidden, embedding, limit)[:, :limit]

        def exact(hidden: Tensor, embedding: Tensor) -> Tensor:
            logits: Tensor = F.linear(hidden.double(), embedding.double())
            return logits[:, :limit]

        size = self._product_bytes(rows, self.config.vocab_size, self.config.hidden_size)
        size += 4 * rows * self.config.vocab_size
        return Operation(f"LM head, {counted(rows)}, logits", size, [self._lm_head(rows)] * 2, call, exact)

    def _lm_head(self, rows: int) -> tuple[Tensor, Tensor]:
        # hidden: [rows, D], embedding: [V, D]
        width = self.config.hidden_size
        return self._random(rows, width), self._random(self.config.vocab_size, width, scale=0.02)

    def _attention_arguments(self, rows: int, group: int, prompt: int, length: int) -> Arguments:
        """Random queries, cache and slots for `decode_attention`, in the order of its arguments."""
        prompts, heads = rows // group, self.config.heads
        slots = prompts * prompt + rows * (length - prompt + 1)
        order = torch.randperm(slots, device=self.device).int()
        shared = order[: prompts * prompt].view(prompts, prompt).repeat_interleave(group, 0)
        table = torch.cat([shared, order[prompts * prompt :].view(rows, -1)], 1)
        numbers = torch.arange(rows, dtype=torch.int32, device=self.device)
        lengths = torch.full_like(numbers, length)
        groups = torch.zeros(rows, 2, dtype=torch.int32, device=self.device)
        groups[:prompts, 0], groups[:prompts, 1] = numbers[::group], group
        keys, values = (self._random(heads, slots, self.config.head_dim) for _ in range(2))
        qkv = self._random(rows, 3 * self.config.hidden_size)
        return qkv, keys, values, table, numbers, lengths, torch.full_like(lengths, prompt), groups

    def _random(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0) -> Tensor:
        return torch.empty(*shape, device=self.device, dtype=dtype or self.dtype).normal_(0, scale)

    def _weights(self, outputs: int, inputs: int) -> list[Tensor]:
        return [self._random(outputs, inputs, scale=0.02) for _ in self._copies(2 * outputs * inputs)]

    def _copies(self, size: int) -> range:
        """As many copies of `size` bytes as make COPIED_BYTES, at most 40."""
        return range(1 if self.device.type == "cpu" else max(2, min(40, -(-COPIED_BYTES // size))))

    @staticmethod
    def _product_bytes(rows: int, outputs: int, inputs: int) -> int:
        return 2 * (outputs * inputs + rows * (outputs + inputs))


class GivenCandidates(LMHead):
    """An LM head that has its candidates already, so that only the choice among them is timed."""

    def __init__(self, scores: Tensor, ids: Tensor) -> None:
        super().__init__(scores, int(ids.max()) + 1)
        self.candidates = scores, scores, ids

    def best(self, hidden: Tensor, state: BatchState, rows: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The given log-probabilities [n, count] and ids."""
        return self.candidates


def main() -> None:
    """Check and time every operation; print and write the table."""
    arguments = parsed()
    device = torch.device("cpu" if arguments.interpret else "cuda")
    dtype = torch.float16 if arguments.interpret else torch.bfloat16  # the interpreter rounds bfloat16 otherwise
    operations = Operations(chosen_config(arguments), device, dtype)
    bandwidth = read_bandwidth(device)
    name = "CPU, interpreted" if arguments.interpret else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, {bandwidth / 1e12:.3f} TB/s\n{HEADER}", flush=True)
    results = []
    with torch.inference_mode(), kernel_settings("triton"):
        for operation in chosen_operations(operations, arguments):
            results.append(figures(operation, bandwidth))
            print(line(results[-1]), flush=True)
    if arguments.out:
        facts = {"device": name, "torch": torch.__version__, "bytes/s": bandwidth, "results": results}
        arguments.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    wrong = [result["operation"] for result in results if not result["error"] < BOUNDS[dtype]]
    if wrong:
        sys.exit(f"wrong: {'; '.join(wrong)}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="13b", choices=sorted(SHAPES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64], help="rows of a decode step")
    parser.add_argument("--context", type=int, default=192, help="cached tokens of every row, half of them the prompt")
    parser.add_argument("--interpret", action="store_true", help="check tiny sizes on a CPU")
    parser.add_argument("--out", type=Path, help="write all figures to this JSON file")
    arguments = parser.parse_args()
    if arguments.interpret and not use_interpreter():
        parser.error("Triton's interpreter is not available: install triton, and start a fresh process")
    if not arguments.interpret and not torch.cuda.is_available():
        parser.error("there is no GPU here: check the kernels with --interpret")
    return arguments


def chosen_config(arguments: argparse.Namespace) -> PolyLMConfig:
    """The sizes of the chosen network."""
    if not arguments.interpret:
        return shape_config(arguments.shape)
    return PolyLMConfig.from_dict({"model_type": "gpt2", "activation_function": "gelu_fast", **TINY_SHAPE})


def chosen_operations(operations: Operations, arguments: argparse.Namespace) -> Iterator[Operation]:
    """Yield all operations, each made when its turn comes."""
    for rows in arguments.rows:
        yield from operations.of_step(rows, 20 if arguments.interpret else arguments.context)
    for prompts, length in TINY_PROMPTS if arguments.interpret else PROMPTS:
        yield from operations.of_prefill(prompts, length)
    for prompts, beams in TINY_BEAMS if arguments.interpret else BEAMS:
        yield operations.beam_step(prompts, beams)


def figures(operation: Operation, bandwidth: float) -> dict[str, Any]:
    """What the table says of an operation."""
    exact = operation.exact(*operation.arguments[0])
    error = relative_error(operation.call(*operation.arguments[0]), exact)
    del exact
    seconds = median_seconds(operation.call, operation.arguments)
    with kernel_settings("torch"):
        reference = median_seconds(operation.torch or operation.call, operation.arguments)
    rate = operation.bytes / seconds
    return {
        "operation": operation.name, "bytes": operation.bytes, "error": error, "us": seconds * 1e6,
        "bytes/s": rate, "of limit": rate / bandwidth, "torch us": reference * 1e6,
    }  # fmt: skip


def counted(rows: int) -> str:
    """'1 row', '4 rows'."""
    return f"{rows} row{'s' * (rows > 1)}"


def line(result: dict[str, Any]) -> str:
    """A line of the table."""
    return (
        f"{result['operation']:36} {result['bytes'] / 1e6:9.2f} {result['error']:9.1e} {result['us']:9.2f} "
        f"{result['bytes/s'] / 1e12:7.3f} {result['of limit']:9.1%} {result['torch us']:10.2f}"
    )


def relative_error(found: Result, exact: Result) -> float:
    """Norm of the error over the norm of the exact values, the larger one of several; infinite if not finite."""
    if isinstance(found, tuple):
        return max(relative_error(*pair) for pair in zip(found, exact, strict=True))
    assert isinstance(exact, Tensor)
    if not bool(torch.isfinite(found).all()):
        return float("inf")
    return float((found.double() - exact).norm() / exact.norm())


def median_seconds(call: Callable[..., Result], arguments: Sequence[Arguments]) -> float:
    """Seconds of a call: the median of replays of a graph of all calls; on a CPU of one call."""
    calls = [functools.partial(call, *given) for given in arguments]
    if arguments[0][0].device.type == "cpu":
        began = time.perf_counter()
        calls[0]()
        return time.perf_counter() - began
    graph, times = captured(calls), list[float]()
    while len(times) < 5 or (sum(times) < 0.01 and len(times) < 50):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times) / len(calls)


def captured(calls: Sequence[Callable[[], Any]]) -> torch.cuda.CUDAGraph:
    """One graph of all calls, run once; the first call also runs before, to compile."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    return graph


if __name__ == "__main__":
    main()
