"""The GPT-2 decoder: prefill of whole prompts and decoding of one token, two functions with fixed shapes.

Follows `transformers.models.gpt2.modeling_gpt2` (pre-LayerNorm, learned positions, tanh GELU, tied output layer), with
the residual stream, the softmax and the logits in fp32, as PolyLM was trained (arXiv 2307.06018, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.cache import KVCache
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.kernels.attention import decode_attention
from modelscope_polylm.network.kernels.layer_norm import layer_norm
from modelscope_polylm.network.kernels.linear import linear, linear_add_

Attend = Callable[[int, Tensor], Tensor]


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

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.embedding.dtype

    def prefill(self, tokens: Tensor, slots: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Run whole prompts, padded on the right, and keep their keys and values.

        Args:
            tokens: [prompts, length] int64; what stands behind a prompt's end does not change the prompt's result.
            slots: [prompts, length] int64, the cache slot of each position.
            cache: written at `slots`; None keeps nothing.

        Returns:
            [prompts, length, width] in the weights' dtype: the hidden states behind the final LayerNorm.
        """
        # tokens: [prompts, length] -> [prompts, length, width]
        prompts, length = tokens.shape

        def attend(layer: int, qkv: Tensor) -> Tensor:
            # qkv: [prompts * length, 3 * width] -> [prompts * length, width]
            query, key, value = qkv.view(prompts, length, 3, self.config.heads, -1).permute(2, 0, 3, 1, 4)
            if cache is not None and slots is not None:
                cache.write(layer, slots.reshape(-1), key, value)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
            return mixed.transpose(1, 2).reshape(prompts * length, -1)

        positions = torch.arange(length, device=tokens.device).expand(prompts, length)
        return self._run(tokens.reshape(-1), positions.reshape(-1), attend).view(prompts, length, -1)

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
        def attend(layer: int, qkv: Tensor) -> Tensor:
            # qkv: [rows, 3 * width] -> [rows, width]
            keys, values = cache.layer(layer)
            return decode_attention(qkv, keys, values, slot_table, lengths, prompt_lengths, group)

        return self._run(tokens, lengths, attend)

    def _run(self, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        # tokens, positions: [rows] -> [rows, width]
        epsilon = self.config.epsilon
        residual = self.embedding[tokens].float() + self.position_embedding[positions]
        for layer, weights in enumerate(self._layers):
            mixed = attend(layer, linear(layer_norm(residual, *weights.ln_1, epsilon), *weights.c_attn))
            linear_add_(residual, mixed, *weights.attn_c_proj)
            hidden = linear(layer_norm(residual, *weights.ln_2, epsilon), *weights.c_fc, gelu=True)
            linear_add_(residual, hidden, *weights.mlp_c_proj)
        return layer_norm(residual, *self.final_norm, epsilon)


class _LayerWeights:
    def __init__(self, weights: Mapping[str, Tensor], prefix: str):
        def pair(name: str) -> tuple[Tensor, Tensor]:
            return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

        self.ln_1, self.ln_2 = pair("ln_1"), pair("ln_2")
        self.c_attn, self.attn_c_proj = pair("attn.c_attn"), pair("attn.c_proj")
        self.c_fc, self.mlp_c_proj = pair("mlp.c_fc"), pair("mlp.c_proj")
