"""The transformers backend: GPT2LMHeadModel spread over several GPUs, CPU memory and disk, with all of `generate()`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, GPT2LMHeadModel

from modelscope_polylm.backends.base import Backend, Completion, Delta, DeltaStream, Request
from modelscope_polylm.backends.placement import check_memory
from modelscope_polylm.backends.transformers.arguments import batches, check_options
from modelscope_polylm.backends.transformers.generate import GenerateCall, Report
from modelscope_polylm.errors import DependencyError, DeviceError, OptionError, SnapshotError
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Deliver
from modelscope_polylm.network.weights import network_name, not_finite
from modelscope_polylm.snapshot import Snapshot


class PolyLMHead(GPT2LMHeadModel):  # type: ignore
    """GPT2LMHeadModel that knows what the 2023 files hold next to the weights: causal masks."""

    _keys_to_ignore_on_load_unexpected = [r"attn\.bias$", r"attn\.masked_bias$"]  # noqa: RUF012  (transformers' type)


class TransformersBackend(Backend):
    """Runs a snapshot with transformers and accelerate.

    Answers are those of `GPT2LMHeadModel.generate` for the same token ids, so beam search follows the rules of the
    installed transformers ('5'), also where no `beam_rules` are asked for. Calls from several threads run one after the
    other. In bf16 the residual stream is bf16 too, unlike in the native backend.

    Attributes:
        model: the GPT2LMHeadModel; its `hf_device_map` says what lies where.
    """

    name = "transformers"
    joins_requests = False
    window = 2

    def __init__(
        self,
        snapshot: Snapshot,
        device: torch.device,
        dtype: torch.dtype,
        device_map: str | dict[str, Any] | None = None,
        max_memory: dict[int | str, int | str] | None = None,
        offload_folder: str | None = None,
    ) -> None:
        """Load the weights.

        Args:
            snapshot: an opened snapshot.
            device: where all of the model goes if `device_map` is None.
            dtype: of the weights and the computation.
            device_map: accelerate's: 'auto', 'balanced', 'sequential', a device, or module names to devices.
            max_memory: most bytes for each device, such as {0: '20GiB', 'cpu': '60GiB'}.
            offload_folder: folder for weights that fit on no device.

        Raises:
            SnapshotError: weights that GPT2LMHeadModel cannot take.
            OptionError: a device map that cannot be followed.
            DeviceError: a device that is missing or too small.
        """
        _check_layout(snapshot)
        self.config, self.dtype = snapshot.config, dtype
        options = {"max_memory": max_memory, "offload_folder": offload_folder}
        given = {name: value for name, value in options.items() if value is not None}
        if device_map is None:
            check_memory(snapshot.config, dtype, device)
        self.model = _load(snapshot, dtype, device_map={"": device} if device_map is None else device_map, **given)
        _check_finite(snapshot, self.model, dtype)
        _merge_adapter(snapshot, self.model)
        self.device = _input_device(self.model)
        self._call = GenerateCall(self.model, snapshot.tokenizer, self.device)
        self._lock = threading.Lock()

    def check_options(self, options: GenerationOptions) -> None:
        """Raw outputs of transformers are not here, nor are other rules of beam search than its own."""
        check_options(options)

    def submit(
        self,
        requests: Sequence[Request],
        partial: bool = True,
        at_once: int | None = None,
        listener: Deliver | None = None,
    ) -> DeltaStream:
        """Answer requests in batches of `at_once`, of one if it is None, after those that other callers wait for."""
        cancelled = threading.Event()
        stream = DeltaStream(len(requests), cancelled.set)
        work = (self, list(requests), at_once or 1, cancelled, partial, listener or stream.deliver)
        threading.Thread(target=_answer, args=work, name="polylm-transformers", daemon=True).start()
        return stream

    def _answer_batches(
        self, requests: Sequence[Request], size: int, cancelled: threading.Event, report: Report
    ) -> Iterator[tuple[int, list[Completion]]]:
        """The index and the answers of each request, batch by batch."""
        for batch in batches(requests, size):
            if cancelled.is_set():
                return

            def report_one(index: int, ids: list[int], batch: list[int] = batch) -> None:
                report(batch[index], ids)

            yield from zip(batch, self._call([requests[index] for index in batch], cancelled, report_one), strict=True)

    @contextlib.contextmanager
    def _turn(self, cancelled: threading.Event) -> Iterator[bool]:
        # Modules that accelerate moves in and out of memory serve one caller at a time.
        is_mine = False
        while not is_mine and not cancelled.is_set():
            is_mine = self._lock.acquire(timeout=0.05)
        try:
            yield is_mine
        finally:
            if is_mine:
                self._lock.release()


def _answer(
    backend: TransformersBackend,
    requests: Sequence[Request],
    size: int,
    cancelled: threading.Event,
    partial: bool,
    deliver: Deliver,
) -> None:
    """What a submission's thread does."""
    told: dict[int, int] = {}

    def report(index: int, ids: list[int]) -> None:
        if partial and ids and requests[index].rows_per_prompt == 1:
            told[index] = told.get(index, 0) + len(ids)
            deliver(Delta(index, ids))

    try:
        with backend._turn(cancelled) as is_mine:
            if is_mine:
                for index, found in backend._answer_batches(requests, size, cancelled, report):
                    deliver(Delta(index, found[0].ids[told.get(index, 0) :], found[0].finish_reason, found))
    except BaseException as error:
        deliver(error)


