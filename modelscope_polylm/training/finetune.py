"""A fine-tuning run: from a snapshot and data to an adapter or a tuned snapshot, continued where it was interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.backends.placement import check_precision, choose_device, choose_dtype, free_bytes
from modelscope_polylm.errors import DependencyError, DeviceError, OptionError, install_command
from modelscope_polylm.files import file_sha256, lock, read_own_json, write_atomically
from modelscope_polylm.training.collate import RecordEncoder, TokenFile
from modelscope_polylm.training.dataset import EVALUATION, RunRows, TokenStore, groups_of
from modelscope_polylm.training.options import TrainingOptions
from modelscope_polylm.training.plan import Plan, marked_sample, memory_needed, recomputed_blocks, trained_parameters
from modelscope_polylm.training.prepare import DataSet
from modelscope_polylm.training.schedule import Curriculum

if TYPE_CHECKING:
    import torch

    from modelscope_polylm.snapshot import Snapshot
    from modelscope_polylm.training.trainer import FinetuneTrainer, Progress

NOT_LEARNT = ("evaluate_every", "save_every", "log_every", "checkpointing")
"""Options that change nothing of what is learnt, so that a run may go on with others."""
RUN, TOKENS, OUTPUT, LOCK = "run.json", "tokens", "output", ".lock"
OWN_FILES = (RUN, TOKENS, OUTPUT, f"{OUTPUT}.partial", "runs", "checkpoint-*")
"""What a run writes to its folder, and `force` removes."""
SAMPLES = 2


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        model: folder of the snapshot.
        data: data sets, or a curriculum.
        out: folder of the run; its result is in `out/output`.
        options: of the training.
        evaluation_data: data sets to measure the loss on, besides the share of the records that is held out.
        model_name: how an adapter names its base; the folder if None.
        release, prompt_format: as in `TextGenerator.load`.
        device, dtype: where it runs, and the precision of the products.
    """

    model: Path
    data: Sequence[DataSet] | Curriculum
    out: Path
    options: TrainingOptions
    evaluation_data: Sequence[DataSet] = ()
    model_name: str | None = None
    release: str | None = None
    prompt_format: str | None = None
    device: str | None = None
    dtype: str | None = None


def plan(job: Job) -> Plan:
    """What the job would do; writes nothing. Raises as `finetune`."""
    with tempfile.TemporaryDirectory() as folder:
        return _Run(job).plan(Path(folder), SAMPLES)


