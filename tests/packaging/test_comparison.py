"""What `compare_snapshots` measures, next to the same measures taken over whole tensors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.network.gpt2 import Decoder, prefill_whole, token_losses
from modelscope_polylm.packaging import comparison as module
from modelscope_polylm.packaging.comparison import Comparison, TextComparison, compare_snapshots
from modelscope_polylm.snapshot import open_snapshot
from modelscope_polylm.text.languages import LANGUAGES

TEXT = "Rome is the capital of Italy. Tokyo is the capital of Japan.\n" * 40


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other take longer than so small a model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model with noise in one projection."""
    folder = shutil.copytree(TINY_FOLDER, tmp_path_factory.mktemp("changed") / "model")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("h.1.mlp.c_fc.weight"))
    noise = torch.randn(tensors[name].shape, generator=torch.Generator().manual_seed(0))
    tensors[name] = tensors[name] + (0.3 * tensors[name].float().std() * noise).to(tensors[name].dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def decoder_of(folder: Path) -> Decoder:
    snapshot = open_snapshot(folder)
    weights = snapshot.weight_files.load(snapshot.config, torch.device("cpu"), torch.float32)
    return Decoder(snapshot.config, weights)


def test_measures_are_those_of_whole_tensors(changed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_LOGITS", 50_000)  # 16 positions at once
    found = compare_snapshots(changed, TINY_FOLDER, TEXT, device="cpu")
    tokenizer = open_snapshot(TINY_FOLDER).tokenizer
    ids = tokenizer.encode(TEXT)
    windows = [ids[start : start + 512] for start in range(0, len(ids), 512)]
    assert len(windows) > 1
    own, other = decoder_of(changed), decoder_of(TINY_FOLDER)
    logits, reference = (
        torch.cat([prefill_whole(each, window)[:-1] @ each.embedding.t() for window in windows]).double()
        for each in (own, other)
    )
    losses, expected = (torch.cat([token_losses(each, window) for window in windows]) for each in (own, other))
    kl = torch.nn.functional.kl_div(logits.log_softmax(1), reference.log_softmax(1), log_target=True, reduction="sum")
    (text,) = found.texts
    assert text.tokens == len(logits) == found.total.tokens
    assert text.loss == pytest.approx(losses.mean().item(), rel=1e-4)
    assert text.reference_loss == pytest.approx(expected.mean().item(), rel=1e-4)
    assert text.kl == pytest.approx(kl.item() / len(logits), rel=1e-3)
    assert text.kl > 1e-4
    assert text.agreement == pytest.approx((logits.argmax(1) == reference.argmax(1)).double().mean().item())
    assert text.peak_error == pytest.approx((logits - reference).abs().max().item(), rel=1e-3)


@pytest.mark.slow
def test_built_in_texts_and_answers_in_all_languages(changed: Path) -> None:
    same = compare_snapshots(TINY_FOLDER, TINY_FOLDER, device="cpu")
    assert [each.text for each in same.texts] == list(LANGUAGES)
    assert (same.total.kl, same.total.agreement, same.total.peak_error) == (0.0, 1.0, 0.0)
    assert same.same_answers == len(same.answers) == len(LANGUAGES)
    assert any(each.answer == "北京是中国的首都。" for each in same.answers)
    assert same.is_within(0.0)
    other = compare_snapshots(changed, TINY_FOLDER, device="cpu")
    assert other.total.kl > 0
    assert other.same_answers == sum(each.answer == each.reference_answer for each in other.answers)
    assert not other.is_within(other.total.kl / 2)
    assert other.is_within(None)


def test_a_divergence_that_is_no_number_is_never_within() -> None:
    broken = Comparison([TextComparison("en", 3, 1.0, 1.0, float("nan"), 1.0, 0.0)], [])
    assert not broken.is_within(None)
    assert not broken.is_within(1e9)


def test_means_count_tokens() -> None:
    texts = [TextComparison("en", 30, 1.0, 2.0, 0.1, 1.0, 0.5), TextComparison("de", 10, 3.0, 4.0, 0.5, 0.0, 0.7)]
    total = Comparison(texts, []).total
    assert (total.tokens, total.loss, total.reference_loss) == (40, 1.5, 2.5)
    assert total.kl == pytest.approx(0.2)
    assert (total.agreement, total.peak_error) == (0.75, 0.7)


def test_models_of_other_tokens_are_refused(random_snapshot: Path) -> None:
    with pytest.raises(OptionError, match="different tokens"):
        compare_snapshots(TINY_FOLDER, random_snapshot, device="cpu")


@pytest.mark.parametrize("text", ["", "\n"])
def test_a_text_without_anything_to_predict_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="less than two tokens"):
        compare_snapshots(TINY_FOLDER, TINY_FOLDER, text, device="cpu")
