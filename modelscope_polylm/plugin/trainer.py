"""Fine-tuning by ModelScope's `build_trainer('polylm-sft', default_args=...)`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelscope.trainers.base import BaseTrainer
from modelscope.trainers.builder import TRAINERS

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.hub.resolve import resolve
from modelscope_polylm.plugin.model import PolyLMForTextGeneration
from modelscope_polylm.plugin.registration import TRAINER_TYPE
from modelscope_polylm.training.finetune import Job, evaluate, finetune
from modelscope_polylm.training.options import TrainingOptions
from modelscope_polylm.training.prepare import DataSet, own_data_set
from modelscope_polylm.training.sources import source_of_row

__all__ = ["PolyLMTrainer"]

# What ModelScope hands to trainers; this one has no use for it.
FROM_MODELSCOPE = ("trust_remote_code", "cfg_file", "cfg_modify_fn", "type")


@TRAINERS.register_module(module_name=TRAINER_TYPE, force=True)
class PolyLMTrainer(BaseTrainer):  # type: ignore[misc]
    """What `polylm finetune` does, as a trainer of ModelScope.

    Attributes:
        job: what is to be done.
        output: where the result will be; `pipeline(model=output)` loads it.
    """

    def __init__(
        self,
        model: str | Path | PolyLMForTextGeneration,
        train_dataset: Any,
        work_dir: str | Path,
        *,
        eval_dataset: Any = None,
        model_revision: str | None = None,
        release: str | None = None,
        prompt_format: str | None = None,
        device: str | None = None,
        torch_dtype: str | None = None,
        **options: Any,
    ) -> None:
        """Take a job; nothing is read or loaded yet, except the first row of the data.

        Args:
            model: a folder, a hub id, a release's short name, or a loaded model. A package has to be given as a Path,
                or with `trust_remote_code=True`: ModelScope refuses its name otherwise.
            train_dataset: a file, a list of files, an MsDataset, or a list of rows; a row has 'messages', or
                'instruction' and 'output', or 'text'.
            work_dir: the folder of the run.
            eval_dataset: data to measure the loss on, as `train_dataset`.
            model_revision: of a hub id.
            release, prompt_format: as in `TextGenerator.load`.
            device, torch_dtype: where it runs, and the precision of the products.
            options: of `training.options.TrainingOptions`, such as `method='full'`, `epochs=3.0`, `seed=1`.

        Raises:
            OptionError: an unknown option or value.
            InputError: data that are none of these.
            SnapshotError, DownloadError: a model that cannot be found or downloaded.
        """
        own = {name: value for name, value in options.items() if name not in FROM_MODELSCOPE}
        named = None if isinstance(model, PolyLMForTextGeneration) or Path(str(model)).exists() else str(model)
        self.job = Job(
            model=_folder(model, model_revision),
            data=_data_sets(train_dataset),
            out=Path(work_dir),
            options=TrainingOptions.from_dict(own),
            evaluation_data=_data_sets(eval_dataset) if eval_dataset is not None else (),
            model_name=named,
            release=release,
            prompt_format=prompt_format,
            device=device,
            dtype=torch_dtype,
        )
        self.output = self.job.out / "output"

    def train(self, *args: Any, **kwargs: Any) -> Path:
        """Train to the end, from the last checkpoint if there is one; returns the folder of the result.

        Raises:
            OptionError: an argument, as everything is given to the constructor; or a folder that holds another run.
        """
        if args or kwargs:
            raise OptionError(f"train() takes nothing, not {[*args, *kwargs]}: give options to build_trainer.")
        return finetune(self.job)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Mean losses of the held-out records by the last checkpoint: 'eval_loss', and 'eval_loss_de' by language."""
        if args or kwargs:
            raise OptionError(f"evaluate() takes nothing, not {[*args, *kwargs]}: give eval_dataset to build_trainer.")
        return evaluate(self.job)


def _folder(model: str | Path | PolyLMForTextGeneration, revision: str | None) -> Path:
    if isinstance(model, PolyLMForTextGeneration):
        return model.generator.snapshot.folder
    return resolve(model, revision)


def _data_sets(value: Any) -> list[DataSet]:
    """Data sets of files or of rows. Raises InputError."""
    if isinstance(value, (str, Path)):
        return [own_data_set(Path(value))]
    if isinstance(value, Sequence) and value and all(isinstance(each, (str, Path)) for each in value):
        return [own_data_set(Path(each)) for each in value]
    if not isinstance(value, Iterable):
        raise InputError(f"A data set must be a file, a list of files, an MsDataset or rows, not {value!r:.80}.")
    first = next(iter(value), None)
    if not isinstance(first, Mapping):
        raise InputError(f"Rows must be dicts, not {first!r:.80}.")

    def rows() -> Iterator[tuple[str, Any]]:
        return (("", row) for row in value)

    return [DataSet(source_of_row(first), rows=rows)]
