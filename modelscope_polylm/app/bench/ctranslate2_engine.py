"""CTranslate2 as an engine of the comparison, on a CPU, with the same network sizes, and weights."""

from __future__ import annotations

import importlib.util
import tempfile
from typing import Any

import torch

from modelscope_polylm.app.bench.engines import Contender
from modelscope_polylm.app.bench.shapes import random_weights
from modelscope_polylm.app.bench.works import Work
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.snapshot import Snapshot


def ctranslate2_installed() -> bool:
    """Whether CTranslate2 can be imported; it is not imported here."""
    return importlib.util.find_spec("ctranslate2") is not None


class CTranslate2(Contender):
    """CTranslate2's Generator on a model that is built from its own specification of GPT-2.

    Args:
        config: the network's sizes.
        device: a CPU.
        dtype: not used: CTranslate2 has its own types, see `quantization`.
        snapshot: has the weights; they are random if None.
        quantization: 'float32' or 'int8'.
    """

    def __init__(
        self,
        config: PolyLMConfig,
        device: torch.device,
        dtype: torch.dtype,
        snapshot: Snapshot | None = None,
        quantization: str = "float32",
    ):
        import ctranslate2

        if device.type != "cpu":
            raise ValueError("CTranslate2 is measured on a CPU only.")
        self.name = f"ctranslate2 {quantization}"
        self._vocabulary = config.vocab_size
        with tempfile.TemporaryDirectory() as folder:
            load = random_weights if snapshot is None else snapshot.weight_files.load
            spec = _specification(config, load(config, device, torch.float32))
            spec.optimize(quantization)
            spec.save(folder)
            del spec
            self._generator: Any = ctranslate2.Generator(
                folder, device="cpu", compute_type=quantization, intra_threads=torch.get_num_threads()
            )

    def run(self, work: Work) -> None:
        """Do the work once."""
        ids = torch.randint(4, self._vocabulary, (work.rows, work.prompt)).tolist()
        prompts = [[f"<{token}>" for token in row] for row in ids]
        self._generator.generate_batch(
            prompts, max_length=work.new, min_length=work.new, beam_size=work.options.get("num_beams", 1),
            include_prompt_in_result=False, end_token="<3>",
        )  # fmt: skip


def _specification(config: PolyLMConfig, weights: dict[str, torch.Tensor]) -> Any:
    from ctranslate2.specs import common_spec, transformer_spec

    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config.layers, config.heads, pre_norm=True, activation=common_spec.Activation.GELUTanh
    )
    spec.register_vocabulary([f"<{token}>" for token in range(config.vocab_size)])
    spec.config.bos_token, spec.config.eos_token, spec.config.unk_token = "<1>", "<3>", "<0>"
    spec.config.layer_norm_epsilon = config.epsilon
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = weights["wte.weight"].numpy()
    decoder.position_encodings.encodings = weights["wpe.weight"].numpy()
    _set_norm(decoder.layer_norm, weights, "ln_f")
    for number, layer in enumerate(decoder.layer):
        prefix = f"h.{number}."
        _set_norm(layer.self_attention.layer_norm, weights, f"{prefix}ln_1")
        _set_linear(layer.self_attention.linear[0], weights, f"{prefix}attn.c_attn")
        _set_linear(layer.self_attention.linear[1], weights, f"{prefix}attn.c_proj")
        _set_norm(layer.ffn.layer_norm, weights, f"{prefix}ln_2")
        _set_linear(layer.ffn.linear_0, weights, f"{prefix}mlp.c_fc")
        _set_linear(layer.ffn.linear_1, weights, f"{prefix}mlp.c_proj")
    spec.validate()
    return spec


def _set_norm(spec: Any, weights: dict[str, torch.Tensor], name: str) -> None:
    spec.gamma, spec.beta = weights[f"{name}.weight"].numpy(), weights[f"{name}.bias"].numpy()


def _set_linear(spec: Any, weights: dict[str, torch.Tensor], name: str) -> None:
    spec.weight, spec.bias = weights[f"{name}.weight"].numpy(), weights[f"{name}.bias"].numpy()
