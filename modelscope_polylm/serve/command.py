"""`polylm serve`: flags, checks that need no model, and the server of the chosen backend."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from modelscope_polylm.errors import DependencyError, OptionError, install_command
from modelscope_polylm.files import decode_text
from modelscope_polylm.terminal.flags import (
    LOOPBACK,
    AdapterFlag,
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
    takes_generation_options,
)
from modelscope_polylm.terminal.models import load_model, model_names
from modelscope_polylm.text.prompts import SYSTEM_MESSAGES

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")
LOGGERS = ("modelscope_polylm", "uvicorn")
LINE = "%(asctime)s %(levelname)s %(message)s"


class JsonFormatter(logging.Formatter):
    """Writes a record as JSON: time (UTC), level, message, the fields that it was given, and a traceback if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def configure_logs(level: str, format: str) -> None:
    """Write what this package and uvicorn log to stderr.

    Args:
        level: one of LEVELS; what is less is left out.
        format: one of FORMATS.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if format == "json" else logging.Formatter(LINE))
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level.upper())
    if level != "debug":  # its lines about its own start and end say less than the server's
        logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger("uvicorn").level))


BACKENDS = ("native", "vllm")
KEY_VARIABLE = "POLYLM_API_KEY"


@takes_generation_options
def serve(
    *,
    config: ConfigFlag = None,
    model: ModelFlag,
    more: Annotated[
        list[str] | None, typer.Argument(metavar="[-- VLLM FLAGS]", help="Flags for vLLM's own server, after --.")
    ] = None,
    backend: Annotated[str, typer.Option(help="native (this package's engine) or vllm.")] = "native",
    host: Annotated[str, typer.Option(help="Address to listen on; any other than loopback needs a key.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="What clients have to show; may be repeated. Other users see a flag, but not POLYLM_API_KEY, which "
            "takes several with commas between them.",
            envvar=KEY_VARIABLE,
            show_envvar=False,
        ),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with such keys, one a line.")] = None,
    metrics_key: Annotated[str | None, typer.Option(help="What /metrics takes besides the API keys.")] = None,
    metrics_key_file: Annotated[Path | None, typer.Option(help="A file with that key.")] = None,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics", help="Let /metrics be read without a key; on loopback only.")
    ] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(help="Origin whose web pages may ask, such as https://example.org, or *; may be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="What requests call the model, if not MODEL.")] = None,
    system_message: Annotated[
        str,
        typer.Option(
            help="What becomes of system messages, which PolyLM was not trained with: prepend puts them before the "
            "user's message, refuse answers with an error."
        ),
    ] = "prepend",
    max_queue: Annotated[int, typer.Option(help="Requests that may wait; further ones get 429.", min=1)] = 64,
    max_rows: Annotated[int, typer.Option(help="Answers and beams computed at once.", min=1, max=256)] = 32,
    max_body: Annotated[int, typer.Option(help="Bytes that a request may have.", min=1000)] = 1_000_000,
    log_level: Annotated[str, typer.Option(help="debug, info (a line for each request), warning or error.")] = "info",
    log_format: Annotated[str, typer.Option(help="text, or json: one object a line.")] = "text",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    adapter: AdapterFlag = None,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    quantization: QuantizationFlag = None,
    kv_cache_dtype: CacheDtypeFlag = None,
    options: dict[str, Any],
) -> None:
    """Serve a model over OpenAI's interface.

    Needs the extra `serve`. Generation options hold where a request has none.
    Only the address and the key are for both backends; vLLM takes its own flags after --.
    """
    _check_choices(backend=(backend, BACKENDS), system_message=(system_message, SYSTEM_MESSAGES))
    _check_choices(log_level=(log_level, LEVELS), log_format=(log_format, FORMATS))
    keys = checked_keys([*(api_key or []), *keys_in_file(api_key_file)])
    origins = checked_origins("--cors-origin", cors_origin or [])
    _check_reach(host, keys, open_metrics)
    check_address(host, port)
    given = {option: value for option, value in options.items() if value is not None}
    if backend == "vllm":
        metrics = {
            "metrics_key": metrics_key,
            "metrics_key_file": metrics_key_file,
            "open_metrics": open_metrics or None,
        }
        native = {**metrics, "cors_origin": cors_origin or None, "revision": revision, "device": device, "dtype": dtype}
        bits = {"quantization": quantization, "kv_cache_dtype": kv_cache_dtype}
        sizes = {"max_queue": max_queue, "max_rows": max_rows, "max_body": max_body}
        words = {"log_level": log_level, "log_format": log_format, "system_message": system_message}
        changed = _changed({**sizes, **words})
        _refuse_with_vllm({**given, **native, **bits, **changed, "name": name})
        _serve_with_vllm(model, host, port, keys, release, adapter, more or [])
    if more:
        raise OptionError(f"{more[0]} is a flag for vLLM: the native backend takes none after --.")
    require_serving()
    from modelscope_polylm.serve.middleware import Access
    from modelscope_polylm.serve.server import Limits, NativeServer

    metrics_keys = checked_keys(keys_in_file(metrics_key_file) if metrics_key is None else [metrics_key])
    if len(metrics_keys) > 1:
        raise OptionError(f"/metrics takes one key of its own, not {len(metrics_keys)}: give one.")
    access = Access(keys, next(iter(metrics_keys), None), open_metrics, origins)
    names, limits = model_names(model, name), Limits(max_rows, max_queue, max_body)
    generator = load_model(model, revision, device, dtype, "native", release, adapter, quantization, kv_cache_dtype)
    server = NativeServer(generator, names, access, limits, given, system_message)
    configure_logs(log_level, log_format)
    server.run(host, port)


def checked_keys(given: list[str]) -> tuple[str, ...]:
    """API keys: each flag, or what stands between its commas; an empty one is none.

    Raises:
        OptionError: a key that no client could send as it is, because of white space.
    """
    for key in (*given, os.environ.get(KEY_VARIABLE, "")):
        if re.search(r"\s", key) or not key.isprintable():
            raise OptionError("An API key has white space in or around it, which would lock everybody out: remove it.")
    return tuple(dict.fromkeys(key for each in given for key in each.split(",") if key))


def keys_in_file(file: Path | None) -> list[str]:
    """The keys in a file, one a line; none without a file. Raises OptionError: it cannot be read, or holds none."""
    if file is None:
        return []
    try:
        keys = decode_text(file.read_bytes()).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise OptionError(f"{file} cannot be read ({reason}): name a file with a key.") from error
    if not any(keys):
        raise OptionError(f"{file} holds no key: write one a line.")
    return keys


def require_serving() -> None:
    """Raise DependencyError unless the extra `serve` is installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            f"The server needs more packages ({error}): install them with {install_command('serve')}."
        ) from error


