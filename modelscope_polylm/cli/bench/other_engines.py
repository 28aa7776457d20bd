"""Engines of other projects, measured where they are installed: CTranslate2 and vLLM."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from modelscope_polylm.backends.vllm.backend import check_form
from modelscope_polylm.backends.vllm.engine import import_vllm
from modelscope_polylm.backends.vllm.options import CPU_MEMORY_UTILIZATION
from modelscope_polylm.cli.bench.engines import Contender
from modelscope_polylm.cli.bench.workloads import Work, random_weights
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


def vllm_installed() -> bool:
    """Whether vLLM can be imported; it is not imported here."""
    return importlib.util.find_spec("vllm") is not None


class Vllm(Contender):
    """vLLM's offline engine, called directly: `LLM.generate`, and `LLM.beam_search` for beams."""

    name = "vllm"

    def __init__(
        self, config: PolyLMConfig, device: torch.device, dtype: torch.dtype, snapshot: Snapshot | None = None
    ):
        # lets the weights be drawn anew inside the engine's process
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        vllm = import_vllm()
        self._vocabulary = config.vocab_size
        options = {"skip_tokenizer_init": True, "dtype": str(dtype).removeprefix("torch."), "seed": 0}
        if device.type == "cpu":
            options["gpu_memory_utilization"] = CPU_MEMORY_UTILIZATION
        self._llm: Any
        if snapshot is None:
            self._folder = tempfile.TemporaryDirectory()
            settings = {**config.to_dict(), "bos_token_id": 1, "eos_token_id": 2, "dtype": options["dtype"]}
            Path(self._folder.name, "config.json").write_text(json.dumps(settings))
            self._llm = vllm.LLM(self._folder.name, load_format="dummy", **options)
            self._llm.apply_model(_draw_weights)
        else:
            check_form(snapshot)
            self._llm = vllm.LLM(str(snapshot.folder), **options)
        self._llm.renderer.get_tokenizer = _NoTokenizer

    def run(self, work: Work) -> None:
        """Do the work once; fresh tokens, so that its prefix cache finds nothing."""
        from vllm import SamplingParams
        from vllm.sampling_params import BeamSearchParams

        tokens = torch.randint(4, self._vocabulary, (work.rows, work.prompt)).tolist()
        prompts = [{"prompt_token_ids": ids} for ids in tokens]
        if (beams := work.options.get("num_beams", 1)) > 1:
            self._llm.beam_search(prompts, BeamSearchParams(beam_width=beams, max_tokens=work.new, ignore_eos=True))
            return
        drawn = {"temperature": 0.0}
        if work.options["do_sample"]:
            drawn = {name: work.options[name] for name in ("top_p", "temperature", "repetition_penalty")}
        params = SamplingParams(max_tokens=work.new, ignore_eos=True, detokenize=False, **drawn)
        self._llm.generate(prompts, params, use_tqdm=False)


class _NoTokenizer:
    """What beam search asks of a tokenizer."""

    eos_token_id = 2

    def decode(self, ids: list[int], **options: Any) -> str:
        """No text is wanted."""
        return ""


def _draw_weights(model: torch.nn.Module) -> None:
    for parameter in {tensor.data_ptr(): tensor for tensor in model.parameters()}.values():
        parameter.data.normal_(0, 0.02)
