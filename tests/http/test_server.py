"""A server's end: signals, and what still runs."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.http.running import exchange, status_of, wait_for
from tests.processes import environment

PROGRAM = """
import asyncio, signal, sys
from modelscope_polylm.http.server import Server

async def application(scope, receive, send):
    if scope["type"] == "http":
        await asyncio.sleep(0.5 if scope["path"] == "/slow" else 0)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"answered"})

if "ignore" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
say = lambda text: lambda: print(text, flush=True)
Server(application, "127.0.0.1", int(sys.argv[1]), 10, say("ready"), say("ending")).run()
"""
REQUEST = b"GET /slow HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def started(*arguments: str) -> tuple[subprocess.Popen[str], int]:
    """A process with a server, as soon as it is ready, and its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", PROGRAM, str(port), *arguments]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process, port


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_running_requests_end(number: signal.Signals) -> None:
    process, port = started()
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(REQUEST)
        time.sleep(0.1)
        process.send_signal(number)
        wait_for(lambda: refuses(port))
        answer = connection.recv(65536)
        while b"answered" not in answer:
            answer += connection.recv(65536)
    output, errors = process.communicate(timeout=30)
    assert status_of(answer) == 200
    assert (process.returncode, output, errors) == (-number, "ending\n", "")


def refuses(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


def test_a_process_that_ignores_hang_ups_goes_on() -> None:
    process, port = started("ignore")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    assert status_of(exchange(port, REQUEST)) == 200
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
