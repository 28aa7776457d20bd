"""Work in a fresh process: its results come one by one, and all that it took is given back when it ends."""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any


def in_fresh_process(work: Callable[..., Iterator[Any]], *arguments: Any) -> Iterator[Any]:
    """Yield what `work(*arguments)` yields in a spawned process; work, arguments and results must be picklable.

    Raises:
        RuntimeError: the process failed; what it printed says why.
    """
    context = multiprocessing.get_context("spawn")
    results, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, work, arguments))
    process.start()
    sender.close()  # so that the pipe ends with the process
    with results, contextlib.suppress(EOFError):
        while True:
            yield results.recv()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"The process of {work.__name__} ended with exit code {process.exitcode}; see above.")


def _send(sender: Connection, work: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    # closed also where nobody listens any more, so that what was started is stopped
    with sender, contextlib.closing(work(*arguments)) as results:  # type: ignore[type-var]
        for result in results:
            sender.send(result)
