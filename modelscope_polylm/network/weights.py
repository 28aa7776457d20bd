"""The declared tensors of the network, read from a snapshot's files straight to the target device and dtype."""

from __future__ import annotations

import contextlib
import logging
import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from modelscope_polylm.errors import DeviceError, SnapshotError, shortened, shown
from modelscope_polylm.network.checkpoint import read_weight_index, tensor_problems
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.gptq import PARTS, from_parts, is_integer, part_shapes, projection_of
from modelscope_polylm.network.loader import TensorSource, transfer
from modelscope_polylm.network.quantization import (
    FORMATS,
    QUANTIZATIONS,
    QuantizedMatrix,
    Weight,
    joined,
    quantize,
)
from modelscope_polylm.network.weight_formats import TensorHeader

logger = logging.getLogger(__name__)

PREFIX = "transformer."
WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|base_model\.model)\.)*(?:transformer\.)?")
"""What DataParallel, torch.compile, PEFT and transformers put before the names of tensors."""
HEAD = "lm_head.weight"
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
PROJECTION = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
EMBEDDING = "wte.weight"
BLOCK_ROWS = 16384
"""Rows of a tensor that are compared, checked or quantised at once."""
QUANTIZED_AHEAD_BYTES = 256 << 20
"""Bytes of tensors that may be on their way to a GPU while one is quantised, where memory is what is short."""

Change = Callable[[str, Tensor], Tensor]
"""From the name of a tensor and the tensor, projections as [out, in], to what is to be used in its place."""


