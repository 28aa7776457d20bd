"""The operations of prefill and of a decode step: Triton kernels for CUDA, each next to its reference in plain torch.

`linear.py`, `attention.py`, `prefill_attention.py`, `layer_norm.py` and `lm_head.py` hold the public functions and the
references, which a CPU runs; `*_triton.py` hold the kernels and are imported on first use, so that this package works
where Triton is not installed. `configs.py` chooses block shapes, `dispatch.py` the implementation.

With `KernelSettings.deterministic`, on compute capability 9.0 in bf16, the result of a kernel for a row does not depend
by a single bit on the rows next to it. What that rests on:

- a product's sums are never cut, and the matrix units' instructions of all sizes round alike (`products_triton.py`);
- attention is cut into blocks by position, and blocks are folded in order (`attention_triton.py`);
- other sums over a row take one number of warps for all numbers of rows, or are exact (`order_triton.py`).
"""
