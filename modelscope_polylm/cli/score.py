"""`polylm score`: how probable texts are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from modelscope_polylm.errors import ContextLengthError, InputError, suggestion
from modelscope_polylm.terminal.flags import (
    AdapterFlag,
    CacheDtypeFlag,
    DeviceFlag,
    DtypeFlag,
    ModelFlag,
    QuantizationFlag,
    ReleaseFlag,
    RevisionFlag,
)
from modelscope_polylm.terminal.models import load_model
from modelscope_polylm.terminal.output import FAILED, json_line, write, write_error

if TYPE_CHECKING:
    from modelscope_polylm.cli.batch.rows import Row
    from modelscope_polylm.generator import TextGenerator

KEYS = ("text", "context", "continuation", "id")
"""What a row may hold: a text, or a context and the continuation that is scored after it; and an id."""
ROWS_AT_ONCE = 256


def score(
    *,
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="Text (one a line), JSON lines, JSON, CSV, Parquet or Excel; .gz, too."),
    ],
    model: ModelFlag = "tiny",
    revision: RevisionFlag = None,
    release: ReleaseFlag = None,
    adapter: AdapterFlag = None,
    each_token: Annotated[bool, typer.Option("--tokens", help="Also tell each token and its log-probability.")] = False,
    encoding: Annotated[str, typer.Option(help="Of FILE: utf-8, gb18030, latin-1, ...")] = "utf-8",
    device: DeviceFlag = None,
    dtype: DtypeFlag = None,
    quantization: QuantizationFlag = None,
    kv_cache_dtype: CacheDtypeFlag = None,
) -> None:
    """Tell how probable the texts of a file are.

    A row has a 'text', or a 'context' and a 'continuation', of which only the latter is scored; and may have an 'id'.
    Prints one JSON object a row: 'line', 'id', 'log_likelihood' (natural, the sum of its tokens), 'tokens',
    'per_token', 'perplexity'; or 'error' for a row that cannot be scored. The first token of a text comes after the
    end token. The last line on stderr has the sums of all rows.
    """
    from modelscope_polylm.cli.batch.rows import BatchInput

    rows = BatchInput.find(file, encoding)
    generator = load_model(model, revision, device, dtype, "native", release, adapter, quantization, kv_cache_dtype)
    likelihood, tokens, failed, count = 0.0, 0, 0, 0
    for record in score_rows(generator, rows.rows(), each_token):
        write(json_line(record))
        count += 1
        failed += "error" in record
        likelihood += record.get("log_likelihood", 0.0)
        tokens += record.get("tokens", 0)
    if tokens:
        whole = f"perplexity {perplexity(likelihood, tokens):,.4g}"
        write_error(f"{count:,} rows, {tokens:,} tokens: log-likelihood {likelihood:,.2f}, {whole}")
    if failed:
        write_error(f"{failed:,} of {count:,} rows hold an error.")
    if failed == count:
        raise typer.Exit(FAILED)


class Pair(NamedTuple):
    """Token ids of a row: those before, at least one, and those that are scored."""

    before: list[int]
    scored: list[int]


def score_rows(generator: TextGenerator, rows: Iterable[Row], each_token: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the record of each row, in order; what is wrong with a row stays with that row."""
    waiting = iter(rows)
    while part := list(itertools.islice(waiting, ROWS_AT_ONCE)):
        read = [_pair_or_error(generator, row) for row in part]
        pairs = [pair for pair in read if isinstance(pair, Pair)]
        found = iter(generator.log_likelihood([pair.before for pair in pairs], [pair.scored for pair in pairs]))
        for row, pair in zip(part, read, strict=True):
            name = {"id": row.value["id"]} if isinstance(row.value, Mapping) and "id" in row.value else {}
            if isinstance(pair, Pair):
                own = _record(generator, pair.scored, next(found).logprobs, each_token)
            else:
                own = {"error": str(pair)}
            yield {"line": row.number, **name, **own}


def _record(generator: TextGenerator, ids: list[int], logprobs: list[float], each_token: bool) -> dict[str, Any]:
    total = math.fsum(logprobs)
    record: dict[str, Any] = {"log_likelihood": total, "tokens": len(ids)}
    record |= {"per_token": total / len(ids), "perplexity": perplexity(total, len(ids))}
    if each_token:
        pieces = map(generator.snapshot.tokenizer.id_to_piece, ids)
        record["token_log_likelihoods"] = [list(pair) for pair in zip(pieces, logprobs, strict=True)]
    return record


def perplexity(log_likelihood: float, tokens: int) -> float:
    """The reciprocal of a token's geometric mean probability; infinite where no float holds it."""
    try:
        return math.exp(-log_likelihood / tokens)
    except OverflowError:
        return math.inf


def _pair_or_error(generator: TextGenerator, row: Row) -> Pair | InputError:
    try:
        if row.error is not None:
            raise InputError(row.error)
        pair = _pair(generator, *_texts(row.value))
        most = generator.reader.max_positions
        if len(pair.before) + len(pair.scored) > most:
            raise ContextLengthError(
                f"The row has {len(pair.before) + len(pair.scored)} tokens, but the context holds {most}: split it."
            )
        return pair
    except InputError as error:
        return error


def _texts(value: Any) -> tuple[str, str]:
    """The context and what is scored after it. Raises InputError."""
    if isinstance(value, str):
        return "", value
    if not isinstance(value, Mapping):
        raise InputError(f"A row must be a text or an object with {', '.join(KEYS)}, not {value!r:.80}.")
    for key in value:
        if key not in KEYS:
            raise InputError(f"The row has {key!r:.80}, which says nothing here: {suggestion(key, KEYS)}")
    if ("text" in value) == ("continuation" in value) or ("text" in value and "context" in value):
        raise InputError("A row needs a 'text', or a 'context' and a 'continuation'.")
    texts = (value.get("context", ""), value["text"] if "text" in value else value["continuation"])
    for text in texts:
        if not isinstance(text, str):
            raise InputError(f"A row's texts must be of type str, not {text!r:.80}.")
    return texts


def _pair(generator: TextGenerator, context: str, continuation: str) -> Pair:
    # cut as one text, as that is how the model sees it; what the cut moves over the border belongs to the continuation
    tokenizer = generator.snapshot.tokenizer
    ids = tokenizer.encode(context + continuation)
    start = len(tokenizer.encode(context.rstrip())) if context.strip() else 0
    if len(ids) <= start:
        raise InputError("The row has nothing that could be scored: its text is empty.")
    end = tokenizer.eos_token_id
    return Pair(ids[:start], ids[start:]) if start else Pair([end], ids)
