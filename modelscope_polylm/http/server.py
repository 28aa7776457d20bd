"""A uvicorn server that ends in order: what runs is finished, and clients that do not read are not waited for."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from modelscope_polylm.http.connections import Connection

logger = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 30


class Server(uvicorn.Server):  # type: ignore[misc]
    """Serves an application until SIGINT, SIGTERM or SIGHUP.

    Args:
        app: the ASGI application.
        host, port: where to listen.
        end_seconds: how long running requests may take to end.
        on_ready: called when the server takes requests.
        on_end: called when it is asked to end, and takes no more connections.
    """

    def __init__(
        self,
        app: Any,
        host: str,
        port: int,
        end_seconds: int,
        on_ready: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Connection,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=end_seconds,
        )
        super().__init__(config)
        logging.getLogger("uvicorn.error").addFilter(_is_not_of_the_end)
        self._on_ready, self._on_end = on_ready, on_end

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take requests."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for what runs."""
        logger.info("Ending: running requests may take %s more seconds.", self.config.timeout_graceful_shutdown)
        self._on_end()
        await super().shutdown(sockets)
        logger.info("Ended.")

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """End at a hang-up as at SIGTERM, unless the process was started to ignore it, as by nohup."""
        hang_up = getattr(signal, "SIGHUP", None)  # Windows has none
        is_main = threading.current_thread() is threading.main_thread()
        with super().capture_signals():
            if hang_up is None or not is_main or signal.getsignal(hang_up) is signal.SIG_IGN:
                yield
                return
            before = signal.signal(hang_up, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(hang_up, before)


def url_of(host: str, port: int) -> str:
    """The address of a server for a browser; numbers of IPv6 stand in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_not_of_the_end(record: logging.LogRecord) -> bool:
    """Whether a record is other than uvicorn's error about streams that are open at the end, as pages have them."""
    return not str(record.msg).startswith("Cancel %s running task")
