"""`polylm generate`: one answer, on stdout alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelscope_polylm.errors import InputError
from modelscope_polylm.files import decode_text
from modelscope_polylm.terminal.flags import (
    BackendFlag,
    DeviceFlag,
    DtypeFlag,
    JsonFlag,
    ModelFlag,
    ReleaseFlag,
    RevisionFlag,
    takes_generation_options,
)
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.terminal.output import json_line, write

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import Prompt, Reply, TextGenerator


@takes_generation_options
def generate(
    *,
    text: Annotated[str | None, typer.Argument(help="The text to continue; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file.")] = None,
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    chat: Annotated[bool, typer.Option("--chat", help="Take the text as a user's message.")] = False,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
    as_json: JsonFlag = False,
    options: dict[str, Any],
) -> None:
    """Continue a text, or answer a message.

    Prints the answer alone: as it comes by greedy search and sampling, at the end by beam search, the published default
    (--num-beams 1 streams).
    """
    given = read_text(text, file)
    generator = load_model(model, revision, device, dtype, backend, release)
    checked = generator.options(options)
    value = given.rstrip("\n") if chat else given
    prompt = generator.reader.read(value, checked, chat=chat)
    if as_json:
        write(json_line(answer_record(generator.reply([prompt], checked)[0])))
    else:
        print_answers(generator, prompt, checked)


def read_text(text: str | None, file: Path | None) -> str:
    """The text of the command line as it is, or that of stdin or a file without byte order mark and carriage returns.

    Raises:
        InputError: none or two of them, or not readable as UTF-8.
    """
    if (text is None) == (file is None):
        raise InputError("Give one of these: a text, - to read it from stdin, or --file FILE.")
    if text not in (None, "-"):
        return str(text)
    try:
        return decode_text(_stdin() if file is None else file.read_bytes())
    except UnicodeDecodeError as error:
        raise InputError(f"{file or 'stdin'} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise InputError(f"{file or 'stdin'} cannot be read: {error.strerror}.") from error


def _stdin() -> bytes:
    if sys.stdin is None:
        raise InputError("stdin is closed: give a text or --file FILE.")
    return sys.stdin.buffer.read()


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
            write(reply.texts[0][shown:])
            shown = len(reply.texts[0])
    write("\n".join([texts[0][shown:], *texts[1:]]) + "\n")


def answer_record(reply: Reply) -> dict[str, Any]:
    """The best answer's 'text', number of 'tokens' and 'finish_reason'; of several answers all 'texts' and 'scores'."""
    best = reply.answers[0]
    record = {"text": reply.texts[0], "tokens": len(best.ids), "finish_reason": best.finish_reason}
    if len(reply.texts) > 1:
        record |= {"texts": reply.texts, "scores": [answer.score for answer in reply.answers]}
    return record
