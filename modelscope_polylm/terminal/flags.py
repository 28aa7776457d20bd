"""Flags that several commands share: the generation options, each made from its declaration, and the model's."""

from __future__ import annotations

import functools
import inspect
import json
import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand

from modelscope_polylm.errors import OptionError, suggestion
from modelscope_polylm.generation.options import option_fields
from modelscope_polylm.releases import RELEASES
from modelscope_polylm.terminal.output import with_signature

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ENVIRONMENT_PREFIX = "POLYLM"
ORIGIN = re.compile(r"https?://[^/\s]+|\*")
MODEL_ARGUMENT = "model_argument"
UNCONFIGURED = ("config", "help", MODEL_ARGUMENT)
"""What a file of flags cannot hold."""
REPORTS = frozenset({"output_scores", "output_logprobs"})
"""Options that ask for more than texts; commands that print texts alone do not have them."""

FIELDS = {field.name: field for field in option_fields() if field.name not in REPORTS}


def _configure(context: typer.Context, file: Path | None) -> Path | None:
    """Take flags that are not given from environment variables, and then from a file."""
    context.auto_envvar_prefix = ENVIRONMENT_PREFIX
    if file is not None:
        context.default_map = configuration(file, context.command)
    return file


ConfigFlag = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A YAML file with flags by their names. Each can also come from the environment, as POLYLM_MAX_QUEUE.",
        callback=_configure,
        is_eager=True,
        envvar=f"{ENVIRONMENT_PREFIX}_CONFIG",
    ),
]


def configuration(file: Path, command: Any) -> dict[str, Any]:
    """The flags of a file by their parameters' names. Raises typer.BadParameter, which names the file."""
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise typer.BadParameter(f"{file} must hold flags and their values, such as 'port: 8000'.")
    known = {parameter.name: parameter for parameter in command.params if parameter.name not in UNCONFIGURED}
    found = {}
    for name, value in values.items():
        parameter = known.get(str(name).replace("-", "_"))
        if parameter is None:
            raise typer.BadParameter(f"{file} has {name!r}, which is no flag here: {suggestion(name, known)}")
        if value is not None:
            found[str(parameter.name)] = _configured(file, name, value, parameter)
    return found


def _configured(file: Path, name: Any, value: Any, parameter: Any) -> Any:
    """A value of a file as the command line would give it."""
    if parameter.name in FIELDS and FIELDS[parameter.name].metadata.get("nested"):
        return json.dumps(value)
    if parameter.multiple or parameter.nargs == -1:
        return value if isinstance(value, list) else [value]
    if isinstance(value, (list, dict)):
        raise typer.BadParameter(f"{file} has {name!r} with {value!r:.80}: give one value.")
    return value


