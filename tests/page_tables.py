"""The tables in README, docs and results, and the help of commands, made from the code and from measured figures.

`python -m tests.page_tables` writes them anew. Columns written by hand (advice, translations) stay as they are.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from modelscope_polylm import errors
from modelscope_polylm.backends.placement import PROCESS_BYTES
from modelscope_polylm.cli.bench.workloads import shape_config
from modelscope_polylm.cli.info import ITEM_BYTES, model_facts
from modelscope_polylm.evaluation.task_data import task_groups
from modelscope_polylm.generation.options import TRANSFORMERS_ONLY, option_fields
from modelscope_polylm.network.config import PolyLMConfig
from modelscope_polylm.network.kv_cache import bytes_per_slot
from modelscope_polylm.network.weights import weight_bytes
from modelscope_polylm.releases import RELEASES
from modelscope_polylm.self_instruct.options import self_instruct_fields
from modelscope_polylm.terminal.flags import FIELDS
from modelscope_polylm.terminal.models import readable_bytes
from modelscope_polylm.text.prompts import FORMATS
from modelscope_polylm.training.options import TrainingOptions, training_fields
from modelscope_polylm.training.plan import memory_needed
from modelscope_polylm.training.sources import SOURCES
from tests.network.weight_errors import weight_errors
from tests.test_imports import FLOORS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TRANSLATED = {
    "README.zh-CN.md": "README.md",
    "docs/errors-and-faq.zh-CN.md": "docs/errors-and-faq.md",
    "docs/evaluation.zh-CN.md": "docs/evaluation.md",
    "docs/fine-tuning.zh-CN.md": "docs/fine-tuning.md",
    "docs/quickstart.zh-CN.md": "docs/quickstart.md",
    "docs/self-instruct.zh-CN.md": "docs/self-instruct.md",
    "docs/translation.zh-CN.md": "docs/translation.md",
}
CHINESE = [*TRANSLATED, "docs/reference.zh-CN.md"]
PAGES = ["README.md", "README.zh-CN.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
PAGES_WITH_TABLES = [*PAGES, "benchmarks/RESULTS.md"]
MARKED = re.compile(r"<!-- (?P<name>[\w-]+): begin -->\n(?P<table>.*?)<!-- (?P=name): end -->", re.DOTALL)
SPEED_RUN = ("2026-11-25-h100-13b", ["decode", "transformers-decode", "vllm-decode"])
"""The run that README shows: files of one card and one hour."""
SPEED_ROWS = [
    "greedy, 1 row, 32 + 128",
    "4 beams, 1 row, 32 + 128",
    "greedy, 16 rows, 128 + 128",
    "greedy, 64 rows, 128 + 128",
]
SPEED_ENGINES = {"PolyLM": "polylm", "vLLM": "vllm", "transformers": "transformers"}
CARDS = (24, 40, 80, 141)
"""GB of GPUs."""
SERVING = ["clients", "answers", "wrong or failed", "429", "tokens/s", "first text p50, p95", "answer p50, p95", "MB"]


GENERATION_FLAGS = set(FIELDS)


class Table(NamedTuple):
    """Of the columns the last `by_hand` are written by hand, and the last `translated` in a translated page."""

    header: list[str]
    rows: list[list[str]]
    by_hand: int = 0
    translated: int = 1


def first_sentence(text: str | None) -> str:
    return re.split(r"(?<=\.)\s", " ".join((text or "").split()), maxsplit=1)[0]


def code(value: object) -> str:
    return f"`{value}`" if value is not None else ""


def options_table() -> Table:
    rows = [[code(field.name), code(repr(field.default)), field.metadata["help"]] for field in option_fields()]
    return Table(["option", "default", "meaning"], rows)


def allowed(metadata: Mapping[str, Any]) -> str:
    """What an option's value may be, from its declared bounds."""
    if "choices" in metadata:
        return ", ".join(code(repr(choice)) for choice in metadata["choices"])
    words = {"minimum": "at least", "maximum": "at most", "above": "greater than"}
    return ", ".join(f"{word} {metadata[name]:g}" for name, word in words.items() if name in metadata)


