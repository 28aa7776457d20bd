"""The network as it is trained: transformers' GPT-2, with a loss, an attention and a residual stream of its own."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface, GPT2Config, GPT2LMHeadModel, set_seed

from modelscope_polylm.network.kernels.quantized import plain
from modelscope_polylm.network.quantization import Weight
from modelscope_polylm.network.weights import PROJECTION
from modelscope_polylm.training.collate import IGNORED
from modelscope_polylm.training.projections import QuantizedConv1D, adapt_in_one_product

if TYPE_CHECKING:
    from modelscope_polylm.snapshot import Snapshot
    from modelscope_polylm.training.options import TrainingOptions

CHUNK_LOGITS = 1 << 26
"""Most logits that exist at once: 256 MiB in fp32, 262 positions of PolyLM's vocabulary."""
VARLEN = "polylm_varlen"
"""Name of the attention that knows where examples begin, so that it needs no mask."""
LARGEST_VARLEN_HEAD = 256
ADAPTED = ["c_attn", "c_proj", "c_fc"]
"""GPT-2's projections: queries, keys and values; outputs of attention and feed-forward; input of the latter."""


class TrainedGPT2(GPT2LMHeadModel):  # type: ignore[misc, no-untyped-call]
    """GPT2LMHeadModel that returns the summed loss of a batch, never its logits.

    Attributes:
        residual_dtype: of the residual stream; None leaves it in the weights' dtype. Megatron-LM trained PolyLM with
            fp32, since bf16 made the loss jump (paper, section 3.3).
    """

    accepts_loss_kwargs = True
    residual_dtype: torch.dtype | None = None

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, shift_labels: Tensor, **unused: Any
    ) -> dict[str, Tensor]:
        """Run a batch.

        Args:
            input_ids: [rows, length] int64.
            position_ids: [rows, length] int64, beginning anew at 0 where an example does; examples do not see others.
            shift_labels: [rows, length] int64, what each position is to predict, or IGNORED.
            unused: what peft and transformers pass to every model.

        Returns:
            'loss': the sum over the positions to learn, fp32.
        """
        # input_ids, position_ids, shift_labels: [rows, length] -> scalar
        packed = example_starts(position_ids) if self.config._attn_implementation == VARLEN else {}
        hidden = self.transformer(input_ids, position_ids=position_ids, use_cache=False, **packed).last_hidden_state
        learnt = shift_labels != IGNORED
        return {"loss": tied_head_loss(hidden[learnt], self.lm_head.weight, shift_labels[learnt])}

    def keep_residual_in(self, dtype: torch.dtype | None) -> None:
        """Set the dtype of the residual stream, in which additions and LayerNorms happen."""
        self.residual_dtype = dtype
        if dtype is None:
            return
        self.transformer.drop.register_forward_hook(lambda module, inputs, output: output.to(dtype))
        for module in self.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.to(dtype)


def trained_model(
    snapshot: Snapshot,
    options: TrainingOptions,
    device: torch.device,
    dtype: torch.dtype,
    base: str | None = None,
    *,
    recomputed_blocks: int,
) -> torch.nn.Module:
    """The network of a snapshot as the options train it: itself with fp32 weights, or frozen within peft's adapter.

    Args:
        snapshot: an opened snapshot.
        options: complete; the seed is set, and an adapter begins with it.
        device: where the weights go.
        dtype: of the products, and of frozen weights.
        base: how the adapter names its base; the snapshot's folder if None.
        recomputed_blocks: blocks whose activations are computed again in the backward pass: the first ones, since those
            of the last ones are needed first.
    """
    set_seed(options.seed)
    is_full = options.method == "full"
    network = load_network(snapshot, device, torch.float32 if is_full else dtype, dtype, options.quantization)
    network.keep_residual_in(torch.float32 if options.residual == "float32" else None)
    if recomputed_blocks:
        renamed = getattr(network, "activation_checkpointing_enable", None)  # its name from transformers 5.24 on
        (renamed or network.gradient_checkpointing_enable)({"use_reentrant": False})
        kept: Any = network.transformer.h[recomputed_blocks:]
        for block in kept:
            block.gradient_checkpointing = False
    return network if is_full else _with_adapter(network, options, base or str(snapshot.folder.resolve()))


def _with_adapter(network: TrainedGPT2, options: TrainingOptions, base: str) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    network.name_or_path = base  # peft takes it from there
    settings: dict[str, Any] = {"r": options.lora_rank, "lora_alpha": options.lora_alpha}
    config = LoraConfig(
        task_type="CAUSAL_LM",
        lora_dropout=options.lora_dropout,
        target_modules=ADAPTED,
        fan_in_fan_out=True,  # GPT-2's Conv1D
        **settings,
    )
    model: torch.nn.Module = get_peft_model(network, config)
    adapt_in_one_product(model)
    return model


def load_network(
    snapshot: Snapshot,
    device: torch.device,
    dtype: torch.dtype,
    product_dtype: torch.dtype,
    quantization: str | None = None,
) -> TrainedGPT2:
    """The network of a snapshot, in any of the layouts in which PolyLM is published.

    Args:
        snapshot: an opened snapshot.
        device: where the weights go.
        dtype: of the weights.
        product_dtype: of the products, where autocast makes it another one.
        quantization: 'int8' or 'int4' of the projections, which are frozen; the embedding is rounded as that
            quantization rounds it, and held in `dtype`.

    Raises:
        SnapshotError: weights that cannot be read.
        DeviceError: no room for them.
    """
    config = GPT2Config(
        **{**snapshot.config.to_dict(), "activation_function": "gelu_pytorch_tanh"},  # the same function, in one kernel
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        use_cache=False,
        bos_token_id=None,
        eos_token_id=snapshot.tokenizer.eos_token_id,
    )
    config._attn_implementation = attention_for(device, product_dtype, snapshot.config.head_dim)
    weights: dict[str, Weight] = {}
    if quantization is None:
        weights.update(snapshot.weight_files.load(snapshot.config, device, dtype))
    else:
        weights.update(snapshot.weight_files.load_quantized(snapshot.config, device, dtype, quantization))
    with torch.device("meta"):
        model = TrainedGPT2(config)
    _assign(model, weights)
    model.tie_weights()
    return model


