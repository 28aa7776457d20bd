"""Fine-tuning runs: what they learn, where they stop, and how they go on."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelscope_polylm.cli.bench.workloads import shape_config
from modelscope_polylm.errors import DeviceError, DownloadError, InputError, OptionError, PolyLMError, SnapshotError
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.packaging.package import package_snapshot
from modelscope_polylm.packaging.quantized_source import Quantization
from modelscope_polylm.training.finetune import Job, evaluate, finetune, plan
from modelscope_polylm.training.options import TrainingOptions
from modelscope_polylm.training.plan import memory_needed, recomputed_blocks
from modelscope_polylm.training.prepare import DataSet
from modelscope_polylm.training.schedule import Curriculum
from modelscope_polylm.training.sources import SOURCES
from modelscope_polylm.training.trainer import Progress, last_checkpoint
from tests.commands import Outcome
from tests.small_disk import FILLER, fill, small_disk
from tests.snapshots import build_snapshot
from tests.training.published import write_lines

QUICK: dict[str, Any] = {
    "steps": 6,
    "batch_tokens": 128,
    "length": 64,
    "learning_rate": 3e-3,
    "lora_dropout": 0.1,
    "save_every": 2,
    "log_every": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small snapshot. Do not write to it."""
    return build_snapshot(tmp_path_factory.mktemp("model"), width=64, heads=1, positions=128, spread=0.05)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {
            "messages": [{"role": "user", "content": f"Question {n}?"}, {"role": "assistant", "content": f"Yes {n}."}],
            "language": "de" if n % 4 else "th",
        }
        for n in range(24)
    ]
    return write_lines(tmp_path / "data.jsonl", rows)


@pytest.fixture
def job(model: Path, data: Path, tmp_path: Path) -> Job:
    """Six steps of LoRA."""
    return with_options(
        Job(
            model,
            [DataSet(SOURCES["messages"], data)],
            tmp_path / "run",
            TrainingOptions(),
            prompt_format="assistant",
            device="cpu",
        ),
        **QUICK,
    )


def with_options(job: Job, **options: Any) -> Job:
    given = {name: value for name, value in dataclasses.asdict(job.options).items() if value is not None}
    return dataclasses.replace(job, options=TrainingOptions.from_dict({**given, **options}))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def assert_equal(one: Path, two: Path) -> None:
    first, second = tensors(one), tensors(two)
    assert first and first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def stop_after(step: int) -> Callable[[Progress], None]:
    """Interrupts a run when it reports that step, which no checkpoint holds yet."""

    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report


def test_the_plan_tells_everything_and_writes_nothing(job: Job) -> None:
    found = plan(with_options(job, evaluation=0.25))
    assert not job.out.exists()
    assert (found.steps, found.step_rows) == (6, 2)
    assert found.rows == 12 and 0 < found.held_out < 24 and 0.5 < found.fill <= 1
    counts = found.counts["data"]
    assert counts.records == counts.examples == 24 and 0 < counts.trained_tokens < counts.tokens
    assert found.trained_parameters == 2 * 8 * (64 + 192 + 64 + 64 + 64 + 256 + 256 + 64)
    assert found.fits is True and found.needed == sum(found.memory.values())
    assert len(found.samples) == 2
    assert found.samples[0] == "<|user|>\nQuestion 0?\n<|assistant|>\n⟦Yes 0.</s>⟧"
    assert "6 steps of 2 rows" in str(found) and "it fits" in str(found)
    assert json.loads(json.dumps(found.to_dict()))["fits"] is True


def test_the_trained_parameters_are_as_planned(job: Job) -> None:
    finetune(job)
    expected = plan(job).trained_parameters
    assert sum(tensor.numel() for tensor in tensors(job.out / "output").values()) == expected


