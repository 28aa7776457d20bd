"""transformers' Trainer for PolyLM: exact sums of losses, a fixed order of rows, and errors that stop a run in time."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import itertools
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import IntervalStrategy
from transformers.utils import logging

from modelscope_polylm.errors import DownloadError, PolyLMError
from modelscope_polylm.files import read_own_json
from modelscope_polylm.training.collate import IGNORED, collate
from modelscope_polylm.training.options import TrainingOptions

STATE = "trainer_state.json"
"""Written last into a checkpoint's folder."""
SHOWN_RECORDS = 8
CHECKPOINTS_KEPT = 2
BETAS = (0.9, 0.95)
LAST_RATE = 0.1
"""The learning rate falls to this share of its peak, along a cosine (paper, section 3.3)."""
LARGEST_GRADIENT = 1.0
DISK_SIGNS = ("No space left", "PytorchStreamWriter", "file write failed", "Disk quota")
"""What torch and safetensors say of a disk that is full."""


def training_arguments(
    out: Path, options: TrainingOptions, steps: int, processes: int, *, on_cpu: bool, bf16: bool, log: bool
) -> TrainingArguments:
    """transformers' settings of a run.

    Args:
        out: folder of checkpoints and logs.
        options: complete.
        steps: optimizer steps.
        processes: that share the rows of a step.
        on_cpu: use no GPU.
        bf16: compute products in bf16.
        log: to TensorBoard, where it is installed.
    """
    arguments: Any = TrainingArguments(
        output_dir=str(out),
        use_cpu=on_cpu,
        bf16=bf16,
        per_device_train_batch_size=options.device_rows,
        per_device_eval_batch_size=options.device_rows,
        gradient_accumulation_steps=options.micro_batches(processes),
        max_steps=steps,
        learning_rate=options.learning_rate or 0.0,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": LAST_RATE},
        warmup_steps=round(options.warmup * steps),
        weight_decay=options.weight_decay,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=LARGEST_GRADIENT,
        seed=options.seed,
        data_seed=options.seed,
        logging_steps=options.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=options.evaluate_every,
        save_strategy="steps",
        save_steps=options.save_every,
        save_total_limit=CHECKPOINTS_KEPT,
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        report_to=["tensorboard"] if log and importlib.util.find_spec("tensorboard") else [],
        disable_tqdm=True,
        dataloader_pin_memory=not on_cpu,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs are several processes, by `accelerate launch`
    settings: TrainingArguments = arguments
    return settings


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step, steps: optimizer steps done, and of the whole run.
        loss: mean over the tokens learnt since the last report; None before the first one.
        tokens_per_second: of this process group, padding not counted, since the last report.
        seconds_left: by the speed so far.
        evaluation: mean losses of the held-out records by language, where they were computed at this step.
    """

    step: int
    steps: int
    loss: float | None = None
    tokens_per_second: float = 0.0
    seconds_left: float = math.inf
    evaluation: Mapping[str, float] | None = None


class FinetuneTrainer(Trainer):  # type: ignore[misc]
    """Trains a `TrainedGPT2`, plain or within peft.

    Rows come in the order of the data set, which holds every row of the run. The loss of a step is the mean over all
    its tokens to learn, however they are spread over rows and processes.

    Args:
        model: the network.
        args: the settings.
        train_dataset: the rows of the whole run, in order.
        evaluation: held-out rows by language.
        report: called after steps that are logged, and after evaluations.
    """

    loss_is_scaled_for_ga = True

    def __init__(
        self,
        model: torch.nn.Module,
        args: TrainingArguments,
        train_dataset: Dataset[Any],
        evaluation: Mapping[str, Dataset[Any]] | None = None,
        report: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # of shards; the run has a bar of its own
        self.evaluation = dict(evaluation or {})
        if not self.evaluation:
            args.eval_strategy = IntervalStrategy.NO
        super().__init__(
            model,
            args,
            collate,
            train_dataset,
            # transformers asks for some data set where it is to evaluate
            eval_dataset=next(iter(self.evaluation.values()), None),
            callbacks=[_GradientCheck(self)],
        )
        self.remove_callback(PrinterCallback)
        self.records: list[int] = []
        self._report = report
        self._first_step: int | None = None
        self._tokens = 0
        self._started = self._logged = time.perf_counter()

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> SequentialSampler:
        rows: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(rows)

    @property
    def folder(self) -> Path:
        """Where checkpoints go."""
        return Path(str(self.args.output_dir))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The batches of one optimizer step, and how many tokens they learn in all processes."""
        if self._first_step is None:
            self._first_step = self.state.global_step
        batches = list(itertools.islice(epoch_iterator, num_batches))
        counts = [torch.zeros(2, dtype=torch.int64, device=device), *(_token_counts(batch) for batch in batches)]
        learnt, seen = self.accelerator.reduce(torch.stack([each.to(device) for each in counts]).sum(0)).unbind()
        self._tokens += int(seen)
        return batches, learnt

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The share of a batch in the step's mean loss. Raises PolyLMError for a loss that is not finite."""
        self.records = inputs.pop("records")
        total = model(**inputs)["loss"]
        if not total.isfinite():
            raise PolyLMError(self._not_finite(f"the loss is {total.item()}"))
        count = (inputs["shift_labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        # the gradients of several processes are averaged
        loss = total / count * self.accelerator.num_processes
        return (loss, {"loss": total}) if return_outputs else loss

    def _not_finite(self, what: str) -> str:
        numbers = ", ".join(map(str, self.records[:SHOWN_RECORDS]))
        more = f" and {len(self.records) - SHOWN_RECORDS} more" if len(self.records) > SHOWN_RECORDS else ""
        last = last_checkpoint(self.folder)
        kept = f"the last good checkpoint is {last}" if last else "there is no checkpoint yet"
        return (
            f"At step {self.state.global_step + 1} {what}, in the batch of the records {numbers}{more} (counted from "
            f"0); {kept}. Look at these records, lower the learning rate, or keep the residual stream in float32."
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Mean losses of the held-out records: 'eval_loss', and 'eval_loss_de' for each language."""
        sums = {language: self._summed_loss(rows) for language, rows in self.evaluation.items()}
        metrics = {f"{metric_key_prefix}_loss_{name}": float(loss / count) for name, (loss, count) in sums.items()}
        if sums:
            loss, count = torch.stack([torch.stack(pair) for pair in sums.values()]).sum(0)
            metrics[f"{metric_key_prefix}_loss"] = float(loss / count)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        if self.state.is_world_process_zero:
            losses = {name: float(loss / count) for name, (loss, count) in sums.items()}
            self._report(Progress(self.state.global_step, self.state.max_steps, evaluation=losses))
        return metrics

    @torch.no_grad()
    def _summed_loss(self, rows: Dataset[Any]) -> tuple[Tensor, Tensor]:
        """The sum of the losses of all tokens to learn, and their number."""
        model: Any = self.model_wrapped
        was_training = model.training
        model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.args.device)
        for batch in self._own_batches(rows):
            batch = self._prepare_inputs(batch)
            batch.pop("records")
            with self.accelerator.autocast(), _own_dtypes(self.model):
                loss = model(**batch)["loss"]
            sums += torch.stack([loss.double(), (batch["shift_labels"] != IGNORED).sum().double()])
        model.train(was_training)
        loss, count = self.accelerator.reduce(sums)
        return loss, count

    def _own_batches(self, rows: Any) -> Iterator[dict[str, Any]]:
        """This process's batches: each row in one process, and as many batches in every process, as FSDP needs it."""
        size, processes = self.args.per_device_eval_batch_size, self.accelerator.num_processes
        for start in range(0, len(rows), size * processes):
            first = start + size * self.accelerator.process_index
            own = range(first, min(first + size, len(rows)))
            batch = collate([rows[row] for row in own or [start]])
            if not own:
                batch["shift_labels"].fill_(IGNORED)
            yield batch

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a step with its speed, and report it."""
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        now, steps = time.perf_counter(), max(self.state.global_step - (self._first_step or 0), 1)
        speed = logs["tokens_per_second"] = self._tokens / max(now - self._logged, 1e-9)
        left = (now - self._started) / steps * (self.state.max_steps - self.state.global_step)
        self._logged, self._tokens = now, 0
        super().log(logs, start_time)
        if self.state.is_world_process_zero:
            self._report(Progress(self.state.global_step, self.state.max_steps, logs["loss"], speed, left))

    def train(self, resume_from_checkpoint: str | bool | None = None, *others: Any, **options: Any) -> Any:
        """Train to the end. Raises DownloadError for a full disk, which leaves the last good checkpoint."""
        self._started = self._logged = time.perf_counter()
        try:
            with _own_dtypes(self.model):
                return super().train(resume_from_checkpoint, *others, **options)
        except BaseException as error:
            with contextlib.suppress(OSError):
                # closes the files of logs
                self.callback_handler.on_train_end(self.args, self.state, self.control)
            if not is_disk_error(error):
                raise
            last = last_checkpoint(self.folder)
            kept = f"{last} stays: make room, and the same command goes on from there" if last else "make room"
            raise DownloadError(f"{self.folder} cannot be written ({_reason(error)}); {kept}.") from error

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        try:
            super()._save_checkpoint(model, trial)
        except BaseException:
            shutil.rmtree(self.folder / f"checkpoint-{self.state.global_step}", ignore_errors=True)
            raise


@contextlib.contextmanager
def _own_dtypes(model: Any) -> Iterator[None]:
    """Leave the dtype of an adapter's inputs to autocast; peft would make them fp32 first, and autocast bf16 again."""
    if not hasattr(model, "peft_config"):
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(model):
        yield


def _token_counts(batch: Mapping[str, Tensor]) -> Tensor:
    # -> [2]: tokens to learn, and tokens without padding, which predicts nothing and sees only itself
    learnt = batch["shift_labels"] != IGNORED
    padding = batch["input_ids"].eq(0) & ~learnt
    return torch.stack([learnt.sum(), (~padding).sum()])


def is_disk_error(error: BaseException) -> bool:
    """Whether an error of a library that writes files comes from a disk that is full or failing."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    is_library = isinstance(error, (RuntimeError, safetensors.SafetensorError))
    return is_library and any(sign in str(error) for sign in DISK_SIGNS)


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run that is complete; None if there is none."""
    checkpoints = sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True)
    return next((checkpoint for checkpoint in checkpoints if _is_complete(checkpoint)), None)


def _step_of(checkpoint: Path) -> int:
    number = checkpoint.name.rpartition("-")[2]
    return int(number) if number.isdigit() else -1


def _is_complete(checkpoint: Path) -> bool:
    state = read_own_json(checkpoint / STATE)
    return state is not None and state.get("global_step") == _step_of(checkpoint)


class _GradientCheck(TrainerCallback):  # type: ignore[misc]
    """Stops before gradients that are not finite reach the weights."""

    def __init__(self, trainer: FinetuneTrainer) -> None:
        self._trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        model: Any = self._trainer.model
        gradients = [each.grad for each in model.parameters() if each.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise PolyLMError(self._trainer._not_finite("the gradients are not finite"))