def takes_options(fields: Iterable[Field[Any]]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with a flag for each field; it receives what was given, otherwise None, as keyword `options`."""
    declared = list(fields)

    def with_flags(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**arguments: Any) -> None:
            given = {field.name: arguments.pop(field.name) for field in declared}
            command(**arguments, options={field.name: _value(field, given[field.name]) for field in declared})

        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.name != "options"]
        return with_signature(run, signature.replace(parameters=[*own, *map(_flag, declared)]))

    return with_flags


def takes_generation_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each generation option, which it receives as keyword `options`."""
    return takes_options(FIELDS.values())(command)


def _flag(field: Field[Any]) -> inspect.Parameter:
    name = field.name.replace("_", "-")
    kind = _kind(field)
    declaration = f"--{name}/--no-{name}" if kind is bool else f"--{name}"
    option = typer.Option(declaration, help=_help(field), show_default=False)
    return inspect.Parameter(
        field.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _kind(field: Field[Any]) -> Any:
    declared, metadata = str(field.type), field.metadata
    if "choices" in metadata or metadata.get("nested"):
        return str
    if metadata.get("token"):
        return list[int]
    if declared.startswith("str"):
        return list[str]
    return {"bool": bool, "int": int, "float": float}[declared.split(" ")[0]]


def _help(field: Field[Any]) -> str:
    if "choices" in field.metadata:
        return f"{field.metadata['help']} ({', '.join(_choices(field))})"
    if field.metadata.get("nested"):
        return f"{field.metadata['help']} As JSON: [[1, 2], [3]]."
    return f"{field.metadata['help']} May be repeated." if "list" in str(field.type) else str(field.metadata["help"])


def _choices(field: Field[Any]) -> dict[str, Any]:
    return {str(choice).lower(): choice for choice in field.metadata["choices"]}


def _value(field: Field[Any], given: Any) -> Any:
    """What was typed, as `GenerationOptions` takes it; None where nothing was."""
    if given is None or given == []:
        return None
    if "choices" in field.metadata:
        return _choices(field).get(given.lower(), given)
    if field.metadata.get("nested"):
        return _json(field, given)
    return given


def typed_value(field: Field[Any], text: str) -> Any:
    """The value of a text such as '0.7', 'true' or '[[1, 2]]'; its type is checked later. Raises OptionError."""
    kind = _kind(field)
    if kind is str:
        return _value(field, text)
    if kind == list[str]:
        return _json(field, text) if text.startswith("[") else text
    if kind is bool:
        return {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}.get(text.lower(), text)
    return _json(field, text)


def _json(field: Field[Any], text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        example = "[[1, 2], [3]]" if field.metadata.get("nested") else '["a", "b"]' if "str" in str(field.type) else "2"
        raise OptionError(f"{field.name}={text!r} cannot be read: write it like {example}.") from None


class ModelCommand(TyperCommand):
    """A command that takes its model as `--model MODEL` or as its first argument, which `takes_model` declares.

    The first argument is the model if there is one more than the command has of its own, or if it takes any number of
    them; but never next to `--model`.
    """

    def make_parser(self, ctx: Any) -> Any:
        """Make the parser of a command line; `parse_args` has noted whether it begins with the model."""
        return super().make_parser(ctx) if ctx.meta[MODEL_ARGUMENT] else self._parser_without([MODEL_ARGUMENT], ctx)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read a command line."""
        ctx.meta[MODEL_ARGUMENT] = ctx.resilient_parsing or self._begins_with_model(ctx, args)
        return super().parse_args(ctx, args)

    def _begins_with_model(self, ctx: Any, args: list[str]) -> bool:
        arguments = [each for each in self.params if isinstance(each, TyperArgument)]
        own = [each for each in arguments if each.name != MODEL_ARGUMENT]
        given, more, _ = self._parser_without([each.name for each in own], ctx).parse_args(list(args))
        first = given.get(MODEL_ARGUMENT)
        if "model" in given or not isinstance(first, str) or first.startswith("-"):
            return False
        return len(more) >= len(own) or any(each.nargs == -1 for each in own)

    def _parser_without(self, names: Sequence[str | None], ctx: Any) -> Any:
        return TyperCommand(None, params=[each for each in self.params if each.name not in names]).make_parser(ctx)


def takes_model(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose option `--model` may also be its first argument; to be registered as a `ModelCommand`."""
    signature = inspect.signature(command, eval_str=True)
    if "model" not in signature.parameters:
        return command
    is_needed = signature.parameters["model"].default is inspect.Parameter.empty

    @functools.wraps(command)
    def run(*, context: typer.Context, model_argument: str | None = None, **arguments: Any) -> None:
        arguments["model"] = model_argument or arguments["model"]
        if is_needed and not arguments["model"]:
            raise typer.BadParameter("give one as the first argument or by --model.", ctx=context, param_hint="MODEL")
        command(**arguments)

    flags = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in signature.parameters.values()]
    optional = [each.replace(default=None) if is_needed and each.name == "model" else each for each in flags]
    added = [_keyword("context", typer.Context, inspect.Parameter.empty), _keyword(MODEL_ARGUMENT, ModelArgument, None)]
    return with_signature(run, signature.replace(parameters=[*added, *optional]))


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _starting_with(names: tuple[str, ...], incomplete: str) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def complete_model(incomplete: str) -> list[str]:
    """Short names for the shell's completion."""
    return _starting_with(tuple(RELEASES), incomplete)


def complete_device(incomplete: str) -> list[str]:
    """Devices for the shell's completion."""
    return _starting_with(("cpu", "gpu", "cuda:0"), incomplete)


def complete_dtype(incomplete: str) -> list[str]:
    """Precisions for the shell's completion."""
    return _starting_with(("bfloat16", "float32", "float16"), incomplete)


def complete_quantization(incomplete: str) -> list[str]:
    """Quantizations for the shell's completion."""
    return _starting_with(("int8", "fp8", "int4"), incomplete)


def complete_backend(incomplete: str) -> list[str]:
    """Backends for the shell's completion."""
    return _starting_with(("native", "transformers", "vllm"), incomplete)


ModelArgument = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="The same as --model.", autocompletion=complete_model)
]
ModelFlag = Annotated[
    str,
    typer.Option(
        "--model", help="A folder, a hub id, or a release such as tiny or assistant-13b.", autocompletion=complete_model
    ),
]
RevisionFlag = Annotated[str | None, typer.Option("--revision", help="Tag or branch on the hub.")]
ReleaseFlag = Annotated[
    str | None,
    typer.Option(
        "--release",
        help="Which release the model is, where neither its name nor its folder tells.",
        autocompletion=complete_model,
    ),
]
AdapterFlag = Annotated[
    Path | None,
    typer.Option("--adapter", help="Folder of a low-rank adapter, as `polylm finetune` writes, merged into the model."),
]
DeviceFlag = Annotated[
    str | None,
    typer.Option("--device", help="cpu, gpu, cuda:1, ...; a GPU if there is one.", autocompletion=complete_device),
]
DtypeFlag = Annotated[
    str | None,
    typer.Option("--dtype", help="bfloat16 (default on a GPU), float32 or float16.", autocompletion=complete_dtype),
]
BackendFlag = Annotated[
    str, typer.Option("--backend", help="native, transformers or vllm.", autocompletion=complete_backend)
]
QuantizationFlag = Annotated[
    str | None,
    typer.Option(
        "--quantization",
        help="int8, fp8 or int4: round the weights while loading, for less memory and time (native backend).",
        autocompletion=complete_quantization,
    ),
]
CacheDtypeFlag = Annotated[
    str | None,
    typer.Option("--kv-cache-dtype", help="int8: twice the tokens in the KV cache's memory (native backend)."),
]
JsonFlag = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def checked_origins(flag: str, given: list[str]) -> tuple[str, ...]:
    """Origins of web pages. Raises OptionError for what a browser would never send."""
    for origin in given:
        if not ORIGIN.fullmatch(origin):
            raise OptionError(f"{flag} {origin!r} must be like https://example.org, without a path, or *.")
    return tuple(given)


def check_address(host: str, port: int) -> None:
    """Raise OptionError if nothing can listen there; better now than after the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise OptionError(
            f"Cannot listen on {host} port {port} ({error.strerror}): choose another --port or --host."
        ) from error