def test_an_adapter_is_learnt(job: Job, model: Path) -> None:
    losses: list[float | None] = []
    output = finetune(with_options(job, steps=30), report=lambda progress: losses.append(progress.loss))
    assert len(losses) == 30 and all(loss is not None for loss in losses)
    assert (losses[-1] or 0) < 0.7 * (losses[0] or 0)
    assert sorted(path.name for path in output.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "configuration.json",
        "polylm_base.json",
    ]
    settings = json.loads((output / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(model) and settings["r"] == 8
    tuned, plain = (
        TextGenerator.load(model, device="cpu", prompt_format="assistant", adapter=adapter)
        for adapter in (output, None)
    )
    assert tuned.snapshot.adapter is not None
    assert answer(tuned) != answer(plain)


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_an_adapter_is_learnt_over_quantised_weights(job: Job, model: Path, quantization: str) -> None:
    losses: list[float] = []
    quantised = with_options(job, steps=30, quantization=quantization)
    whole, held = plan(with_options(job, steps=30)).memory["weights"], plan(quantised).memory["weights"]
    output = finetune(quantised, report=lambda progress: losses.append(progress.loss or 0.0))
    assert losses[-1] < 0.75 * losses[0]
    assert held < whole
    tuned = TextGenerator.load(model, device="cpu", prompt_format="assistant", adapter=output)
    assert answer(tuned) != answer(TextGenerator.load(model, device="cpu", prompt_format="assistant"))


def test_an_interrupted_run_is_continued_with_the_same_quantization(job: Job) -> None:
    finetune(with_options(job, quantization="int8"))
    with pytest.raises(OptionError, match="quantization 'int8', not 'int4'"):
        finetune(with_options(job, quantization="int4"))


def test_a_quantised_model_is_not_trained(job: Job, tmp_path: Path) -> None:
    quantised = tmp_path / "quantised"
    package_snapshot(TINY_FOLDER, quantised, quantization=Quantization("int4", "round", device="cpu"))
    with pytest.raises(OptionError, match="train on the model that it was made from"):
        finetune(dataclasses.replace(job, model=quantised))


def test_fsdp_does_not_share_out_quantised_weights(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(OptionError, match="FSDP does not share out quantised weights"):
        finetune(with_options(job, quantization="int4"))


def answer(generator: TextGenerator) -> str:
    options = generator.options({"max_new_tokens": 6})
    return generator.reply([generator.reader.read("Question 1?", options, chat=True)], options)[0].texts[0]


def test_all_weights_are_learnt(job: Job, model: Path) -> None:
    output = finetune(with_options(job, method="full", steps=4))
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "configuration.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    tuned = TextGenerator.load(output, device="cpu")
    assert tuned.snapshot.prompt_format and tuned.snapshot.prompt_format.name == "assistant"
    weights = tuned.snapshot.weight_files.load(tuned.snapshot.config, torch.device("cpu"), torch.float32)
    before = TextGenerator.load(model, device="cpu", prompt_format="assistant").snapshot
    for name, weight in before.weight_files.load(before.config, torch.device("cpu"), torch.float32).items():
        assert not torch.equal(weight, weights[name]), name


def test_a_tuned_bf16_snapshot_stays_in_bf16(job: Job, tmp_path: Path) -> None:
    half = build_snapshot(tmp_path / "half", dtype=torch.bfloat16, width=64, heads=1, positions=128)
    output = finetune(dataclasses.replace(with_options(job, method="full", steps=1), model=half))
    assert {tensor.dtype for tensor in tensors(output).values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "options",
    [
        {"evaluation": 0.2, "evaluate_every": 2},
        pytest.param({"method": "full", "device_rows": 2}, marks=pytest.mark.slow),
        pytest.param({"lora_dropout": 0.0, "checkpointing": False}, marks=pytest.mark.slow),
        pytest.param({"packing": "none", "checkpointing": True}, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_bits(job: Job, tmp_path: Path, options: dict[str, Any]) -> None:
    whole = with_options(job, **options)
    finetune(whole)
    broken = dataclasses.replace(whole, out=tmp_path / "broken")
    for step in (3, 5):
        with pytest.raises(KeyboardInterrupt):
            finetune(broken, report=stop_after(step))
        assert not (broken.out / "output").exists()
    assert last_checkpoint(broken.out) == broken.out / "checkpoint-4"
    seen: list[int] = []
    finetune(broken, report=lambda progress: seen.append(progress.step))
    assert seen[0] == 5
    assert_equal(whole.out / "output", broken.out / "output")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bits(job: Job, data: Path, tmp_path: Path) -> None:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in {**QUICK, "steps": 40, "save_every": 4}.items()]
    named = [str(job.model), str(data), "--prompt-format", "assistant", "--device", "cpu", *options]

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "modelscope_polylm", "finetune", *named, "--out", str(out)]

    subprocess.run(command(tmp_path / "whole"), check=True, timeout=280)
    process = subprocess.Popen(command(tmp_path / "killed"))
    deadline = time.monotonic() + 200
    while last_checkpoint(tmp_path / "killed") is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed" / "output").exists()
    subprocess.run(command(tmp_path / "killed"), check=True, timeout=280)
    assert_equal(tmp_path / "whole" / "output", tmp_path / "killed" / "output")


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(job: Job, data: Path, tmp_path: Path) -> None:
    chosen = {**QUICK, "lora_dropout": 0, "evaluation": 0.3, "evaluate_every": 3}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in chosen.items()]
    named = ["finetune", str(job.model), str(data), "--prompt-format", "assistant", "--device", "cpu", *options]
    errors = []
    for processes in (1, 2):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
        command = [*launch, "-m", "modelscope_polylm", *named, "--out", str(tmp_path / str(processes))]
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=280)
        assert done.stdout.splitlines() == [str(tmp_path / str(processes) / "output")]
        errors.append([line for line in done.stderr.splitlines() if "held-out loss" in line])
    one, two = (tensors(tmp_path / name / "output") for name in ("1", "2"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)
    assert errors[0] == errors[1] and len(errors[0]) == 2


def test_a_checkpoint_that_is_not_complete_is_passed_over(job: Job, tmp_path: Path) -> None:
    finetune(job)
    last = job.out / "checkpoint-6"
    assert last_checkpoint(job.out) == last
    state = last / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    assert last_checkpoint(job.out) == job.out / "checkpoint-4"
    (job.out / "checkpoint-4" / "trainer_state.json").unlink()
    assert last_checkpoint(job.out) is None
    assert last_checkpoint(tmp_path / "none") is None


def test_a_finished_run_is_not_done_again(job: Job) -> None:
    finetune(job)
    before = (job.out / "output" / "adapter_model.safetensors").stat().st_mtime_ns
    seen: list[Progress] = []
    assert finetune(job, report=seen.append) == job.out / "output"
    assert seen == [] and (job.out / "output" / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_folder_is_of_one_run(job: Job, data: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune(job, report=stop_after(3))
    with pytest.raises(OptionError, match="with seed 0, not 1: name another folder, or --force"):
        finetune(with_options(job, seed=1))
    with pytest.raises(OptionError, match=r"with lora_rank 8, not 4; learning_rate 0\.003, not 0\.1"):
        finetune(with_options(job, learning_rate=0.1, lora_rank=4))
    other = build_snapshot(tmp_path / "other", width=64, heads=1, positions=128, seed=3)
    with pytest.raises(OptionError, match="another run, with model"):
        finetune(dataclasses.replace(job, model=other))
    write_lines(data, [json.loads(line) for line in data.read_text().splitlines()][:-1])
    with pytest.raises(OptionError, match="a run with other data"):
        finetune(job)
    assert last_checkpoint(job.out) is not None
    finetune(with_options(job, seed=1), force=True)
    assert json.loads((job.out / "run.json").read_text())["seed"] == 1


def test_data_that_were_only_touched_are_the_same(job: Job, data: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune(job, report=stop_after(3))
    os.utime(data)
    seen: list[int] = []
    finetune(job, report=lambda progress: seen.append(progress.step))
    assert seen[0] == 3


def test_a_folder_with_something_else(job: Job) -> None:
    job.out.mkdir()
    (job.out / "thesis.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"holds something else \(thesis\.txt\)"):
        finetune(job)
    with pytest.raises(OptionError, match="holds something else"):
        finetune(job, force=True)
    assert (job.out / "thesis.txt").read_text() == "mine"


def test_force_removes_only_what_a_run_has_written(job: Job) -> None:
    finetune(with_options(job, steps=1))
    (job.out / "notes.txt").write_text("mine")
    finetune(with_options(job, steps=1, seed=2), force=True)
    assert (job.out / "notes.txt").read_text() == "mine"
    assert json.loads((job.out / "run.json").read_text())["seed"] == 2


def test_a_run_may_report_at_other_steps(job: Job) -> None:
    with pytest.raises(KeyboardInterrupt):
        finetune(job, report=stop_after(3))
    seen: list[int] = []
    finetune(with_options(job, log_every=2, evaluate_every=7), report=lambda progress: seen.append(progress.step))
    assert seen[-1] == 6


def test_an_adapter_is_not_trained_further(job: Job, tmp_path: Path) -> None:
    adapter = finetune(with_options(job, steps=1))
    with pytest.raises(OptionError, match="is an adapter: merge it first"):
        finetune(dataclasses.replace(job, model=adapter, out=tmp_path / "second"))


def test_two_runs_into_one_folder(job: Job) -> None:
    def second(progress: Progress) -> None:
        with pytest.raises(OptionError, match="Another run is writing to"):
            finetune(job)
        seen.append(progress.step)

    seen: list[int] = []
    finetune(job, report=second)
    assert len(seen) == 6


def test_a_loss_that_is_not_finite(job: Job) -> None:
    wild = with_options(job, learning_rate=1e30, warmup=0.0, save_every=1, method="full")
    with pytest.raises(PolyLMError, match=r"At step 2 the (loss is (nan|inf)|gradients)") as caught:
        finetune(wild)
    assert "in the batch of the records " in str(caught.value)
    assert f"the last good checkpoint is {wild.out / 'checkpoint-1'}" in str(caught.value)
    assert last_checkpoint(wild.out) == wild.out / "checkpoint-1"
    assert not (wild.out / "output").exists()


def test_no_room_on_the_device(job: Job) -> None:
    def report(progress: Progress) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with pytest.raises(DeviceError, match=r"lower --device-rows or --length"):
        finetune(job, report=report)


def test_a_full_disk_leaves_the_last_good_checkpoint(job: Job, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        full = dataclasses.replace(with_options(job, steps=40), out=disk / "run")

        def fill_at_5(progress: Progress) -> None:
            if progress.step == 5:
                fill(disk)

        with pytest.raises(DownloadError, match="cannot be written") as caught:
            finetune(full, report=fill_at_5)
        assert str(disk / "run" / "checkpoint-4") in str(caught.value)
        assert last_checkpoint(full.out) == disk / "run" / "checkpoint-4"
        (disk / FILLER).unlink()
        seen: list[int] = []
        finetune(full, report=lambda progress: seen.append(progress.step))
        assert seen[0] == 5
        del caught
        gc.collect()  # examples are mapped from the disk


def test_held_out_losses_by_language(job: Job) -> None:
    seen: list[Progress] = []
    tested = with_options(job, evaluation=0.5, evaluate_every=3)
    finetune(tested, report=seen.append)
    found = [progress for progress in seen if progress.evaluation is not None]
    assert [progress.step for progress in found] == [3, 6]
    assert all(set(progress.evaluation or {}) == {"de", "th"} for progress in found)
    last = evaluate(tested)
    assert set(last) == {"eval_loss", "eval_loss_de", "eval_loss_th"}
    assert {f"eval_loss_{name}": loss for name, loss in (found[-1].evaluation or {}).items()} == pytest.approx(
        {name: loss for name, loss in last.items() if name != "eval_loss"}
    )
    low, high = sorted([last["eval_loss_de"], last["eval_loss_th"]])
    assert low < last["eval_loss"] < high


def test_nothing_held_out_to_evaluate(job: Job) -> None:
    with pytest.raises(OptionError, match="has no checkpoint: train first"):
        evaluate(with_options(job, evaluation=0.5))
    finetune(with_options(job, steps=1))
    with pytest.raises(OptionError, match="No record is held out"):
        evaluate(with_options(job, steps=1))


def test_data_of_their_own_to_evaluate(job: Job, tmp_path: Path) -> None:
    rows = [{"text": "Beijing is the capital of China. " * 9, "language": "en"}] * 3
    other = DataSet(SOURCES["text"], write_lines(tmp_path / "dev.jsonl", rows))
    seen: list[Progress] = []
    finetune(dataclasses.replace(with_options(job, evaluate_every=6), evaluation_data=[other]), report=seen.append)
    assert [set(progress.evaluation) for progress in seen if progress.evaluation] == [{"en"}]


def test_tensorboard(job: Job) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finetune(job)
    (folder,) = (job.out / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/learning_rate", "train/tokens_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_curriculum(job: Job, tmp_path: Path) -> None:
    for name, word in (("english", "Paris"), ("other", "北京")):
        write_lines(tmp_path / f"{name}.jsonl", [{"text": f"{word} {n} " * 9} for n in range(40)])
    file = tmp_path / "curriculum.yaml"
    file.write_text(
        "groups: {english: [text=english.jsonl], other: [text=other.jsonl]}\n"
        "stages:\n"
        "  - {tokens: 2000, shares: {english: 0.7, other: 0.3}}\n"
        "  - {tokens: 2000, shares: {english: 0.4, other: 0.6}}\n"
    )
    mixed = dataclasses.replace(with_options(job, method="full"), data=Curriculum.read(file))
    mixed = dataclasses.replace(mixed, options=dataclasses.replace(mixed.options, steps=None))
    found = plan(mixed)
    assert set(found.counts) == {"english", "other"} and found.counts["english"].records == 40
    assert found.rows * 64 * found.fill == pytest.approx(4000, rel=0.1)
    output = finetune(mixed)
    assert (output / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"model": Path("/none")}, SnapshotError, "does not exist"),
        ({"data": [DataSet(SOURCES["messages"], Path("/none.jsonl"))]}, InputError, "does not exist"),
        ({"device": "tpu"}, DeviceError, "Unknown device"),
        pytest.param(
            {"dtype": "float16"}, OptionError, "overflow float16", marks=pytest.mark.filterwarnings("ignore:float16")
        ),
        ({"prompt_format": "chatml"}, OptionError, "chatml"),
    ],
)
def test_jobs_that_cannot_be(job: Job, change: dict[str, Any], error: type[PolyLMError], message: str) -> None:
    with pytest.raises(error, match=message):
        finetune(dataclasses.replace(job, **change))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "qlora"}, "method='qlora' is not one of 'lora', 'full'"),
        ({"quantization": "fp8"}, "quantization='fp8' is not one of 'int8', 'int4'"),
        ({"quantization": "int8", "method": "full"}, "all of them learn"),
        ({"learning_rat": 1}, "did you mean learning_rate"),
        ({"length": 4096}, "length=4096 is more than the 128 tokens"),
        ({"epochs": 0.0}, "must be greater than 0"),
        ({"lora_rank": 2.5}, "must be a whole number"),
    ],
)
def test_options_that_cannot_be(job: Job, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        finetune(with_options(job, **options))


def test_the_papers_defaults() -> None:
    large = TrainingOptions.from_dict({"method": "full"}).for_model(5120, 2048)
    assert (large.learning_rate, large.batch_tokens, large.length) == (1e-5, 64 * 2048, 2048)
    assert large.packing == "isolated" and large.checkpointing is None and large.residual == "float32"
    small = TrainingOptions.from_dict({}).for_model(2048, 2048)
    assert (small.learning_rate, small.batch_tokens) == (1e-4, 32 * 2048)
    assert large.micro_batches(1) == 64 and large.micro_batches(8) == 8


def test_as_few_activations_as_the_memory_asks_for_are_computed_again() -> None:
    config = shape_config("13b")
    options = TrainingOptions.from_dict({}).for_model(config.hidden_size, config.max_positions)
    sizes = (config, options, 2)
    counts = [recomputed_blocks(*sizes, gigabytes * 10**9) for gigabytes in (32, 40, 48, 80)]
    assert counts[0] == config.layers > counts[1] > counts[2] > counts[3] == 0
    for gigabytes, count in zip((40, 48), counts[1:], strict=False):
        assert sum(memory_needed(*sizes, count).values()) <= 0.9 * gigabytes * 1e9
        assert sum(memory_needed(*sizes, count - 1).values()) > 0.9 * gigabytes * 1e9
    for given, count in ((True, config.layers), (False, 0)):
        chosen = dataclasses.replace(options, checkpointing=given)
        assert recomputed_blocks(config, chosen, *sizes[2:], 32 * 10**9) == count


def test_the_command(polylm: Callable[..., Outcome], job: Job, data: Path, tmp_path: Path) -> None:
    given = [str(job.model), str(data), "--out", str(job.out), "--prompt-format", "assistant", "--device", "cpu"]
    options = ["--steps", "3", "--batch-tokens", "128", "--length", "64", "--log-every", "1", "--evaluation", "0.2"]
    dry = polylm("finetune", *given, *options, "--dry-run")
    assert dry.exit_code == 0, dry.errors
    assert "3 steps of 2 rows" in dry.output and "⟦Yes 0.</s>⟧" in dry.output
    assert not job.out.exists()
    result = polylm("finetune", *given, *options)
    assert result.exit_code == 0, result.errors
    assert result.output == f"{job.out / 'output'}\n"
    assert "Step 3/3: loss" in result.errors and "it fits" in result.errors
    refused = polylm("finetune", *given, *options, "--seed", "5")
    assert refused.exit_code == 2 and "with seed 0, not 5" in refused.errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--out", "x"], "Give one of these: data files, or --curriculum"),
        (["tiny", "none.jsonl", "--out", "x"], "none.jsonl does not exist"),
        (["tiny", "doly=none.jsonl", "--out", "x"], "did you mean dolly"),
        (["tiny", "--curriculum", "none.yaml", "--out", "x"], "none.yaml cannot be read"),
    ],
)
def test_wrong_arguments(polylm: Callable[..., Outcome], arguments: list[str], message: str) -> None:
    result = polylm("finetune", *arguments)
    assert result.exit_code == 2 and message in result.errors


def test_rows_of_no_kind(polylm: Callable[..., Outcome], tmp_path: Path) -> None:
    file = write_lines(tmp_path / "rows.jsonl", [{"question": "a"}])
    result = polylm("finetune", "tiny", str(file), "--out", str(tmp_path / "x"))
    assert result.exit_code == 2 and "A row with the fields question is neither" in result.errors
    empty = write_lines(tmp_path / "empty.jsonl", [])
    assert "has no row" in polylm("finetune", "tiny", str(empty), "--out", str(tmp_path / "x")).errors


def test_tokens_that_were_lost_are_made_again(job: Job) -> None:
    """Tokens that were lost are made again."""
    with pytest.raises(KeyboardInterrupt):
        finetune(job, report=stop_after(3))
    shutil.rmtree(job.out / "tokens")
    finetune(job)
    assert (job.out / "output").is_dir()
