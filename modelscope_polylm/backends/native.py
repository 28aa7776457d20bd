"""The native backend: this package's own engine on one device, and the check that a network predicts text at all."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence

import torch

from modelscope_polylm.backends.base import Backend, DeltaStream, Request
from modelscope_polylm.backends.placement import check_memory, check_precision
from modelscope_polylm.errors import OptionError, SnapshotError, suggestion
from modelscope_polylm.generation.engine import Engine, check_native
from modelscope_polylm.generation.loop import MAX_ROWS
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Deliver
from modelscope_polylm.generation.requests import scoring_requests
from modelscope_polylm.network.gpt2 import Decoder, token_losses
from modelscope_polylm.network.kernels.dispatch import settings as kernels
from modelscope_polylm.network.kv_cache import CACHE_DTYPES
from modelscope_polylm.network.quantization import QUANTIZATIONS, Weight
from modelscope_polylm.snapshot import Snapshot
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.text.prompts import FORMATS, Message, render
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)

DOUBTFUL_SHARE_OF_CHANCE = 0.6
"""A trained model stays far below this share of the loss of guessing."""


class NativeBackend(Backend):
    """Loads a snapshot's weights onto one device and generates with them.

    Args:
        snapshot: an opened snapshot.
        device: a CPU or a CUDA device that exists.
        dtype: of weights and KV cache; the residual stream, softmax and logits are fp32 in any case.
        max_rows: rows that run together at most; beams and samples count as rows.
        reuse_prefixes: keep what was computed for a text, so that texts that start alike need not compute it again.
        quantization: 'int8', 'fp8' or 'int4': the weights are rounded while they are loaded, and products are computed
            in `dtype`; None keeps all of their bits.
        kv_cache_dtype: 'int8' for half of the cache's memory; None: `dtype`.
        deterministic: on a GPU no bit of an answer depends on what runs next to it (`KernelSettings.deterministic`);
            from then on for all models of the process.

    Raises:
        OptionError: an unknown quantization or type of the cache.
        DeviceError: the GPU does not compute in bfloat16, or the weights do not fit into the device's memory.
    """

    name = "native"

    def __init__(
        self,
        snapshot: Snapshot,
        device: torch.device,
        dtype: torch.dtype,
        max_rows: int = MAX_ROWS,
        reuse_prefixes: bool = True,
        quantization: str | None = None,
        kv_cache_dtype: str | None = None,
        deterministic: bool = False,
    ):
        check_choice("quantization", quantization, QUANTIZATIONS)
        check_choice("kv_cache_dtype", kv_cache_dtype, CACHE_DTYPES)
        kernels.deterministic |= deterministic
        check_precision(dtype, device)
        check_memory(snapshot.config, dtype, device, quantization)
        self.config, self.device, self.dtype = snapshot.config, device, dtype
        decoder = Decoder(snapshot.config, _weights(snapshot, device, dtype, quantization))
        check_plausibility(snapshot, decoder)
        cache_dtype = CACHE_DTYPES[kv_cache_dtype] if kv_cache_dtype else dtype
        self.engine = Engine(decoder, snapshot.tokenizer, max_rows, reuse_prefixes, cache_dtype=cache_dtype)

    def check_options(self, options: GenerationOptions) -> None:
        """Stop strings together with beams are not here."""
        check_native(options)

    def scoring_requests(self, texts: Sequence[Sequence[int]], starts: Sequence[int], best: int = 0) -> list[Request]:
        """Make requests of texts that one prefill each scores."""
        return scoring_requests(texts, starts, best, self.config, self.engine.vocab_size)

    def submit(
        self,
        requests: Sequence[Request],
        partial: bool = True,
        at_once: int | None = None,
        listener: Deliver | None = None,
    ) -> DeltaStream:
        """Let requests join the engine's batch."""
        return self.engine.submit(requests, partial, at_once, listener)


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Raise OptionError for a value of an option that is neither None nor known."""
    if value is not None and value not in known:
        raise OptionError(f"{name}={value!r} is unknown: {suggestion(value, known)}")


def check_plausibility(snapshot: Snapshot, decoder: Decoder) -> None:
    """Measure the loss on translations of a sentence if config.json names another class than GPT2LMHeadModel.

    Base 13B names PolyLMHeadModel, whose code is not public in full: its tensors fit GPT-2, but only a test shows
    whether the computation does.

    Raises:
        SnapshotError: the loss is no better than that of guessing, the logarithm of the vocabulary's size.
    """
    if snapshot.config.architecture == "GPT2LMHeadModel":
        return
    loss, chance = translation_loss(decoder, snapshot.tokenizer), math.log(snapshot.config.vocab_size)
    found = (
        f"{snapshot.folder} names the class {snapshot.config.architecture}; run as GPT-2, it predicts the translations "
        f"of a sentence with {loss:.2f} nats per token, where guessing takes {chance:.2f}"
    )
    if not loss < chance:
        raise SnapshotError(f"{found}: this network is not GPT-2. Use a snapshot whose class is GPT2LMHeadModel.")
    if loss > DOUBTFUL_SHARE_OF_CHANCE * chance:
        logger.warning("%s: check its answers before you rely on them.", found)
    else:
        logger.info("%s.", found)


def translation_loss(decoder: Decoder, tokenizer: PolyLMTokenizer) -> float:
    """Return the mean loss, in nats per token, of the right translations of a sentence into 17 languages."""
    losses = []
    for code, language in LANGUAGES.items():
        request: Message = {"role": "user", "content": translation_request(SENTENCE, language)}
        prompt = tokenizer.encode(render([request], FORMATS["assistant"]))
        answer = tokenizer.encode(TRANSLATIONS[code])
        if code != "en" and len(prompt) + len(answer) <= decoder.config.max_positions:
            losses.append(token_losses(decoder, prompt + answer)[-len(answer) :])
    return torch.cat(losses).mean().item()


def _weights(
    snapshot: Snapshot, device: torch.device, dtype: torch.dtype, quantization: str | None
) -> Mapping[str, Weight]:
    files, config, adapter = snapshot.weight_files, snapshot.config, snapshot.adapter
    if config.quantization is not None:
        if quantization is not None:
            raise OptionError(
                f"{snapshot.folder} is quantised already ({config.quantization}): load it without "
                f"quantization={quantization!r}, or the model that it was made from with it."
            )
        return files.load_gptq(config, device, dtype)
    if quantization is not None:
        return files.load_quantized(config, device, dtype, quantization, adapter.merged if adapter else None)
    weights = files.load(config, device, dtype)
    if adapter is not None:
        adapter.merge_(weights)
    return weights
