"""A package in ms-swift with this package's plugin: the right ids, an adapter, a merged package, the same answers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.packaging.verify import verify_snapshot
from modelscope_polylm.text.prompts import FORMATS
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from modelscope_polylm.training.collate import IGNORED, RecordEncoder
from modelscope_polylm.training.layouts import Record, TrainingMessage
from tests.commands import Outcome, polylm
from tests.interop.run_programs import interpreter, run_program
from tests.training.published import write_json, write_lines

__all__ = ["polylm"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROOT = Path(__file__).parents[2]
QUESTION = "Rome is the capital of Italy.\nTranslate this sentence from English to German."


def said(*contents: str) -> list[TrainingMessage]:
    return [{"role": "assistant" if n % 2 else "user", "content": text} for n, text in enumerate(contents)]


CONVERSATIONS = [said(QUESTION, "Rom."), said(" a\n\nb ", "One </s>", "Two?", "Zwei ")]


@pytest.fixture
def plugin(polylm: Callable[..., Outcome]) -> Path:
    printed = Path(polylm("swift-plugin").output.strip())
    assert printed == ROOT / "modelscope_polylm" / "training" / "swift_plugin.py"
    return printed


def swift(command: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    called = [str(interpreter("ms-swift")), "-m", f"swift.cli.{command}", *map(str, arguments)]
    return subprocess.run(called, capture_output=True, text=True, env=variables, timeout=900, check=False)


def test_the_ids_are_those_of_training_here(package: Path, plugin: Path, tmp_path: Path) -> None:
    conversations = write_json(tmp_path / "conversations.json", CONVERSATIONS)
    found = run_program("ms-swift", "with_swift.py", package, plugin, conversations, python_path=ROOT)
    assert found["polylm"] == found["polylm-assistant"]
    for name in ("assistant", "multialpaca", "ecomm", "base"):
        encoder = RecordEncoder(PolyLMTokenizer.from_pretrained(TINY_FOLDER), FORMATS[name], 512)
        rows = CONVERSATIONS if FORMATS[name].earlier_turn else CONVERSATIONS[:1]
        for messages, row in zip(rows, found[f"polylm-{name}"], strict=False):
            (example,) = encoder.encode(Record(messages))
            assert row["ids"] == example.ids
            last = len(encoder.tokenizer.encode(messages[-1]["content"])) + 1
            assert row["labels"][-last:] == example.ids[-last:]
            assert [token for token in row["labels"] if token != IGNORED][-1] == encoder.tokenizer.eos_token_id


def test_train_merge_verify_answer(package: Path, plugin: Path, tmp_path: Path) -> None:
    rows = [{"messages": said(QUESTION, "Rom war die Hauptstadt von Italien.")}] * 8
    data = write_lines(tmp_path / "data.jsonl", rows)
    common = ["--external_plugins", plugin, "--torch_dtype", "float32"]
    options = {
        "model": package,
        "dataset": data,
        "tuner_type": "lora",
        "lora_rank": 4,
        "learning_rate": 5e-3,
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "output_dir": tmp_path / "out",
        "add_version": "false",
        "report_to": "none",
        "split_dataset_ratio": 0,
        "dataset_num_proc": 1,
    }
    named = [part for name, value in options.items() for part in (f"--{name}", value)]
    trained = swift("sft", *named, "--target_modules", "c_attn", "c_proj", "c_fc", *common)
    assert trained.returncode == 0, trained.stderr[-4000:]
    (checkpoint,) = (tmp_path / "out").glob("checkpoint-*")
    merged = swift(
        "export", "--adapters", checkpoint, "--merge_lora", "true", "--output_dir", tmp_path / "merged", *common
    )
    assert merged.returncode == 0, merged.stderr[-4000:]
    report = verify_snapshot(tmp_path / "merged", "merged", "cpu")
    assert report.exit_code == 0, report.findings
    answers = [
        answer(TextGenerator.load(folder, device="cpu", adapter=adapter))
        for folder, adapter in ((tmp_path / "merged", None), (package, checkpoint), (package, None))
    ]
    assert answers == ["Rom war die Hauptstadt von Italien."] * 2 + ["Rom ist die Hauptstadt von Italien."]


def answer(generator: TextGenerator) -> str:
    options = generator.options({"max_new_tokens": 32})
    return generator.reply([generator.reader.read(QUESTION, options, chat=True)], options)[0].texts[0]


def test_a_snapshot_that_is_no_package_is_refused(plugin: Path, tmp_path: Path) -> None:
    data = write_lines(tmp_path / "data.jsonl", [{"messages": said("a", "b")}])
    arguments = ["--model", TINY_FOLDER, "--dataset", data, "--output_dir", tmp_path / "out", "--tuner_type", "lora"]
    found = swift("sft", *arguments, "--external_plugins", plugin, "--torch_dtype", "float32")
    assert found.returncode != 0 and "is no package" in found.stderr
