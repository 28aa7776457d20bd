"""The loop: lease a session, prefill, step until every row has ended, hand out tokens as they become final."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from modelscope_polylm.errors import OptionError
from modelscope_polylm.generation.beam import BeamSearch
from modelscope_polylm.generation.options import GenerationOptions
from modelscope_polylm.generation.outputs import Answer, BeamCollector, TokenCollector, Update, stop_test_factory
from modelscope_polylm.generation.reports import Reports
from modelscope_polylm.generation.requests import checked_requests
from modelscope_polylm.generation.runner import Session
from modelscope_polylm.generation.scheduler import SessionMemory, Sessions
from modelscope_polylm.generation.state import Request
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

    def memory(self) -> SessionMemory:
        """What is kept on the GPU between calls, beside the weights."""
        return self._sessions.memory()

    def stream(
        self, prompts: Sequence[Sequence[int]], options: GenerationOptions
    ) -> Generator[Update, None, list[list[Answer]]]:
        """Generate for all prompts together; see `backends.base.Backend.stream`."""
        requests = checked_requests(prompts, options, self.decoder.config)
        with self._sessions.lease(requests, options) as session:
            session.begin(requests, options)
            collector = self._collector(requests, options, session)
            yield from _run(session, collector, max(request.limit for request in requests))
            answers = collector.answers(session.rows)
        if options.num_beams > 1:
            yield [best[0].ids for best in answers]
        return answers

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
        # an update without tokens lets the caller close the stream between steps, of beam search too
        yield collector.collect(reports.read())