def option_values_table() -> Table:
    rows = [
        [
            code(field.name),
            " or ".join(map(code, str(field.type).split(" | "))),
            code(repr(field.default)),
            allowed(field.metadata),
            field.metadata["help"],
        ]
        for field in option_fields()
    ]
    return Table(["option", "type", "default", "allowed", "meaning"], rows)


def transformers_options_table() -> Table:
    return Table(["option of transformers"], [[code(name)] for name in sorted(TRANSFORMERS_ONLY)])


def works_table() -> Table:
    from modelscope_polylm.cli.bench.workloads import WORKLOADS

    return Table(["number", "work", "unit"], [[str(number), w.name, w.unit] for number, w in enumerate(WORKLOADS)])


def errors_table() -> Table:
    classes = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if errors.PolyLMError in kind.__bases__]
    rows = [
        [code(kind.__name__), code(kind.__bases__[1].__name__), first_sentence(kind.__doc__), ""] for kind in classes
    ]
    return Table(["class", "is also", "when", "what to do"], rows, by_hand=1, translated=2)


def commands() -> dict[str, Any]:
    import typer

    from modelscope_polylm.__main__ import app

    return dict(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def commands_table() -> Table:
    rows = [
        [code(f"polylm {name}"), command.short_help or first_sentence(command.help)]
        for name, command in commands().items()
    ]
    return Table(["command", "what it does"], rows)


def help_text(command: str) -> str:
    """A command's help, its paragraphs wrapped."""
    paragraphs = inspect.cleandoc(commands()[command].help).split("\n\n")
    return "\n\n".join(textwrap.fill(" ".join(paragraph.split()), 120) for paragraph in paragraphs)


def flags_table(command: str) -> Table:
    """A command's arguments and options except the generation options, which have a table of their own."""
    names = {parameter.name for parameter in commands()[command].params}
    options = GENERATION_FLAGS if names > GENERATION_FLAGS else set()
    rows = [
        [code(parameter.metavar or ", ".join(parameter.opts)), default_of(parameter), parameter.help or ""]
        for parameter in commands()[command].params
        if parameter.name not in options and "--help" not in parameter.opts
    ]
    return Table(["argument or option", "default", "meaning"], rows)


def default_of(parameter: Any) -> str:
    if parameter.required:
        return "required"
    return "" if parameter.default in (None, False, ()) else code(parameter.default)


def speed_table() -> Table:
    """Decode speed of all engines. The limit is the shortest time in which the run read the weights."""
    run, kinds = SPEED_RUN
    files = [json.loads((RESULTS / f"{run}-{kind}.json").read_text(encoding="utf-8")) for kind in kinds]
    measured = {(result["engine"], result["work"]): result for file in files for result in file["results"]}
    limit = min(file["limit_ms"] for file in files)
    rows = []
    for work in SPEED_ROWS:
        unit = measured["polylm", work]["unit"]
        values = [measured.get((engine, work), {}).get("value") for engine in SPEED_ENGINES.values()]
        rows.append(
            [f"{work}, {unit}", *(figure(value, unit) for value in (limit if unit != "tokens/s" else None, *values))]
        )
    return Table([f"{files[0]['device']}, {run[:10]}", "limit", *SPEED_ENGINES], rows, translated=0)


def figure(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if unit == "tokens/s" else f"{value:.2f}"


def serving_table() -> Table:
    """The newest load test of the server."""
    figures = json.loads(max(RESULTS.glob("*-cpu-serving.json")).read_text(encoding="utf-8"))
    return Table(SERVING, [serving_row(name, value) for name, value in figures.items() if "answers" in value])


def serving_row(name: str, phase: Mapping[str, Any]) -> list[str]:
    counts = (phase[key] for key in ("answers", "wrong answers or errors", "refused with 429", "tokens/s"))
    times = (f"{phase[key]['p50']:.0f}, {phase[key]['p95']:.0f}" for key in ("first text ms", "whole answer ms"))
    memory = ", ".join(f"{size:.0f}" for size in phase["server MB"])
    return [name, *(f"{count:,g}" for count in counts), *times, memory]


def releases_table() -> Table:
    rows = [
        [code(release.name), code(release.model_id), code(release.revision), release.kind, code(release.prompt_format)]
        for release in RELEASES.values()
    ]
    return Table(["short name", "ModelScope id", "revision", "kind", "prompt format"], rows)


def needs_table() -> Table:
    """What `polylm info` says that each release needs; releases of one size share a row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in RELEASES:
        facts = model_facts(name, None, [])
        sizes = [facts["download_bytes"], *(facts["needed_bytes"][dtype] for dtype in ITEM_BYTES)]
        groups.setdefault(tuple(readable_bytes(size) if size else "none" for size in sizes), []).append(code(name))
    columns = [f"memory, {dtype}" for dtype in ITEM_BYTES]
    return Table(
        ["release", "download", *columns], [[", ".join(names), *sizes] for sizes, names in groups.items()], translated=0
    )


def settings_table() -> Table:
    rows = [
        [code(release.name), code(", ".join(f"{name}={value!r}" for name, value in release.generation.items()))]
        for release in RELEASES.values()
    ]
    return Table(["short name", "options"], rows)


def formats_table() -> Table:
    rows = [
        [code(format.name), code(repr(format.last_turn)), code(format.earlier_turn and repr(format.earlier_turn))]
        for format in FORMATS.values()
    ]
    return Table(["format", "last turn", "earlier turns"], rows)


def layers_table() -> Table:
    """Modules and subpackages from the lowest layer up, without the package itself and its entry points."""
    rows = []
    for layer, names in enumerate(FLOORS, start=1):
        for name in names:
            is_folder = (ROOT / "modelscope_polylm" / name).is_dir()
            if name and name not in ("__main__", "modelscope_command"):
                rows.append([code(f"{name}/" if is_folder else f"{name}.py"), str(layer), ""])
    return Table(["module", "layer", "what it holds"], rows, by_hand=1)


def vllm_options_table() -> Table:
    from modelscope_polylm.backends.vllm.options import ELSEWHERE, REFUSALS, RULES

    followed = {name: f"vLLM's {code(rule.parameter)}" for rule in RULES for name in rule.options}
    followed |= dict.fromkeys(ELSEWHERE, "followed here, not in vLLM")
    refused: dict[str, str] = {}
    for refusal in REFUSALS:
        refused[refusal.option] = f"{refusal.reason}: {refusal.backends}"
    rows = [
        [code(field.name), followed.get(field.name, "refused"), refused.get(field.name, "")]
        for field in option_fields()
    ]
    return Table(["option", "where it goes", "refused, and who has it"], rows)


def training_options_table() -> Table:
    """Options of `polylm finetune` and of ModelScope's trainer."""
    return declared_options_table(training_fields())


def self_instruct_options_table() -> Table:
    """Options of `polylm self-instruct`."""
    return declared_options_table(self_instruct_fields())


def declared_options_table(fields: Iterable[Field[Any]]) -> Table:
    rows = [
        [
            code(field.name),
            "" if field.default is None else code(repr(field.default)),
            allowed(field.metadata),
            field.metadata["help"],
        ]
        for field in fields
    ]
    return Table(["option", "default", "allowed", "meaning"], rows)


def training_memory_table() -> Table:
    """What the plan of a run estimates, for both sizes."""
    rows = []
    for shape in ("1.7b", "13b"):
        config = shape_config(shape)
        for method, dtype in (("lora", "bf16"), ("lora", "int8"), ("lora", "int4"), ("full", "fp32")):
            needed = [sum(run_memory(config, method, dtype, rows_at_once).values()) for rows_at_once in (1, 8)]
            fitting = [str(card) for card in CARDS if needed[0] < card * 1e9]
            cards = ", ".join(fitting) or "several, by FSDP"
            rows.append([shape.upper(), method, dtype, *(f"{size / 1e9:.0f}" for size in needed), cards])
    return Table(["model", "method", "weights", "1 row", "8 rows", "cards"], rows, translated=0)


def run_memory(config: PolyLMConfig, method: str, weights: str, rows: int) -> dict[str, int]:
    quantization = weights if weights in ("int8", "int4") else None
    options = TrainingOptions.from_dict({"method": method, "device_rows": rows, "quantization": quantization})
    complete = options.for_model(config.hidden_size, config.max_positions)
    return memory_needed(config, complete, torch.bfloat16.itemsize, config.layers)


def card_fits_table() -> Table:
    """Tokens of a bfloat16 cache that fit next to the weights on cards of all sizes."""
    shapes = {"13B": shape_config("13b"), "1.7B": shape_config("1.7b")}
    kinds = (None, "int8", "int4")
    rows = [
        [f"{card} GB", *(cache_tokens(config, card, kind) for config in shapes.values() for kind in kinds)]
        for card in (8, 12, 16, *CARDS)
    ]
    header = [f"{shape}, {kind or 'bfloat16'}" for shape in shapes for kind in kinds]
    return Table(["card", *header], rows, translated=0)


def cache_tokens(config: PolyLMConfig, card: int, quantization: str | None) -> str:
    left = card * 1e9 - PROCESS_BYTES - weight_bytes(config, 2, quantization)
    tokens = int(left // bytes_per_slot(config, torch.bfloat16))
    return f"{tokens:,} tokens" if tokens > 0 else "no"


def weight_errors_table() -> Table:
    found = weight_errors()
    rows = [[code(name), *(f"{error:.1%}" for error in errors.values())] for name, errors in found.items()]
    return Table(["format", *next(iter(found.values()))], rows, translated=0)


def sources_table() -> Table:
    uses = {True: "allowed", False: "forbidden", None: "unclear"}
    rows = [
        [
            code(source.name),
            f"{source.card_rows:,}" if source.card_rows else "",
            source.files,
            source.licence,
            uses[source.commercial],
            code(source.hub_id),
        ]
        for source in SOURCES.values()
    ]
    return Table(
        ["name", "rows on the card", "files", "licence", "commercial use", "on ModelScope"], rows, translated=0
    )


def evaluation_tasks_table() -> Table:
    rows = []
    for group in task_groups().values():
        words = next(iter(group.words.values())) | {"language": group.languages[0]}
        files = [code(file.format(**words)) for file in (group.files[0], *group.examples[:1])]
        languages = ", ".join([*group.languages, *group.other_languages])
        rows.append([code(group.name), group.metric, languages, ", ".join(files), group.source.format(**words)])
    return Table(["task", "score", "languages", "files, such as", "from"], rows, translated=0)


TABLES: dict[str, Callable[[], Table]] = {
    "card_fits": card_fits_table,
    "commands": commands_table,
    "errors": errors_table,
    "evaluation_tasks": evaluation_tasks_table,
    "formats": formats_table,
    "layers": layers_table,
    "needs": needs_table,
    "option_values": option_values_table,
    "options": options_table,
    "releases": releases_table,
    "serving": serving_table,
    "self_instruct_options": self_instruct_options_table,
    "settings": settings_table,
    "sources": sources_table,
    "speed": speed_table,
    "training_memory": training_memory_table,
    "training_options": training_options_table,
    "transformers_options": transformers_options_table,
    "vllm_options": vllm_options_table,
    "weight_errors": weight_errors_table,
    "works": works_table,
    **{f"flags_{name}": functools.partial(flags_table, name) for name in commands()},
}
TEXTS: dict[str, Callable[[], str]] = {f"help_{name}": functools.partial(help_text, name) for name in commands()}


def cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def line_of(row: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def renewed(text: str, translated: bool = False) -> str:
    """The page with its tables and texts written anew, except the columns written by hand."""

    def renew(found: re.Match[str]) -> str:
        name = found["name"]
        if name in TEXTS:
            return f"<!-- {name}: begin -->\n{TEXTS[name]()}\n<!-- {name}: end -->"
        table = TABLES[name]()
        present = found["table"].splitlines()
        kept = table.translated if translated else table.by_hand
        by_hand = {cells(line)[0]: cells(line)[-kept:] for line in present[2:] if kept}
        rows = [[*row[: len(row) - kept], *by_hand.get(row[0], row[len(row) - kept :])] for row in table.rows]
        header = present[:2] if translated and kept else []
        header = header or [line_of(table.header), "|" + "---|" * len(table.header)]
        return "\n".join([f"<!-- {name}: begin -->", *header, *map(line_of, rows), f"<!-- {name}: end -->"])

    return MARKED.sub(renew, text)


def main() -> None:
    """Write the tables of all pages anew."""
    for page in PAGES_WITH_TABLES:
        text = (ROOT / page).read_text(encoding="utf-8")
        (ROOT / page).write_text(renewed(text, page in CHINESE), encoding="utf-8")


if __name__ == "__main__":
    main()
