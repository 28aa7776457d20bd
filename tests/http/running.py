"""Servers of this package in this process, on a port of their own, and raw sockets in front of them."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from modelscope_polylm.http.server import Server


@contextlib.contextmanager
def listening(server: Server) -> Iterator[int]:
    """Run a server in a thread for the time of a block; yields its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(60)
    assert not thread.is_alive()


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "It did not happen."
        time.sleep(0.01)


def received(connection: socket.socket) -> bytes:
    """Everything until the other side closes."""
    data = b""
    while chunk := connection.recv(65536):
        data += chunk
    return data


def exchange(port: int, *packets: bytes, pause: float = 0.05) -> bytes:
    """What is answered to packets that come one after the other, until the connection is closed."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, packet in enumerate(packets):
            if number:
                time.sleep(pause)
            connection.sendall(packet)
        return received(connection)


def status_of(answer: bytes) -> int:
    """The status of the last response; interim ones may stand before it."""
    while answer.startswith(b"HTTP/1.1 1"):
        answer = answer.partition(b"\r\n\r\n")[2]
    return int(answer.split(b" ", 2)[1])


def json_of(answer: bytes) -> Any:
    """The JSON of the only response."""
    return json.loads(answer.partition(b"\r\n\r\n")[2])
