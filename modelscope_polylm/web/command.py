"""`polylm web`: the web app. Everything is computed here, and nothing is sent anywhere else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

from modelscope_polylm.errors import DependencyError
from modelscope_polylm.terminal.flags import (
    LOOPBACK,
    BackendFlag,
    DeviceFlag,
    DtypeFlag,
    ModelFlag,
    ReleaseFlag,
    RevisionFlag,
    check_address,
)
from modelscope_polylm.terminal.models import load_model

if TYPE_CHECKING:
    from modelscope_polylm.generator import TextGenerator

OLDEST_GRADIO = (6, 31)


def web(
    *,
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 7860,
    at_once: Annotated[int, typer.Option(help="Answers computed at the same time.", min=1)] = 1,
    waiting: Annotated[int, typer.Option(help="Requests that may wait for their turn.", min=1)] = 32,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
) -> None:
    """Chat and translate in the browser. Needs the extra `web`."""
    require_gradio()
    check_address(host, port)
    serve_page(load_model(model, revision, device, dtype, backend, release), host, port, at_once, waiting)


def require_gradio() -> None:
    """Import gradio, which calls home unless it is told not to before. Raises DependencyError."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ImportError as error:
        raise DependencyError(
            f"The web app needs gradio ({error}): install it with pip install 'modelscope-polylm[web]'."
        ) from error
    if tuple(map(int, gradio.__version__.split(".")[:2])) < OLDEST_GRADIO:
        oldest = ".".join(map(str, OLDEST_GRADIO))
        raise DependencyError(
            f"The web app needs gradio {oldest} or newer, not {gradio.__version__}: "
            f"pip install --upgrade 'gradio>={oldest}'."
        )


def serve_page(generator: TextGenerator, host: str, port: int, at_once: int = 1, waiting: int = 32) -> None:
    """Serve the page of a loaded model until Ctrl-C.

    Args:
        generator: the loaded model.
        host, port: where to listen.
        at_once: answers that are computed at the same time.
        waiting: requests that may wait for their turn; further ones are refused.
    """
    require_gradio()
    import uvicorn

    from modelscope_polylm.web.page import application, build_page

    app = application(build_page(generator, at_once, waiting))
    address = f"[{host}]" if ":" in host else host
    typer.echo(f"Open http://{address}:{port} in a browser; Ctrl-C ends.", err=True)
    if host not in LOOPBACK:
        typer.echo("Everyone who can reach this machine can use the model.", err=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=1)
