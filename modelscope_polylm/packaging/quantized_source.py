"""The weights of a quantised package: the tensors of a snapshot with their projections in GPTQ's parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modelscope_polylm.errors import InputError, OptionError, SnapshotError, suggestion
from modelscope_polylm.network.config import GPTQ_BITS, GPTQ_GROUP, PolyLMConfig
from modelscope_polylm.packaging.safetensors_writer import WeightSource
from modelscope_polylm.packaging.tokenizer.parity import sentences
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from modelscope_polylm.network.quantization import QuantizedMatrix

    Quantizer = Callable[[Mapping[str, Tensor]], Iterator[tuple[str, QuantizedMatrix]]]
    """From the tensors of a layer, projections as [out, in], to the names and matrices of its projections."""

METHODS = {"gptq": "errors made good over a text", "round": "each weight rounded for itself"}
MOST_TOKENS = 1 << 18
"""Of a calibration text: 128 rows of 2,048, as in the paper of GPTQ (section 4)."""
PROJECTIONS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
"""Of a layer, in the order in which they run."""


@dataclass(frozen=True)
class Quantization:
    """How a package is quantised.

    Attributes:
        name: 'int4' or 'int8', of the projections; embeddings, norms and biases keep 16 bits.
        method: 'gptq', whose rounding errors are made good over a text, or 'round'.
        calibration: the text; the built-in sentences in 18 languages if None.
        device: where it is computed, such as 'cuda:0'; a GPU if there is one.

    Raises:
        OptionError: unknown names, or a text that the method does not read.
    """

    name: str
    method: str = "gptq"
    calibration: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        names = tuple(GPTQ_BITS.values())
        if self.name not in names:
            raise OptionError(f"quantization={self.name!r} cannot be packaged: {suggestion(self.name, names)}")
        if self.method not in METHODS:
            raise OptionError(f"method={self.method!r} is unknown: {suggestion(self.method, METHODS)}")
        if self.method == "round" and self.calibration is not None:
            raise OptionError("method='round' reads no calibration text: leave it out, or take method='gptq'.")


class QuantizedSource:
    """A `WeightSource` whose projections come in GPTQ's parts, computed as they are read, in the order of `shapes`.

    Attributes:
        shapes: tensor names, without the prefix of transformers, to shapes: the embeddings, layer by layer, ln_f.
    """

    def __init__(
        self, source: WeightSource, config: PolyLMConfig, tokenizer: PolyLMTokenizer, quantization: Quantization
    ) -> None:
        """Cut the calibration text into tokens; nothing is computed yet.

        Raises:
            OptionError: sizes that GPTQ's groups do not divide.
            InputError: a calibration text without tokens.
        """
        if config.hidden_size % GPTQ_GROUP or config.intermediate_size % GPTQ_GROUP:
            sizes = f"hidden size {config.hidden_size} and feed-forward size {config.intermediate_size}"
            raise OptionError(f"GPTQ's groups of {GPTQ_GROUP} do not divide the {sizes} of this model.")
        self._source, self._config, self._quantization = source, config, quantization
        self._windows = _windows(tokenizer, config.max_positions, quantization)
        self.shapes = {name: shape for names in self._blocks() for name, shape in self._stored(names).items()}
        self._tensors = self._computed()

    @property
    def description(self) -> str:
        """What the owner of the package should know."""
        how = METHODS[self._quantization.method]
        text = "" if self._quantization.calibration is None else " of your own"
        over = f"{text} of {sum(map(len, self._windows)):,} tokens" if self._windows else ""
        return (
            f"The projections are in {self._quantization.name}, {how}{over}: `polylm verify PACKAGE --against SOURCE` "
            "says what that changes."
        )

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield the next tensors, which have to be those of these names: each is computed once.

        Raises:
            SnapshotError: numbers that are not finite, or as `WeightSource.tensors`.
            PolyLMError: a text that the network cannot be calibrated with.
        """
        for _ in names:
            name, tensor = next(self._tensors)
            assert name in names, f"{name} is read out of order"
            yield name, tensor

    def head_differs(self) -> bool:
        """As `WeightSource.head_differs`."""
        return self._source.head_differs()

    def _blocks(self) -> list[list[str]]:
        """Names of the source's tensors: embeddings, each layer, and what follows the layers."""
        layers = [
            [f"h.{layer}.{norm}.{kind}" for norm in ("ln_1", "ln_2") for kind in ("weight", "bias")]
            + [f"h.{layer}.{name}.bias" for name in PROJECTIONS]
            + [f"h.{layer}.{name}.weight" for name in PROJECTIONS]
            for layer in range(self._config.layers)
        ]
        return [["wte.weight", "wpe.weight"], *layers, ["ln_f.weight", "ln_f.bias"]]

    def _stored(self, names: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Names and shapes of what the package holds of these tensors."""
        from modelscope_polylm.network.gptq import part_shapes
        from modelscope_polylm.network.weights import PROJECTION

        shapes: dict[str, tuple[int, ...]] = {}
        for name in names:
            shape = self._source.shapes[name]
            is_projection = PROJECTION.fullmatch(name)
            shapes |= part_shapes(name, shape[1], shape[0], self._quantization.name) if is_projection else {name: shape}
        return shapes

    def _computed(self) -> Iterator[tuple[str, Tensor]]:
        from modelscope_polylm.network.gptq import part_name, to_parts

        embeddings, *layers, last = self._blocks()
        yield from self._read(embeddings)
        quantize = self._quantizer()
        for layer, names in enumerate(layers):
            tensors = dict(self._read(names))
            yield from ((name, tensor) for name, tensor in tensors.items() if name.endswith("bias") or ".ln_" in name)
            prefix = f"h.{layer}."
            own = {name.removeprefix(prefix): _network_layout(name, tensor) for name, tensor in tensors.items()}
            for name, matrix in quantize(own):
                parts = to_parts(matrix)
                yield from ((part_name(f"{prefix}{name}", part), tensor.cpu()) for part, tensor in parts.items())
        yield from self._read(last)

    def _read(self, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of the source in the order of the names. Raises SnapshotError where they are not finite."""
        from modelscope_polylm.network.weights import not_finite

        tensors = dict(self._source.tensors(names))
        if damaged := not_finite(tensors):
            raise SnapshotError(
                f"Tensor {damaged[0]} cannot be quantised: it holds NaN or infinity, so the source is damaged or its "
                "training diverged."
            )
        yield from ((name, tensors[name]) for name in names)

    def _quantizer(self) -> Quantizer:
        """What quantises one layer after the other."""
        from modelscope_polylm.backends.placement import choose_device
        from modelscope_polylm.packaging.calibration import Calibration

        device, name = choose_device(self._quantization.device), self._quantization.name
        if self._quantization.method == "round":
            return functools.partial(_rounded, quantization=name, device=device)
        return Calibration(self._config, self._embedded(), name, device).layer

    def _embedded(self) -> list[Tensor]:
        """The embeddings [tokens, hidden_size] fp32 of the calibration text, positions included."""
        import torch

        (_, tokens), (_, positions) = self._read(("wte.weight", "wpe.weight"))
        return [tokens[torch.tensor(ids)].float() + positions[: len(ids)].float() for ids in self._windows]


def _windows(tokenizer: PolyLMTokenizer, length: int, quantization: Quantization) -> list[list[int]]:
    """The calibration text as token ids, cut to what fits the context; no more than MOST_TOKENS in all."""
    if quantization.method == "round":
        return []
    own = quantization.calibration
    texts = ["\n".join(each) for each in sentences().values()] if own is None else [own]
    ids = [tokenizer.encode(text)[:MOST_TOKENS] for text in texts]
    windows = [each[start : start + length] for each in ids for start in range(0, len(each), length)]
    if not windows:
        raise InputError("The calibration text is empty: give a text of the kind that the model is used for.")
    return windows


def _rounded(
    weights: Mapping[str, Tensor], quantization: str, device: torch.device
) -> Iterator[tuple[str, QuantizedMatrix]]:
    """Round the projections [out, in] of a layer."""
    from modelscope_polylm.network.quantization import quantize

    for name in PROJECTIONS:
        yield f"{name}.weight", quantize(weights[f"{name}.weight"].to(device), quantization)


def _network_layout(name: str, tensor: Tensor) -> Tensor:
    """A tensor of a GPT-2 checkpoint as the network uses it: projections are [out, in]."""
    from modelscope_polylm.network.weights import PROJECTION

    return tensor.t() if PROJECTION.fullmatch(name) else tensor
