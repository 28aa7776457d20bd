"""The operations of prefill and of one decode step: Triton kernels for CUDA, each beside a plain torch twin.

`linear.py`, `attention.py`, `prefill_attention.py`, `layer_norm.py` and `output.py` hold the public functions and the
twins; `*_triton.py` hold the kernels and are imported on first use, so that this package works where Triton is not
installed.
"""
