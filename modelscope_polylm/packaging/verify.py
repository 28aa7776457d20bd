"""Examines a snapshot and says, for each fault, what it means and what repairs it."""

from __future__ import annotations

import json
import math
import shlex
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from modelscope_polylm.errors import PolyLMError, SnapshotError
from modelscope_polylm.packaging.files import CHECKSUMS, TOKENIZER_JSON
from modelscope_polylm.packaging.safetensors_writer import file_sha256
from modelscope_polylm.packaging.tokenizer.corpus import LANGUAGES, sentences
from modelscope_polylm.packaging.tokenizer.parity import load_converted, proof_summary, prove
from modelscope_polylm.packaging.tokenizer.settings import TokenizerSettings, read_settings
from modelscope_polylm.snapshot import Snapshot, open_snapshot
from modelscope_polylm.text.languages import SENTENCE, TRANSLATIONS, translation_request
from modelscope_polylm.text.prompts import Message, render

if TYPE_CHECKING:
    from modelscope_polylm.network.gpt2 import Decoder


def verify_snapshot(
    folder: str | Path,
    name: str | None = None,
    device: str | None = None,
    run: bool = True,
    show: Callable[[Row], None] | None = None,
) -> VerifyReport:
    """Examine a snapshot folder: files, weights, settings, tokenizer, and what the network predicts.

    Args:
        folder: the snapshot, published in 2023 or packaged.
        name: how the user named it, for the commands that are proposed; the folder if None.
        device: where the network runs, such as 'cpu'; a GPU if there is one.
        run: whether to load the network and run it, too.
        show: called with each finding as soon as it is known.

    Returns:
        The findings. Where the folder cannot be opened at all, these are the reasons.
    """
    folder = Path(folder).expanduser()
    report = VerifyReport(folder)
    for row in _rows(folder, name or str(folder), device, run):
        report.rows.append(row)
        if show:
            show(row)
    return report


def _rows(folder: Path, name: str, device: str | None, run: bool) -> Iterator[Row]:
    package = f"polylm package {shlex.quote(name)} {shlex.quote(Path(name).name + '-package')}"
    download = "modelscope download --model OWNER/NAME --local_dir " + shlex.quote(str(folder))
    try:
        snapshot = open_snapshot(folder)
    except SnapshotError as error:
        yield from (Row("snapshot", "fault", line, download) for line in str(error).splitlines()[1:] or [str(error)])
        return
    yield from check_hashes(folder, download)
    yield from check_weights(snapshot, package)
    yield from check_settings(snapshot, package)
    yield from check_tokenizer(snapshot, package)
    if run:
        yield from check_network(snapshot, device)


Status = Literal["ok", "note", "fault"]


@dataclass(frozen=True)
class Row:
    """One finding.

    Attributes:
        check: what was looked at.
        status: 'fault' where some engine goes wrong with it, 'note' where nothing does.
        meaning: what was found and what follows.
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
    rows: list[Row] = field(default_factory=list)

    @property
    def faults(self) -> list[Row]:
        """The rows that are faults."""
        return [row for row in self.rows if row.status == "fault"]

    @property
    def exit_code(self) -> int:
        """0 without faults, else 1."""
        return 1 if self.faults else 0

    def __str__(self) -> str:
        return render_report(self)


def render_report(report: VerifyReport, width: int = 100) -> str:
    """The report as a plain table, lines wrapped to `width` columns, with each repair once at the end."""
    names = max((len(row.check) for row in report.rows), default=0)
    lines = [str(report.folder)]
    for row in report.rows:
        head = f"{row.status:5}  {row.check:{names}}  "
        wrapped = textwrap.wrap(row.meaning, max(30, width - len(head))) or [""]
        lines += [head + wrapped[0], *(" " * len(head) + line for line in wrapped[1:])]
    count = len(report.faults)
    lines.append(f"{count or 'no'} fault{'s' * (count != 1)}")
    repairs = dict.fromkeys(row.repair for row in report.rows if row.repair)
    if repairs:
        lines += ["To repair:", *(f"    {repair}" for repair in repairs)]
    return "\n".join(lines)


def check_hashes(folder: Path, download: str) -> Iterator[Row]:
    """Compare the files with the folder's own list of checksums."""
    sums = folder / CHECKSUMS
    if not sums.is_file():
        yield Row("hashes", "note", f"The folder has no {CHECKSUMS} to compare with, as only packages have it.")
        return
    pairs = [line.split(maxsplit=1) for line in sums.read_text(encoding="utf-8").splitlines() if line.strip()]
    missing = [name for _, name in pairs if not (folder / name).is_file()]
    changed = [name for sha256, name in pairs if name not in missing and file_sha256(folder / name) != sha256]
    if missing:
        yield Row("hashes", "fault", f"{', '.join(missing)} missing: the copy is incomplete.", download)
    if changed:
        meaning = f"{', '.join(changed)} differ from {CHECKSUMS}: damaged, or changed since."
        yield Row("hashes", "fault", meaning, download)
    if not missing and not changed:
        yield Row("hashes", "ok", f"{len(pairs)} files are as {CHECKSUMS} says.")


