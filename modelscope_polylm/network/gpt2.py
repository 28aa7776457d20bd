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
from modelscope_polylm.network.kernels.linear import add_product_, linear
from modelscope_polylm.network.kernels.lm_head import lm_head_logits
from modelscope_polylm.network.kernels.prefill_attention import TILE, prefill_attention
from modelscope_polylm.network.kernels.quantized import embedding_rows
from modelscope_polylm.network.kv_cache import KVCache
from modelscope_polylm.network.quantization import Weight

Norm = tuple[Tensor, Tensor, float, Tensor]
"""LayerNorm: weight, bias, epsilon, and the sum of the projections' biases, which the residual stream leaves out."""


class Decoder:
    """PolyLM's network over a set of declared weights (`network.weights.declared_shapes`). It holds no request state.

    Args:
        config: the sizes.
        weights: tensors by canonical name, all of one floating dtype on one device; projections and the token embedding
            may be quantised, for products in that dtype.
    """

    def __init__(self, config: PolyLMConfig, weights: Mapping[str, Weight]):
        self.config = config
        self.embedding = weights["wte.weight"]
        self.position_embedding = _tensor(weights, "wpe.weight")
        sums = _bias_sums(weights, config.layers)
        self._layers = [
            _LayerWeights(weights, f"h.{layer}.", config.epsilon, *sums[2 * layer : 2 * layer + 2])
            for layer in range(config.layers)
        ]
        self._final_norm: Norm = (*_norm(weights, "ln_f"), config.epsilon, sums[-1])

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights' dtype."""
        return self.embedding.dtype

    def prefill(
        self,
        tokens: Tensor,
        positions: Tensor,
        tiles: Tensor,
        slot_table: Tensor,
        cache: KVCache,
        last: Tensor | None = None,
    ) -> Tensor:
        """Run segments of several rows, packed without padding, and keep their keys and values.

        A token sees all of its row up to itself, what was cached before included.

        Args:
            tokens: [total] int64, the segments one after the other.
            positions: [total] int64, the position of each token in its row.
            tiles: [m, 5] int32, pieces of segments: row, index of the first token, its position, how many tokens, at
                most 64, and the segment's first position; pieces without tokens are passed over.
            slot_table: [rows, positions] int32, the cache slot of each position of each row.
            cache: read and written through `slot_table`.
            last: [k] int64, indices of the tokens whose results are wanted; None wants all.

        Returns:
            The hidden states after the final LayerNorm, in the weights' dtype: [k, hidden_size], or
            [total, hidden_size].
        """
        # tokens, positions: [total] -> [k, hidden_size] or [total, hidden_size]
        residual = self._embed(tokens, positions)
        for layer, weights in enumerate(self._layers):
            qkv = linear(layer_norm(residual, *weights.ln_1), *weights.c_attn)
            keys, values, scales = cache.layer(layer)
            context = prefill_attention(qkv, keys, values, slot_table, tiles, scales=scales)
            if last is not None and layer == self.config.layers - 1:
                context, residual = context[last], residual[last]
            residual = self._feed_forward(residual, context, weights)
        return layer_norm(residual, *self._final_norm)

    def decode(
        self,
        rows: Tensor,
        groups: Tensor,
        tokens: Tensor,
        lengths: Tensor,
        prompt_lengths: Tensor,
        slot_table: Tensor,
        cache: KVCache,
    ) -> Tensor:
        """Run one token of each of some rows and keep its key and value.

        Args:
            rows: [n] int64, which rows of the tables below.
            groups: [n, 2] int32, the index in `rows` of the first row of each group, and the group's size; the rows of
                a group (beams or samples) share the slots of their prompt. A size of 0 is passed over.
            tokens: [all rows] int64, the current tokens.
            lengths: [all rows] int32, tokens already in the cache: the current token's position.
            prompt_lengths: [all rows] int32; positions before it share their slots within a group.
            slot_table: [all rows, positions] int32, the cache slot of each position of each row.
            cache: read through `slot_table`, written at the current positions.

        Returns:
            [n, hidden_size] in the weights' dtype, after the final LayerNorm.
        """
        # rows: [n] -> [n, hidden_size]
        compact = rows.int()
        residual = self._embed(tokens[rows], lengths[rows])
        for layer, weights in enumerate(self._layers):
            qkv = linear(layer_norm(residual, *weights.ln_1), *weights.c_attn)
            keys, values, scales = cache.layer(layer)
            state = (slot_table, compact, lengths, prompt_lengths, groups)
            context = decode_attention(qkv, keys, values, *state, scales=scales)
            residual = self._feed_forward(residual, context, weights)
        return layer_norm(residual, *self._final_norm)

    def _feed_forward(self, residual: Tensor, context: Tensor, weights: _LayerWeights) -> Tensor:
        # residual: [n, hidden_size] fp32, written in place; context: [n, hidden_size] -> residual
        add_product_(residual, context, weights.attn_c_proj)
        hidden = linear(layer_norm(residual, *weights.ln_2), *weights.c_fc, gelu=True)
        add_product_(residual, hidden, weights.mlp_c_proj)
        return residual

    def _embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        # tokens, positions: [n] -> [n, hidden_size] fp32
        return embedding_rows(self.embedding, tokens) + self.position_embedding[positions]


