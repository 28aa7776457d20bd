"""Greedy search and sampling on the device, one token of every row at a time."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from modelscope_polylm.generation.lm_head import OutputLayer, is_one_of, scalar
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.state import Rows

SMALLEST_WIDTH = 64


class TokenSearch:
    """Chooses the next token of every row.

    Args:
        rows: the batch.
        output: the output layer.
        end_tokens: [n] int64, tokens that finish a row.
        pad_token: what finished rows get.
        sampler: draws the tokens; None takes the most probable ones.
    """

    def __init__(self, rows: Rows, output: OutputLayer, end_tokens: Tensor, pad_token: Tensor, sampler: Sampler | None):
        self.rows, self.output, self.sampler = rows, output, sampler
        self.end_tokens, self.pad_token = end_tokens, pad_token

    @property
    def report(self) -> Tensor:
        """[rows] int64, what the host has to see of each step: the chosen tokens."""
        return self.rows.tokens

    def begin(self) -> None:
        """Nothing to reset: all state is in the rows."""

    def select(self, hidden: Tensor) -> None:
        """Choose the tokens that follow, and note which rows are finished."""
        # hidden: [rows, width]
        rows = self.rows
        tokens, logprobs = self._choose(hidden)
        tokens = torch.where(rows.finished, self.pad_token, tokens)
        rows.finished |= is_one_of(tokens, self.end_tokens) | (rows.generated() + 1 >= rows.limits)
        rows.append(tokens, logprobs)

    def _choose(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        # hidden: [rows, width] -> [rows] int64, [rows] fp32
        if self.sampler is None:
            return self.output.greedy(hidden, self.rows)
        logits, processed = self.output.logits(hidden, self.rows)
        tokens = self.sampler.draw(processed)
        return tokens, logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(-1)


@dataclasses.dataclass
class Sampler:
    """Draws from what transformers' warpers leave, in their order: temperature, top_k, top_p, min_p, typical_p.

    Only the `width` best tokens are kept and sorted; None keeps all. The values are device scalars.
    """

    generator: torch.Generator
    width: int | None
    temperature: Tensor
    top_k: Tensor | None
    top_p: Tensor | None
    min_p: Tensor | None
    typical_p: Tensor | None

    @classmethod
    def create(cls, options: GenerationOptions, vocabulary: int, device: torch.device) -> Sampler:
        """A sampler for the options' values; `update` gives it others of the same shape."""
        number = {
            name: scalar(getattr(options, name), device) if active else None
            for name, active in warpers(options).items()
        }
        width = sampling_width(options, vocabulary)
        return cls(torch.Generator(device), width, scalar(options.temperature, device), **number)

    def update(self, options: GenerationOptions) -> None:
        """Take the values and the seed of a new call."""
        self.temperature.fill_(options.temperature)
        for name, active in warpers(options).items():
            if active:
                getattr(self, name).fill_(getattr(options, name))
        if options.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(options.seed)

    def draw(self, logits: Tensor) -> Tensor:
        """One token of each row, [rows] int64."""
        # logits: [rows, vocabulary]
        scores, ids = self.candidates(logits)
        # the largest of log p + Gumbel noise is distributed as p (Gumbel-max trick)
        noise = torch.empty_like(scores).exponential_(generator=self.generator)
        drawn = (scores - noise.log()).argmax(-1, keepdim=True)
        return (drawn if ids is None else ids.gather(1, drawn))[:, 0]

    def candidates(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is drawn from: scores [rows, width], best first, excluded ones -inf; ids, None for all in order."""
        # logits: [rows, vocabulary]
        scores = logits / self.temperature
        if self.width is None:
            return scores, None
        scores, ids = scores.topk(self.width)
        rank = torch.arange(self.width, device=scores.device)
        if self.top_k is not None:
            scores = scores.masked_fill(rank >= self.top_k, -torch.inf)
        if self.top_p is not None:
            shares = scores.softmax(-1)
            scores = scores.masked_fill((shares.cumsum(-1) - shares >= self.top_p) & (rank > 0), -torch.inf)
        if self.min_p is not None:
            shares = scores.softmax(-1)
            scores = scores.masked_fill(shares < self.min_p * shares[:, :1], -torch.inf)
        return (scores if self.typical_p is None else _typical(scores, self.typical_p)), ids


def warpers(options: GenerationOptions) -> dict[str, bool]:
    """Which warpers the options switch on."""
    return {
        "top_k": options.top_k > 0,
        "top_p": options.top_p < 1.0,
        "min_p": options.min_p is not None,
        "typical_p": options.typical_p < 1.0,
    }


def sampling_width(options: GenerationOptions, vocabulary: int) -> int | None:
    """How many of the best tokens have to be sorted; widths are powers of two, so that few graphs serve all top_k."""
    if not any(warpers(options).values()):
        return None
    if options.top_k == 0:
        return vocabulary
    return min(vocabulary, max(SMALLEST_WIDTH, 1 << (options.top_k - 1).bit_length()))


def _typical(scores: Tensor, mass: Tensor) -> Tensor:
    # scores: [rows, width]; TypicalLogitsWarper
    logprobs = scores.log_softmax(-1)
    surprise = (logprobs + (logprobs.exp() * -logprobs).nansum(-1, keepdim=True)).abs()
    order = surprise.sort(-1).indices
    shares = scores.gather(1, order).softmax(-1)
    kept = (shares.cumsum(-1) - shares < mass) | (torch.arange(scores.shape[1], device=scores.device) == 0)
    return scores.masked_fill(~torch.zeros_like(kept).scatter(1, order, kept), -torch.inf)
