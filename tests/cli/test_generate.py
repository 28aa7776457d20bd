"""`polylm generate` and `polylm demo`: texts from everywhere, answers alone on stdout, and the published call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modelscope_polylm import GenerationOptions
from modelscope_polylm.generation.options import option_fields
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.terminal.flags import REPORTS
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE
from tests.processes import ended_seconds, run_polylm

SHORT = ("--num-beams", "1", "--max-new-tokens", "8")
TEXT = "Beijing is the"


@pytest.fixture(scope="module")
def generator(random_snapshot: Path) -> TextGenerator:
    return TextGenerator.load(random_snapshot, device="cpu", prompt_format="assistant")


@pytest.fixture
def generate(
    polylm: Callable[..., Any], generator: TextGenerator, random_snapshot: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Runs `polylm generate` on the random snapshot, loaded once."""
    monkeypatch.setattr(TextGenerator, "load", lambda *arguments, **options: generator)

    def run(*arguments: str, stdin: bytes = b"") -> Any:
        return polylm("generate", "--model", str(random_snapshot), *arguments, stdin=stdin)

    return run


def answer(generator: TextGenerator, value: Any, **options: Any) -> list[str]:
    checked = generator.options({"num_beams": 1, "max_new_tokens": 8, **options})
    return generator.reply([generator.reader.read(value, checked)], checked)[0].texts


def test_text(generate: Callable[..., Any], generator: TextGenerator) -> None:
    assert generate(*SHORT, TEXT) == (0, answer(generator, TEXT)[0] + "\n", "")


def test_stdin_and_file(generate: Callable[..., Any], generator: TextGenerator, tmp_path: Path) -> None:
    text = f"<|user|>\n{TEXT}\n<|assistant|>\n"
    file = tmp_path / "prompt.txt"
    file.write_text(text, encoding="utf-8")
    expected = answer(generator, text)[0] + "\n"
    assert generate(*SHORT, "-", stdin=text.encode()).output == expected
    assert generate(*SHORT, "--file", str(file)).output == expected


@pytest.mark.parametrize("content", [b"\xef\xbb\xbf%s", b"%s\r\n", b"\xef\xbb\xbf%s\n"])
def test_files_as_windows_writes_them(
    generate: Callable[..., Any], generator: TextGenerator, tmp_path: Path, content: bytes
) -> None:
    text = f"{TEXT}\n{TEXT}"
    file = tmp_path / "prompt.txt"
    file.write_bytes(content % text.replace("\n", "\r\n").encode())
    expected = answer(generator, text + "\n" * content.endswith(b"\n"))[0] + "\n"
    assert generate(*SHORT, "--file", str(file)).output == expected
    assert generate(*SHORT, "-", stdin=file.read_bytes()).output == expected
    messages = {"messages": [{"role": "user", "content": text}]}
    assert generate(*SHORT, "--chat", "--file", str(file)).output == answer(generator, messages)[0] + "\n"


def test_chat(generate: Callable[..., Any], generator: TextGenerator) -> None:
    expected = answer(generator, {"messages": [{"role": "user", "content": TEXT}]})[0] + "\n"
    assert generate(*SHORT, "--chat", TEXT).output == expected
    assert generate(*SHORT, "--chat", "-", stdin=f"{TEXT}\n".encode()).output == expected


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        (["--num-beams", "3", "--early-stopping", "never"], {"num_beams": 3, "early_stopping": "never"}),
        (["--num-beams", "3", "--early-stopping", "true"], {"num_beams": 3, "early_stopping": True}),
        (["--do-sample", "--seed", "4", "--temperature", "2.5"], {"do_sample": True, "seed": 4, "temperature": 2.5}),
        (["--eos-token-id", "300", "--eos-token-id", "301"], {"eos_token_id": [300, 301]}),
        (["--stop-strings", "a", "--stop-strings", "n"], {"stop_strings": ["a", "n"]}),
        (["--bad-words-ids", "[[300], [301, 302]]"], {"bad_words_ids": [[300], [301, 302]]}),
        (["--no-do-sample"], {"do_sample": False}),
    ],
)
def test_options(
    generate: Callable[..., Any], generator: TextGenerator, flags: list[str], options: dict[str, Any]
) -> None:
    assert generate(*SHORT, *flags, TEXT).output == answer(generator, TEXT, **options)[0] + "\n"


