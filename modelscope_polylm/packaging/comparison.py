"""Compares what two models predict: losses, divergence, most probable tokens and greedy answers, text by text."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.packaging.tokenizer.parity import sentences
from modelscope_polylm.snapshot import Snapshot, open_snapshot
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, translation_request
from modelscope_polylm.text.prompts import FORMATS, Message, render
from modelscope_polylm.text.tokenizer import PolyLMTokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from modelscope_polylm.network.quantization import Weight

Windows = Sequence[Sequence[int]]
"""Token ids of a text, cut to what fits the context."""

CHUNK_LOGITS = 1 << 24
"""Most logits of a model that exist at once: 64 MiB in fp32, 65 positions of PolyLM's vocabulary."""
ANSWER_TOKENS = 32
PROMPT_TOKENS = 32
MOST_PROMPTS = 18
"""Prompts that are cut from a person's text; the built-in ones ask for a translation into each language."""
SHOWN_ANSWERS = 3


@dataclasses.dataclass(frozen=True)
class TextComparison:
    """What two models predict of one text.

    Attributes:
        text: ISO 639-1 code of a built-in text, or the name of a file.
        tokens: that are predicted.
        loss, reference_loss: mean negative log-likelihood of a token, in nats.
        kl: mean Kullback-Leibler divergence of the model from the reference, in nats: sum of p_ref * log(p_ref / p).
        agreement: share of positions where both find the same token most probable.
        peak_error: largest difference of a logit.
    """

    text: str
    tokens: int
    loss: float
    reference_loss: float
    kl: float
    agreement: float
    peak_error: float


@dataclasses.dataclass(frozen=True)
class AnswerComparison:
    """Greedy answers of two models to one prompt."""

    prompt: str
    answer: str
    reference_answer: str
    is_same: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What two models predict of all texts, and what they answer."""

    texts: Sequence[TextComparison]
    answers: Sequence[AnswerComparison]

    @property
    def total(self) -> TextComparison:
        """All texts as one: means over all tokens, and the largest error."""
        count = sum(each.tokens for each in self.texts)

        means = {
            name: math.fsum(getattr(each, name) * each.tokens for each in self.texts) / count
            for name in ("loss", "reference_loss", "kl", "agreement")
        }
        return TextComparison("all", count, **means, peak_error=max(each.peak_error for each in self.texts))

    @property
    def same_answers(self) -> int:
        """Prompts to which both give the same answer."""
        return sum(each.is_same for each in self.answers)

    def is_within(self, max_kl: float | None) -> bool:
        """Whether the mean divergence over all texts is a finite number of at most `max_kl`; None sets no bound."""
        return math.isfinite(self.total.kl) and (max_kl is None or self.total.kl <= max_kl)

    def to_dict(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return {
            "texts": [dataclasses.asdict(each) for each in self.texts],
            "total": dataclasses.asdict(self.total),
            "answers": [dataclasses.asdict(each) for each in self.answers],
            "same_answers": self.same_answers,
        }

    def __str__(self) -> str:
        heads = ("text", "tokens", "NLL", "reference", "KL", "same top token", "peak logit error")
        rows = [heads, *map(_cells, [*self.texts, self.total])]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(cells))
            for cells in (list(zip(row, widths, strict=True)) for row in rows)
        ]
        lines.append(f"Greedy answers: {self.same_answers} of {len(self.answers)} are the same.")
        for each in [each for each in self.answers if not each.is_same][:SHOWN_ANSWERS]:
            lines.append(f"  {each.prompt!r}: {each.answer!r}, reference {each.reference_answer!r}")
        return "\n".join(lines)


def compare_snapshots(
    model: str | Path,
    reference: str | Path,
    text: str | None = None,
    device: str | None = None,
    reference_device: str | None = None,
    quantization: str | None = None,
) -> Comparison:
    """Run two models of one vocabulary over the same texts, one model after the other.

    Of the reference only the hidden states, the answers and the output layer are kept while the model runs. Logits
    exist for a few positions at a time.

    Args:
        model, reference: folders of snapshots.
        text: what they are compared on; the built-in sentences in each of the 18 languages if None.
        device, reference_device: where each runs, such as 'cpu'; a GPU if there is one.
        quantization: of the model, not of the reference.

    Raises:
        SnapshotError: a folder that cannot be used.
        OptionError: models that do not have the same tokens, or an unknown quantization.
        InputError: a text of less than two tokens.
        DeviceError: a model does not fit.
    """
    from modelscope_polylm.backends.native import check_choice
    from modelscope_polylm.network.quantization import QUANTIZATIONS

    check_choice("quantization", quantization, QUANTIZATIONS)
    own, other = open_snapshot(model), open_snapshot(reference)
    length = min(own.config.max_positions, other.config.max_positions)
    windows, prompts = _token_ids(other, length, text)
    if (windows, prompts) != _token_ids(other, length, text, own.tokenizer):
        raise OptionError(f"{model} and {reference} cut texts into different tokens: compare models of one vocabulary.")
    expected = _predict(other, windows, prompts, reference_device)
    found = _predict(own, windows, prompts, device, quantization)
    vocabulary = min(other.tokenizer.vocab_size, own.config.vocab_size, other.config.vocab_size)
    texts = [_compare_text(name, windows[name], found, expected, vocabulary) for name in windows]
    answers = zip(prompts, found.answers, expected.answers, strict=True)
    return Comparison(texts, [_compare_answers(other.tokenizer, *each) for each in answers])


@dataclasses.dataclass(frozen=True)
class _Predictions:
    """What is kept of a model that has run.

    Attributes:
        hidden: by name of the text, for each window [tokens, hidden_size] on the CPU.
        embedding: [vocabulary, hidden_size], the output layer.
        answers: token ids for each prompt.
    """

    hidden: Mapping[str, Sequence[Tensor]]
    embedding: Weight
    answers: Sequence[Sequence[int]]


def _token_ids(
    snapshot: Snapshot, length: int, text: str | None, tokenizer: PolyLMTokenizer | None = None
) -> tuple[dict[str, Windows], Windows]:
    """The windows of each text, and the prompts, as the snapshot's tokenizer or another one cuts them."""
    tokenizer = tokenizer or snapshot.tokenizer
    texts = {language: "\n".join(each) for language, each in sentences().items()} if text is None else {"text": text}
    windows = {name: _windows(tokenizer.encode(each), length) for name, each in texts.items()}
    if not all(windows.values()):
        raise InputError("The text has less than two tokens, so there is nothing to predict: give a longer one.")
    if text is not None:
        return windows, [window[:PROMPT_TOKENS] for window in windows["text"][:MOST_PROMPTS]]
    prompt_format = snapshot.prompt_format or FORMATS["base"]
    requests: list[Message] = [
        {"role": "user", "content": translation_request(SENTENCE, language)} for language in LANGUAGES.values()
    ]
    return windows, [tokenizer.encode(render([request], prompt_format)) for request in requests]


