"""The GPT-2 decoder: prefill of whole prompts and decoding of one token, two functions with fixed shapes.

Follows `transformers.models.gpt2.modeling_gpt2` (pre-LayerNorm, learned positions, tanh GELU, tied output layer), with
the residual stream, the softmax and the logits in fp32, as PolyLM was trained (arXiv 2307.06018, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.kernels.attention import decode_attention
from modelscope_polylm.network.kernels.layer_norm import layer_norm
from modelscope_polylm.network.kernels.linear import add_product_, add_product_reference_, linear, linear_reference
from modelscope_polylm.network.kernels.prefill_attention import prefill_attention
from modelscope_polylm.network.kv_cache import KVCache

Norm = tuple[Tensor, Tensor, float, Tensor]
"""LayerNorm: weight, bias, epsilon, and the sum of the projections' biases, which the residual stream leaves out."""


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
        sums = _bias_sums(weights, config.layers)
        self._layers = [
            _LayerWeights(weights, f"h.{layer}.", config.epsilon, *sums[2 * layer : 2 * layer + 2])
            for layer in range(config.layers)
        ]
        self._final_norm: Norm = (weights["ln_f.weight"], weights["ln_f.bias"], config.epsilon, sums[-1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.embedding.dtype

    def prefill(
        self, tokens: Tensor, slots: Tensor | None = None, cache: KVCache | None = None, lengths: Tensor | None = None
    ) -> Tensor:
        """Run whole prompts, padded on the right, and keep their keys and values.

        Args:
            tokens: [prompts, length] int64; what stands behind a prompt's end does not change the prompt's result.
            slots: [prompts, length] int64, the cache slot of each position.
            cache: written at `slots`; None keeps nothing.
            lengths: [prompts], tokens of each prompt, where only the last one's result is wanted.

        Returns:
            The hidden states behind the final LayerNorm, in the weights' dtype: [prompts, length, width], or
            [prompts, width] with `lengths`.
        """
        # tokens: [prompts, length] -> [prompts, length, width] or [prompts, width]
        prompts, length = tokens.shape
        residual = self._embed(tokens, slice(length)).flatten(0, 1)
        result = self._prefill_layers(residual, prompts, None if slots is None else slots.reshape(-1), cache, lengths)
        return result.view(prompts, length, -1) if lengths is None else result

    def _prefill_layers(
        self, residual: Tensor, prompts: int, slots: Tensor | None, cache: KVCache | None, lengths: Tensor | None
    ) -> Tensor:
        # residual: [tokens, width] fp32, slots: [tokens], lengths: [prompts] -> [prompts, width], or [tokens, width]
        for layer, weights in enumerate(self._layers):
            qkv = linear_reference(layer_norm(residual, *weights.ln_1), *weights.c_attn)
            kept = None if cache is None or slots is None else (slots, *cache.layer(layer))
            mixed = prefill_attention(qkv, prompts, self.config.heads, kept)
            if lengths is not None and layer == self.config.layers - 1:
                last = torch.arange(0, len(residual), len(residual) // prompts, device=residual.device) + lengths - 1
                mixed, residual = mixed[last], residual[last]
            add_product_reference_(residual, mixed, weights.attn_c_proj)
            hidden = linear_reference(layer_norm(residual, *weights.ln_2), *weights.c_fc, gelu=True)
            add_product_reference_(residual, hidden, weights.mlp_c_proj)
        return layer_norm(residual, *self._final_norm)

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
        residual = self._embed(tokens, lengths)
        for layer, weights in enumerate(self._layers):
            qkv = linear(layer_norm(residual, *weights.ln_1), *weights.c_attn)
            mixed = decode_attention(qkv, *cache.layer(layer), slot_table, lengths, prompt_lengths, group)
            add_product_(residual, mixed, weights.attn_c_proj)
            hidden = linear(layer_norm(residual, *weights.ln_2), *weights.c_fc, gelu=True)
            add_product_(residual, hidden, weights.mlp_c_proj)
        return layer_norm(residual, *self._final_norm)

    def _embed(self, tokens: Tensor, positions: Tensor | slice) -> Tensor:
        # tokens: [..., n], positions: [n] or a range of n -> [..., n, width] fp32
        return self.embedding[tokens].float() + self.position_embedding[positions]


class _LayerWeights:
    def __init__(self, weights: Mapping[str, Tensor], prefix: str, epsilon: float, before: Tensor, between: Tensor):
        def pair(name: str) -> tuple[Tensor, Tensor]:
            return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

        self.ln_1: Norm = (*pair("ln_1"), epsilon, before)
        self.ln_2: Norm = (*pair("ln_2"), epsilon, between)
        self.c_attn, self.c_fc = pair("attn.c_attn"), pair("mlp.c_fc")
        self.attn_c_proj, self.mlp_c_proj = (weights[f"{prefix}{name}.c_proj.weight"] for name in ("attn", "mlp"))


def _bias_sums(weights: Mapping[str, Tensor], layers: int) -> tuple[Tensor, ...]:
    # -> [width] fp32 for each LayerNorm: what the biases of the projections before it have added
    biases = [weights[f"h.{layer}.{part}.c_proj.bias"] for layer in range(layers) for part in ("attn", "mlp")]
    return torch.stack([torch.zeros_like(biases[0]), *biases]).float().cumsum(0).unbind()


def token_losses(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """Negative natural log-likelihood of each token but the first, given those before it.

    Args:
        decoder: the network.
        ids: at least two token ids, at most as many as the network has positions.

    Returns:
        [len(ids) - 1] fp32 on the decoder's device.
    """
    # ids: [length] -> [length - 1]
    tokens = torch.tensor([list(ids)], device=decoder.device)
    hidden = decoder.prefill(tokens)[0, :-1]
    return F.cross_entropy(F.linear(hidden, decoder.embedding).float(), tokens[0, 1:], reduction="none")
