"""The loop: lease a session, prefill, step until every row has ended, hand out tokens as they become final."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from modelscope_polylm.errors import InputError, OptionError
from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.reports import Reports
from modelscope_polylm.generation.rows import Request
from modelscope_polylm.generation.session import Session
from modelscope_polylm.generation.sessions import Sessions
from modelscope_polylm.generation.stop_strings import stop_test_factory
from modelscope_polylm.generation.stopping import Answer, BeamCollector, TokenCollector, Update
from modelscope_polylm.network.gpt2 import Decoder
from modelscope_polylm.text.tokenizer import PolyLMTokenizer


class Engine:
    """Generates with one decoder on one device; calls from several threads get sessions of their own.

    Args:
        decoder: the network.
        tokenizer: bounds the ids that are generated, and reads the text for stop strings.
    """

    def __init__(self, decoder: Decoder, tokenizer: PolyLMTokenizer):
        self.decoder, self.tokenizer = decoder, tokenizer
        self._sessions = Sessions(decoder, min(tokenizer.vocab_size, decoder.config.vocab_size))

    def stream(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> Generator[Update, None, list[list[Answer]]]:
        """Generate for all prompts together; see `backends.base.Backend.stream`."""
        requests = self.requests(prompts, options)
        with self._sessions.lease(requests, options) as session:
            session.begin(requests, options)
            collector = self._collector(requests, options, session)
            yield from _run(session, collector, max(request.limit for request in requests))
            answers = collector.answers(session.rows)
        if options.num_beams > 1:
            yield [best[0].ids for best in answers]
        return answers

    def requests(self, prompts: Sequence[Sequence[int]], options: GenerationOptions) -> list[Request]:
        """The checked prompts with their lengths.

        Raises:
            InputError: no prompts, an empty one, one with an id outside the vocabulary, or one that leaves no room.
        """
        if not prompts:
            raise InputError("There is no prompt: give at least one.")
        return [self._request(index, prompt, options) for index, prompt in enumerate(prompts)]

    def _request(self, index: int, prompt: Sequence[int], options: GenerationOptions) -> Request:
        positions, vocabulary, length = self.decoder.config.positions, self.decoder.config.vocab_size, len(prompt)
        limit = options.new_tokens(length)
        if length == 0:
            raise InputError(f"Prompt {index} has no tokens: give it some text.")
        if min(prompt) < 0 or max(prompt) >= vocabulary:
            raise InputError(
                f"Prompt {index} has token ids outside 0..{vocabulary - 1}: encode it with the snapshot's tokenizer."
            )
        if limit < 1:
            raise InputError(
                f"Prompt {index} has {length} tokens and max_length={options.max_length}, which leaves no room for an "
                "answer: raise max_length or set max_new_tokens instead."
            )
        if length + limit > positions:
            advice = (
                f"set max_new_tokens to at most {positions - length}" if length < positions else "shorten the prompt"
            )
            raise InputError(
                f"Prompt {index} has {length} tokens, and with {limit} new ones it does not fit the model's "
                f"{positions} positions: {advice}."
            )
        return Request(prompt, limit, options.minimum_new_tokens(length))

    def _collector(
        self, requests: Sequence[Request], options: GenerationOptions, session: Session
    ) -> TokenCollector | BeamCollector:
        if isinstance(session.search.steps, BeamSearch):
            return BeamCollector(requests, session.search.steps, options)
        stop_tests = stop_test_factory(self.tokenizer, options.stop_texts)
        return TokenCollector(requests, session.rows.group, options, stop_tests)


def check_native(options: GenerationOptions) -> None:
    """Raises OptionError for what this engine does not have."""
    if options.stop_texts and options.num_beams > 1:
        raise OptionError(
            f"stop_strings together with num_beams={options.num_beams} is not in the native backend: set num_beams=1, "
            "or load the model with backend='transformers'."
        )


def _run(session: Session, collector: TokenCollector | BeamCollector, limit: int) -> Generator[Update, None, None]:
    reports = Reports(session.search.steps.report)
    reports.record()
    chosen = 1
    while not collector.finished:
        if chosen < limit and reports.may_record():
            session.step()
            reports.record()
            chosen += 1
            continue
        update = collector.collect(reports.read())
        if any(update):
            yield update
