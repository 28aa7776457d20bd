"""Examines a snapshot and says, for each fault, what it means and which command repairs it."""

from __future__ import annotations

import math
import shlex
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modelscope_polylm.errors import PolyLMError, SnapshotError
from modelscope_polylm.files import file_sha256, read_json, read_untrusted
from modelscope_polylm.packaging.files import CHECKSUMS, TOKENIZER_JSON, read_checksums
from modelscope_polylm.packaging.safetensors_writer import record_problem, row_chunks
from modelscope_polylm.packaging.tokenizer.parity import compare_tokenizers, load_converted, sentences
from modelscope_polylm.packaging.tokenizer.settings import TokenizerSettings, read_settings
from modelscope_polylm.releases import RELEASES, named_release
from modelscope_polylm.snapshot import Snapshot, open_snapshot
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.text.prompts import FORMATS, Message, render

if TYPE_CHECKING:
    from modelscope_polylm.network.gpt2 import Decoder

MAX_NAMES = 20
"""Most names that one finding lists."""
TOKENIZER_JSON_BYTES = 256 << 20
SENTENCES = 8
"""Sentences in each language whose likelihood is measured."""

Status = Literal["ok", "note", "fault"]


def verify_snapshot(
    folder: str | Path,
    name: str | None = None,
    device: str | None = None,
    run: bool = True,
    show: Callable[[Finding], None] | None = None,
) -> VerifyReport:
    """Examine a snapshot folder: files, weights, settings, tokenizer, and what the network predicts.

    Args:
        folder: the snapshot, published in 2023 or packaged.
        name: how the user named it, for the commands that are proposed; the folder if None.
        device: where the network runs, such as 'cpu'; a GPU if there is one.
        run: whether to load the network and run it, too.
        show: called with each finding as soon as it is known.

    Returns:
        The findings. If the folder cannot be opened at all, they are the reasons.
    """
    folder = Path(folder).expanduser()
    report = VerifyReport(folder)
    for finding in _findings(folder, name or str(folder), device, run):
        report.findings.append(finding)
        if show:
            show(finding)
    return report


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: what was looked at.
        status: 'fault' if some engine goes wrong because of it, 'note' if none does.
        meaning: what was found and what follows from it.
        repair: a command that repairs it, or None.
    """

    check: str
    status: Status
    meaning: str
    repair: str | None = None


@dataclass
class VerifyReport:
    """All findings about a snapshot."""

    folder: Path
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """The findings that are faults."""
        return [finding for finding in self.findings if finding.status == "fault"]

    @property
    def exit_code(self) -> int:
        """0 without faults, else 1."""
        return 1 if self.faults else 0

    def __str__(self) -> str:
        return render_report(self)


def render_report(report: VerifyReport, width: int = 100) -> str:
    """The report as a plain table, wrapped to `width` columns, with each repair once at the end."""
    names = max((len(finding.check) for finding in report.findings), default=0)
    lines = [str(report.folder)]
    for finding in report.findings:
        head = f"{finding.status:5}  {finding.check:{names}}  "
        wrapped = textwrap.wrap(finding.meaning, max(30, width - len(head))) or [""]
        lines += [head + wrapped[0], *(" " * len(head) + line for line in wrapped[1:])]
    count = len(report.faults)
    lines.append(f"{count or 'no'} fault{'s' * (count != 1)}")
    repairs = dict.fromkeys(finding.repair for finding in report.findings if finding.repair)
    if repairs:
        lines += ["To repair:", *(f"    {repair}" for repair in repairs)]
    return "\n".join(lines)


def check_hashes(folder: Path, download: str) -> Iterator[Finding]:
    """Compare the files with the folder's own list of checksums.

    Args:
        folder: the snapshot.
        download: the command that repairs it.
    """
    if not (folder / CHECKSUMS).exists():
        yield Finding("hashes", "note", f"The folder has no {CHECKSUMS} to compare with; only packages have one.")
        return
    try:
        sums = read_checksums(folder)
    except SnapshotError as error:
        yield Finding("hashes", "fault", str(error), download)
        return
    missing = [name for name in sums if not (folder / name).is_file()]
    changed = [name for name, sum in sums.items() if name not in missing and file_sha256(folder / name) != sum]
    if missing:
        yield Finding("hashes", "fault", f"Missing: {_listed(missing)}. The copy is incomplete.", download)
    if changed:
        meaning = f"Not as {CHECKSUMS} says: {_listed(changed)}. Damaged, or changed later."
        yield Finding("hashes", "fault", meaning, download)
    if not missing and not changed:
        yield Finding("hashes", "ok", f"{len(sums)} files are as {CHECKSUMS} says.")


def language_losses(snapshot: Snapshot, decoder: Decoder) -> dict[str, float]:
    """Mean negative log-likelihood per token, in nats, of built-in sentences in each of the 18 languages."""
    from modelscope_polylm.network.gpt2 import token_losses

    losses = {}
    for language in LANGUAGES:
        ids = snapshot.tokenizer.encode("\n".join(sentences()[language][:SENTENCES]))
        losses[language] = token_losses(decoder, ids[: snapshot.config.max_positions]).mean().item()
    return losses


def _findings(folder: Path, name: str, device: str | None, run: bool) -> Iterator[Finding]:
    package = f"polylm package {shlex.quote(name)} {shlex.quote(Path(name).name + '-package')}"
    download = "modelscope download --model OWNER/NAME --local_dir " + shlex.quote(str(folder))
    try:
        snapshot = open_snapshot(folder)
    except SnapshotError as error:
        lines = str(error).splitlines()
        yield from (Finding("snapshot", "fault", line, _repair(line, download)) for line in lines[1:] or lines)
        return
    yield _check_release(snapshot, name, package)
    yield from check_hashes(folder, download)
    yield from _check_tensors(snapshot, package)
    yield from _check_records(snapshot, download)
    yield _check_numbers(snapshot, download)
    yield from _check_settings(snapshot, package)
    yield from _check_tokenizer(snapshot, package)
    if run:
        yield from _check_network(snapshot, device)


def _repair(problem: str, download: str) -> str | None:
    # no generation_config.json is published, so a wrong one has to be edited
    return None if problem.startswith("generation_config.json") else download


def _check_release(snapshot: Snapshot, name: str, package: str) -> Finding:
    if snapshot.release is not None:
        return Finding("release", "ok", f"{snapshot.release.name}, recognised by {snapshot.release_source}.")
    if release := named_release(name):
        return Finding("release", "ok", f"{release.name}, recognised by the name that was given.")
    if snapshot.prompt_format is not None:
        prompts = f"configuration.json names the prompt format {snapshot.prompt_format.name!r}"
        return Finding("release", "note", f"None of the published ones is recognised; {prompts}.")
    meaning = (
        "Neither configuration.json nor the name of the folder tells which release it is, so its chat format and its "
        f"default options are unknown: pass --release with one of {', '.join(RELEASES)}."
    )
    return Finding("release", "note", meaning, f"{package} --release NAME")


def _check_tensors(snapshot: Snapshot, package: str) -> Iterator[Finding]:
    """Report what the weight files hold, and what in them is superfluous."""
    from modelscope_polylm.network.weights import HEAD, MASK

    files, config = snapshot.weight_files, snapshot.config
    headers = dict(files.headers())
    dtypes = sorted({header.dtype for header in headers.values()} - {"bool", "uint8"})
    sizes = f"{config.layers} layers, {config.heads} heads, hidden size {config.hidden_size}"
    count = len(files.files)
    held = f"{config.parameters:,} parameters in {count} file{'s' * (count != 1)}, {', '.join(dtypes)}"
    yield Finding("tensors", "ok", f"{held}; {sizes}, {config.max_positions} positions.")
    extra = [name for name in headers if MASK.fullmatch(name) or name == HEAD]
    if extra:
        meaning = f"{len(extra)} tensors hold causal masks or a second copy of the embedding, which nothing reads."
        yield Finding("extra tensors", "note", meaning, package)
    if any(file.path.suffix == ".bin" for file in files.files):
        meaning = "Weights are pickles: slow to load, and many engines refuse them. This package reads them safely."
        yield Finding("weight format", "fault", meaning, package)
    if "float16" in dtypes:
        yield Finding("weight type", "note", "Weights are float16; PolyLM overflows if it also computes in it.")


def _check_records(snapshot: Snapshot, download: str) -> Iterator[Finding]:
    """Compare the checksums inside .bin files with their contents."""
    paths = [file.path for file in snapshot.weight_files.files if file.path.suffix == ".bin"]
    if not paths:
        return
    problems = [problem for path in paths if (problem := record_problem(path))]
    yield from (Finding("records", "fault", f"{problem}.", download) for problem in problems)
    if not problems:
        yield Finding("records", "ok", f"The checksums inside {len(paths)} .bin files agree with their contents.")


def _check_numbers(snapshot: Snapshot, download: str) -> Finding:
    """Look for NaN and infinity in every tensor except the causal masks."""
    from modelscope_polylm.network.weights import MASK, not_finite

    files = snapshot.weight_files
    names = {name for name, _ in files.headers() if not MASK.fullmatch(name)}
    damaged = [
        name
        for name, source in files.tensors(names)
        if any(not_finite({name: rows}) for rows in row_chunks(source.tensor))
    ]
    if damaged:
        meaning = f"NaN or infinity in {_listed(damaged)}: the file is damaged, or its training diverged."
        return Finding("numbers", "fault", meaning, download)
    return Finding("numbers", "ok", f"All numbers in {len(names)} tensors are finite.")


def _check_settings(snapshot: Snapshot, package: str) -> Iterator[Finding]:
    """Check whether the JSON files make other engines do what this package does."""
    folder, end = snapshot.folder, snapshot.tokenizer.eos_token_id
    config = _settings(folder / "config.json")
    generation = _settings(folder / "generation_config.json")
    tokenizer = _settings(folder / "tokenizer_config.json")
    wrong = f"end token is {config.get('eos_token_id')}, but </s> is {end}: answers never end in other engines."
    yield _judged("config.json", config.get("eos_token_id") == end, f"The end token is {end}.", wrong, package)
    if snapshot.config.architecture != "GPT2LMHeadModel":
        meaning = f"Names the class {snapshot.config.architecture}, which needs code from the repository to load."
        yield Finding("config.json", "fault", meaning, package)
    right, wrong = f"The end token is {end}.", "is missing or names another end token: engines use their own defaults."
    is_right = _as_list(generation.get("eos_token_id")) == [end]
    yield _judged("generation_config.json", is_right, right, wrong, package)
    right, wrong = "There is a chat template.", "has no chat template: chat servers refuse messages or guess a format."
    has_template = bool(tokenizer.get("chat_template")) or (folder / "chat_template.jinja").is_file()
    yield _judged("chat template", has_template, right, wrong, package)
    if str(tokenizer.get("tokenizer_class")).startswith("Llama"):
        meaning = (
            "Names LlamaTokenizer, whose ids current transformers changes: text is read wrongly, without an error."
        )
        yield Finding("tokenizer_config.json", "fault", meaning, package)


def _check_tokenizer(snapshot: Snapshot, package: str) -> Iterator[Finding]:
    """Report the facts that only tokenizer.model tells, and whether tokenizer.json agrees with it."""
    yield Finding("tokenizer.model", "ok", _facts(read_settings(snapshot.tokenizer)))
    file = snapshot.folder / TOKENIZER_JSON
    if not file.exists():
        meaning = "The file is missing: engines that convert tokenizer.model themselves get other ids on most texts."
        yield Finding(TOKENIZER_JSON, "fault", meaning, package)
        return
    try:
        content = read_untrusted(file, TOKENIZER_JSON_BYTES).decode()
        report = compare_tokenizers(snapshot.tokenizer, load_converted(content))
    except (SnapshotError, ValueError) as error:
        yield Finding(TOKENIZER_JSON, "fault", str(error), package)
        return
    if report.faults:
        yield Finding(TOKENIZER_JSON, "fault", f"{report} For example {report.faults[0]}", package)
    else:
        yield Finding(TOKENIZER_JSON, "ok", str(report))


def _check_network(snapshot: Snapshot, device: str | None = None) -> Iterator[Finding]:
    """Load the weights and run them."""
    from modelscope_polylm.backends import create_backend
    from modelscope_polylm.backends.placement import choose_device, choose_dtype, limit_threads

    try:
        chosen = choose_device(device)
        limit_threads(snapshot.config, chosen)
        backend: Any = create_backend("native", snapshot, chosen, choose_dtype(None, chosen))
        decoder = backend.engine.decoder
        yield _translation_loss(snapshot, decoder)
        yield _language_losses(snapshot, decoder)
        yield _published_example(snapshot, backend)
    except PolyLMError as error:
        yield Finding("network", "fault", f"The network cannot be run: {error}")


def _translation_loss(snapshot: Snapshot, decoder: Decoder) -> Finding:
    from modelscope_polylm.backends.native import DOUBTFUL_SHARE_OF_CHANCE, translation_loss

    loss, chance = translation_loss(decoder, snapshot.tokenizer), math.log(snapshot.config.vocab_size)
    found = f"Translations of a sentence take {loss:.2f} nats per token, guessing takes {chance:.2f}"
    if not loss < chance:
        return Finding("prediction", "fault", f"{found}: these are not the weights of a trained GPT-2 network.")
    if loss > DOUBTFUL_SHARE_OF_CHANCE * chance:
        return Finding("prediction", "note", f"{found}: check the answers before you rely on them.")
    return Finding("prediction", "ok", f"{found}.")


def _language_losses(snapshot: Snapshot, decoder: Decoder) -> Finding:
    losses = language_losses(snapshot, decoder)
    if not all(map(math.isfinite, losses.values())):
        meaning = "The network computes numbers that are not finite: the weights are damaged."
        return Finding("loss by language", "fault", meaning)
    listed = ", ".join(f"{language} {loss:.2f}" for language, loss in losses.items())
    chance = math.log(snapshot.config.vocab_size)
    meaning = f"Nats per token, where guessing takes {chance:.2f}: {listed}."
    if sum(losses.values()) / len(losses) < chance:
        return Finding("loss by language", "ok", meaning)
    hint = "On average this is no better than guessing: the model does not know these texts."
    return Finding("loss by language", "note", f"{meaning} {hint}")


def _published_example(snapshot: Snapshot, backend: Any) -> Finding:
    from modelscope_polylm.generation.options import GenerationOptions

    request: Message = {"role": "user", "content": translation_request(SENTENCE, "Chinese")}
    prompt = snapshot.tokenizer.encode(render([request], snapshot.prompt_format or FORMATS["base"]))
    call = {"do_sample": False, "num_beams": 4, "early_stopping": True, "max_new_tokens": 32, "max_length": None}
    options = GenerationOptions.from_layers({"eos_token_id": snapshot.generation["eos_token_id"]}, call)
    answer = snapshot.tokenizer.decode(backend.generate([prompt], options)[0][0].ids, skip_special_tokens=True)
    meaning = f"{SENTENCE!r} into Chinese gives {answer!r}"
    if answer.strip() == TRANSLATIONS["zh"]:
        return Finding("published example", "ok", f"{meaning}.")
    return Finding("published example", "note", f"{meaning}; expected {TRANSLATIONS['zh']!r}.")


def _facts(settings: TokenizerSettings) -> str:
    parts = [
        settings.model_type,
        f"{len(settings.pieces):,} pieces",
        f"normalizer {settings.normalizer or 'without a name'}",
        "byte fallback" if settings.byte_fallback else "no byte fallback",
        "a space before the text" if settings.add_dummy_prefix else "no space before the text",
        "extra spaces removed" if settings.remove_extra_whitespaces else "all spaces kept",
    ]
    return ", ".join(parts) + "."


def _judged(check: str, is_right: bool, right: str, wrong: str, repair: str) -> Finding:
    return Finding(check, "ok", right) if is_right else Finding(check, "fault", wrong[0].upper() + wrong[1:], repair)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _settings(file: Path) -> dict[str, Any]:
    try:
        value = read_json(file)
    except SnapshotError:
        return {}
    return value if isinstance(value, dict) else {}
