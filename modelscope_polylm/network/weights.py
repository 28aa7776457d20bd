"""The declared tensors of the network, read from a snapshot's files straight to the target device and dtype."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from modelscope_polylm.errors import DeviceError, SnapshotError
from modelscope_polylm.network.checkpoint import CheckpointFile, TensorHeader, read_weight_index, tensor_problems
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.loader import Source, upload

logger = logging.getLogger(__name__)

PREFIX = "transformer."
HEAD = "lm_head.weight"
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")
PROJECTION = re.compile(r"h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
HEAD_ROWS = 16384


def declared_shapes(config: PolyLMConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor as the network uses it; projection matrices are [out, in]."""
    width, inner = config.hidden_size, config.intermediate_size
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, width),
        "wpe.weight": (config.max_positions, width),
    }
    for layer in range(config.layers):
        for name, outputs, inputs in (
            ("ln_1", width, 0),
            ("attn.c_attn", 3 * width, width),
            ("attn.c_proj", width, width),
            ("ln_2", width, 0),
            ("mlp.c_fc", inner, width),
            ("mlp.c_proj", width, inner),
        ):
            shapes[f"h.{layer}.{name}.weight"] = (outputs, inputs) if inputs else (outputs,)
            shapes[f"h.{layer}.{name}.bias"] = (outputs,)
    return {**shapes, "ln_f.weight": (width,), "ln_f.bias": (width,)}


class WeightFiles:
    """The weights of a snapshot on disk, in any of the layouts in which PolyLM is published.

    Tensor names may carry the prefix "transformer.". Causal masks and the copy of the embedding in `lm_head.weight` are
    dropped. Projection matrices may be Conv1D's [in, out] or nn.Linear's [out, in].
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        index = read_weight_index(self.folder)
        self.files = index.files
        self._index_problems = index.problems
        self._assigned = index.assigned

    def file_problems(self) -> list[str]:
        """A line for each file that is missing or cannot be read; empty if all are there. Reads headers only."""
        return [*self._index_problems, *(problem for file in self.files if (problem := _file_problem(file)))]

    def problems(self, config: PolyLMConfig) -> list[str]:
        """Every problem of the files and their tensors, a line each; empty if `load` will work. Reads headers only."""
        problems = self.file_problems()
        if self._index_problems:
            return problems
        broken = [file for file in self.files if _file_problem(file)]
        if broken and not self._assigned:
            return problems
        found, expected = self._found(), self._stored_shapes(config)
        for file in broken:
            for name in self._assigned[file.path.name]:
                expected.pop(name.removeprefix(PREFIX), None)
        return [*problems, *self._twice(), *tensor_problems(expected, found)]

    def load(self, config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """Read every declared tensor; beside the result the host holds one file, and what `network.upload` takes.

        Raises:
            SnapshotError: all problems of the files, a line each.
            DeviceError: the weights do not fit on the device.
        """
        problems = self.problems(config)
        if problems:
            raise SnapshotError("\n".join([f"The weights in {self.folder} cannot be used:", *problems]))
        turned = self._is_conv1d(config)
        weights: dict[str, Tensor] = {}
        try:
            for name, tensor, moved in upload(self._read(set(declared_shapes(config))), device):
                turn = turned and PROJECTION.fullmatch(name) is not None
                weights[name] = place(tensor, moved, dtype, turn)
            self._compare_head(weights["wte.weight"])
        except torch.OutOfMemoryError as error:
            size = config.parameters * dtype.itemsize / 2**30
            text = f"{device} has no room for {size:.1f} GiB of weights: free memory or use more GPUs."
            raise DeviceError(text) from error
        return weights

    def _read(self, names: set[str]) -> Iterator[tuple[str, Source]]:
        for file in self.files:
            wanted = {stored for stored in file.headers if stored.removeprefix(PREFIX) in names}
            for stored, tensor in file.tensors(wanted):
                begin = file.headers[stored].begin
                source = Source(tensor) if begin is None else Source(tensor, file.path, begin)
                yield stored.removeprefix(PREFIX), source

    def _headers(self) -> Iterator[tuple[str, TensorHeader]]:
        for file in self.files:
            if not _file_problem(file):
                for stored, header in file.headers.items():
                    yield stored.removeprefix(PREFIX), header

    def _found(self) -> dict[str, TensorHeader]:
        return {name: header for name, header in self._headers() if name != HEAD and not MASK.fullmatch(name)}

    def _twice(self) -> list[str]:
        names = [name for name, _ in self._headers()]
        return [f"tensor {name} is stored twice" for name in dict.fromkeys(names) if names.count(name) > 1]

    def _is_conv1d(self, config: PolyLMConfig) -> bool:
        linear = (3 * config.hidden_size, config.hidden_size)
        return all(header.shape != linear for name, header in self._headers() if name.endswith("attn.c_attn.weight"))

    def _stored_shapes(self, config: PolyLMConfig) -> dict[str, tuple[int, ...]]:
        shapes = declared_shapes(config)
        if not self._is_conv1d(config):
            return shapes
        return {name: shape[::-1] if PROJECTION.fullmatch(name) else shape for name, shape in shapes.items()}

    def _compare_head(self, embedding: Tensor) -> None:
        # embedding: [vocab, width]
        for _, head in self._read({HEAD}):
            if head.tensor.shape != embedding.shape or not _equal(head, embedding):
                logger.warning(
                    "%s: lm_head.weight differs from wte.weight and is not used; PolyLM's output layer is wte.weight. "
                    "If these weights were trained with an output layer of their own, answers will be wrong.",
                    self.folder,
                )


def place(tensor: Tensor, moved: Tensor, dtype: torch.dtype, turned: bool) -> Tensor:
    """A mapped tensor that was `moved` to the device, converted and, if asked for, transposed there; never the map."""
    # tensor, moved: any shape, or [in, out] if turned -> the same shape, or [out, in]
    source = moved.t() if turned else moved
    if moved is not tensor and moved.dtype == dtype and not turned:
        return moved
    return torch.empty(source.shape, dtype=dtype, device=moved.device).copy_(source)


def _equal(head: Source, embedding: Tensor) -> bool:
    # head.tensor, embedding: [vocab, width]
    blocks = zip(embedding.split(HEAD_ROWS), head.split(HEAD_ROWS), strict=True)
    moved_blocks = upload(blocks, embedding.device)
    return all(torch.equal(moved.to(embedding.dtype), expected) for expected, _, moved in moved_blocks)


def _file_problem(file: CheckpointFile) -> str | None:
    try:
        file.headers  # noqa: B018  (reading them is the check)
    except SnapshotError as error:
        return str(error)
    return None
