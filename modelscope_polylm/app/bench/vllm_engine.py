"""vLLM as an engine of the comparison, with the same network sizes, and weights."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from modelscope_polylm.app.bench.engines import Contender
from modelscope_polylm.app.bench.works import Work
from modelscope_polylm.backends.vllm.backend import check_form
from modelscope_polylm.backends.vllm.engine import import_vllm
from modelscope_polylm.backends.vllm.options import CPU_MEMORY_UTILIZATION
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.snapshot import Snapshot


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
