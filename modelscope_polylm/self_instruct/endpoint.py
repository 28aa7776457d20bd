"""An OpenAI-compatible endpoint that answers prompts, several at once and in their order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

from modelscope_polylm.errors import EndpointError, OptionError
from modelscope_polylm.self_instruct.options import SelfInstructOptions

RETRIES = 5
"""Of a request that found no connection or got 408, 409, 429 or 5xx, after pauses that double."""


class Answer(NamedTuple):
    """What came back for a prompt.

    Attributes:
        text: the answer, "" if there was none.
        is_cut: whether it ended at the most tokens that were allowed.
        refusal: why the endpoint did not take this prompt; "" if it did.
    """

    text: str
    is_cut: bool = False
    refusal: str = ""


class Endpoint:
    """A model behind `/chat/completions`. The key is that of OPENAI_API_KEY, where one is set.

    Args:
        url: what stands before `/chat/completions`.
        model: its name there.
        options: temperature, most tokens, time and number of requests.

    Raises:
        OptionError: the address is none of HTTP.
    """

    def __init__(self, url: str, model: str, options: SelfInstructOptions) -> None:
        from openai import AsyncOpenAI

        if not url.startswith(("http://", "https://")):
            raise OptionError(f"--endpoint {url!r:.200} must begin with http:// or https:// and mostly ends in /v1.")
        key = os.environ.get("OPENAI_API_KEY") or "none"
        self._client = AsyncOpenAI(base_url=url, api_key=key, timeout=options.timeout, max_retries=RETRIES)
        self._url, self._model, self._options = url, model, options

    async def answers(self, prompts: Sequence[str]) -> AsyncGenerator[Answer, None]:
        """Yield the answers in the order of the prompts. What still runs is cancelled when the caller stops.

        Raises:
            EndpointError: the endpoint cannot be reached, refuses the key or the model, or speaks something else.
        """
        places = asyncio.Semaphore(self._options.concurrency)
        requests = [asyncio.ensure_future(self._answer(prompt, places)) for prompt in prompts]
        try:
            for request in requests:
                yield await request
        finally:
            for request in requests:
                request.cancel()
            await asyncio.gather(*requests, return_exceptions=True)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _answer(self, prompt: str, places: asyncio.Semaphore) -> Answer:
        import openai

        limit = {} if self._options.max_tokens is None else {"max_tokens": self._options.max_tokens}
        try:
            async with places:
                completion: Any = await self._client.chat.completions.create(
                    model=self._model,
                    messages=[{"role": "user", "content": prompt}],
                    temperature=self._options.temperature,
                    **limit,  # type: ignore[call-overload]
                )
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return Answer("", refusal=_line(error))
        except (openai.OpenAIError, ValueError) as error:  # ValueError: what came back is no JSON
            raise EndpointError(f"{self._url} does not answer {self._model!r} ({_line(error)}).") from error
        choices = getattr(completion, "choices", None)
        if not choices:
            raise EndpointError(f"{self._url} answers, but not as OpenAI's interface does: mostly it ends in /v1.")
        return Answer(choices[0].message.content or "", choices[0].finish_reason == "length")


def _line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:300]