def finetune(
    job: Job,
    *,
    force: bool = False,
    announce: Callable[[Plan], None] = lambda plan: None,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Path:
    """Do a job; where an earlier run of the same job was interrupted, go on from its last checkpoint.

    Args:
        job: what to do.
        force: remove another run from the folder.
        announce: called with the plan before anything is trained.
        report: called as the run goes on.

    Returns:
        The folder `out/output`: peft's adapter, or a snapshot.

    Raises:
        OptionError: an option, or a folder that holds another run or is in use.
        InputError: data that cannot be read or learnt.
        SnapshotError: a model that cannot be used.
        DeviceError: no room on the device.
        DownloadError: the disk is full.
        DependencyError: peft is missing.
        PolyLMError: the loss is not finite.
    """
    job.out.mkdir(parents=True, exist_ok=True)
    with _locked(job.out), _device_errors():
        run = _Run(job)
        run.claim_folder(force)
        found = run.plan(job.out / TOKENS, 0)
        if run.is_main:
            announce(found)
        if not run.output.is_dir():
            run.train(report)
        return run.output


def evaluate(job: Job) -> dict[str, float]:
    """Mean loss of the held-out records by the last checkpoint: 'eval_loss', and 'eval_loss_de' for each language."""
    from modelscope_polylm.training.trainer import last_checkpoint

    if last_checkpoint(job.out) is None:
        raise OptionError(f"{job.out} has no checkpoint: train first.")
    with _device_errors():
        run = _Run(job)
        run.plan(job.out / TOKENS, 0)
        return run.evaluate()


class _Run:
    """One run: a method for each step."""

    def __init__(self, job: Job) -> None:
        from modelscope_polylm.snapshot import open_snapshot
        from modelscope_polylm.text.prompts import known_format

        if job.options.method == "lora" and importlib.util.find_spec("peft") is None:
            raise DependencyError(f"LoRA needs peft: install it with {install_command('train')}.")
        self.job, self.output = job, job.out / OUTPUT
        self.snapshot: Snapshot = open_snapshot(job.model, prompt_format=job.prompt_format, release=job.release)
        if self.snapshot.adapter is not None:
            raise OptionError(
                f"{job.model} is an adapter: merge it first, with `polylm package {job.model} OUT`, and train OUT."
            )
        if self.snapshot.config.quantization is not None:
            raise OptionError(
                f"{job.model} is quantised: train on the model that it was made from, with quantization="
                f"{self.snapshot.config.quantization!r} to hold its weights in as few bits."
            )
        if job.options.quantization is not None and _is_sharded():
            raise OptionError("FSDP does not share out quantised weights: leave it out, so that each device holds all.")
        self.prompt_format = known_format(self.snapshot.prompt_format)
        config = self.snapshot.config
        self.options = job.options.for_model(config.hidden_size, config.max_positions)
        self.processes, self.is_main = int(os.environ.get("WORLD_SIZE", "1")), is_main_process()
        self.device = _process_device(choose_device(job.device))
        self.dtype = choose_dtype(job.dtype, self.device)
        check_precision(self.dtype, self.device)
        if self.dtype.itemsize == 2 and str(self.dtype) != "torch.bfloat16":
            raise OptionError("PolyLM's activations and gradients overflow float16: train in bfloat16 or float32.")
        self.rows: RunRows
        self.recomputed = config.layers

    def identity(self) -> dict[str, Any]:
        """What a run may only be continued with."""
        from modelscope_polylm.network.adapter import base_fingerprint

        data = self.job.data
        identity = {
            "model": base_fingerprint(self.snapshot.weight_files),
            "prompt_format": self.prompt_format.name,
            "dtype": str(self.dtype).removeprefix("torch."),
            "stages": [vars(stage) for stage in data.stages] if isinstance(data, Curriculum) else [],
            **{name: value for name, value in dataclasses.asdict(self.options).items() if name not in NOT_LEARNT},
        }
        return dict(json.loads(json.dumps(identity)))

    def claim_folder(self, force: bool) -> None:
        """Note this run in its folder. Raises OptionError where that holds another one, unless `force` removes it."""
        wanted = self.identity()
        with self._main_first():
            if not self.is_main:
                return
            found = self._noted()
            if found is None and (others := [path.name for path in self.job.out.iterdir() if path.name != LOCK]):
                raise OptionError(f"{self.job.out} holds something else ({others[0]}): name an empty folder.")
            if found is not None and not force:
                self._check_same({name: found.get(name) for name in wanted}, wanted)
            if force:
                self._clear()
            self._note({**({} if force else found or {}), **wanted})

    def _check_same(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        changes = [
            f"{name} {found[name]!r:.40}, not {wanted[name]!r:.40}" for name in wanted if found[name] != wanted[name]
        ]
        if changes:
            raise OptionError(
                f"{self.job.out} holds another run, with {'; '.join(changes)}: name another folder, or --force to "
                "remove it."
            )

    def _check_data(self, group: str, file: Path) -> None:
        """Note what the data are. Raises OptionError where the run was begun with others."""
        noted = self._noted()
        if noted is None or not self.is_main:  # it is only planned, or checked elsewhere
            return
        known, digest = noted.setdefault("data", {}), file_sha256(file)
        if known.get(group, digest) != digest:
            shutil.rmtree(self.job.out / TOKENS)
            raise OptionError(
                f"{self.job.out} holds a run with other data: name another folder, or --force to remove it."
            )
        self._note({**noted, "data": {**known, group: digest}})

    def _noted(self) -> dict[str, Any] | None:
        return read_own_json(self.job.out / RUN)

    def _note(self, facts: dict[str, Any]) -> None:
        write_atomically(self.job.out / RUN, json.dumps(facts, indent=2) + "\n")

    def _clear(self) -> None:
        for path in [path for name in OWN_FILES for path in self.job.out.glob(name)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    @contextlib.contextmanager
    def _main_first(self) -> Iterator[None]:
        """Let the main process go first, and the others find what it has done."""
        if self.processes == 1:
            yield
            return
        from accelerate import PartialState

        with PartialState(cpu=self.device.type == "cpu").main_process_first():
            yield

    def plan(self, folder: Path, samples: int) -> Plan:
        """Read the data into a folder, order the rows, and estimate what the run needs."""
        options, config = self.options, self.snapshot.config
        chosen = options.end_in_history
        in_history = self.prompt_format.end_in_history if chosen is None else chosen
        encoder = RecordEncoder(self.snapshot.tokenizer, self.prompt_format, options.length or 0, in_history)
        with self._main_first():
            store = TokenStore(folder, encoder, self.is_main, self._check_data)
            tokens = {group: store.open(group, each) for group, each in groups_of(self.job.data).items()}
            evaluation = store.open(EVALUATION, self.job.evaluation_data) if self.job.evaluation_data else None
        step_rows = options.micro_batches(self.processes) * options.device_rows * self.processes
        self.rows = RunRows(tokens, self.job.data, options, step_rows, evaluation)
        self.steps = -(-len(self.rows.training) // step_rows)
        sizes = (config, options, self.dtype.itemsize)
        available = free_bytes(self.device)
        # FSDP shares out weights that the estimate counts whole
        is_left_open = _is_sharded() and options.checkpointing is None
        self.recomputed = config.layers if is_left_open else recomputed_blocks(*sizes, available)
        return Plan(
            counts={group: each.report for group, each in tokens.items()},
            rows=len(self.rows.training),
            held_out=self.rows.held_out_records,
            fill=self.rows.fill,
            steps=self.steps,
            step_rows=step_rows,
            parameters=config.parameters,
            trained_parameters=trained_parameters(config, options),
            memory=memory_needed(*sizes, self.recomputed),
            available=available,
            blocks=config.layers,
            recomputed_blocks=self.recomputed,
            samples=self._samples(next(iter(tokens.values())), samples),
        )

    def _samples(self, tokens: TokenFile, count: int) -> list[str]:
        return [marked_sample(tokens, index, self.snapshot.tokenizer) for index in range(min(count, len(tokens)))]

    def train(self, report: Callable[[Progress], None]) -> None:
        """Train from the start or the last checkpoint, and write the result."""
        from modelscope_polylm.training.result import write_adapter, write_snapshot
        from modelscope_polylm.training.trainer import last_checkpoint

        trainer = self.trainer(report)
        last = last_checkpoint(self.job.out)
        trainer.train(resume_from_checkpoint=str(last) if last else None)
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        if not self.is_main:
            return
        if self.options.method == "lora":
            write_adapter(trainer.accelerator.unwrap_model(trainer.model_wrapped), state, self.snapshot, self.output)
        else:
            write_snapshot(state, self.snapshot, self.output)

    def evaluate(self) -> dict[str, float]:
        """Measure the held-out records with the last checkpoint."""
        from modelscope_polylm.training.trainer import last_checkpoint

        if not self.rows.held_out:
            raise OptionError("No record is held out: train with evaluation=0.01 or another share, or give other data.")
        trainer = self.trainer(lambda progress: None, log=False)
        trainer._load_from_checkpoint(str(last_checkpoint(self.job.out)))
        return trainer.evaluate()

    def trainer(self, report: Callable[[Progress], None], log: bool = True) -> FinetuneTrainer:
        """The network and its Trainer, as they are before the first step; `log`: to TensorBoard, too."""
        import torch

        from modelscope_polylm.training.network import trained_model
        from modelscope_polylm.training.trainer import FinetuneTrainer, training_arguments

        kind = {"on_cpu": self.device.type == "cpu", "bf16": str(self.dtype) == "torch.bfloat16", "log": log}
        arguments = training_arguments(self.job.out, self.options, self.steps, self.processes, **kind)
        # with FSDP accelerate sends each device its part
        device = torch.device("cpu") if _is_sharded() else arguments.device
        base, recomputed = self.job.model_name, self.recomputed
        model = trained_model(self.snapshot, self.options, device, self.dtype, base, recomputed_blocks=recomputed)
        return FinetuneTrainer(model, arguments, self.rows.training, self.rows.held_out, report)


def is_main_process() -> bool:
    """Whether this process is the one that writes."""
    return os.environ.get("RANK", "0") == "0"


def _is_sharded() -> bool:
    """Whether `accelerate launch` shares out the weights by FSDP."""
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def _process_device(device: torch.device) -> torch.device:
    """The device of this process, where `accelerate launch` has started several; transformers is told a single one."""
    import torch

    if device.type == "cuda":
        if "LOCAL_RANK" in os.environ:
            return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", str(device))
    return device


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raise OptionError where another run writes into the folder."""

    def refuse() -> None:
        raise OptionError(f"Another run is writing to {folder}: wait for its end, or name another folder.")

    if not is_main_process():  # the main process holds it for all
        yield
        return
    with (folder / LOCK).open("w") as file:
        lock(file.fileno(), refuse)
        yield


@contextlib.contextmanager
def _device_errors() -> Iterator[None]:
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            "The device ran out of memory: lower --device-rows or --length, switch --checkpointing on, train an "
            "adapter (--method lora), or spread the model by `accelerate launch` with FSDP."
        ) from error
