"""The tensors of a snapshot in the layout in which a package holds them, read a few rows at a time."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from modelscope_polylm.errors import SnapshotError
from modelscope_polylm.network.config import PolyLMConfig

if TYPE_CHECKING:
    from torch import Tensor

    from modelscope_polylm.network.weights import WeightFiles

CHUNK_BYTES = 4 << 20


class WeightSource:
    """Checked weight files, read as GPT-2 checkpoints hold them: projections are Conv1D's [in, out].

    Attributes:
        shapes: tensor names without prefix to shapes, in the order of the files.
        dtypes: torch's names of the types in which tensors are stored.
    """

    def __init__(self, files: WeightFiles, config: PolyLMConfig) -> None:
        """Raises SnapshotError with every problem of the files."""
        from modelscope_polylm.network.weights import PREFIX, PROJECTION, declared_shapes

        if problems := files.problems(config):
            raise SnapshotError("\n".join([f"The weights in {files.folder} cannot be used:", *problems]))
        self._files, self._prefix, declared = files.files, PREFIX, declared_shapes(config)
        headers = {
            name: header
            for file in self._files
            for stored, header in file.headers.items()
            if (name := stored.removeprefix(PREFIX)) in declared
        }
        is_linear = headers["h.0.attn.c_attn.weight"].shape == declared["h.0.attn.c_attn.weight"]
        self._turned = {name for name in headers if is_linear and PROJECTION.fullmatch(name)}
        self.shapes = {
            name: header.shape[::-1] if name in self._turned else header.shape for name, header in headers.items()
        }
        self.dtypes = {header.dtype for header in headers.values()}

    def tensors(self, names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, mapped from the files where possible, in the order of `shapes`."""
        for file in self._files:
            wanted = {stored for stored in file.headers if stored.removeprefix(self._prefix) in names}
            for stored, tensor in file.tensors(wanted) if wanted else ():
                name = stored.removeprefix(self._prefix)
                yield name, tensor.t() if name in self._turned else tensor

    def head_differs(self) -> bool:
        """Whether the files hold an `lm_head.weight` that is not the embedding, which is the output layer."""
        from modelscope_polylm.network.weights import HEAD

        heads = [file for file in self._files if HEAD in file.headers]
        if not heads:
            return False
        (_, head), (_, embedding) = next(heads[0].tensors({HEAD})), next(self.tensors({"wte.weight"}))
        if head.shape != embedding.shape:
            return True
        pairs = zip(row_chunks(head), row_chunks(embedding), strict=True)
        return not all(one.equal(other.to(one.dtype)) for one, other in pairs)


def row_chunks(tensor: Tensor) -> Iterator[Tensor]:
    """Whole rows of a tensor, as many as make about 4 MiB."""
    # tensor: [rows, ...] -> [some rows, ...]
    row = math.prod(tensor.shape[1:]) * tensor.element_size()
    rows = max(1, CHUNK_BYTES // row)
    for start in range(0, len(tensor), rows):
        yield tensor[start : start + rows]
