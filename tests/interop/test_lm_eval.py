"""lm-evaluation-harness against the server: its log-likelihoods are those of the API in this process."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from tests.interop.run_programs import interpreter
from tests.serve.running import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CHOICES = """\
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
doc_to_choice: "{{{{[right, wrong]}}}}"
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
TEXTS = """\
task: texts
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}{{{{right}}}}"
metric_list: [{{metric: word_perplexity}}]
"""


@pytest.fixture(scope="module")
def tiny(package: Path) -> TextGenerator:
    return TextGenerator.load(package, device="cpu", dtype="float32")


def write_tasks(folder: Path) -> list[dict[str, str]]:
    """A question for each language with a right answer, and one that is another language's."""
    names = [code for code in LANGUAGES if code != "en"]
    rows = [
        {
            "question": f"<|user|>\n{translation_request(SENTENCE, LANGUAGES[code])}\n<|assistant|>\n",
            "right": TRANSLATIONS[code],
            "wrong": TRANSLATIONS[names[index - 1]],
        }
        for index, code in enumerate(names)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for name, task in (("choices", CHOICES), ("texts", TEXTS)):
        (folder / f"{name}.yaml").write_text(task.format(file=data), encoding="utf-8")
    return rows


def evaluate(url: str, package: Path, folder: Path, *more: str) -> dict[str, list[dict[str, Any]]]:
    """Run lm_eval's command; the samples of each task."""
    model = f"model=tiny,base_url={url}/v1/completions,tokenizer={package},max_length=511,num_concurrent=2"
    command = [
        *(str(interpreter("lm-eval")), "-m", "lm_eval", "--model", "local-completions", "--model_args", model),
        *("--tasks", "choices,texts", "--include_path", str(folder), "--log_samples", "--output_path", str(folder)),
    ]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "home"), "PYTHONPATH": ""}
    done = subprocess.run(
        [*command, *more], capture_output=True, text=True, env={**os.environ, **offline}, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    files = {task: next(folder.rglob(f"samples_{task}_*.jsonl")) for task in ("choices", "texts")}
    return {
        task: [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        for task, file in files.items()
    }


def split(tokenizer: PolyLMTokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Cut a text as lm_eval does: space at the end of a context belongs to the continuation."""
    count = len(tokenizer.encode(context.rstrip()))
    ids = tokenizer.encode(context + continuation)
    return ids[:count], ids[count:]


def test_local_completions(tiny: TextGenerator, package: Path, tmp_path: Path) -> None:
    rows = write_tasks(tmp_path)
    tokenizer = tiny.snapshot.tokenizer
    with serving(tiny) as server:
        samples = evaluate(server.url, package, tmp_path, "--batch_size", "4")
        assert server.is_idle()
    assert len(samples["choices"]) == len(samples["texts"]) == len(rows) == 17
    for sample in samples["choices"]:
        row = rows[sample["doc_id"]]
        for (found,), continuation in zip(sample["resps"], (row["right"], row["wrong"]), strict=True):
            context, ids = split(tokenizer, row["question"], continuation)
            (scores,) = tiny.log_likelihood([context], [ids], best=1)
            assert float(found[0]) == pytest.approx(sum(scores.logprobs), abs=1e-3)
            is_greedy = all(best[0][0] == token for best, token in zip(scores.best, ids, strict=True))
            assert found[1] == str(is_greedy)
        assert sample["acc"] == 1.0
    for sample in samples["texts"]:
        ids = tokenizer.encode(rows[sample["doc_id"]]["question"] + rows[sample["doc_id"]]["right"])
        (scores,) = tiny.log_likelihood([[tokenizer.bos_token_id or 0]], [ids])
        assert float(sample["resps"][0][0]) == pytest.approx(sum(scores.logprobs), abs=1e-3)
