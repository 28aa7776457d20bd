"""A TextGenerator as a model of lm-evaluation-harness: its requests run in the engine."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from modelscope_polylm.errors import DependencyError, InputError, OptionError, PolyLMError, install_command
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import TokenScores
from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.inputs import Prompt
from modelscope_polylm.text.prompts import check_messages, known_format, render

ANSWER_TOKENS = 256
"""Most tokens of an answer; paper, section 5.2."""
REQUESTS_AT_ONCE = 1024
"""Likelihoods that are asked of the engine together, and written to the cache after that."""


def import_harness() -> Any:
    """lm_eval without its log. Raises DependencyError if it is not installed."""
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise DependencyError(f"lm-evaluation-harness runs the tasks: {install_command('eval')}") from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


@functools.cache
def language_model(generator: TextGenerator, progress: Callable[[int, int], None] = lambda done, count: None) -> Any:
    """The generator as a model of lm-evaluation-harness.

    An empty text before a continuation is the end token, as in the harness of 2023. What is longer than the context
    loses its beginning, of which `is_cut` tells.

    Args:
        generator: the model.
        progress: takes how many requests are answered, and how many there are.
    """
    import_harness()
    from lm_eval.api.model import TemplateLM

    class PolyLMHarness(TemplateLM):  # type: ignore[misc]
        backend = "causal"
        tokenizer = None
        tokenizer_name = "PolyLM"

        @property
        def eot_token_id(self) -> int:
            return generator.snapshot.tokenizer.eos_token_id

        def tok_encode(self, string: str, **options: Any) -> list[int]:
            return generator.snapshot.tokenizer.encode(string)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            form = known_format(generator.snapshot.prompt_format)
            return render(check_messages(chat_history, True, form), form)

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], **options: Any
        ) -> list[tuple[float, bool]]:
            found = score_pairs(generator, [(context, ids) for _, context, ids in requests], progress)
            answers = []
            for (texts, _, _), answer in zip(requests, found, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, answer)
                answers.append(answer)
            return answers

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            if empty := [request.args for request in requests if not request.args[1]]:
                raise InputError(f"{len(empty)} continuations are empty, so they have no likelihood: give them a text.")
            found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
            return found

        def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
            if not context.strip():
                return [self.eot_token_id], self.tok_encode(context + continuation)
            found: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return found

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            texts = [[self.eot_token_id, *self.tok_encode(request.args[0])] for request in requests]
            windows = [list(rolling_windows(ids, generator.reader.max_positions)) for ids in texts]
            found = score_pairs(generator, [window for each in windows for window in each], progress)
            return [sum(next(found)[0] for _ in each) for each in windows]

        def is_cut(self, context: str, asked: Any = None) -> bool:
            """Whether a request of this context and this continuation, or these options, loses its beginning."""
            if isinstance(asked, Mapping):
                return len(self.tok_encode(context)) > self._room(greedy_options(generator, asked))
            if asked is None:
                return False
            before, ids = self._encode_pair(context, asked)
            return len(before) + len(ids) > generator.reader.max_positions

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            prompts = [self._prompt(*request.args) for request in requests]
            answers = []
            for request, result in zip(requests, generator.reply_each(iter(prompts)), strict=True):
                if isinstance(result, PolyLMError):
                    raise result
                answers.append(cut_at(result.texts[0], request.args[1].get("until") or []))
                self.cache_hook.add_partial("generate_until", request.args, answers[-1])
                progress(len(answers), len(requests))
            return answers

        def _prompt(self, text: str, options: dict[str, Any]) -> tuple[Prompt, GenerationOptions]:
            checked = greedy_options(generator, options)
            ids = self.tok_encode(text) or [self.eot_token_id]
            return Prompt(text, ids[-self._room(checked) :]), checked

        def _room(self, options: GenerationOptions) -> int:
            return generator.reader.max_positions - options.new_tokens(0)

    return PolyLMHarness()


def rolling_windows(ids: list[int], most: int) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a text into contexts and continuations of at most `most` tokens, which hold each token but the first once.

    They are those of the harness: the last one has as much before it as fits.
    """
    for start in range(1, len(ids), most - 1):
        end = min(start + most - 1, len(ids))
        yield ids[max(end - most, 0) : start], ids[start:end]