def declared_shapes(config: PolyLMConfig) -> dict[str, tuple[int, ...]]:
    """Map the name of every tensor to its shape as the network uses it; projection matrices are [out, in]."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, hidden),
        "wpe.weight": (config.max_positions, hidden),
    }
    for layer in range(config.layers):
        for name, outputs, inputs in (
            ("ln_1", hidden, 0),
            ("attn.c_attn", 3 * hidden, hidden),
            ("attn.c_proj", hidden, hidden),
            ("ln_2", hidden, 0),
            ("mlp.c_fc", inner, hidden),
            ("mlp.c_proj", hidden, inner),
        ):
            shapes[f"h.{layer}.{name}.weight"] = (outputs, inputs) if inputs else (outputs,)
            shapes[f"h.{layer}.{name}.bias"] = (outputs,)
    return {**shapes, "ln_f.weight": (hidden,), "ln_f.bias": (hidden,)}


def format_of(name: str, quantization: str | None) -> str | None:
    """The format of a tensor under a quantization; None: it is kept as it is."""
    if quantization is None:
        return None
    projections, embedding = QUANTIZATIONS[quantization]
    return embedding if name == EMBEDDING else projections if PROJECTION.fullmatch(name) else None


def weight_bytes(config: PolyLMConfig, itemsize: int, quantization: str | None = None) -> int:
    """Bytes of all declared tensors; `itemsize` is that of a number which is not quantised."""
    total = 0
    for name, shape in declared_shapes(config).items():
        is_stored = config.quantization is not None and PROJECTION.fullmatch(name)
        chosen = config.quantization if is_stored else format_of(name, quantization)
        total += FORMATS[chosen].bytes_of(*shape) if chosen else math.prod(shape) * itemsize
    return total


def projection_bytes(config: PolyLMConfig, itemsize: int, quantization: str | None = None) -> int:
    """Bytes of all projections; `itemsize` is that of a number which is not quantised."""
    shapes = {name: shape for name, shape in declared_shapes(config).items() if PROJECTION.fullmatch(name)}
    formats = {name: format_of(name, quantization) for name in shapes}
    return sum(
        math.prod(shape) * itemsize if (chosen := formats[name]) is None else FORMATS[chosen].bytes_of(*shape)
        for name, shape in shapes.items()
    )


def network_name(stored: str) -> str:
    """Return the network's name of a tensor in a file: its name there without what wrappers put before it."""
    return WRAPPERS.sub("", stored, count=1)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Name the tensors that hold NaN or infinity.

    Each device reduces its tensors one after the other, and tells the results once: nothing waits for a single tensor.
    This reads the weights once and takes no memory; on two cores 0.3 s of the 1.6 s in which 0.67 GB of bf16 load.
    """
    # tensors: any shapes -> flags [tensors] of each device; NaN in a tensor becomes its minimum and maximum
    flags: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            flags.setdefault(tensor.device, []).append((name, _is_finite(tensor)))
    return [name for found in flags.values() for name in _not_set(found)]


def _is_finite(tensor: Tensor) -> Tensor:
    # tensor: any shape, not empty -> [] bool
    return torch.stack(torch.aminmax(tensor)).isfinite().all()


def _not_set(flags: Sequence[tuple[str, Tensor]]) -> list[str]:
    # flags: [] bool, of one device
    values = torch.stack([flag for _, flag in flags]).tolist() if flags else []
    return list(dict.fromkeys(name for (name, _), value in zip(flags, values, strict=True) if not value))


class WeightFiles:
    """The weights of a snapshot on disk, in any of the layouts in which PolyLM is published.

    Tensor names may carry the prefixes of wrappers, such as "transformer." or "module.". Causal masks and the copy of
    the embedding in `lm_head.weight` are dropped. Projection matrices may be Conv1D's [in, out] or nn.Linear's
    [out, in].
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = read_weight_index(self.folder)
        self.files = index.files
        self._index_problems = index.problems
        self._assigned = index.assigned

    def file_problems(self) -> list[str]:
        """List the files that are missing or cannot be read, a line each. Reads headers only."""
        return [*self._index_problems, *shortened([file.problem for file in self.files if file.problem])]

    def problems(self, config: PolyLMConfig) -> list[str]:
        """List every problem of the files and their headers, a line each; none if `load` will work."""
        problems = self.file_problems()
        if self._index_problems:
            return problems
        broken = [file for file in self.files if file.problem]
        if broken and not self._assigned:
            return problems
        expected = self._stored_shapes(config)
        for file in broken:
            for name in self._assigned[file.path.name]:
                expected.pop(network_name(name), None)
        integers = {name for name in expected if is_integer(name)}
        tensors = [*shortened(self._duplicates()), *tensor_problems(expected, self._found(), integers)]
        return [*problems, *(tensors or self._size_problems())]

    def is_conv1d(self, config: PolyLMConfig) -> bool:
        """Tell whether projections are stored as Conv1D's [in, out], as published, not as nn.Linear's [out, in]."""
        linear = (3 * config.hidden_size, config.hidden_size)
        return all(header.shape != linear for name, header in self.headers() if name.endswith("attn.c_attn.weight"))

    def wrapper_prefix(self) -> str | None:
        """Return what a wrapper put before names, such as "module.", and other readers do not know; None: nothing."""
        stored = (name for file in self.files if not file.problem for name in file.headers)
        prefixes = (name.removesuffix(network_name(name)) for name in stored)
        return next((prefix for prefix in prefixes if prefix not in ("", PREFIX)), None)

    def headers(self) -> Iterator[tuple[str, TensorHeader]]:
        """Yield the network's name and the header of every tensor in the files that can be read."""
        for file in self.files:
            if not file.problem:
                yield from ((network_name(stored), header) for stored, header in file.headers.items())

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, TensorSource]]:
        """Yield the tensors of these names, in the order and the layout of the files."""
        for file in self.files:
            wanted = {stored for stored in file.headers if network_name(stored) in names}
            for stored, tensor in file.tensors(wanted) if wanted else ():
                header = file.headers[stored]
                source = TensorSource(tensor, file.path, header.start) if header.is_contiguous else TensorSource(tensor)
                yield network_name(stored), source

    def load(self, config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Read every declared tensor; besides the result the host holds one file, and what `loader.transfer` takes.

        Returns:
            The tensors of `declared_shapes`, on the device and of the dtype.

        Raises:
            SnapshotError: all problems of the files, a line each; projections that they hold quantised; or numbers that
                are not finite, or not in the dtype.
            DeviceError: the weights do not fit on the device.
        """
        self._check(config)
        if config.quantization is not None:
            raise SnapshotError(
                f"{self.folder} is quantised ({config.quantization}), and its plain numbers are needed here: take the "
                "model that it was made from."
            )
        is_conv1d = self.is_conv1d(config)
        weights: dict[str, Tensor] = {}
        with _explained(device, config.parameters * dtype.itemsize):
            for name, tensor, moved in transfer(self.tensors(set(declared_shapes(config))), device):
                transposed = is_conv1d and PROJECTION.fullmatch(name) is not None
                weights[name] = materialize(tensor, moved, dtype, transposed)
            self._compare_head(weights[EMBEDDING])
        self.refuse(not_finite(weights), dtype)
        return weights

    def load_quantized(
        self,
        config: PolyLMConfig,
        device: torch.device,
        dtype: torch.dtype,
        quantization: str,
        change: Change | None = None,
    ) -> dict[str, Weight]:
        """Read every declared tensor, and quantise each on the device before the next ones come.

        The device never holds more than the result, one tensor and QUANTIZED_AHEAD_BYTES; the token embedding comes in
        pieces.

        Args:
            config: the network.
            device: where the weights go.
            dtype: of products, and of tensors that are not quantised.
            quantization: one of QUANTIZATIONS.
            change: applied to tensors before they are quantised.

        Raises:
            SnapshotError, DeviceError: as `load`.
        """
        self._check(config)
        is_conv1d = self.is_conv1d(config)
        weights: dict[str, Weight] = {}
        parts: list[QuantizedMatrix] = []
        flags: list[tuple[str, Tensor]] = []
        with _explained(device, weight_bytes(config, dtype.itemsize, quantization)):
            for name, tensor, moved in transfer(self._pieces(config), device, QUANTIZED_AHEAD_BYTES):
                flags.append((name, _is_finite(moved)))
                chosen = format_of(name, quantization)
                if chosen is None:
                    weights[name] = materialize(tensor, moved, dtype, False)
                    flags.append((name, _is_finite(moved.to(dtype))))
                    continue
                source = moved.t() if is_conv1d and name != EMBEDDING else moved
                matrix = quantize(source if change is None else change(name, source), chosen, dtype)
                if name == EMBEDDING:
                    parts.append(matrix)
                else:
                    weights[name] = matrix
            weights[EMBEDDING] = joined(parts)
            del parts
            self._compare_head(weights[EMBEDDING])
        self.refuse(_not_set(flags), dtype)
        return weights

    def load_gptq(self, config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Weight]:
        """Read every declared tensor of files that hold the projections in GPTQ's format.

        Args:
            config: the network, with its `quantization`.
            device: where the weights go.
            dtype: of products, and of tensors that are not quantised.

        Raises:
            SnapshotError, DeviceError: as `load`; or a projection of another kind than `network.gptq` reads.
        """
        self._check(config)
        assert config.quantization is not None, "files of plain numbers"
        weights: dict[str, Weight] = {}
        parts: dict[str, dict[str, Tensor]] = {}
        flags: list[tuple[str, Tensor]] = []
        with _explained(device, weight_bytes(config, dtype.itemsize)):
            for name, tensor, moved in transfer(self.tensors(set(self._stored_shapes(config))), device):
                projection, part = projection_of(name)
                kept = materialize(tensor, moved, moved.dtype if part else dtype, False)
                flags.append((name, _is_finite(kept)))
                if part is None:
                    weights[name] = kept
                    continue
                found = parts.setdefault(projection, {})
                found[part] = kept
                if len(found) == len(PARTS):
                    weights[projection] = from_parts(projection, parts.pop(projection), config.quantization, dtype)
        self.refuse(_not_set(flags), dtype)
        return weights

    def _pieces(self, config: PolyLMConfig) -> Iterator[tuple[str, TensorSource]]:
        """All declared tensors, the token embedding in blocks of rows."""
        for name, source in self.tensors(set(declared_shapes(config))):
            yield from ((name, piece) for piece in (source.split(BLOCK_ROWS) if name == EMBEDDING else [source]))

    def check_finite(self, config: PolyLMConfig, dtype: torch.dtype, names: Collection[str] | None = None) -> None:
        """Read weights that others load, and raise SnapshotError where numbers are not finite, or not in the dtype.

        Args:
            config: the network.
            dtype: in which the weights will be held.
            names: of the tensors to read; None: all.
        """
        self._check(config)
        damaged = [
            name
            for name, source in self.tensors(set(self._stored_shapes(config)) if names is None else names)
            if not is_integer(name)
            if any(not_finite({name: block.to(dtype)}) for block in source.tensor.split(BLOCK_ROWS))
        ]
        self.refuse(damaged, dtype)

    def refuse(self, names: Collection[str], dtype: torch.dtype) -> None:
        """Raise SnapshotError for tensors that are not finite in a dtype, saying which are so in the files already."""
        lines = []
        for name, source in self.tensors(names) if names else ():
            if not_finite({name: source.tensor}):
                lines.append(f"tensor {name} holds NaN or infinity: the file is damaged, or its training diverged.")
            else:
                own, wanted = str(source.tensor.dtype)[6:], str(dtype)[6:]
                lines.append(f"tensor {name}, stored as {own}, holds numbers beyond the range of {wanted}.")
        if lines:
            raise SnapshotError("\n".join([f"The weights in {self.folder} cannot be used:", *shortened(lines)]))

    def _check(self, config: PolyLMConfig) -> None:
        if problems := self.problems(config):
            raise SnapshotError("\n".join([f"The weights in {self.folder} cannot be used:", *problems]))

    def _found(self) -> dict[str, TensorHeader]:
        return {name: header for name, header in self.headers() if name != HEAD and not MASK.fullmatch(name)}

    def _duplicates(self) -> list[str]:
        counts = Counter(name for name, _ in self.headers())
        return [f"tensor {shown(name)} is stored twice" for name, count in counts.items() if count > 1]

    def _size_problems(self) -> list[str]:
        # views of one storage would take the memory of many
        needed = sum(header.nbytes for header in self._found().values())
        stored = sum(file.path.stat().st_size for file in self.files if not file.problem)
        if needed <= stored:
            return []
        return [f"the tensors have {needed:,} bytes, but the files {stored:,}: tensors share their numbers"]

    def _stored_shapes(self, config: PolyLMConfig) -> dict[str, tuple[int, ...]]:
        shapes = declared_shapes(config)
        if config.quantization is not None:
            return {
                stored: size
                for name, shape in shapes.items()
                for stored, size in _parts_or_whole(name, shape, config.quantization).items()
            }
        if not self.is_conv1d(config):
            return shapes
        return {name: shape[::-1] if PROJECTION.fullmatch(name) else shape for name, shape in shapes.items()}

    def _compare_head(self, embedding: Weight) -> None:
        # embedding: [vocab, hidden]
        for _, head in self.tensors({HEAD}):
            if head.tensor.shape != embedding.shape or not _equal(head, embedding):
                logger.warning(
                    "%s: lm_head.weight differs from wte.weight and is not used; PolyLM's output layer is wte.weight. "
                    "If these weights were trained with an output layer of their own, answers will be wrong.",
                    self.folder,
                )


def _parts_or_whole(name: str, shape: tuple[int, ...], quantization: str) -> dict[str, tuple[int, ...]]:
    """Shapes of what files hold of a tensor where projections are in GPTQ's format."""
    return part_shapes(name, shape[0], shape[1], quantization) if PROJECTION.fullmatch(name) else {name: shape}


def materialize(tensor: Tensor, moved: Tensor, dtype: torch.dtype, transposed: bool) -> Tensor:
    """Convert and perhaps transpose a mapped tensor that was `moved` to the device; the result is never mapped."""
    # tensor, moved: any shape, or [in, out] if transposed -> the same shape, or [out, in]
    source = moved.t() if transposed else moved
    if moved is not tensor and moved.dtype == dtype and not transposed:
        return moved
    return torch.empty(source.shape, dtype=dtype, device=moved.device).copy_(source)


@contextlib.contextmanager
def _explained(device: torch.device, size: int) -> Iterator[None]:
    """Tell people of memory that is missing; `size` is what the weights take."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        text = f"{device} has no room for {size / 2**30:.1f} GiB of weights: free memory or use more GPUs."
        raise DeviceError(text) from error


def _is_out_of_memory(error: Exception) -> bool:
    # torch has a class for it on GPUs alone
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def _equal(head: TensorSource, embedding: Weight) -> bool:
    # head.tensor, embedding: [vocab, hidden]
    starts = range(0, len(embedding), BLOCK_ROWS)
    moved_blocks = transfer(zip(starts, head.split(BLOCK_ROWS), strict=True), embedding.device)
    return all(_equal_rows(moved, embedding, start) for start, _, moved in moved_blocks)


def _equal_rows(rows: Tensor, embedding: Weight, first: int) -> bool:
    # rows: [n, hidden], embedding: [vocab, hidden]
    if isinstance(embedding, Tensor):
        return torch.equal(rows.to(embedding.dtype), embedding[first : first + len(rows)])
    own, expected = quantize(rows, embedding.format), embedding.part(first, len(rows))
    return torch.equal(own.words, expected.words) and torch.equal(own.scales, expected.scales)