def check_weights(snapshot: Snapshot, package: str) -> Iterator[Row]:
    """What the weight files hold, and what they hold too much."""
    from modelscope_polylm.network.weights import HEAD, MASK, PREFIX

    files = snapshot.weight_files.files
    headers = {name.removeprefix(PREFIX): header for file in files for name, header in file.headers.items()}
    config, dtypes = snapshot.config, sorted({header.dtype for header in headers.values()} - {"bool", "uint8"})
    size = f"{config.layers} layers, {config.heads} heads, width {config.hidden_size}, {config.max_positions} positions"
    yield Row("tensors", "ok", f"{config.parameters:,} parameters in {len(files)} files, {', '.join(dtypes)}; {size}.")
    extra = [name for name in headers if MASK.fullmatch(name) or name == HEAD]
    if extra:
        kept = "causal masks or a second copy of the embedding, which are read by nobody"
        yield Row("extra tensors", "note", f"{len(extra)} tensors hold {kept}.", package)
    if any(file.path.suffix == ".bin" for file in files):
        meaning = "Weights are pickles: slow to load, and many engines refuse them. This package reads them safely."
        yield Row("weight format", "fault", meaning, package)
    if "float16" in dtypes:
        yield Row("weight type", "note", "Weights are float16; PolyLM overflows if it also computes in it.")


def check_settings(snapshot: Snapshot, package: str) -> Iterator[Row]:
    """Whether the JSON files make other engines do what this package does."""
    folder, end = snapshot.folder, snapshot.tokenizer.eos_token_id
    config = _read(folder / "config.json")
    generation = _read(folder / "generation_config.json")
    tokenizer = _read(folder / "tokenizer_config.json")
    wrong = f"end token is {config.get('eos_token_id')}, but </s> is {end}: answers never end in other engines."
    yield _judged("config.json", config.get("eos_token_id") == end, f"The end token is {end}.", wrong, package)
    if snapshot.config.architecture != "GPT2LMHeadModel":
        meaning = f"names the class {snapshot.config.architecture}, which needs code from the repository to load."
        yield Row("config.json", "fault", meaning, package)
    right, wrong = f"The end token is {end}.", "is missing or names another end token: engines use their own defaults."
    is_right = _as_list(generation.get("eos_token_id")) == [end]
    yield _judged("generation_config.json", is_right, right, wrong, package)
    right, wrong = "There is a chat template.", "has no chat template: chat servers refuse messages or guess a format."
    has_template = bool(tokenizer.get("chat_template")) or (folder / "chat_template.jinja").is_file()
    yield _judged("chat template", has_template, right, wrong, package)
    if str(tokenizer.get("tokenizer_class")).startswith("Llama"):
        meaning = "names LlamaTokenizer, which today's transformers lets change ids: text is read wrongly, silently."
        yield Row("tokenizer_config.json", "fault", meaning, package)


def _judged(check: str, is_right: bool, right: str, wrong: str, repair: str) -> Row:
    return Row(check, "ok", right) if is_right else Row(check, "fault", wrong[0].upper() + wrong[1:], repair)


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_tokenizer(snapshot: Snapshot, package: str) -> Iterator[Row]:
    """The facts that only tokenizer.model tells, and whether tokenizer.json agrees with it."""
    yield Row("tokenizer.model", "ok", _facts(read_settings(snapshot.tokenizer)))
    file = snapshot.folder / TOKENIZER_JSON
    if not file.is_file():
        meaning = "is missing: engines that convert tokenizer.model themselves get other ids on most texts."
        yield Row(TOKENIZER_JSON, "fault", f"The file {meaning}", package)
        return
    try:
        proof = prove(snapshot.tokenizer, load_converted(file.read_text(encoding="utf-8")))
    except (SnapshotError, ValueError) as error:
        yield Row(TOKENIZER_JSON, "fault", str(error), package)
        return
    faults = proof.faults()
    example = f" For example {faults[0]}" if faults else ""
    repair = package if faults else None
    yield Row(TOKENIZER_JSON, "fault" if faults else "ok", proof_summary(proof) + example, repair)


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