def _check_layout(snapshot: Snapshot) -> None:
    """Refuse what GPT2LMHeadModel would read wrongly, or not at all, without an error."""
    files = snapshot.weight_files
    if not files.is_conv1d(snapshot.config):
        reason = "hold projections as nn.Linear's [out, in]"
    elif prefix := files.wrapper_prefix():
        reason = f"have names of tensors that begin with {prefix!r}"
    else:
        return
    raise SnapshotError(
        f"The weights in {snapshot.folder} {reason}, which transformers' GPT2LMHeadModel cannot load: use "
        "backend='native', or a package of the snapshot (`polylm package`)."
    )


def _check_finite(snapshot: Snapshot, model: Any, dtype: torch.dtype) -> None:
    """Raise SnapshotError for weights that are not finite; those that were offloaded are read from the files again."""
    parameters = {network_name(name): parameter.detach() for name, parameter in model.named_parameters()}
    loaded = {name: tensor for name, tensor in parameters.items() if not tensor.is_meta}
    snapshot.weight_files.refuse(not_finite(loaded), dtype)
    if offloaded := parameters.keys() - loaded.keys():
        snapshot.weight_files.check_finite(snapshot.config, dtype, offloaded)


def _load(snapshot: Snapshot, dtype: torch.dtype, **placement: Any) -> Any:
    from_pretrained: Any = PolyLMHead.from_pretrained
    where = placement["device_map"]
    try:
        model = from_pretrained(snapshot.folder, dtype=dtype, local_files_only=True, **placement)
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"The weights do not fit on {where}: use more GPUs, or device_map='auto'.") from error
    except ImportError as error:
        raise DependencyError(f"transformers needs more packages for {snapshot.folder}: {error}") from error
    except AttributeError as error:
        # transformers 5.24 with gptqmodel 7.7: GPT-2's initialisation wants weights that quantised modules do not have
        raise SnapshotError(
            f"transformers cannot load {snapshot.folder} ({error}): use backend='native', which reads GPTQ's format."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise OptionError(f"transformers cannot load with device_map={where!r}: {error}") from error
    except (AssertionError, RuntimeError) as error:
        raise DeviceError(f"transformers cannot load onto {where}: {error}") from error
    except OSError as error:
        raise SnapshotError(f"transformers cannot load {snapshot.folder}: {error}") from error
    # The published config.json names a wrong end token, which must not come back as a default.
    without_defaults: Any = GenerationConfig
    model.generation_config = without_defaults()
    _tie_offloaded_head(model)
    return model.eval()


def _merge_adapter(snapshot: Snapshot, model: Any) -> None:
    if snapshot.adapter is None:
        return
    weights = {network_name(name): weight.data for name, weight in model.named_parameters()}
    if any(weights[name].is_meta for name in snapshot.adapter.pairs):
        raise OptionError(
            "An adapter cannot be merged into weights that are kept out of memory: write a merged model first, with "
            f"`polylm package {snapshot.folder} OUT --adapter {snapshot.adapter.folder}`."
        )
    snapshot.adapter.merge_(weights, transposed=True)


def _tie_offloaded_head(model: Any) -> None:
    # transformers forgets the output layer when it writes the embedding of a .bin file to disk (5.23).
    weights = getattr(getattr(model.lm_head, "_hf_hook", None), "weights_map", None)
    index = getattr(getattr(weights, "dataset", None), "index", {})
    if "transformer.wte.weight" in index:
        index.setdefault("lm_head.weight", index["transformer.wte.weight"])


def _input_device(model: Any) -> torch.device:
    embedding = model.get_input_embeddings()
    if not embedding.weight.is_meta:
        return torch.device(embedding.weight.device)
    # Offloaded: accelerate brings the weights to the inputs' device for each call.
    return torch.device(embedding._hf_hook.execution_device)
