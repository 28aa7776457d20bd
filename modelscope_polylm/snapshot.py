"""A model folder, opened and checked as a whole: sizes, tokenizer, weights, release, prompt format, default options."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from modelscope_polylm.errors import OptionError, SnapshotError
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.weights import WeightFiles
from modelscope_polylm.releases import RELEASES, Release, find_release
from modelscope_polylm.text.prompts import FORMATS, PromptFormat
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

logger = logging.getLogger(__name__)


Part = TypeVar("Part")

WHAT_A_SNAPSHOT_IS = (
    "A PolyLM snapshot is a folder with config.json, tokenizer.model and pytorch_model*.bin or model*.safetensors. "
    "Download one with `modelscope download --model damo/nlp_polylm_assistant_13b_text_generation --revision v1.0.0`."
)


@dataclasses.dataclass
class Snapshot:
    """An opened model folder. Its weights are still on disk.

    Attributes:
        release: the published release that it is, None where that is unknown.
        prompt_format: how messages become a prompt.
        generation: default generation options under transformers' names, the end token corrected.
    """

    folder: Path
    config: PolyLMConfig
    tokenizer: PolyLMTokenizer
    weight_files: WeightFiles
    release: Release | None
    prompt_format: PromptFormat
    generation: dict[str, Any]


def open_snapshot(
    folder: str | Path, prompt_format: str | None = None, release: str | None = None, check_weights: bool = True
) -> Snapshot:
    """Open a model folder and check all of it, reading no more of the weights than their headers.

    Args:
        folder: a folder with config.json, tokenizer.model and weights.
        prompt_format: a name in `text.prompts.FORMATS`; what configuration.json or the release says if None.
        release: a name in `releases.RELEASES`; what configuration.json or the folder's name says if None.
        check_weights: False for a folder that is only needed for its texts, and may lack weights.

    Raises:
        SnapshotError: every problem of the folder, a line each.
        OptionError: `prompt_format` or `release` is unknown.
    """
    folder = Path(folder).expanduser()
    _check_argument("release", release, RELEASES)
    _check_argument("prompt_format", prompt_format, FORMATS)
    _check_folder(folder)
    problems: list[str] = []
    config = _try(lambda: PolyLMConfig.from_dict(_read_json(folder / "config.json")), problems)
    tokenizer = _try(lambda: PolyLMTokenizer.from_pretrained(folder), problems)
    weight_files = WeightFiles(folder)
    if check_weights:
        problems += weight_files.problems(config) if config else weight_files.file_problems()
    problems += _vocabulary_problems(config, tokenizer)
    named = _try(lambda: _read_names(folder), problems) or {}
    generation_config = _try(lambda: _read_object(folder / "generation_config.json"), problems) or {}
    if problems or config is None or tokenizer is None:
        raise SnapshotError("\n".join([f"The snapshot in {folder} cannot be used:", *problems]))
    found = _find_release(folder, release or named.get("release"))
    format_name = prompt_format or named.get("prompt_format") or (found.prompt_format if found else "base")
    generation = default_options(found, generation_config, tokenizer, config)
    return Snapshot(folder, config, tokenizer, weight_files, found, FORMATS[format_name], generation)


def _check_argument(name: str, value: str | None, known: Any) -> None:
    if value is not None and (not isinstance(value, str) or value not in known):
        raise OptionError(f"{name}={value!r} is unknown: choose one of {', '.join(known)}.")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        found = "is a file, not a folder" if folder.exists() else "does not exist"
        raise SnapshotError(f"{folder} {found}. {WHAT_A_SNAPSHOT_IS}")
    if not (folder / "config.json").is_file():
        raise SnapshotError(f"{folder} has no config.json, so it is not a PolyLM snapshot. {WHAT_A_SNAPSHOT_IS}")


def _try(read: Callable[[], Part], problems: list[str]) -> Part | None:
    try:
        return read()
    except SnapshotError as error:
        problems.extend(str(error).splitlines())
        return None


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{file.name} cannot be read ({error}): download the snapshot again.") from error


def _read_object(file: Path) -> dict[str, Any]:
    value = _read_json(file) if file.is_file() else {}
    if not isinstance(value, dict):
        raise SnapshotError(f"{file.name} holds a {type(value).__name__}, not an object with settings.")
    return value


def _read_names(folder: Path) -> dict[str, str]:
    """The optional keys `release` and `prompt_format` of configuration.json, checked."""
    configuration = _read_object(folder / "configuration.json")
    names: dict[str, str] = {}
    for key, known in (("release", tuple(RELEASES)), ("prompt_format", tuple(FORMATS))):
        value = configuration.get(key)
        if value is not None and value not in known:
            raise SnapshotError(f"configuration.json: {key} {value!r} is unknown; known are {', '.join(known)}.")
        if value is not None:
            names[key] = value
    return names


def _vocabulary_problems(config: PolyLMConfig | None, tokenizer: PolyLMTokenizer | None) -> list[str]:
    if config is None or tokenizer is None or config.vocab_size >= tokenizer.vocab_size:
        return []
    return [
        f"config.json: vocab_size {config.vocab_size} is smaller than the {tokenizer.vocab_size} pieces of "
        "tokenizer.model: the two belong to different models."
    ]


def _find_release(folder: Path, name: str | None) -> Release | None:
    if name is not None:
        return RELEASES[name]
    return find_release(str(folder)) or find_release(str(folder.resolve()))


# Names of transformers.GenerationConfig that choose what is generated.
OPTION_NAMES = (
    *("max_new_tokens", "max_length", "min_new_tokens", "min_length"),
    *("do_sample", "temperature", "top_k", "top_p", "min_p", "typical_p"),
    *("num_beams", "early_stopping", "length_penalty", "num_return_sequences"),
    *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids"),
    *("eos_token_id", "pad_token_id", "stop_strings"),
)
# Names that say how or with what the file was written, and change no answer of a decoder.
WITHOUT_EFFECT = (
    *("_from_model_config", "transformers_version", "bos_token_id", "decoder_start_token_id"),
    *("use_cache", "cache_implementation", "return_dict_in_generate"),
    *("output_attentions", "output_hidden_states", "output_logits", "output_scores"),
)


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
        logger.warning("generation_config.json: eos_token_id %r is not used; </s> is.", ends)
    ignored = [name for name in generation_config if name not in OPTION_NAMES + WITHOUT_EFFECT]
    if ignored:
        logger.warning("generation_config.json: %s are not used; pass them to the call.", ", ".join(sorted(ignored)))
    return {**options, **own, "eos_token_id": ends if is_possible else tokenizer.eos_token_id}


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) and value else [value]


def _is_possible_end(end: Any, tokenizer: PolyLMTokenizer, config: PolyLMConfig) -> bool:
    if isinstance(end, bool) or not isinstance(end, int) or not 0 <= end < tokenizer.vocab_size:
        return False
    return end == tokenizer.eos_token_id or end != config.vocab_size - 1
