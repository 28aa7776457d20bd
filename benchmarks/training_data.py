"""`python -m benchmarks.training_data --rows 550000 --folder /tmp`: `polylm data` on files like the model card's nine.

Writes synthetic rows in the nine published layouts, in the card's shares, and then measures `polylm data` in a process
of its own: rows a second of its CPU time, and the most memory it takes with all and with a tenth of the rows. Then the
records become token ids, with the bundled model's tokenizer.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from modelscope_polylm.hub.resolve import TINY_FOLDER
from modelscope_polylm.text.languages import TRANSLATIONS
from modelscope_polylm.text.prompts import FORMATS
from modelscope_polylm.text.tokenizer import PolyLMTokenizer
from modelscope_polylm.training.collate import RecordEncoder, TokenFile
from modelscope_polylm.training.prepare import DataReport, DataSet, read_data
from modelscope_polylm.training.sources import CARD_ROWS, MULTIALPACA_LANGUAGES, SOURCES

CONTEXT = 2048
TOKENIZED_RECORDS = 20_000
RUN = """
import sys, time
from pathlib import Path
from benchmarks.training_data import most_memory
from modelscope_polylm.training.prepare import DataSet, prepare_data
from modelscope_polylm.training.sources import SOURCES
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
start, cpu = time.perf_counter(), time.process_time()
report = prepare_data([DataSet(SOURCES[path.name], path) for path in sorted(folder.iterdir())], out)
read = sum(counts.read for counts in report.counts.values())
print(read, report.kept, time.process_time() - cpu, time.perf_counter() - start, most_memory())
"""

Row = dict[str, Any]


def main() -> None:
    """Parse the arguments, write the files, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=CARD_ROWS)
    parser.add_argument("--folder", type=Path, required=True, help="where 3 kB a row are free")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder, out = Path(name), Path(name) / "train.jsonl"
        for rows in (arguments.rows // 10, arguments.rows):
            write_sources(folder / str(rows), rows)
            size = sum(file.stat().st_size for file in (folder / str(rows)).rglob("*") if file.is_file())
            print(f"{rows:,} rows of the nine layouts, {size / 1e6:,.0f} MB in files", flush=True)
            measure_data(folder / str(rows), out)
        measure_tokens(out, folder, max(1, arguments.rows // TOKENIZED_RECORDS))


def measure_data(folder: Path, out: Path) -> None:
    """Run `prepare_data` in a process of its own."""
    done = subprocess.run([sys.executable, "-c", RUN, folder, out], check=True, capture_output=True, text=True)
    read, kept, cpu, seconds, peak = map(float, done.stdout.split())
    print(
        f"  {read:,.0f} records read, {kept:,.0f} kept: {read / cpu:,.0f} records/s of CPU time ({cpu:.1f} s, "
        f"{seconds:.1f} s by the clock), at most {peak / 2**20:,.0f} MiB of memory",
        flush=True,
    )


def measure_tokens(out: Path, folder: Path, step: int) -> None:
    """Make examples of every `step`th record, on disk, as `polylm finetune` does."""
    encoder = RecordEncoder(PolyLMTokenizer.from_pretrained(TINY_FOLDER), FORMATS["assistant"], CONTEXT)
    kept = read_data([DataSet(SOURCES["messages"], out)], DataReport())
    records = [record for _, record in islice(kept, 0, None, step)]
    for name, chosen in (("all", records), ("one turn", [each for each in records if len(each.messages) == 2])):
        start, cpu = time.perf_counter(), time.process_time()
        tokens = TokenFile.write(folder / "tokens", chosen, encoder).report.tokens
        cpu, seconds = time.process_time() - cpu, time.perf_counter() - start
        speed = f"{tokens / cpu:,.0f} tokens/s of CPU time ({seconds:.1f} s)"
        print(f"  {len(chosen):,} records ({name}) to {tokens:,} ids: {speed}")


def most_memory() -> int:
    """Bytes that this process had in memory at most."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def write_sources(folder: Path, rows: int) -> None:
    """Write a folder for each source, with its share of the rows."""
    draw = random.Random(rows)
    for source in SOURCES.values():
        if source.card_rows is None:
            continue
        count = max(1, round(rows * source.card_rows / CARD_ROWS))
        part = folder / source.name
        part.mkdir(parents=True)
        if source.languages:
            for language in MULTIALPACA_LANGUAGES:
                write_lines(part / f"{language}.jsonl", tasks(draw, count // len(MULTIALPACA_LANGUAGES)))
        else:
            file, write, make = FILES[source.name]
            write(part / file, make(draw, count))


def words(draw: random.Random, count: int) -> str:
    """About that many words of text in 18 languages."""
    sentences = list(TRANSLATIONS.values())
    return " ".join(f"{draw.choice(sentences)[:-1]} {draw.randrange(10**6)}." for _ in range(max(1, count // 7)))


def length(draw: random.Random) -> int:
    """Words of an answer: many short ones, some long ones."""
    return min(int(draw.lognormvariate(3.8, 0.9)), 800)


def tasks(draw: random.Random, count: int) -> Iterator[Row]:
    for number in range(count):
        context = words(draw, 20) if number % 3 == 0 else None
        yield {"instruction": words(draw, 12), "input": context, "output": words(draw, length(draw))}


def code_tasks(draw: random.Random, count: int) -> Iterator[Row]:
    for row in tasks(draw, count * 4):
        fenced = draw.random() < 0.25
        yield {**row, "output": f"```\n{row['output']}\n```" if fenced else row["output"]}


def renamed(names: dict[str, str], **more: str) -> Callable[[random.Random, int], Iterator[Row]]:
    """Tasks under other names of fields."""

    def make(draw: random.Random, count: int) -> Iterator[Row]:
        for row in tasks(draw, count):
            yield {**{names[name]: value for name, value in row.items() if name in names}, **more}

    return make


def conversations(draw: random.Random, count: int) -> Iterator[Row]:
    for number in range(count):
        turns = [
            {"from": role, "value": words(draw, 15 if role == "human" else length(draw))}
            for _ in range(draw.choice([1, 1, 2, 3, 4]))
            for role in ("human", "gpt")
        ]
        yield {"id": f"{number}_0", "conversations": turns[1:] if number % 9 == 0 and len(turns) > 2 else turns}


def trees(draw: random.Random, count: int) -> Iterator[Row]:
    """About five answers in a tree."""
    for number in range(count // 5):
        ends = [node(draw, "assistant") for _ in range(2)]
        middle = [
            node(draw, "assistant", node(draw, "prompter", *ends)),
            node(draw, "assistant"),
            node(draw, "assistant"),
        ]
        yield {"message_tree_id": str(number), "prompt": node(draw, "prompter", *middle)}


def node(draw: random.Random, role: str, *replies: Row) -> Row:
    text = words(draw, 15 if role == "prompter" else length(draw))
    return {"text": text, "role": role, "lang": draw.choice(["en", "es", "ru"]), "replies": list(replies)}


def write_lines(file: Path, rows: Iterable[Row]) -> None:
    with (
        gzip.open(file, "wt", encoding="utf-8") if file.suffix == ".gz" else file.open("w", encoding="utf-8") as stream
    ):
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_array(file: Path, rows: Iterable[Row]) -> None:
    with file.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(rows):
            stream.write(("[" if number == 0 else ", ") + json.dumps(row, ensure_ascii=False))
        stream.write("]")


FILES: dict[str, tuple[str, Callable[[Path, Iterable[Row]], None], Callable[[random.Random, int], Iterator[Row]]]] = {
    "code_alpaca": ("code_alpaca_20k.json", write_array, code_tasks),
    "dolly": (
        "databricks-dolly-15k.jsonl",
        write_lines,
        renamed({"instruction": "instruction", "input": "context", "output": "response"}, category="qa"),
    ),
    "flan_v2": ("flan_v2.jsonl", write_lines, renamed({"instruction": "inputs", "output": "targets"})),
    "gpt4_alpaca_en": ("alpaca_gpt4_data.json", write_array, tasks),
    "gpt4_alpaca_zh": ("alpaca_gpt4_data_zh.json", write_array, tasks),
    "open_assistant": ("oasst.trees.jsonl.gz", write_lines, trees),
    "share_gpt": ("sg_90k_part1_html_cleaned.json", write_array, conversations),
    "gpteacher_codegen": (
        "codegen-instruct.json",
        write_array,
        renamed({"instruction": "instruction", "input": "input", "output": "response"}),
    ),
}


if __name__ == "__main__":
    main()
