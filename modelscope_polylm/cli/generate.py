"""`polylm generate` and `polylm demo`: one answer, on stdout alone; and the published snippet in every language."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelscope_polylm.errors import InputError
from modelscope_polylm.files import decode_text
from modelscope_polylm.releases import BEAM_SEARCH
from modelscope_polylm.terminal.flags import (
    AdapterFlag,
    BackendFlag,
    CacheDtypeFlag,
    DeviceFlag,
    DtypeFlag,
    JsonFlag,
    ModelFlag,
    QuantizationFlag,
    ReleaseFlag,
    RevisionFlag,
    takes_generation_options,
)
from modelscope_polylm.terminal.models import find_model, load_model, without_collection
from modelscope_polylm.terminal.output import json_line, write
from modelscope_polylm.text.languages import LANGUAGES, SENTENCE, translation_request

if TYPE_CHECKING:
    from modelscope_polylm.generation.options import GenerationOptions
    from modelscope_polylm.generator import GenerationResult, TextGenerator
    from modelscope_polylm.inputs import Prompt


@takes_generation_options
def generate(
    *,
    text: Annotated[str | None, typer.Argument(help="The text to continue; - reads it from stdin.")] = None,
    file: Annotated[Path | None, typer.Option(help="Read the text from this file.")] = None,
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    adapter: AdapterFlag = None,
    chat: Annotated[bool, typer.Option("--chat", help="Take the text as a user's message.")] = False,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
    quantization: QuantizationFlag = None,
    kv_cache_dtype: CacheDtypeFlag = None,
    as_json: JsonFlag = False,
    options: dict[str, Any],
) -> None:
    """Continue a text, or answer a message.

    Prints the answer alone: as it comes by greedy search and sampling, at the end by beam search, the published default
    (--num-beams 1 streams).
    """
    given = read_text(text, file)
    generator = load_model(model, revision, device, dtype, backend, release, adapter, quantization, kv_cache_dtype)
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
        return decode_text(read_stdin() if file is None else file.read_bytes())
    except UnicodeDecodeError as error:
        raise InputError(f"{file or 'stdin'} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise InputError(f"{file or 'stdin'} cannot be read: {error.strerror}.") from error


def read_stdin() -> bytes:
    """All of stdin. Raises InputError if it is closed."""
    if sys.stdin is None:
        raise InputError("stdin is closed: give a text or --file FILE.")
    return sys.stdin.buffer.read()


def print_answers(generator: TextGenerator, prompt: Prompt, options: GenerationOptions) -> None:
    """Print the answer while it comes; of several answers each one at the end, best first."""
    with contextlib.closing(generator.stream([prompt], options)) as deltas:
        for delta in deltas:
            write(delta.text)
            if delta.result is not None:
                write("".join(f"\n{text}" for text in delta.result.texts[1:]) + "\n")


def answer_record(result: GenerationResult) -> dict[str, Any]:
    """The best answer's 'text', number of 'tokens' and 'finish_reason'; of several answers all 'texts' and 'scores'."""
    best = result.completions[0]
    record = {"text": result.texts[0], "tokens": len(best.ids), "finish_reason": best.finish_reason}
    if len(result.texts) > 1:
        record |= {"texts": result.texts, "scores": [completion.score for completion in result.completions]}
    return record


def demo(*, model: ModelFlag = "tiny", device: DeviceFlag = None) -> None:
    """Translate a sentence into 18 languages.

    With the bundled demonstration model, by ModelScope's pipeline.
    """
    with without_collection():
        from modelscope.pipelines import pipeline
        from modelscope.utils.constant import Tasks

        from modelscope_polylm.backends.placement import choose_device, limit_threads

        pipe = pipeline(Tasks.text_generation, model=str(find_model(model)), device=str(choose_device(device)))
    limit_threads(pipe.model.generator.snapshot.config, pipe.model.generator.backend.device)
    write(f"{translate(pipe, ['Chinese'])[0]}\n\n")
    others = [language for language in LANGUAGES.values() if language != "English"]
    texts = {"English": SENTENCE, **dict(zip(others, translate(pipe, others), strict=True))}
    width = max(map(len, texts))
    write("".join(f"{language:{width}}  {texts[language]}\n" for language in LANGUAGES.values()))


def translate(pipe: Any, languages: Sequence[str]) -> list[str]:
    """Translate the sentence with the published prompt and settings; returns what follows the prompt."""
    prompts = [f"<|user|>\n{translation_request(SENTENCE, language)}\n<|assistant|>\n" for language in languages]
    outputs = pipe(prompts, batch_size=len(prompts), return_full_text=False, **BEAM_SEARCH)
    return [output["text"] for output in outputs]
