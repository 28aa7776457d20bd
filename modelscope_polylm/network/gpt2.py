"""The GPT-2 decoder: prefill of whole prompts and decoding of one token, two functions with fixed shapes.

Follows `transformers.models.gpt2.modeling_gpt2` (pre-LayerNorm, learned positions, tanh GELU, tied output layer), with
the residual stream, the softmax and the logits in fp32, as PolyLM was trained (arXiv 2307.06018, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from modelscope_polylm.network.cache import KVCache
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.kernels.attention import decode_attention
from modelscope_polylm.network.kernels.layer_norm import layer_norm
from modelscope_polylm.network.kernels.linear import add_product_, linear, linear_add_, linear_reference
from modelscope_polylm.network.kernels.prefill_attention import prefill_attention


class Decoder:
    """PolyLM's network over a set of declared weights (`network.weights.declared_shapes`). It holds no request state.

    Args:
        config: the sizes.
        weights: tensors by canonical name, all of one floating dtype on one device.
    """

    def __init__(self, config: PolyLMConfig, weights: Mapping[str, Tensor]):
        self.config = config
        self.embedding = weights["wte.weight"]
        self.position_embedding = weights["wpe.weight"]
        self.final_norm = (weights["ln_f.weight"], weights["ln_f.bias"])
        self._layers = [_LayerWeights(weights, f"h.{layer}.") for layer in range(config.layers)]
        self._bias_sums = _bias_sums(self._layers)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.embedding.dtype

    def prefill(
        self, tokens: Tensor, slots: Tensor | None = None, cache: KVCache | None = None, last: Tensor | None = None
    ) -> Tensor:
        """Run whole prompts, padded on the right, and keep their keys and values.

        Args:
            tokens: [prompts, length] int64; what stands behind a prompt's end does not change the prompt's result.
            slots: [prompts, length] int64, the cache slot of each position.
            cache: written at `slots`; None keeps nothing.
            last: [prompts] int64, the position of each prompt's last token, where only that one is wanted.

        Returns:
            The hidden states behind the final LayerNorm, in the weights' dtype: [prompts, length, width], or
            [prompts, width] with `last`.
        """
        # tokens: [prompts, length] -> [prompts, length, width] or [prompts, width]
        prompts, length = tokens.shape
        positions = torch.arange(length, device=tokens.device).repeat(prompts)
        residual = self._embed(tokens.reshape(-1), positions)
        chosen = None if last is None else torch.arange(prompts, device=tokens.device) * length + last
        result = self._prefill_layers(residual, prompts, None if slots is None else slots.reshape(-1), cache, chosen)
        return result.view(prompts, length, -1) if last is None else result

    def _prefill_layers(
        self, residual: Tensor, prompts: int, slots: Tensor | None, cache: KVCache | None, chosen: Tensor | None
    ) -> Tensor:
        # residual: [tokens, width] fp32, slots: [tokens] -> [n, width], those that are chosen in the last layer, or all
        # the residual stream leaves out the projections' biases, whose sum so far each LayerNorm adds
        epsilon, heads = self.config.epsilon, self.config.heads
        for layer, weights in enumerate(self._layers):
            before_attention, before_mlp = self._bias_sums[2 * layer], self._bias_sums[2 * layer + 1]
            qkv = linear_reference(layer_norm(residual, *weights.ln_1, epsilon, before_attention), *weights.c_attn)
            kept = None if cache is None or slots is None else (slots, *cache.layer(layer))
            mixed = prefill_attention(qkv, prompts, heads, kept)
            if chosen is not None and layer == self.config.layers - 1:
                mixed, residual = mixed[chosen], residual[chosen]
            add_product_(residual, mixed, weights.attn_c_proj[0])
            normal = layer_norm(residual, *weights.ln_2, epsilon, before_mlp)
            add_product_(residual, linear_reference(normal, *weights.c_fc, gelu=True), weights.mlp_c_proj[0])
        return layer_norm(residual, *self.final_norm, epsilon, self._bias_sums[-1])

    def decode(
        self, tokens: Tensor, lengths: Tensor, slot_table: Tensor, prompt_lengths: Tensor, group: int, cache: KVCache
    ) -> Tensor:
        """Run one token of every row and keep its key and value.

        Args:
            tokens: [rows] int64, the current tokens.
            lengths: [rows] int32, tokens already in the cache: the current token's position.
            slot_table: [rows, positions] int32, the cache slot of each position of each row.
            prompt_lengths: [rows] int32; positions before it share their slots within a group.
            group: consecutive rows that share a prompt: beams or samples.
            cache: read through `slot_table`, written at the current positions.

        Returns:
            [rows, width] in the weights' dtype, behind the final LayerNorm.
        """
        # tokens: [rows] -> [rows, width]
        epsilon = self.config.epsilon
        residual = self._embed(tokens, lengths)
        for layer, weights in enumerate(self._layers):
            qkv = linear(layer_norm(residual, *weights.ln_1, epsilon), *weights.c_attn)
            mixed = decode_attention(qkv, *cache.layer(layer), slot_table, lengths, prompt_lengths, group)
            linear_add_(residual, mixed, *weights.attn_c_proj)
            hidden = linear(layer_norm(residual, *weights.ln_2, epsilon), *weights.c_fc, gelu=True)
            linear_add_(residual, hidden, *weights.mlp_c_proj)
        return layer_norm(residual, *self.final_norm, epsilon)

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        # tokens, positions: [n] -> [n, width] fp32
        return self.embedding[tokens].float() + self.position_embedding[positions]


class _LayerWeights:
    def __init__(self, weights: Mapping[str, Tensor], prefix: str):
        def pair(name: str) -> tuple[Tensor, Tensor]:
            return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

        self.ln_1, self.ln_2 = pair("ln_1"), pair("ln_2")
        self.c_attn, self.attn_c_proj = pair("attn.c_attn"), pair("attn.c_proj")
        self.c_fc, self.mlp_c_proj = pair("mlp.c_fc"), pair("mlp.c_proj")


def _bias_sums(layers: list[_LayerWeights]) -> tuple[Tensor, ...]:
    # -> [width] fp32 for each LayerNorm, the sum of what the projections' biases have added before it
    biases = [bias for weights in layers for bias in (weights.attn_c_proj[1], weights.mlp_c_proj[1])]
    return torch.stack([torch.zeros_like(biases[0]), *biases]).float().cumsum(0).unbind()
