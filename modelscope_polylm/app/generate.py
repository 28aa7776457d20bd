"""`polylm generate`: one answer, on stdout alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelscope_polylm.app.generation_flags import takes_generation_options
from modelscope_polylm.errors import InputError

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.plugin.inputs import Prompt
    from modelscope_polylm.plugin.text_generator import TextGenerator


@takes_generation_options
def generate(
    *,
    text: Annotated[str | None, typer.Argument(help="The text to continue; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file.")] = None,
    model: Annotated[
        str, typer.Option(help="A folder, a hub id, or a release such as tiny or assistant-13b.")
    ] = "tiny",
    revision: Annotated[str | None, typer.Option(help="Tag or branch on the hub.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Take the text as a user's message.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, gpu, cuda:1, ...; a GPU if there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bfloat16 (default on a GPU), float32 or float16.")] = None,
    backend: Annotated[str, typer.Option(help="native or transformers.")] = "native",
    options: dict[str, Any],
) -> None:
    """Continue a text, or answer a message with --chat. Prints the answer alone, as it comes if the search allows."""
    given = read_text(text, file)
    from modelscope_polylm.hub.resolve import resolve
    from modelscope_polylm.plugin.text_generator import TextGenerator

    generator = TextGenerator.load(resolve(model, revision), device=device, dtype=dtype, backend=backend)
    checked = generator.options(options)
    value = given.rstrip("\n") if chat else given
    print_answers(generator, generator.reader.read(value, checked, chat=chat), checked)


def read_text(text: str | None, file: Path | None) -> str:
    """The text of the command line, stdin or a file, exactly as it stands there.

    Raises:
        InputError: none or two of them, or not readable as UTF-8.
    """
    if (text is None) == (file is None):
        raise InputError("Give one of these: a text, - to read it from stdin, or --file FILE.")
    if text not in (None, "-"):
        return str(text)
    try:
        return (sys.stdin.buffer.read() if file is None else file.read_bytes()).decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file or 'stdin'} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise InputError(f"{file or 'stdin'} cannot be read: {error.strerror}.") from error


def print_answers(generator: TextGenerator, prompt: Prompt, options: GenerationOptions) -> None:
    """Print the answer while it comes; of several answers each one at the end, best first."""
    stream = generator.stream([prompt], options)
    shown = 0
    while True:
        try:
            reply = next(stream)[0]
        except StopIteration as finished:
            texts = finished.value[0].texts
            break
        if reply is not None:
            typer.echo(reply.texts[0][shown:], nl=False)
            sys.stdout.flush()
            shown = len(reply.texts[0])
    typer.echo("\n".join([texts[0][shown:], *texts[1:]]))
