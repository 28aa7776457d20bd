"""What a run is going to do, before it does it: rows, steps, memory, and records with the learnt tokens marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from modelscope_polylm.training.collate import IGNORED, EncodingReport, TokenFile

if TYPE_CHECKING:
    from modelscope_polylm.network.config import PolyLMConfig
    from modelscope_polylm.text.tokenizer import PolyLMTokenizer
    from modelscope_polylm.training.options import TrainingOptions

LEARNT = ("⟦", "⟧")
SHOWN_CHARACTERS = 1500
ADAM_BYTES = 8
"""Of the two moments of a parameter, fp32."""
BLOCK_WIDTHS = 36
"""Bytes that a block keeps for each token and each number of the hidden size: norms in fp32, the others in bf16."""
IN_FLIGHT = 1.5
"""Gradients and intermediate results of the block that is computed, over what it keeps."""
FILLED = 0.9
"""Share of the free memory that kept activations may fill; the rest is for what estimates leave out."""


@dataclass
class Plan:
    """A run, before it begins.

    Attributes:
        counts: of records, examples and tokens, by group of data.
        rows: packed, that the run reads, repetitions included.
        held_out: records kept for evaluation.
        fill: how full the rows are, from 0 to 1.
        steps, step_rows: optimizer steps, and rows of each.
        parameters, trained_parameters: numbers of the network, and those that learn.
        memory: bytes that a device needs, by what for; estimates.
        blocks, recomputed_blocks: of the network, and those whose activations are computed again in the backward pass.
        available: bytes that it has free.
        samples: two records with the learnt tokens marked.
    """

    counts: Mapping[str, EncodingReport]
    rows: int
    held_out: int
    fill: float
    steps: int
    step_rows: int
    parameters: int
    trained_parameters: int
    memory: Mapping[str, int]
    available: int
    blocks: int
    recomputed_blocks: int
    samples: Sequence[str] = field(default_factory=list)

    @property
    def needed(self) -> int:
        """Bytes in all."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        """Whether the estimate is below what the device has."""
        return self.needed <= self.available

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON."""
        groups = {
            name: {**vars(report), "left_out": dict(report.left_out.most_common())}
            for name, report in self.counts.items()
        }
        return {**vars(self), "counts": groups, "needed": self.needed, "fits": self.fits}

    def __str__(self) -> str:
        return "\n".join([*self._data_lines(), *self._run_lines()])

    def _data_lines(self) -> Iterator[str]:
        for name, report in self.counts.items():
            title = f"Data {name}: " if len(self.counts) > 1 else "Data: "
            tokens = f"{report.tokens:,} tokens, {report.trained_tokens:,} of them to learn"
            yield f"{title}{report.records:,} records, {report.examples:,} examples, {tokens}."
            if report.shortened:
                turns = f"{report.left_out_turns:,} of their oldest turns, to fit a row"
                yield f"  {report.shortened:,} conversations lose {turns}."
            for reason, count in report.left_out.most_common():
                yield f"  {count:,} records left out: {reason}."

    def _run_lines(self) -> Iterator[str]:
        held = f"; {self.held_out:,} records held out" if self.held_out else ""
        rows = f"{self.rows:,} rows, {100 * self.fill:.1f} % full"
        yield f"Run: {rows}; {self.steps:,} steps of {self.step_rows} rows{held}."
        share = 100 * self.trained_parameters / self.parameters
        yield f"Learning: {self.trained_parameters:,} of {self.parameters:,} parameters ({share:.2f} %)."
        parts = ", ".join(f"{name} {size / 1e9:.2f}" for name, size in self.memory.items())
        has = f"it has {self.available / 1e9:.2f} GB free"
        verdict = "it fits" if self.fits else "IT DOES NOT FIT"
        yield f"Memory of a device: about {self.needed / 1e9:.2f} GB ({parts}), {has}: {verdict}."
        if self.recomputed_blocks:
            again = f"of {self.recomputed_blocks} of {self.blocks} blocks"
            yield f"Activations {again} are computed again in the backward pass."