SENTENCES = 8
# A trained model stays far below this share of the loss of guessing.
DOUBTFUL_SHARE = 0.6


def check_network(snapshot: Snapshot, device: str | None = None) -> Iterator[Row]:
    """Load the weights and run them."""
    from modelscope_polylm.backends import create_backend
    from modelscope_polylm.backends.placement import choose_device, choose_dtype

    try:
        chosen = choose_device(device)
        backend: Any = create_backend("native", snapshot, chosen, choose_dtype(None, chosen))
        decoder = backend.engine.decoder
        yield _translation_loss(snapshot, decoder)
        yield _language_losses(snapshot, decoder)
        yield _published_example(snapshot, backend)
    except PolyLMError as error:
        yield Row("network", "fault", f"The network cannot be run: {error}")


def language_losses(snapshot: Snapshot, decoder: Decoder) -> dict[str, float]:
    """Mean negative log-likelihood per token, in nats, of a few built-in sentences in each of the 18 languages."""
    from modelscope_polylm.network.gpt2 import token_losses

    losses = {}
    for language in LANGUAGES:
        ids = snapshot.tokenizer.encode("\n".join(sentences()[language][:SENTENCES]))
        losses[language] = token_losses(decoder, ids[: snapshot.config.max_positions]).mean().item()
    return losses


def _language_losses(snapshot: Snapshot, decoder: Decoder) -> Row:
    losses = language_losses(snapshot, decoder)
    if not all(map(math.isfinite, losses.values())):
        return Row(
            "loss by language", "fault", "The network gives numbers that are not finite: the weights are damaged."
        )
    listed = ", ".join(f"{language} {loss:.2f}" for language, loss in losses.items())
    chance = math.log(snapshot.config.vocab_size)
    is_better = sum(losses.values()) / len(losses) < chance
    hint = "" if is_better else " On the whole this is no better than guessing: the model does not know these texts."
    return Row(
        "loss by language",
        "ok" if is_better else "note",
        f"Nats per token, where guessing takes {chance:.2f}: {listed}.{hint}",
    )


def _translation_loss(snapshot: Snapshot, decoder: Decoder) -> Row:
    from modelscope_polylm.backends.plausibility import translation_loss

    loss, chance = translation_loss(decoder, snapshot.tokenizer), math.log(snapshot.config.vocab_size)
    found = f"Translations of a sentence take {loss:.2f} nats per token, guessing takes {chance:.2f}"
    if not loss < chance:
        return Row("prediction", "fault", f"{found}: these weights are not those of a trained GPT-2 network.")
    if loss > DOUBTFUL_SHARE * chance:
        return Row("prediction", "note", f"{found}: check the answers before you rely on them.")
    return Row("prediction", "ok", f"{found}.")


def _published_example(snapshot: Snapshot, backend: Any) -> Row:
    from modelscope_polylm.generation.options import GenerationOptions

    request: Message = {"role": "user", "content": translation_request(SENTENCE, "Chinese")}
    prompt = snapshot.tokenizer.encode(render([request], snapshot.prompt_format))
    call = {"do_sample": False, "num_beams": 4, "early_stopping": True, "max_new_tokens": 32, "max_length": None}
    options = GenerationOptions.from_layers({"eos_token_id": snapshot.generation["eos_token_id"]}, call)
    answer = snapshot.tokenizer.decode(backend.generate([prompt], options)[0][0].ids, skip_special_tokens=True)
    is_expected = answer.strip() == TRANSLATIONS["zh"]
    meaning = f"{SENTENCE!r} into Chinese gives {answer!r}"
    return Row(
        "published example",
        "ok" if is_expected else "note",
        f"{meaning}." if is_expected else f"{meaning}; expected {TRANSLATIONS['zh']!r}.",
    )
