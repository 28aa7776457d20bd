"""The published PolyLM releases as data: where they are, how they are prompted, how their examples generate.

Sources: the model cards and the PolyLM tests of ModelScope (`tests/pipelines/test_polylm_text_generation.py`), and
the model listings of the owners `damo` (ModelScope) and `DAMO-NLP-MT` (Hugging Face).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

EOS_TOKEN_ID = 2

# The settings of the published examples, in the option names of transformers' `generate`.
BEAM_SEARCH: Mapping[str, Any] = {
    "do_sample": False,
    "num_beams": 4,
    "early_stopping": True,
    "max_new_tokens": 128,
    "eos_token_id": EOS_TOKEN_ID,
}
MULTIALPACA_SAMPLING: Mapping[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "top_p": 0.8,
    "temperature": 0.7,
    "repetition_penalty": 1.02,
    "max_length": 1024,
    "eos_token_id": EOS_TOKEN_ID,
}
ECOMM_SAMPLING: Mapping[str, Any] = {
    "do_sample": True,
    "num_beams": 1,
    "top_p": 0.9,
    "temperature": 1.0,
    "repetition_penalty": 1.02,
    "max_new_tokens": 128,
    "eos_token_id": EOS_TOKEN_ID,
}


@dataclass(frozen=True)
class Release:
    """One published model.

    Attributes:
        name: the short name, as in `polylm generate --model assistant-13b`.
        model_id: the id on ModelScope.
        revision: the tag to download, None where the default branch is meant.
        hf_id: the id on Hugging Face, None where there is none.
        kind: what it was trained for; a base model knows no chat.
        prompt_format: key of `text.prompts.FORMATS`.
        generation: default options, under the names of transformers' `generate`.
        layers, heads, hidden_size: sizes of the network.
        download_bytes: of the published files, as the hubs list them; 0 for the bundled model. Those of ecomm-13b are
            taken to be as large as those of the other 13B releases.
        aliases: further hub ids of the same model.
    """

    name: str
    model_id: str
    revision: str | None
    hf_id: str | None
    kind: Literal["base", "instruct", "chat"]
    prompt_format: str
    generation: Mapping[str, Any] = field(hash=False)
    layers: int
    heads: int
    hidden_size: int
    download_bytes: int
    aliases: tuple[str, ...] = ()

    @property
    def hub_ids(self) -> tuple[str, ...]:
        """All its ids on ModelScope and Hugging Face, the one to download first."""
        return tuple(hub_id for hub_id in (self.model_id, self.hf_id, *self.aliases) if hub_id)

    @property
    def repository_names(self) -> frozenset[str]:
        """The names of its repositories without their owners, in lower case."""
        return frozenset(hub_id.rpartition("/")[2].lower() for hub_id in self.hub_ids)


RELEASES: dict[str, Release] = {
    release.name: release
    for release in (
        Release(
            name="tiny",
            model_id="polylm-tiny",
            revision=None,
            hf_id=None,
            kind="chat",
            prompt_format="assistant",
            generation=dict(BEAM_SEARCH),
            layers=4,
            heads=2,
            hidden_size=256,
            download_bytes=0,
        ),
        Release(
            name="1.7b",
            model_id="damo/nlp_polylm_1b7_text_generation",
            revision=None,
            hf_id="DAMO-NLP-MT/polylm-1.7b",
            kind="base",
            prompt_format="base",
            generation=dict(BEAM_SEARCH),
            layers=24,
            heads=16,
            hidden_size=2048,
            download_bytes=3_680_000_000,
        ),
        Release(
            name="13b",
            model_id="damo/nlp_polylm_13b_text_generation",
            revision="v1.0.3",
            hf_id="DAMO-NLP-MT/polylm-13b",
            kind="base",
            prompt_format="base",
            generation=dict(BEAM_SEARCH),
            layers=40,
            heads=40,
            hidden_size=5120,
            download_bytes=30_800_000_000,
            aliases=("DAMO-NLP-MT/polylm-13b-fine-grained-shards",),
        ),
        Release(
            name="multialpaca-13b",
            model_id="damo/nlp_polylm_multialpaca_13b_text_generation",
            revision="v1.0.0",
            hf_id="DAMO-NLP-MT/polylm-multialpaca-13b",
            kind="instruct",
            prompt_format="multialpaca",
            generation=dict(MULTIALPACA_SAMPLING),
            layers=40,
            heads=40,
            hidden_size=5120,
            download_bytes=30_800_000_000,
        ),
        Release(
            name="assistant-13b",
            model_id="damo/nlp_polylm_assistant_13b_text_generation",
            revision="v1.0.0",
            hf_id="DAMO-NLP-MT/polylm-chat-13b",
            kind="chat",
            prompt_format="assistant",
            generation=dict(BEAM_SEARCH),
            layers=40,
            heads=40,
            hidden_size=5120,
            download_bytes=30_800_000_000,
        ),
        Release(
            name="ecomm-13b",
            model_id="damo/nlp_polylm_multialpaca_13b_text_generation_ecomm",
            revision=None,
            hf_id=None,
            kind="instruct",
            prompt_format="ecomm",
            generation=dict(ECOMM_SAMPLING),
            layers=40,
            heads=40,
            hidden_size=5120,
            download_bytes=30_800_000_000,
        ),
    )
}


def named_release(name: str) -> Release | None:
    """Find the release with this short name, in any case, or with exactly this hub id; None if there is none."""
    matches = (release for release in RELEASES.values() if name.lower() == release.name or name in release.hub_ids)
    return next(matches, None)


def release_of_folder(folder: str | PurePath) -> Release | None:
    """Find the release that a folder holds by the name that a hub or its client gave it, or None.

    Known are `.../nlp_polylm_13b_text_generation` as well as the folders of caches, such as
    `damo--nlp_polylm_13b_text_generation/snapshots/v1.0.3` and `models--DAMO-NLP-MT--polylm-13b/snapshots/...`.
    """
    repository = _repository_name(str(folder))
    return next((release for release in RELEASES.values() if repository in release.repository_names), None)


def _repository_name(path: str) -> str:
    parts = PurePath(path.replace("\\", "/")).parts
    if len(parts) > 2 and parts[-2] == "snapshots":
        parts = parts[:-2]
    name = parts[-1] if parts else ""
    # ModelScope's older caches write a dot as three underscores.
    return name.rpartition("--")[2].replace("___", ".").lower()
