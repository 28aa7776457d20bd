"""Work that calls back turned into a generator: it runs in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_background(
    work: Callable[[Callable[[Item], None]], Result], cancel: Callable[[], None]
) -> Generator[Item, None, Result]:
    """Yield what `work` reports, return what it returns, raise what it raises.

    Args:
        work: called in a thread, with the function that it reports items to; it never waits for the consumer.
        cancel: called when the consumer goes away; it makes `work` return soon, which is waited for.
    """
    items: queue.SimpleQueue[Item | _Outcome[Result]] = queue.SimpleQueue()
    thread = threading.Thread(target=lambda: items.put(_Outcome.of(work, items.put)), name="polylm", daemon=True)
    thread.start()
    try:
        while not isinstance(item := items.get(), _Outcome):
            yield item
        return item.result()
    finally:
        cancel()
        thread.join()


class _Outcome(Generic[Result]):
    """What a function returned or raised."""

    def __init__(self, result: list[Result], error: BaseException | None) -> None:
        self._result, self._error = result, error

    @classmethod
    def of(cls, work: Callable[[Callable[[Item], None]], Result], report: Callable[[Item], None]) -> _Outcome[Result]:
        try:
            return cls([work(report)], None)
        except BaseException as error:
            return cls([], error)

    def result(self) -> Result:
        if self._error is not None:
            raise self._error
        return self._result[0]