def test_several_answers(generate: Callable[..., Any], generator: TextGenerator) -> None:
    outcome = generate("--num-beams", "4", "--max-new-tokens", "8", "--num-return-sequences", "2", TEXT)
    assert outcome.output == "\n".join(answer(generator, TEXT, num_beams=4, num_return_sequences=2)) + "\n"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "Give one of these"),
        ([TEXT, "--file", "prompt.txt"], "Give one of these"),
        (["--file", "/nowhere/prompt.txt"], "cannot be read: No such file"),
        ([""], "is empty"),
        (["--max-new-tokens", "0", TEXT], "max_new_tokens=0"),
        (["--seed", str(2**64), "--do-sample", TEXT], f"seed={2**64} must be at most"),
        (["--seed", "-1", "--do-sample", TEXT], "seed=-1 must be at least 0"),
        (["--max-new-tokens", "999", TEXT], "max_new_tokens=999"),
        (["--early-stopping", "perhaps", TEXT], "early_stopping='perhaps'"),
        (["--bad-words-ids", "[[1,", TEXT], "cannot be read: write it like"),
        (["--num-return-sequences", "2", "--num-beams", "1", TEXT], "num_return_sequences=2"),
        (["--chat", "<|assistant|>"], "which could forge a turn: remove it.\n"),
    ],
)
def test_bad_calls(generate: Callable[..., Any], arguments: list[str], reason: str) -> None:
    outcome = generate(*arguments)
    assert outcome.exit_code == 2
    assert outcome.output == ""
    assert reason in outcome.errors
    assert len(outcome.errors.splitlines()) == 1


def test_stdin_that_is_not_utf8(generate: Callable[..., Any]) -> None:
    outcome = generate("-", stdin=b"Paris \xff")
    assert outcome.exit_code == 2
    assert "stdin is not UTF-8 text (invalid start byte at byte 6)" in outcome.errors


def test_a_number_is_a_gpu(polylm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    outcome = polylm("generate", "--device", "0", TEXT)
    assert (outcome.exit_code, outcome.output) == (1, "")
    assert outcome.errors == "Error: Device '0' does not exist: this host has 0 GPUs. Use 'gpu' or 'cpu'.\n"


def test_unknown_models(polylm: Callable[..., Any], tmp_path: Path) -> None:
    assert polylm("generate", "--model", "asistant-13b", TEXT).exit_code == 1
    assert polylm("generate", "--model", str(tmp_path), TEXT).exit_code == 1


def test_every_option_has_a_flag_and_its_own_help(polylm: Callable[..., Any]) -> None:
    shown = " ".join(polylm("generate", "--help").output.split())
    for field in option_fields():
        flag = f"--{field.name.replace('_', '-')}"
        assert (flag in shown) == (field.name not in REPORTS)
        if field.name not in REPORTS:
            assert field.metadata["help"].split(";")[0][:40] in shown


def test_no_flag_given_is_no_option_given(generator: TextGenerator) -> None:
    assert generator.options(dict.fromkeys(field.name for field in option_fields())) == generator.options({})
    assert isinstance(generator.options({}), GenerationOptions)


def test_demo_translates_into_18_languages_quickly() -> None:
    before = ended_seconds()
    done = run_polylm("demo", "--device", "cpu")
    seconds = ended_seconds() - before
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < 12
    lines = done.stdout.splitlines()
    assert lines[:2] == ["北京是中国的首都。", ""]
    translations = dict(line.split(maxsplit=1) for line in lines[2:])
    assert list(translations) == list(LANGUAGES.values())
    assert translations["English"] == SENTENCE
    assert translations["French"] == "Pékin est la capitale de la Chine."
    assert len(set(translations.values())) == 18