def _assign(model: TrainedGPT2, weights: dict[str, Weight]) -> None:
    """Put weights into a model without any; `weights` is emptied, so that no matrix is there twice for long."""
    tensors: dict[str, Tensor] = {}
    for name in list(weights):
        weight, stored = weights.pop(name), f"transformer.{name}"
        if isinstance(weight, Tensor):
            # GPT-2's Conv1D holds [in, out]
            tensors[stored] = weight.t().contiguous() if PROJECTION.fullmatch(name) else weight
        elif PROJECTION.fullmatch(name):
            bias = torch.empty(len(weight), dtype=weight.dtype, device="meta")
            model.set_submodule(stored.removesuffix(".weight"), QuantizedConv1D(weight, bias))
        else:
            tensors[stored] = plain(weight)
    model.load_state_dict({**tensors, "lm_head.weight": tensors["transformer.wte.weight"]}, assign=True)


def attention_for(device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The attention to train with: without a mask where the device has that, else torch's with one."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    if device.type != "cuda" or not is_half or head_dim > LARGEST_VARLEN_HEAD or not _has_varlen():
        return "sdpa"
    AttentionInterface.register(VARLEN, _varlen_attention)
    return VARLEN


def _has_varlen() -> bool:
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def example_starts(position_ids: Tensor) -> dict[str, Any]:
    """Where examples begin in a batch whose rows are put one after the other.

    Returns:
        Under the names of transformers' packed attention: [examples + 1] int32, and the longest example's length.
    """
    # position_ids: [rows, length]
    flat = position_ids.flatten()
    starts = torch.nonzero(flat == 0).flatten()
    bounds = F.pad(starts, (0, 1), value=len(flat)).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def _varlen_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int = 0,
    **unused: Any,
) -> tuple[Tensor, None]:
    # query, key, value: [rows, heads, length, head_dim] -> [rows, length, heads, head_dim]
    from torch.nn.attention.varlen import varlen_attn

    flat = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value)]
    bounds: Any = cu_seq_lens_q
    mixed: Any = varlen_attn(
        flat[0], flat[1], flat[2], bounds, bounds, max_length_q, max_length_q, scale=scaling, window_size=(-1, 0)
    )
    return mixed.unflatten(0, (query.shape[0], query.shape[2])), None


def tied_head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Summed cross-entropy of the output layer, whose logits never exist all at once.

    On a GPU Liger's fused kernel computes it where liger-kernel is installed.

    Args:
        hidden: [positions, width] after the final LayerNorm.
        weight: [vocab, width], the embedding.
        targets: [positions] int64.

    Returns:
        fp32 scalar; its gradients are those of `F.cross_entropy(F.linear(hidden, weight), targets, reduction='sum')`.
    """
    # hidden: [positions, width], weight: [vocab, width], targets: [positions] -> scalar
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        # the casts are part of the graph: gradients come in the dtypes of what was given
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        fused = _liger_loss() if device == "cuda" and len(targets) else None
        loss: Tensor = fused(weight, hidden, targets) if fused else _ChunkedLoss.apply(hidden, weight, targets)  # type: ignore[no-untyped-call]
    return loss.float()


def _liger_loss() -> Any:
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss
    except ImportError:
        return None
    return LigerFusedLinearCrossEntropyLoss(reduction="sum")


class _ChunkedLoss(torch.autograd.Function):
    """A few positions at a time; gradients are computed together with the loss, so that no logits are kept."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        # hidden: [positions, width], weight: [vocab, width], targets: [positions] -> scalar
        wants_hidden, wants_weight, _ = ctx.needs_input_grad
        hidden_gradient = torch.empty_like(hidden) if wants_hidden else None
        weight_gradient = torch.zeros_like(weight, dtype=torch.float32) if wants_weight else None
        loss = torch.zeros((), device=hidden.device)
        rows = max(1, CHUNK_LOGITS // len(weight))
        for start in range(0, len(targets), rows):
            part, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            logits = F.linear(part, weight).float()
            normalizer = logits.logsumexp(1, keepdim=True)
            loss += (normalizer - logits.gather(1, wanted)).sum()
            if hidden_gradient is None and weight_gradient is None:
                continue
            gradient = logits.sub_(normalizer).exp_()
            gradient.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=gradient.dtype))
            gradient = gradient.to(weight.dtype)
            if hidden_gradient is not None:
                torch.mm(gradient, weight, out=hidden_gradient[start : start + rows])
            if weight_gradient is not None:
                weight_gradient += gradient.t() @ part
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        # outer: scalar -> [positions, width], [vocab, width]
        hidden_gradient, weight_gradient = ctx.saved_tensors
        scale = outer[0]
        return (
            None if hidden_gradient is None else hidden_gradient * scale.to(hidden_gradient.dtype),
            None if weight_gradient is None else (weight_gradient * scale).to(ctx.dtype),
            None,
        )