class _LayerWeights:
    def __init__(self, weights: Mapping[str, Weight], prefix: str, epsilon: float, *deferred_biases: Tensor):
        def pair(name: str) -> tuple[Weight, Tensor]:
            return weights[f"{prefix}{name}.weight"], _tensor(weights, f"{prefix}{name}.bias")

        self.ln_1: Norm = (*_norm(weights, f"{prefix}ln_1"), epsilon, deferred_biases[0])
        self.ln_2: Norm = (*_norm(weights, f"{prefix}ln_2"), epsilon, deferred_biases[1])
        self.c_attn, self.c_fc = pair("attn.c_attn"), pair("mlp.c_fc")
        self.attn_c_proj, self.mlp_c_proj = (weights[f"{prefix}{name}.c_proj.weight"] for name in ("attn", "mlp"))


def _tensor(weights: Mapping[str, Weight], name: str) -> Tensor:
    tensor = weights[name]
    assert isinstance(tensor, Tensor), f"{name} cannot be quantised"
    return tensor


def _norm(weights: Mapping[str, Weight], name: str) -> tuple[Tensor, Tensor]:
    return _tensor(weights, f"{name}.weight"), _tensor(weights, f"{name}.bias")


def _bias_sums(weights: Mapping[str, Weight], layers: int) -> tuple[Tensor, ...]:
    # -> [hidden_size] fp32 for each LayerNorm: what the biases of the projections before it have added
    names = [f"h.{layer}.{part}.c_proj.bias" for layer in range(layers) for part in ("attn", "mlp")]
    biases = [_tensor(weights, name) for name in names]
    return torch.stack([torch.zeros_like(biases[0]), *biases]).float().cumsum(0).unbind()


def prefill_whole(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """The hidden states [len(ids), hidden_size] of all tokens of one text, with a cache of its own."""
    # ids: [length] -> [length, hidden_size]
    length, device = len(ids), decoder.device
    cache = KVCache(decoder.config, 1 + length, device, decoder.dtype)
    positions = torch.arange(length, device=device)
    return decoder.prefill(
        torch.tensor(list(ids), device=device), positions, prefill_tiles([(0, 0, length)]).to(device),
        1 + positions[None].int(), cache,
    )  # fmt: skip


def prefill_tiles(segments: Sequence[tuple[int, int, int]]) -> Tensor:
    """The pieces of packed segments, as `Decoder.prefill` takes them.

    Args:
        segments: row, position of the first token, and number of tokens of each.

    Returns:
        [m, 5] int32 on the CPU.
    """
    tiles, first = [], 0
    for row, position, count in segments:
        for start in range(0, count, TILE):
            tiles.append((row, first + start, position + start, min(TILE, count - start), position))
        first += count
    return torch.tensor(tiles, dtype=torch.int32)


def token_losses(decoder: Decoder, ids: Sequence[int]) -> Tensor:
    """Negative natural log-likelihood of each token but the first, given those before it.

    Args:
        decoder: the network.
        ids: at least two token ids, at most as many as the network has positions.

    Returns:
        [len(ids) - 1] fp32 on the decoder's device.
    """
    # ids: [length] -> [length - 1]
    hidden = prefill_whole(decoder, ids)[:-1]
    targets = torch.tensor(list(ids[1:]), device=decoder.device)
    logits = lm_head_logits(hidden, decoder.embedding, decoder.config.vocab_size)
    return F.cross_entropy(logits, targets, reduction="none")
