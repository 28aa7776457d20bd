"""`polylm web`: the web app. Everything is computed here, and nothing is sent anywhere else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from modelscope_polylm.errors import DependencyError, install_command
from modelscope_polylm.terminal.flags import (
    LOOPBACK,
    AdapterFlag,
    BackendFlag,
    CacheDtypeFlag,
    ConfigFlag,
    DeviceFlag,
    DtypeFlag,
    ModelFlag,
    QuantizationFlag,
    ReleaseFlag,
    RevisionFlag,
    check_address,
    checked_origins,
)
from modelscope_polylm.terminal.models import load_model

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

OLDEST_GRADIO = (6, 31)
END_SECONDS = 1
"""How long answers may go on when the page ends."""


def web(
    *,
    config: ConfigFlag = None,
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    adapter: AdapterFlag = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    origin: Annotated[
        list[str] | None,
        typer.Option(help="Address under which a proxy shows the page, such as https://example.org; may be repeated."),
    ] = None,
    at_once: Annotated[int, typer.Option(help="Answers computed at the same time.", min=1)] = 1,
    waiting: Annotated[int, typer.Option(help="Requests that may wait for their turn.", min=1)] = 32,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
    quantization: QuantizationFlag = None,
    kv_cache_dtype: CacheDtypeFlag = None,
) -> None:
    """Chat and translate in the browser. Needs the extra `web`."""
    require_gradio()
    origins = checked_origins("--origin", origin or [])
    check_address(host, port)
    generator = load_model(model, revision, device, dtype, backend, release, adapter, quantization, kv_cache_dtype)
    serve_page(generator, host, port, at_once, waiting, origins)


def require_gradio() -> None:
    """Import gradio, which calls home unless it is told not to before. Raises DependencyError."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise DependencyError(
            f"The web app needs gradio ({error}): install it with {install_command('web')}."
        ) from error
    if tuple(map(int, gradio.__version__.split(".")[:2])) < OLDEST_GRADIO:
        oldest = ".".join(map(str, OLDEST_GRADIO))
        raise DependencyError(
            f"The web app needs gradio {oldest} or newer, not {gradio.__version__}: "
            f"pip install --upgrade 'gradio>={oldest}'."
        )


def serve_page(
    generator: TextGenerator,
    host: str,
    port: int,
    at_once: int = 1,
    waiting: int = 32,
    origins: Sequence[str] = (),
) -> None:
    """Serve the page of a loaded model until Ctrl-C.

    Args:
        generator: the loaded model.
        host, port: where to listen.
        at_once: answers that are computed at the same time.
        waiting: requests that may wait for their turn; further ones are refused.
        origins: other origins under which the page is shown.
    """
    require_gradio()
    from modelscope_polylm.http.server import Server, url_of
    from modelscope_polylm.web.page import application, build_pages

    def announce() -> None:
        typer.echo(f"Open {url_of(host, port)} in a browser; Ctrl-C ends.", err=True)
        if host not in LOOPBACK:
            typer.echo("Everyone who can reach this machine can use the model.", err=True)

    app = application(build_pages(generator, at_once, waiting), host in LOOPBACK, origins)
    Server(app, host, port, END_SECONDS, announce).run()