def _check_choices(**chosen: tuple[str, tuple[str, ...]]) -> None:
    for name, (value, choices) in chosen.items():
        if value not in choices:
            raise OptionError(f"--{name.replace('_', '-')} {value} is unknown: choose {' or '.join(choices)}.")


def _check_reach(host: str, keys: tuple[str, ...], open_metrics: bool) -> None:
    if host not in LOOPBACK and not keys:
        raise OptionError(f"--host {host} lets other machines in: set --api-key or {KEY_VARIABLE}, too.")
    if host not in LOOPBACK and open_metrics:
        raise OptionError(f"--open-metrics is for loopback, but --host {host} lets other machines in: use a key.")


def _changed(flags: dict[str, Any]) -> dict[str, Any]:
    """Those of `serve`'s flags whose values are not their defaults."""
    declared = inspect.signature(serve).parameters
    return {name: value for name, value in flags.items() if value != declared[name].default}


def _refuse_with_vllm(flags: dict[str, Any]) -> None:
    for name, value in flags.items():
        if value is not None:
            flag = name.replace("_", "-")
            raise OptionError(f"--{flag} is for the native backend: give vLLM its own flags after --.")


def _serve_with_vllm(
    model: str,
    host: str,
    port: int,
    keys: tuple[str, ...],
    release: str | None,
    adapter: Path | None,
    more: list[str],
) -> None:
    from modelscope_polylm.serve.vllm_server import run_vllm_server

    if len(keys) > 1:
        raise OptionError("vLLM's server takes one key from --api-key: give further ones after --, as --api-key KEY.")
    key = next(iter(keys), None)
    run_vllm_server(model, host=host, port=port, api_key=key, release=release, adapter=adapter, extra_arguments=more)
