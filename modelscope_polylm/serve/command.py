"""`polylm serve`: flags, checks that need no model, and the server of the chosen backend."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from modelscope_polylm.errors import DependencyError, OptionError
from modelscope_polylm.terminal.flags import (
    LOOPBACK,
    DeviceFlag,
    DtypeFlag,
    RevisionFlag,
    check_address,
    complete_model,
    takes_generation_options,
)
from modelscope_polylm.terminal.models import load_model, model_names
from modelscope_polylm.terminal.output import write_error

BACKENDS = ("native", "vllm")


@takes_generation_options
def serve(
    *,
    model: Annotated[
        str,
        typer.Argument(
            help="A folder, a hub id, or a release such as tiny or assistant-13b.", autocompletion=complete_model
        ),
    ],
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[-- VLLM FLAGS]", help="Flags for vLLM's own server, behind --.")
    ] = None,
    backend: Annotated[str, typer.Option(help="native (this package's engine) or vllm.")] = "native",
    host: Annotated[str, typer.Option(help="Address to listen on; any other than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="POLYLM_API_KEY", help="What clients have to show; other users see a flag.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model, if not MODEL.")] = None,
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; further ones get 429.", min=1)] = 64,
    max_rows: Annotated[int, typer.Option(help="Answers and beams computed at once.", min=1, max=256)] = 32,
    max_batches: Annotated[int, typer.Option(help="Batches that run side by side.", min=1, max=32)] = 4,
    max_body: Annotated[int, typer.Option(help="Bytes that a request may have.", min=1000)] = 1_000_000,
    revision: RevisionFlag = None,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    options: dict[str, Any],
) -> None:
    """Serve a model over OpenAI's interface.

    Needs the extra `serve`. Generation options hold where a request has none.
    Only the address and the key are for both backends; vLLM takes its own flags behind --.
    """
    if backend not in BACKENDS:
        raise OptionError(f"--backend {backend} is unknown: choose native or vllm.")
    if host not in LOOPBACK and not api_key:
        raise OptionError(f"--host {host} lets other machines in: set --api-key or POLYLM_API_KEY, too.")
    check_address(host, port)
    given = {option: value for option, value in options.items() if value is not None}
    if backend == "vllm":
        _refuse_with_vllm({**given, "revision": revision, "device": device, "dtype": dtype, "name": name})
        from modelscope_polylm.serve.vllm_server import run_vllm_server

        run_vllm_server(model, host=host, port=port, api_key=api_key or None, extra_arguments=more or [])
    if more:
        raise OptionError(f"{more[0]} is a flag for vLLM: the native backend takes none behind --.")
    require_serving()
    from modelscope_polylm.serve.server import Limits, NativeServer

    names = model_names(model, name)
    generator = load_model(model, revision, device, dtype)
    server = NativeServer(generator, names, api_key or None, Limits(max_rows, max_batches, max_queue, max_body), given)
    address = f"[{host}]" if ":" in host else host
    server.run(host, port, lambda: write_error(f"Serving {names[0]} at http://{address}:{port}/v1; Ctrl-C ends."))


def _refuse_with_vllm(flags: dict[str, Any]) -> None:
    for name, value in flags.items():
        if value is not None:
            flag = name.replace("_", "-")
            raise OptionError(f"--{flag} is for the native backend: give vLLM its own flags behind --.")


def require_serving() -> None:
    """Raise DependencyError unless the extra `serve` is installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"The server needs more packages ({error}): install them with pip install 'modelscope-polylm[serve]'."
        ) from error
