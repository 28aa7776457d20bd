from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from modelscope_polylm.errors import OptionError
from modelscope_polylm.network.kernels import dispatch


def test_settings_hold_inside_the_block_only():
    before = dispatch.settings.mode, dispatch.settings.overlap
    with pytest.raises(RuntimeError), dispatch.kernel_settings("torch", overlap=False):
        assert (dispatch.settings.mode, dispatch.settings.overlap) == ("torch", False)
        raise RuntimeError
    assert (dispatch.settings.mode, dispatch.settings.overlap) == before


def test_unknown_mode_is_refused():
    with pytest.raises(OptionError, match="'cuda' is not a kernel mode"), dispatch.kernel_settings("cuda"):
        pass


def test_cpu_tensors_take_the_reference():
    with dispatch.kernel_settings("auto"):
        assert not dispatch.uses_triton(torch.zeros(2))


def test_wrong_environment_is_refused():
    program = "import os; os.environ['POLYLM_KERNELS'] = 'fast'; import modelscope_polylm.network.kernels.dispatch"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "POLYLM_KERNELS='fast' is not a kernel mode" in result.stderr


def test_public_modules_do_not_import_triton():
    program = (
        "import sys; from modelscope_polylm.network.kernels import attention, layer_norm, linear, lm_head; "
        "from modelscope_polylm.network.kernels import prefill_attention; "
        "sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
