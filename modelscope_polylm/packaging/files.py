"""The small files of a hub package: everything except weights, tokenizer and model card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import DISTRIBUTION, SnapshotError
from modelscope_polylm.files import path_inside, read_json, read_untrusted
from modelscope_polylm.snapshot import Snapshot
from modelscope_polylm.text.prompts import PromptFormat, known_format

if TYPE_CHECKING:
    from modelscope_polylm.packaging.quantized_source import Quantization

# Settings of a config.json that are copied from the snapshot; it has these values where it does not name them.
NETWORK_DEFAULTS: Mapping[str, Any] = {
    "activation_function": "gelu_fast",
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "resid_pdrop": 0.0,
    "initializer_range": 0.02,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "use_cache": True,
}
WRAPPER = "ms_wrapper.py"
CHECKSUMS = "SHA256SUMS"
CHECKSUMS_BYTES = 1 << 20
CHECKSUM_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
"""A line as `sha256sum` writes it."""
TOKENIZER_JSON = "tokenizer.json"
QUESTION, ANSWER = "{question}", "{answer}"
"""Where `PromptFormat` puts the contents of messages."""


def small_files(
    snapshot: Snapshot, dtype: str, version: str, quantization: Quantization | None = None
) -> dict[str, str]:
    """Name to contents of the JSON files, and of the wrapper through which ModelScope imports this package.

    Args:
        snapshot: the opened source.
        dtype: torch's name of the packaged weights' type.
        version: the oldest version of this package that the wrapper accepts.
        quantization: of the projections.
    """
    return {
        "config.json": _json({**_config(snapshot, dtype), **_quantization_config(quantization)}),
        "generation_config.json": _json(_generation_config(snapshot)),
        "tokenizer_config.json": _json(_tokenizer_config(snapshot)),
        "configuration.json": _json(_configuration(snapshot)),
        WRAPPER: "import modelscope_polylm  # noqa: F401\n",
        "requirements.txt": f"{DISTRIBUTION}>={version}\n",
    }


def chat_template(format: PromptFormat) -> str:
    """A Jinja template that, with a generation prompt, gives the text of `text.prompts.render`.

    It is one line, because engines differ in how they treat line breaks between tags. It refuses a conversation that
    the format cannot express with `raise_exception`.
    """
    before, after = format.last_turn.split(QUESTION)
    header = next((marker for marker in format.role_markers[1:] if marker in after), None)
    end, opening = (after[: after.index(header)], after[after.index(header) :]) if header else (after, "")
    tail = (format.earlier_turn or "").partition(ANSWER)[2]
    user = [_text(before), f"{{{{ {_question(format)} }}}}", _text(end)]
    assistant = [_text(opening), "{{ message['content'] }}", _text(tail)]
    last = "{% if add_generation_prompt %}" + _text(opening) + "{% endif %}" if opening else ""
    return "".join(
        [
            "{% for message in messages %}",
            _checks(format),
            "{% if message['role'] == 'user' %}",
            *user,
            "{% else %}",
            *assistant,
            "{% endif %}{% endfor %}",
            last,
        ]
    )


def read_checksums(folder: Path) -> dict[str, str]:
    """Name to sha256 of the files that a package's SHA256SUMS lists.

    Raises:
        SnapshotError: the list cannot be read, is empty, or names something other than files of the folder.
    """
    text = read_untrusted(folder / CHECKSUMS, CHECKSUMS_BYTES).decode("utf-8", "replace")
    sums: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = CHECKSUM_LINE.fullmatch(line)
        if match is None:
            raise SnapshotError(f"{CHECKSUMS}: line {number} is not a sha256 and a file name: {line!r:.80}.")
        sums[path_inside(folder, match[2]).name] = match[1].lower()
    if not sums:
        raise SnapshotError(f"{CHECKSUMS} is empty, so nothing can be compared with it.")
    return sums


def bundled_text(name: str) -> str:
    """The text of a file in the folder `data` of this package."""
    text: str = resources.files("modelscope_polylm.packaging").joinpath("data", name).read_text(encoding="utf-8")
    return text


def _config(snapshot: Snapshot, dtype: str) -> dict[str, Any]:
    source = read_json(snapshot.folder / "config.json")
    return {
        **snapshot.config.to_dict(),
        **{name: source.get(name, value) for name, value in NETWORK_DEFAULTS.items()},
        # transformers 4 reads the first name, 5 the second.
        "torch_dtype": dtype,
        "dtype": dtype,
        **_token_ids(snapshot),
    }


def _quantization_config(quantization: Quantization | None) -> dict[str, Any]:
    if quantization is None:
        return {}
    from modelscope_polylm.network.gptq import quantization_config

    return {"quantization_config": quantization_config(quantization.name, quantization.method)}


def _generation_config(snapshot: Snapshot) -> dict[str, Any]:
    return {**snapshot.generation, **{name: id for name, id in _token_ids(snapshot).items() if name != "eos_token_id"}}


def _token_ids(snapshot: Snapshot) -> dict[str, int]:
    tokenizer = snapshot.tokenizer
    # PolyLM has no padding token, and what follows the end of a text is never read.
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    return ids if tokenizer.bos_token_id is None else {"bos_token_id": tokenizer.bos_token_id, **ids}


def _tokenizer_config(snapshot: Snapshot) -> dict[str, Any]:
    tokenizer = snapshot.tokenizer
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    special = {str(id): {"content": tokenizer.id_to_piece(id), **flags} for id in sorted(tokenizer.special_ids)}
    named = {
        "unk_token": tokenizer.unk_token_id,
        "eos_token": tokenizer.eos_token_id,
        "pad_token": tokenizer.eos_token_id,
    }
    if tokenizer.bos_token_id is not None:
        named["bos_token"] = tokenizer.bos_token_id
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{name: tokenizer.id_to_piece(id) for name, id in named.items()},
        "added_tokens_decoder": special,
        "model_max_length": snapshot.config.max_positions,
        # No token_type_ids: GPT-2 would add an embedding for each.
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        # Text that spells </s> is text, as for SentencePiece.
        "split_special_tokens": True,
        "chat_template": chat_template(known_format(snapshot.prompt_format)),
    }


def _configuration(snapshot: Snapshot) -> dict[str, Any]:
    release = {"release": snapshot.release.name} if snapshot.release else {}
    return {
        "framework": "pytorch",
        "task": "text-generation",
        "model": {"type": "polylm"},
        "pipeline": {"type": "polylm-text-generation"},
        "preprocessor": {"type": "polylm-tokenizer"},
        **release,
        "prompt_format": known_format(snapshot.prompt_format).name,
        "allow_remote": True,
    }


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _checks(format: PromptFormat) -> str:
    """Tags that refuse other roles, roles out of turn, and several turns if the format knows only one."""
    roles = "{% if message['role'] != ('assistant' if loop.index0 % 2 else 'user') %}" + _refuse(
        "PolyLM knows only the roles user and assistant, in turn, the user first."
    )
    if format.earlier_turn is not None:
        return roles + "{% endif %}"
    turns = "{% elif loop.index0 %}" + _refuse(f"PolyLM's format {format.name!r} knows only a single user message.")
    return roles + turns + "{% endif %}"


def _refuse(reason: str) -> str:
    return f"{{{{ raise_exception({json.dumps(reason)}) }}}}"


def _question(format: PromptFormat) -> str:
    if not format.one_line_breaks:
        return "message['content']"
    return "message['content'].strip().split('\\n') | select | join('\\n')"


def _text(text: str) -> str:
    """A tag that writes a fixed text: engines may drop a line break outside of tags."""
    return f"{{{{ {json.dumps(text)} }}}}" if text else ""
