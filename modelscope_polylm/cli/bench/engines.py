"""The engines that are compared. Each is made of a snapshot, a device and a dtype, and runs a workload once."""

from __future__ import annotations

import abc
import gc
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from modelscope_polylm.backends.native import NativeBackend
from modelscope_polylm.backends.vllm.backend import check_packaged
from modelscope_polylm.backends.vllm.engine import import_vllm
from modelscope_polylm.backends.vllm.options import CPU_MEMORY_UTILIZATION
from modelscope_polylm.cli.bench.workloads import Workload, has_random_weights
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.snapshot import Snapshot

NO_END = 3
"""An end token that all but never comes, so that answers are as long as they should be."""


class BenchEngine(abc.ABC):
    """An engine with a model loaded."""

    name: str
    quantization: str | None = None
    """Of the weights, which the limit of reading them follows."""

    @abc.abstractmethod
    def run(self, workload: Workload) -> None:
        """Do the work once, on fresh random prompts; it may still run on the device on return."""


class PolyLMEngine(BenchEngine):
    """The native backend."""

    def __init__(
        self,
        snapshot: Snapshot,
        device: torch.device,
        dtype: torch.dtype,
        quantization: str | None = None,
        kv_cache_dtype: str | None = None,
    ) -> None:
        cache = f"{kv_cache_dtype} cache" if kv_cache_dtype else None
        self.name = " ".join(word for word in ("polylm", quantization, cache) if word)
        self.quantization = quantization
        self.backend = NativeBackend(snapshot, device, dtype, quantization=quantization, kv_cache_dtype=kv_cache_dtype)

    def run(self, workload: Workload) -> None:
        """Do the work once. Raises RuntimeError if every answer ended too early, so that the time is of fewer steps."""
        prompts = random_prompts(workload, self.backend.config.vocab_size).tolist()
        answers = self.backend.generate(prompts, fixed_length(workload.new, **workload.options))
        longest = max(len(group[0].ids) for group in answers)
        if longest < workload.new:
            raise RuntimeError(f"the longest answer ended after {longest} of {workload.new} tokens: run it again.")


class TransformersEngine(BenchEngine):
    """GPT2LMHeadModel.generate, eager or with a static cache and a compiled step."""

    def __init__(
        self, snapshot: Snapshot, device: torch.device, dtype: torch.dtype, static_cache: bool = False
    ) -> None:
        self.name = "transformers static" if static_cache else "transformers"
        self._cache = {"cache_implementation": "static"} if static_cache else {}
        self._device = device
        self.model = _transformers_model(snapshot, device, dtype)

    def run(self, workload: Workload) -> None:
        """Do the work once."""
        ids = random_prompts(workload, self.model.config.vocab_size).to(self._device)
        length = {"max_new_tokens": workload.new, "min_new_tokens": workload.new}
        ends = {"eos_token_id": NO_END, "pad_token_id": 0}
        self.model.generate(
            ids, attention_mask=torch.ones_like(ids), **length, **ends, **self._cache, **workload.options
        )


def random_prompts(workload: Workload, vocab_size: int) -> torch.Tensor:
    """Random ids above the special tokens: [rows, prompt] int64 on the CPU."""
    return torch.randint(4, vocab_size, (workload.rows, workload.prompt))


def fixed_length(new: int, **options: Any) -> GenerationOptions:
    """Options of the native backend for answers of exactly `new` tokens."""
    return GenerationOptions.from_layers({"max_new_tokens": new, "eos_token_id": NO_END, **options})


