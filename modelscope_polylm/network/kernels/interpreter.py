"""Triton's interpreter, which runs the kernels on a CPU for tests."""

from __future__ import annotations

import os
import sys
from typing import Any

from modelscope_polylm.network.kernels.dispatch import triton_available


def use_interpreter() -> bool:
    """Makes kernels run on the CPU; False where Triton is missing or was imported for a real device before."""
    if not triton_available() or ("triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1"):
        return False
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor
    if patch.__name__ == "_patch_lang_tensor":
        interpreter._patch_lang_tensor = _with_index(patch)
    return True


def _with_index(patch: Any) -> Any:
    """Loop bounds from tensors, which Triton before 3.9 cannot read with numpy 2.4 and later."""

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    return patched
