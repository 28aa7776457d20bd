"""`polylm translate`: a text, or a document whose structure stays."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelscope_polylm.errors import OptionError, shortened
from modelscope_polylm.terminal.flags import (
    AdapterFlag,
    BackendFlag,
    DeviceFlag,
    DtypeFlag,
    ModelFlag,
    ReleaseFlag,
    RevisionFlag,
    takes_generation_options,
)
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.terminal.output import INTERRUPTED, is_terminal, json_line, write, write_error
from modelscope_polylm.text.languages import LANGUAGES, find_language

if TYPE_CHECKING:
    from modelscope_polylm.cli.translate.job import Summary
    from modelscope_polylm.translation.translator import TextTranslation


def complete_language(incomplete: str) -> list[str]:
    """Codes of languages for the shell's completion."""
    return [code for code in LANGUAGES if code.startswith(incomplete)]


@takes_generation_options
def translate(
    *,
    text: Annotated[
        str,
        typer.Argument(metavar="TEXT", help="A text, - for stdin, or a file: .txt, .md, .srt, .po, .csv, .jsonl."),
    ],
    to: Annotated[
        str,
        typer.Option(
            help="Language to translate to: its code, or its name in any of the 18 languages.",
            autocompletion=complete_language,
        ),
    ],
    source: Annotated[
        str | None,
        typer.Option("--from", help="Language of the text; found if not given.", autocompletion=complete_language),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the translation; else stdout.")] = None,
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    adapter: AdapterFlag = None,
    alternatives: Annotated[
        int, typer.Option(help="Translations of each sentence, with their scores.", min=1, max=64)
    ] = 1,
    format: Annotated[
        str | None, typer.Option(help="Of the file: txt, md, srt, po, csv or jsonl; its name tells if not given.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Of a table: what is translated; 'text' if not given.")] = None,
    into: Annotated[str, typer.Option(help="Of a table: the column for the translations.")] = "translation",
    encoding: Annotated[str, typer.Option(help="Of the file: utf-8, cp1258, gb18030, latin-1, ...")] = "utf-8",
    batch_size: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Most sentences that run together; as many as fit if not given.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again where OUT exists.")] = False,
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    backend: BackendFlag = "native",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the translation, or of a file a summary, as JSON.")
    ] = False,
    options: dict[str, Any],
) -> None:
    """Translate a text or a document.

    Between any two of PolyLM's 18 languages. Every sentence is translated on its own, all of them together in one
    running batch. White space, line breaks,
    Markdown, code, URLs, tags and placeholders such as {name} and %s stay; subtitles keep their times, and catalogs
    the translations that they have. A table gets one more column.
    With -o OUT an interrupted run goes on where it was when the same command is given again. OUT.segments.jsonl has
    each sentence with its translations and scores, and what is suspicious about it: empty, copied, of a wrong script,
    too short or too long, or without a placeholder. These sentences are listed at the end.
    """
    from modelscope_polylm.cli.translate.inputs import TABLE_FORMATS, TranslationInput
    from modelscope_polylm.cli.translate.job import TranslationJob

    target = find_language(to)
    origin = None if source is None else find_language(source)
    if origin == target:
        raise OptionError(f"--from and --to are both {LANGUAGES[target]}: name two languages.")
    given = TranslationInput.read(text, encoding, format, out)
    document = given.document(target, column, into)
    if document is not None:
        _check_document(out, Path(text), overwrite, alternatives, as_json)
    from modelscope_polylm.translation.translator import Translator

    generator = load_model(model, revision, device, dtype, backend, release, adapter)
    translator = Translator(generator, options, alternatives)
    if document is None:
        _print_text(translator.translate([given.file.text.rstrip("\n")], target, origin, batch_size)[0], as_json)
        return
    job = TranslationJob(document, target, origin, None if given.format in TABLE_FORMATS else given.file, batch_size)
    reading = {"column": column, "into": into} if given.format in TABLE_FORMATS else {}
    settings = {"input": given.digest, "format": given.format, **reading, "alternatives": alternatives}
    with given.named_errors():
        summary = job.run(translator, out, overwrite, settings)
    _report(summary, out, as_json)


def _check_document(out: Path | None, source: Path, overwrite: bool, alternatives: int, as_json: bool) -> None:
    """Find what is wrong with the output before a model is loaded. Raises OptionError."""
    from modelscope_polylm.cli.batch.output import check_output, is_stream

    if out is None:
        for flag, wanted in (("--json", as_json), ("--alternatives", alternatives > 1)):
            if wanted:
                raise OptionError(f"{flag} of a file needs an output: name it with -o OUT.")
    elif is_stream(out):
        raise OptionError(f"-o {out} is no file: leave it out to print the translation.")
    else:
        check_output(out, source, overwrite)


def _print_text(found: TextTranslation, as_json: bool) -> None:
    from modelscope_polylm.cli.translate.job import segment_record

    if as_json:
        segments = [segment_record(each) for each in found.segments]
        several = [{"translation": text, "score": score} for text, score in found.alternatives]
        record = {"translation": found.text, "source": found.source, "target": found.target}
        write(json_line({**record, "alternatives": several, "segments": segments}))
        return
    if len(found.alternatives) > 1:
        write("".join(f"{'' if score is None else f'{score:.4f}'}\t{text}\n" for text, score in found.alternatives))
    else:
        write(f"{found.text}\n")
    for each in found.suspicious:
        write_error(f"{each.problem}: {each.segment.text:.60}")


def _report(summary: Summary, out: Path | None, as_json: bool) -> None:
    """Print the document or the summary, and list what somebody should look at. Raises typer.Exit after Ctrl-C."""
    from modelscope_polylm.cli.translate.job import segments_file

    if summary.text is None:
        counts = f"{summary.written} of {summary.segments} segments"
        write_error(f"Interrupted: {counts} are translated, and the same command goes on after them.")
        raise typer.Exit(INTERRUPTED)
    if out is None:
        write(summary.text)
    if as_json:
        write(json_line(summary.record()))
    elif is_terminal(sys.stderr):
        names = f"{LANGUAGES[summary.source]} to {LANGUAGES[summary.target]}"
        write_error(f"{names}: {summary.segments} segments in {summary.run['seconds']:.1f} s.")
    if not summary.segments:
        write_error("Nothing was there to translate.")
    if summary.suspicious:
        write_error(f"{len(summary.suspicious)} of {summary.segments} segments need a look:")
        for line in shortened([str(each) for each in summary.suspicious]):
            write_error(f"  {line}")
        if out is not None:
            write_error(f"{segments_file(out)} has them all.")
