"""Fine-tuning by ModelScope's build_trainer, and its result in ModelScope's pipelines."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from modelscope.msdatasets import MsDataset
from modelscope.pipelines import pipeline
from modelscope.trainers import build_trainer

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.plugin.trainer import PolyLMTrainer

ROWS = [
    {"messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Yes {n}."}]}
    for n in range(12)
]
OPTIONS = {"steps": 2, "batch_tokens": 128, "length": 64, "device": "cpu", "prompt_format": "assistant"}


def built(model: Any, work_dir: Path, **arguments: Any) -> PolyLMTrainer:
    default_args = {"model": model, "train_dataset": ROWS, "work_dir": work_dir, **OPTIONS, **arguments}
    trainer: PolyLMTrainer = build_trainer("polylm-sft", default_args=default_args)
    assert isinstance(trainer, PolyLMTrainer)
    return trainer


def test_from_data_to_a_pipeline(random_snapshot: Path, tmp_path: Path) -> None:
    trainer = built(str(random_snapshot), tmp_path / "work", evaluation=0.3, evaluate_every=1)
    output = trainer.train()
    assert output == trainer.output == tmp_path / "work" / "output"
    assert set(trainer.evaluate()) == {"eval_loss", "eval_loss_other"}
    pipe = pipeline("text-generation", model=str(output), device="cpu")
    assert "text" in pipe({"messages": [{"role": "user", "content": "Question 1?"}]}, max_new_tokens=4)
    assert pipe.model.generator.snapshot.adapter is not None


def test_all_weights(random_snapshot: Path, tmp_path: Path) -> None:
    output = built(str(random_snapshot), tmp_path, method="full").train()
    assert "text" in pipeline("text-generation", model=str(output), device="cpu")("Hi", max_new_tokens=2)


def test_every_kind_of_data(random_snapshot: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    import datasets

    kinds = [file, str(file), [file], ROWS, MsDataset(datasets.Dataset.from_list(ROWS))]
    for kind in kinds:
        trainer = built(random_snapshot, tmp_path / "work", train_dataset=kind, eval_dataset=ROWS[:2], steps=1)
        assert [row for each in trainer.job.data for _, row in each.read()] == ROWS
    assert (trainer.train() / "adapter_model.safetensors").is_file()
    assert trainer.evaluate()["eval_loss"] > 0


def test_a_package_has_to_be_trusted(random_snapshot: Path, tmp_path: Path) -> None:
    package = Path(shutil.copytree(random_snapshot, tmp_path / "package"))
    configuration = json.loads((package / "configuration.json").read_text())
    (package / "configuration.json").write_text(json.dumps({**configuration, "allow_remote": True}))
    with pytest.raises(RuntimeError, match="trust_remote_code"):
        built(str(package), tmp_path / "work")
    assert built(package, tmp_path / "work").job.model == package
    assert built(str(package), tmp_path / "work", trust_remote_code=True).job.model == package


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"lora_rnk": 4}, OptionError, "did you mean lora_rank"),
        ({"train_dataset": 7}, InputError, "not 7"),
        ({"train_dataset": [1, 2]}, InputError, "Rows must be dicts, not 1"),
        ({"train_dataset": []}, InputError, "Rows must be dicts, not None"),
        ({"train_dataset": [{"question": "a"}]}, InputError, "fields question"),
        ({"train_dataset": "none.jsonl"}, InputError, "does not exist"),
    ],
)
def test_wrong_arguments(
    random_snapshot: Path, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        built(random_snapshot, tmp_path, **arguments)


def test_options_belong_to_the_constructor(random_snapshot: Path, tmp_path: Path) -> None:
    trainer = built(random_snapshot, tmp_path)
    with pytest.raises(OptionError, match="give options to build_trainer"):
        trainer.train(epochs=3)
    with pytest.raises(OptionError, match="give eval_dataset to build_trainer"):
        trainer.evaluate("checkpoint")


@pytest.mark.slow  # a process of its own
def test_the_trainer_is_not_imported_before_it_is_built(run_script: Any) -> None:
    source = (
        "import json, sys, modelscope_polylm\n"
        "from modelscope.trainers import build_trainer\n"
        "print(json.dumps([name for name in sys.modules if 'polylm.training' in name or name == 'peft']))"
    )
    assert run_script(source) == []