def recomputed_blocks(config: PolyLMConfig, options: TrainingOptions, product_bytes: int, available: int) -> int:
    """How many blocks compute their activations again: as the options say, or as few as the memory allows.

    Args:
        config, options, product_bytes: as in `memory_needed`.
        available: bytes that the device has free.
    """
    if options.checkpointing is not None:
        return config.layers if options.checkpointing else 0

    def fits(count: int) -> bool:
        return sum(memory_needed(config, options, product_bytes, count).values()) <= FILLED * available

    return next((count for count in range(config.layers) if fits(count)), config.layers)


def memory_needed(
    config: PolyLMConfig, options: TrainingOptions, product_bytes: int, recomputed: int
) -> dict[str, int]:
    """Estimated bytes of a device that holds the whole network, by what for.

    Args:
        config: sizes of the network.
        options: of the run, complete.
        product_bytes: bytes of a number in products, and of frozen ones that are not quantised; those that learn are
            fp32.
        recomputed: blocks whose activations are computed again.
    """
    tokens, width = options.device_rows * (options.length or 0), config.hidden_size
    is_adapter, trained = options.method == "lora", trained_parameters(config, options)
    weight_bytes = product_bytes if is_adapter else 4
    residual = 4 if options.residual == "float32" else weight_bytes
    block = BLOCK_WIDTHS * tokens * width
    kept = recomputed * tokens * width * residual + (config.layers - recomputed) * block
    # logits in fp32, as gradients and in the weights' type, and the embedding's gradient where it learns
    head = 10 * min(_chunk_logits(), tokens * config.vocab_size) + (0 if is_adapter else 4 * config.vocab_size * width)
    adapter = 4 * trained if is_adapter else 0
    return {
        "weights": _weight_bytes(config, options.quantization, weight_bytes) + adapter,
        "gradients": 4 * trained,
        "optimizer": ADAM_BYTES * trained,
        "activations": int(kept + IN_FLIGHT * block),
        "output layer": head,
    }


def _weight_bytes(config: PolyLMConfig, quantization: str | None, itemsize: int) -> int:
    """Of the network, and of the largest projection in plain numbers where it is quantised."""
    from modelscope_polylm.network.weights import projection_bytes

    size = config.parameters * itemsize
    if quantization is None:
        return size
    unpacked = config.hidden_size * config.intermediate_size * itemsize
    return size - projection_bytes(config, itemsize) + projection_bytes(config, itemsize, quantization) + unpacked


def _chunk_logits() -> int:
    from modelscope_polylm.training.network import CHUNK_LOGITS

    return CHUNK_LOGITS


def trained_parameters(config: PolyLMConfig, options: TrainingOptions) -> int:
    """Numbers that learn: all, or those of a low-rank adapter of all projections."""
    if options.method != "lora":
        return config.parameters
    width, inner = config.hidden_size, config.intermediate_size
    shapes = ((width, 3 * width), (width, width), (width, inner), (inner, width))
    return config.layers * options.lora_rank * sum(map(sum, shapes))


def marked_sample(tokens: TokenFile, index: int, tokenizer: PolyLMTokenizer) -> str:
    """An example as text, what is learnt between LEARNT, at most its first SHOWN_CHARACTERS characters."""
    ids, targets = tokens.example(index).T.tolist()
    # the first token is never learnt; each other one is if the position before it is to predict something
    learnt = [False, *(target != IGNORED for target in targets[:-1])]
    text, start = "", 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or learnt[end] != learnt[start]:
            part = _text(ids[start:end], targets[start - 1 : end - 1], tokenizer, learnt[start])
            text += f"{LEARNT[0]}{part}{LEARNT[1]}" if learnt[start] else part
            start = end
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} ..."


def _text(ids: list[int], targets: list[int], tokenizer: PolyLMTokenizer, learnt: bool) -> str:
    """The text of tokens, with the end token spelt out, also where it is learnt and another token follows."""
    end = tokenizer.eos_token_id
    spelt = tokenizer.id_to_piece(end)
    if learnt and targets[-1] == end and ids[-1] != end:
        # learnt although the conversation goes on with another token
        return f"{tokenizer.decode(ids[:-1])}{spelt}{tokenizer.decode(ids[-1:])}"
    shown = tokenizer.decode([token for token in ids if token != end])
    return f"{shown}{spelt}" if ids[-1] == end else shown