def score_pairs(
    generator: TextGenerator,
    pairs: Sequence[tuple[list[int], list[int]]],
    progress: Callable[[int, int], None] = lambda done, count: None,
) -> Iterator[tuple[float, bool]]:
    """Yield the log-likelihood of each continuation, and whether greedy search would write it.

    What a text and the one before it begin with is computed once, also where it is scored.

    Args:
        generator: the model.
        pairs: token ids of a context and of its continuation, which is not empty.
        progress: called after each batch.

    Raises:
        InputError: an empty continuation.
    """
    if any(not ids for _, ids in pairs):
        raise InputError("A continuation has no tokens, so it has no likelihood: give it a text.")
    for start in range(0, len(pairs), REQUESTS_AT_ONCE):
        part = pairs[start : start + REQUESTS_AT_ONCE]
        yield from _scored(generator, part)
        progress(start + len(part), len(pairs))


def _scored(generator: TextGenerator, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
    texts = [_Text.of(context, ids, generator.reader.max_positions) for context, ids in pairs]
    for earlier, text in itertools.pairwise(texts):
        text.share(earlier)
    scores = generator.log_likelihood(
        [text.ids[: text.start + text.shared] for text in texts],
        [text.ids[text.start + text.shared :] for text in texts],
        best=1,
    )
    return [text.answer(own) for text, own in zip(texts, scores, strict=True)]


@dataclasses.dataclass
class _Text:
    """A context and a continuation whose beginning may be scored with the text before it.

    Attributes:
        ids: of both.
        start: index of the continuation.
        shared: tokens of the continuation that the text before has scored after the same ones.
        earlier: that text.
        found: log-probability of each token of the continuation, and whether greedy search would write it.
    """

    ids: list[int]
    start: int
    shared: int = 0
    earlier: _Text | None = None
    found: list[tuple[float, bool]] = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, context: list[int], continuation: list[int], most: int) -> _Text:
        """The text without what is too much for the context at its beginning."""
        ids = (context + continuation)[-most:]
        return cls(ids, max(len(ids) - len(continuation), 1))

    def share(self, earlier: _Text) -> None:
        """Leave to the text before what both begin with; at least one token stays."""
        if earlier.start != self.start:
            return
        both = zip(self.ids[:-1], earlier.ids, strict=False)
        same = next((index for index, (own, other) in enumerate(both) if own != other), None)
        common = min(len(self.ids) - 1, len(earlier.ids)) if same is None else same
        if common > self.start:
            self.shared, self.earlier = common - self.start, earlier

    def answer(self, own: TokenScores) -> tuple[float, bool]:
        """The log-likelihood of the continuation, and whether greedy search would write it."""
        continuation = self.ids[self.start + self.shared :]
        best = (choices[0][0] == token for choices, token in zip(own.best, continuation, strict=True))
        before = self.earlier.found[: self.shared] if self.earlier else []
        self.found = [*before, *zip(own.logprobs, best, strict=True)]
        return sum(logprob for logprob, _ in self.found), all(is_best for _, is_best in self.found)


def greedy_options(generator: TextGenerator, call: Mapping[str, Any]) -> GenerationOptions:
    """The generation options of a harness's request. Raises OptionError for sampling."""
    if call.get("do_sample") or call.get("temperature"):
        raise OptionError("Evaluations are greedy: a task that samples cannot be run.")
    ends = {name: value for name, value in generator.snapshot.generation.items() if name.endswith("_token_id")}
    limit = min(int(call.get("max_gen_toks", ANSWER_TOKENS)), generator.reader.max_positions - 1)
    until = list(call.get("until") or [])
    return GenerationOptions.from_layers(ends, {"max_new_tokens": limit, **({"stop_strings": until} if until else {})})


def cut_at(text: str, until: Sequence[str]) -> str:
    """The text before the first of the given texts in it."""
    for end in until:
        text = text.partition(end)[0] if end else text
    return text
