"""Runs the web app in a process of its own for the browser: python process.py PORT LOG.

LOG receives a line for each address outside this machine that the process looks up or connects to; its first one is a
lookup of ELSEWHERE, which shows that the log is kept. A prompt that says "slowly" is answered with a pause before each
token.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import sys
import time
from pathlib import Path
from typing import Any

PAUSE = 0.03
ELSEWHERE = "192.0.2.1"  # reserved for documentation; a number is looked up without a network


def is_local(host: Any) -> bool:
    """Whether a host's name or address is this machine's."""
    text = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return text == "localhost"


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: writes down who is spoken to."""
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if not is_local(host):
        with Path(sys.argv[2]).open("a") as log:
            log.write(f"{event} {host}\n")


def slow_down() -> None:
    """Make the model slow where the prompt asks for it."""
    from modelscope_polylm.generator import TextGenerator

    stream = TextGenerator.stream

    def paced(self: Any, prompts: Any, options: Any) -> Any:
        with contextlib.closing(stream(self, prompts, options)) as deltas:
            for delta in deltas:
                time.sleep(PAUSE * ("slowly" in prompts[0].text))
                yield delta

    TextGenerator.stream = paced  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.addaudithook(watch)
    socket.getaddrinfo(ELSEWHERE, 80)
    slow_down()
    from modelscope_polylm.web.command import web

    web(port=int(sys.argv[1]))