def release_memory() -> None:
    """Give the memory of engines that are gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _transformers_model(snapshot: Snapshot, device: torch.device, dtype: torch.dtype) -> Any:
    if has_random_weights(snapshot):
        return _random_transformers_model(snapshot.config, device, dtype)
    from modelscope_polylm.backends.transformers.backend import TransformersBackend

    return TransformersBackend(snapshot, device, dtype).model


def _random_transformers_model(config: PolyLMConfig, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.max_positions, n_embd=config.hidden_size,
        n_layer=config.layers, n_head=config.heads, activation_function="gelu_fast", bos_token_id=1, eos_token_id=2,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    with torch.device("meta"):
        model: Any = GPT2LMHeadModel(sizes)
    model = model.to(dtype).to_empty(device=device)
    model.tie_weights()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    return model.eval()


class CTranslate2Engine(BenchEngine):
    """CTranslate2's Generator on a model that is built from its own specification of GPT-2.

    Args:
        snapshot: has the weights.
        device: a CPU.
        dtype: not used: CTranslate2 has types of its own.
        quantization: 'float32' or 'int8'.
    """

    def __init__(
        self, snapshot: Snapshot, device: torch.device, dtype: torch.dtype, quantization: str = "float32"
    ) -> None:
        import ctranslate2

        if device.type != "cpu":
            raise ValueError("CTranslate2 is measured on a CPU only.")
        self.name = f"ctranslate2 {quantization}"
        self._vocab_size = snapshot.config.vocab_size
        with tempfile.TemporaryDirectory() as folder:
            weights = snapshot.weight_files.load(snapshot.config, device, torch.float32)
            spec = _specification(snapshot.config, weights)
            spec.optimize(quantization)
            spec.save(folder)
            del spec, weights
            self._generator: Any = ctranslate2.Generator(
                folder, device="cpu", compute_type=quantization, intra_threads=torch.get_num_threads()
            )

    def run(self, workload: Workload) -> None:
        """Do the work once."""
        ids = random_prompts(workload, self._vocab_size).tolist()
        prompts = [[f"<{token}>" for token in row] for row in ids]
        self._generator.generate_batch(
            prompts, max_length=workload.new, min_length=workload.new, include_prompt_in_result=False,
            beam_size=workload.options.get("num_beams", 1), end_token="<3>",
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


class VllmEngine(BenchEngine):
    """vLLM's offline engine, called directly: `LLM.generate`, and `LLM.beam_search` for beams.

    Attributes:
        llm: the vllm.LLM.
    """

    name = "vllm"

    def __init__(self, snapshot: Snapshot, device: torch.device, dtype: torch.dtype) -> None:
        # lets the weights be drawn anew inside the engine's process
        os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"
        vllm = import_vllm()
        self._vocab_size = snapshot.config.vocab_size
        options = {"skip_tokenizer_init": True, "dtype": str(dtype).removeprefix("torch."), "seed": 0}
        if device.type == "cpu":
            options["gpu_memory_utilization"] = CPU_MEMORY_UTILIZATION
        self.llm: Any
        if has_random_weights(snapshot):
            self._folder = tempfile.TemporaryDirectory()
            write_config(snapshot.config, Path(self._folder.name))
            self.llm = vllm.LLM(self._folder.name, load_format="dummy", **options)
            self.llm.apply_model(_draw_weights)
        else:
            check_packaged(snapshot)
            self.llm = vllm.LLM(str(snapshot.folder), **options)
        self.llm.renderer.get_tokenizer = _NoTokenizer

    def run(self, workload: Workload) -> None:
        """Do the work once; fresh tokens, so that its prefix cache finds nothing."""
        from vllm import SamplingParams
        from vllm.sampling_params import BeamSearchParams

        ids = random_prompts(workload, self._vocab_size).tolist()
        prompts = [{"prompt_token_ids": row} for row in ids]
        if (beams := workload.options.get("num_beams", 1)) > 1:
            self.llm.beam_search(prompts, BeamSearchParams(beam_width=beams, max_tokens=workload.new, ignore_eos=True))
            return
        chosen = {"temperature": 0.0}
        if workload.options["do_sample"]:
            chosen = {name: workload.options[name] for name in ("top_p", "temperature", "repetition_penalty")}
        parameters = SamplingParams(max_tokens=workload.new, ignore_eos=True, detokenize=False, **chosen)
        self.llm.generate(prompts, parameters, use_tqdm=False)


def write_config(config: PolyLMConfig, folder: Path) -> None:
    """Write the config.json that vLLM needs where there are no weights."""
    contents = {**config.to_dict(), "bos_token_id": 1, "eos_token_id": 2}
    (folder / "config.json").write_text(json.dumps(contents), encoding="utf-8")


class _NoTokenizer:
    """What beam search asks of a tokenizer."""

    eos_token_id = 2

    def decode(self, ids: list[int], **options: Any) -> str:
        """No text is wanted."""
        return ""


def _draw_weights(model: torch.nn.Module) -> None:
    for parameter in {tensor.data_ptr(): tensor for tensor in model.parameters()}.values():
        parameter.data.normal_(0, 0.02)