def _windows(ids: list[int], length: int) -> Windows:
    return [window for start in range(0, len(ids), length) if len(window := ids[start : start + length]) > 1]


def _predict(
    snapshot: Snapshot,
    windows: Mapping[str, Windows],
    prompts: Windows,
    device: str | None,
    quantization: str | None = None,
) -> _Predictions:
    import torch

    from modelscope_polylm.backends import create_backend
    from modelscope_polylm.backends.placement import choose_device, choose_dtype
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.network.gpt2 import prefill_whole

    chosen = choose_device(device)
    backend: Any = create_backend("native", snapshot, chosen, choose_dtype(None, chosen), quantization=quantization)
    decoder = backend.engine.decoder
    hidden = {name: [prefill_whole(decoder, ids)[:-1].cpu() for ids in each] for name, each in windows.items()}
    call = {"do_sample": False, "num_beams": 1, "max_new_tokens": ANSWER_TOKENS, "max_length": None}
    options = GenerationOptions.from_layers({"eos_token_id": snapshot.generation["eos_token_id"]}, call)
    answers = [completions[0].ids for completions in backend.generate(prompts, options)]
    embedding = decoder.embedding
    backend.engine.close()
    del backend, decoder
    gc.collect()  # before the next model is loaded
    if chosen.type == "cuda":
        torch.cuda.empty_cache()
    return _Predictions(hidden, embedding, answers)


def _compare_text(
    name: str, windows: Windows, found: _Predictions, expected: _Predictions, vocabulary: int
) -> TextComparison:
    import torch

    device, rows = found.embedding.device, max(1, CHUNK_LOGITS // vocabulary)
    sums, peak, count = torch.zeros(4, dtype=torch.float64, device=device), torch.zeros((), device=device), 0
    for ids, own, other in zip(windows, found.hidden[name], expected.hidden[name], strict=True):
        targets = torch.tensor(ids[1:], device=device)
        count += len(targets)
        for start in range(0, len(targets), rows):
            part = slice(start, start + rows)
            logits = _logits(own[part], found.embedding, vocabulary)
            reference = _logits(other[part], expected.embedding, vocabulary).to(device)
            sums += _sums(logits.log_softmax(1), reference.log_softmax(1), targets[part])
            peak = torch.maximum(peak, logits.sub_(reference).abs_().amax())
    loss, reference_loss, kl, agreement = (sums / count).tolist()
    return TextComparison(name, count, loss, reference_loss, kl, agreement, peak.item())


def _logits(hidden: Tensor, embedding: Weight, vocabulary: int) -> Tensor:
    # hidden: [n, hidden_size], embedding: [at least vocabulary, hidden_size] -> [n, vocabulary] fp32
    from modelscope_polylm.network.kernels.lm_head import lm_head_logits

    return lm_head_logits(hidden.to(embedding.device), embedding, len(embedding))[:, :vocabulary]


def _sums(own: Tensor, other: Tensor, targets: Tensor) -> Tensor:
    # own, other: [n, vocabulary] log-probabilities, targets: [n] -> [4]: loss, reference loss, KL, agreement
    import torch

    losses = [-each.gather(1, targets[:, None]).sum() for each in (own, other)]
    agreement = (own.argmax(1) == other.argmax(1)).sum()
    kl = (other.exp() * (other - own)).sum(1).clamp(min=0)  # rounding makes some smaller
    return torch.stack([*losses, kl.sum(), agreement]).double()


def _compare_answers(
    tokenizer: PolyLMTokenizer, prompt: Sequence[int], own: Sequence[int], other: Sequence[int]
) -> AnswerComparison:
    question, answer, reference = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, own, other))
    return AnswerComparison(question, answer, reference, is_same=list(own) == list(other))


def _cells(text: TextComparison) -> tuple[str, ...]:
    losses = (f"{text.loss:.4f}", f"{text.reference_loss:.4f}", f"{text.kl:.5f}")
    return (text.text, f"{text.tokens:,}", *losses, f"{100 * text.agreement:.1f} %", f"{text.peak_error:.3f}")
