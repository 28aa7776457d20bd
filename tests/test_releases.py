"""Each release is found by its names, and has the settings that were published with it."""

from __future__ import annotations

import pytest

from modelscope_polylm.cli.info import model_facts
from modelscope_polylm.releases import RELEASES, named_release, release_of_folder
from modelscope_polylm.text.prompts import FORMATS

FOUND = [
    ("polylm-tiny", "tiny"),
    ("damo/nlp_polylm_1b7_text_generation", "1.7b"),
    ("damo/nlp_polylm_13b_text_generation", "13b"),
    ("damo/nlp_polylm_multialpaca_13b_text_generation", "multialpaca-13b"),
    ("damo/nlp_polylm_assistant_13b_text_generation", "assistant-13b"),
    ("damo/nlp_polylm_multialpaca_13b_text_generation_ecomm", "ecomm-13b"),
    ("iic/nlp_polylm_assistant_13b_text_generation", "assistant-13b"),
    ("DAMO-NLP-MT/polylm-1.7b", "1.7b"),
    ("DAMO-NLP-MT/polylm-13b", "13b"),
    ("DAMO-NLP-MT/polylm-13b-fine-grained-shards", "13b"),
    ("DAMO-NLP-MT/polylm-multialpaca-13b", "multialpaca-13b"),
    ("DAMO-NLP-MT/polylm-chat-13b", "assistant-13b"),
    ("/models/nlp_polylm_assistant_13b_text_generation", "assistant-13b"),
    ("/models/nlp_polylm_assistant_13b_text_generation/", "assistant-13b"),
    ("/c/hub/damo/nlp_polylm_13b_text_generation", "13b"),
    ("/c/models/damo--nlp_polylm_multialpaca_13b_text_generation/snapshots/v1.0.0", "multialpaca-13b"),
    ("/c/hub/models--DAMO-NLP-MT--polylm-1.7b/snapshots/0a1b2c", "1.7b"),
    ("/c/hub/DAMO-NLP-MT/polylm-1___7b", "1.7b"),
    (r"C:\models\damo\nlp_polylm_1b7_text_generation", "1.7b"),
]
# A short name is what people type: a folder of that name may hold anything.
NOT_FOUND = ["", "/", ".", "gpt2", "tiny", "13B", "damo/nlp_polylm_7b", "/data/13b", "nlp_polylm_13b_text_generation_2"]


@pytest.mark.parametrize(("given", "name"), FOUND)
def test_folder_with_the_name_of_a_release(given: str, name: str) -> None:
    assert release_of_folder(given) is RELEASES[name]


@pytest.mark.parametrize("given", NOT_FOUND)
def test_folder_without_the_name_of_a_release(given: str) -> None:
    assert release_of_folder(given) is None


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("tiny", "tiny"),
        ("1.7b", "1.7b"),
        ("13B", "13b"),
        ("assistant-13b", "assistant-13b"),
        ("damo/nlp_polylm_1b7_text_generation", "1.7b"),
        ("DAMO-NLP-MT/polylm-chat-13b", "assistant-13b"),
        ("DAMO-NLP-MT/polylm-13b-fine-grained-shards", "13b"),
        ("other/polylm-13b", None),
        ("/models/nlp_polylm_13b_text_generation", None),
        ("", None),
    ],
)
def test_names_and_hub_ids(name: str, release: str | None) -> None:
    assert named_release(name) is (RELEASES[release] if release else None)


def test_names_and_ids_are_unique() -> None:
    assert list(RELEASES) == ["tiny", "1.7b", "13b", "multialpaca-13b", "assistant-13b", "ecomm-13b"]
    names = [name for release in RELEASES.values() for name in release.repository_names]
    assert len(names) == len(set(names)) == 11
    assert all(release.prompt_format in FORMATS for release in RELEASES.values())


@pytest.mark.parametrize("name", ["tiny", "1.7b", "13b", "assistant-13b"])
def test_published_beam_search(name: str) -> None:
    assert RELEASES[name].generation == {
        "do_sample": False,
        "num_beams": 4,
        "early_stopping": True,
        "max_new_tokens": 128,
        "eos_token_id": 2,
    }


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("multialpaca-13b", {"top_p": 0.8, "temperature": 0.7, "max_length": 1024}),
        ("ecomm-13b", {"top_p": 0.9, "temperature": 1.0, "max_new_tokens": 128}),
    ],
)
def test_published_sampling(name: str, settings: dict[str, float]) -> None:
    common = {"do_sample": True, "num_beams": 1, "repetition_penalty": 1.02, "eos_token_id": 2}
    assert RELEASES[name].generation == {**common, **settings}


@pytest.mark.parametrize(
    ("name", "revision", "kind", "size"),
    [
        ("1.7b", None, "base", (24, 16, 2048)),
        ("13b", "v1.0.3", "base", (40, 40, 5120)),
        ("multialpaca-13b", "v1.0.0", "instruct", (40, 40, 5120)),
        ("assistant-13b", "v1.0.0", "chat", (40, 40, 5120)),
        ("ecomm-13b", None, "instruct", (40, 40, 5120)),
    ],
)
def test_published_facts(name: str, revision: str | None, kind: str, size: tuple[int, int, int]) -> None:
    release = RELEASES[name]
    assert (release.revision, release.kind) == (revision, kind)
    assert (release.layers, release.heads, release.hidden_size) == size


@pytest.mark.parametrize("name", [name for name in RELEASES if name != "tiny"])
def test_downloads_hold_the_weights_the_masks_and_of_13b_a_second_head(name: str) -> None:
    """The sizes that the hubs list are those of the tensors, in two bytes each."""
    facts, release = model_facts(name, None, []), RELEASES[name]
    masks = release.layers * 2048 * 2048
    head = 0 if name == "1.7b" else 256_000 * release.hidden_size
    assert release.download_bytes == pytest.approx(2 * (facts["parameters"] + masks + head), rel=0.005)


def test_releases_are_hashable_and_defaults_are_not_shared() -> None:
    assert len(set(RELEASES.values())) == 6
    assert len({id(release.generation) for release in RELEASES.values()}) == 6
