"""A model folder, opened and checked as a whole: sizes, tokenizer, weights, release, prompt format, default options."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from modelscope_polylm.errors import OptionError, SnapshotError, shortened, shown, suggestion
from modelscope_polylm.files import GIT_LFS_START, library_errors, open_untrusted, read_json
from modelscope_polylm.generation.options import checked_value, option_fields
from modelscope_polylm.network.adapter import ADAPTER_CONFIG, Adapter, check_base, read_adapter_config
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.weights import WeightFiles
from modelscope_polylm.releases import RELEASES, Release, release_of_folder
from modelscope_polylm.text.prompts import FORMATS, PromptFormat
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)

WHAT_A_SNAPSHOT_IS = (
    "A PolyLM snapshot is a folder with config.json, tokenizer.model and pytorch_model*.bin or model*.safetensors. "
    "Download one with `modelscope download --model damo/nlp_polylm_assistant_13b_text_generation --revision v1.0.0`."
)
CONFIG, CONFIGURATION, GENERATION_CONFIG = "config.json", "configuration.json", "generation_config.json"
POINTER_BYTES = 1024
"""A Git LFS pointer is smaller."""
# How calls are reported, and what a person chooses for each call: not for a file.
PER_CALL = ("seed", "output_scores", "output_logprobs", "beam_rules")
OPTION_NAMES = tuple(field.name for field in option_fields() if field.name not in PER_CALL)
# Names that say how or with what the file was written, and change no answer of a decoder.
WITHOUT_EFFECT = (
    *("_from_model_config", "transformers_version", "bos_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
)

Part = TypeVar("Part")


@dataclasses.dataclass
class Snapshot:
    """An opened model folder. Its weights are still on disk.

    Attributes:
        release: the published release that it is, None where that is unknown.
        prompt_format: how messages become a prompt; None where nothing tells, so that only plain texts can be run.
        generation: default generation options under transformers' names, the end token corrected.
        release_source: what told the release, such as "configuration.json"; None where nothing did.
        adapter: what is to be added to the weights when they are loaded.
    """

    folder: Path
    config: PolyLMConfig
    tokenizer: PolyLMTokenizer
    weight_files: WeightFiles
    release: Release | None
    prompt_format: PromptFormat | None
    generation: dict[str, Any]
    release_source: str | None = None
    adapter: Adapter | None = None


def open_snapshot(
    folder: str | Path,
    prompt_format: str | None = None,
    release: str | None = None,
    check_weights: bool = True,
    adapter: str | Path | None = None,
) -> Snapshot:
    """Open a model folder and check all of it, reading no more of the weights than their headers.

    Args:
        folder: a folder with config.json, tokenizer.model and weights.
        prompt_format: a name in `text.prompts.FORMATS`; what configuration.json or the release says if None.
        release: a name in `releases.RELEASES`; what configuration.json or the folder's name says if None.
        check_weights: False for a folder that is only needed for its texts, and may lack weights.
        adapter: peft's folder of a low-rank adapter of this model. Its configuration.json, if it has one, tells the
            prompt format that it was trained with. The folder of an adapter may also be given in place of the model,
            if it names the folder of its base.

    Raises:
        SnapshotError: every problem of the folder, a line each.
        OptionError: `prompt_format` or `release` is unknown, or the adapter is not one of this model.
    """
    folder = Path(folder).expanduser()
    if adapter is None and _is_adapter(folder):
        folder, adapter = _base_of(folder), folder
    _check_argument("release", release, RELEASES)
    _check_argument("prompt_format", prompt_format, FORMATS)
    _check_folder(folder)
    problems: list[str] = []
    config = _try(lambda: _read_config(folder), problems)
    tokenizer = _try(lambda: PolyLMTokenizer.from_pretrained(folder), problems)
    weight_files = WeightFiles(folder)
    if check_weights:
        problems += weight_files.problems(config) if config else weight_files.file_problems()
    problems += _vocabulary_problems(config, tokenizer)
    named = _try(lambda: _read_names(folder), problems) or {}
    if adapter is not None:
        named |= _read_names(Path(adapter).expanduser())
    own_options = _try(lambda: _read_generation_config(folder), problems) or {}
    if problems or config is None or tokenizer is None:
        raise _unusable(folder, problems)
    found, release_source = _find_release(folder, release, named.get("release"))
    format_name = prompt_format or named.get("prompt_format") or (found.prompt_format if found else None)
    tokenizer.prompt_format = FORMATS[format_name] if format_name else None
    generation = default_options(found, own_options, tokenizer, config)
    return Snapshot(
        folder,
        config,
        tokenizer,
        weight_files,
        release=found,
        prompt_format=tokenizer.prompt_format,
        generation=generation,
        release_source=release_source,
        adapter=None if adapter is None else _read_adapter(adapter, config, weight_files),
    )


def _is_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).exists() and not (folder / CONFIG).exists()


def _base_of(folder: Path) -> Path:
    """The folder of the model that an adapter was trained on."""
    base = str(read_adapter_config(folder).get("base_model_name_or_path") or "a model that it does not name")
    if (Path(base) / CONFIG).is_file():
        return Path(base)
    raise SnapshotError(f"{folder} is an adapter of {shown(base)}, not a model: load that with adapter={folder}.")


def _read_adapter(folder: str | Path, config: PolyLMConfig, weight_files: WeightFiles) -> Adapter:
    if config.quantization is not None:
        raise OptionError(
            f"{weight_files.folder} is quantised ({config.quantization}), so no adapter can be merged: load the "
            f"model that it was made from with adapter={folder} and quantization={config.quantization!r}."
        )
    adapter = Adapter.read(folder, config)
    check_base(adapter, weight_files)
    return adapter


def _check_argument(name: str, value: str | None, known: Collection[str]) -> None:
    if value is not None and (not isinstance(value, str) or value not in known):
        raise OptionError(f"{name}={value!r} is unknown: {suggestion(value, known)}")


def _unusable(folder: Path, problems: list[str]) -> SnapshotError:
    return SnapshotError("\n".join([f"The snapshot in {folder} cannot be used:", *problems]))


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        found = "is a file, not a folder" if folder.exists() else "does not exist"
        raise SnapshotError(f"{folder} {found}. {WHAT_A_SNAPSHOT_IS}")
    if not (folder / CONFIG).exists():
        raise SnapshotError(f"{folder} has no {CONFIG}, so it is not a PolyLM snapshot. {WHAT_A_SNAPSHOT_IS}")
    if (folder / ADAPTER_CONFIG).exists():
        raise SnapshotError(
            f"{folder} holds an adapter ({ADAPTER_CONFIG}) next to a model's weights, and nothing tells whether it is "
            "already merged into them. Move the files of the adapter into a folder of their own; adapter=FOLDER, or "
            "--adapter FOLDER, merges it when the model is loaded."
        )
    if pointers := sorted(shown(path.name) for path in folder.iterdir() if _is_pointer(path)):
        files = "file is only a Git LFS pointer" if len(pointers) == 1 else "files are only Git LFS pointers"
        advice = f"run `git lfs pull` in {folder}, or download the snapshot again"
        raise _unusable(folder, [f"{len(pointers)} {files}: {', '.join(pointers)}. To fetch the files: {advice}."])


def _is_pointer(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size > POINTER_BYTES:
        return False
    try:
        with open_untrusted(path) as file:
            return file.read(len(GIT_LFS_START)) == GIT_LFS_START
    except SnapshotError:
        return False  # its reader says what is wrong


def _try(read: Callable[[], Part], problems: list[str]) -> Part | None:
    try:
        return read()
    except SnapshotError as error:
        problems.extend(str(error).splitlines())
        return None


def _read_config(folder: Path) -> PolyLMConfig:
    values = read_json(folder / CONFIG)
    with library_errors(CONFIG):
        return PolyLMConfig.from_dict(values)


def _read_object(file: Path) -> dict[str, Any]:
    value = read_json(file) if file.exists() else {}
    if not isinstance(value, dict):
        raise SnapshotError(f"{file.name} holds a {type(value).__name__}, not an object with settings.")
    return value


def _read_names(folder: Path) -> dict[str, str]:
    """The optional keys `release` and `prompt_format` of configuration.json, checked."""
    configuration = _read_object(folder / CONFIGURATION)
    names: dict[str, str] = {}
    for key, known in (("release", tuple(RELEASES)), ("prompt_format", tuple(FORMATS))):
        value = configuration.get(key)
        if value is not None and value not in known:
            raise SnapshotError(f"{CONFIGURATION}: {key} {value!r:.80} is unknown; known are {', '.join(known)}.")
        if value is not None:
            names[key] = value
    return names


def _read_generation_config(folder: Path) -> dict[str, Any]:
    """The contents of generation_config.json, which may be missing, with every option in its range."""
    values = _read_object(folder / GENERATION_CONFIG)
    # an end token that is impossible is only not used
    fields = [field for field in option_fields() if field.name in OPTION_NAMES and field.name != "eos_token_id"]
    problems = [problem for field in fields if (problem := _value_problem(field, values.get(field.name)))]
    if problems:
        raise SnapshotError("\n".join(f"{GENERATION_CONFIG}: {problem}" for problem in problems))
    return values


def _value_problem(field: dataclasses.Field[Any], value: Any) -> str | None:
    try:
        if value is not None:
            checked_value(field, value)
    except OptionError as error:
        return str(error)
    except OverflowError:
        return f"{field.name}={value!r:.40} is too large."
    return None


def _vocabulary_problems(config: PolyLMConfig | None, tokenizer: PolyLMTokenizer | None) -> list[str]:
    if config is None or tokenizer is None or config.vocab_size >= tokenizer.vocab_size:
        return []
    return [
        f"config.json: vocab_size {config.vocab_size} is smaller than the {tokenizer.vocab_size} pieces of "
        "tokenizer.model: the two belong to different models."
    ]


def _find_release(folder: Path, given: str | None, configured: str | None) -> tuple[Release | None, str | None]:
    """The release, and what tells it."""
    if given:
        return RELEASES[given], "what was asked for"
    if configured:
        return RELEASES[configured], CONFIGURATION
    found = release_of_folder(folder) or release_of_folder(folder.resolve())
    return found, "the folder's name" if found else None


def default_options(
    release: Release | None, generation_config: Mapping[str, Any], tokenizer: PolyLMTokenizer, config: PolyLMConfig
) -> dict[str, Any]:
    """Merge the release's options with those of generation_config.json, which win.

    The end token is the tokenizer's `</s>` unless generation_config.json names others that are possible. The published
    config.json names the vocabulary's last id, which is wrong, and transformers copies it into a generation_config.json
    derived from a config.json; so neither such a file nor that id is believed.
    """
    options = dict(release.generation) if release else {}
    own = {name: value for name, value in generation_config.items() if value is not None and name in OPTION_NAMES}
    if generation_config.get("_from_model_config"):
        own = {name: value for name, value in own.items() if not name.endswith("_token_id")}
    ends = own.pop("eos_token_id", None)
    is_possible = ends is not None and all(_is_possible_end(end, tokenizer, config) for end in _as_list(ends))
    if ends is not None and not is_possible:
        logger.warning("%s: eos_token_id %.80r is not used; </s> is.", GENERATION_CONFIG, ends)
    ignored = [name for name in generation_config if name not in OPTION_NAMES + WITHOUT_EFFECT]
    if ignored:
        names = ", ".join(shortened(sorted(map(shown, ignored))))
        logger.warning("%s: %s are not used; pass them to the call.", GENERATION_CONFIG, names)
    return {**options, **own, "eos_token_id": ends if is_possible else tokenizer.eos_token_id}


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) and value else [value]


def _is_possible_end(end: Any, tokenizer: PolyLMTokenizer, config: PolyLMConfig) -> bool:
    if isinstance(end, bool) or not isinstance(end, int) or not 0 <= end < tokenizer.vocab_size:
        return False
    return end == tokenizer.eos_token_id or end != config.vocab_size - 1
