"""The paper's tasks as data, and their published files -> questions as texts."""

from __future__ import annotations

import csv
import functools
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelscope_polylm.errors import InputError, OptionError, suggestion

TASK_FOLDER = Path(__file__).parent / "tasks"
SEGMENT = re.compile(r"<seg .*?>(.*)</seg>")
XNLI_LABELS = ("entailment", "neutral", "contradiction")
Row = dict[str, Any]


@dataclass(frozen=True)
class TaskGroup:
    """A benchmark of the paper, from its file in `tasks/`.

    Attributes:
        name: of the file, such as 'xnli'.
        title: as the paper writes it.
        metric: 'acc', 'f1', 'rouge' or 'bleu'.
        languages: those of the paper's averages, in its order.
        reader: which function of READERS reads the files.
        files: alternative paths below the data folder, with {language} and the words of the language.
        source: where the files come from.
        words: of each language, for the templates.
        other_languages: that the paper tells apart from the others.
        examples: files with answered examples; without any, examples are other questions.
        context, choices, contexts, continuation: templates. Either a context with choices, whose continuations are
            compared; or contexts with one continuation; or a context alone, which is answered.
        prompt_end: ends a question that a base model answers; a tuned one gets its format's own end.
        delimiter: between a question and its answer in an answered example.
        rows: questions to take, from the first on; None takes all.
    """

    name: str
    title: str
    metric: str
    languages: list[str]
    reader: str
    files: list[str]
    source: str
    words: dict[str, dict[str, str]]
    other_languages: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    context: str = ""
    choices: list[str] = field(default_factory=list)
    contexts: list[str] = field(default_factory=list)
    continuation: str = ""
    prompt_end: str = ""
    delimiter: str = " "
    rows: int | None = None

    @property
    def is_answered(self) -> bool:
        """Whether the model writes answers; otherwise it compares choices."""
        return not (self.choices or self.contexts)

    def questions(self, folder: Path, language: str, examples: bool = False) -> list[Row]:
        """Read the questions of a language, or the examples to show before them.

        Each has an 'id' and either 'context', 'choices' and 'answer'; or 'contexts', 'continuation' and 'answer'; or
        'context' and 'references'.

        Raises:
            InputError: a file that is missing or has other contents.
        """
        words = {"language": language, **self.words[language]}
        file = self.find(folder, language, examples)
        rows = list(_read(file, READERS[self.reader], words))[: None if examples else self.rows]
        if not rows:
            raise InputError(f"{file} has no rows for {self.title} in {language!r}: is it another file?")
        return [{"id": number, **self._question(row, words, f"{file}, row {number}")} for number, row in rows]

    def find(self, folder: Path, language: str, examples: bool = False) -> Path:
        """The file of a language's questions, or of the examples. Raises InputError, which says where to get it."""
        return self._find(
            folder, self.examples if examples else self.files, {"language": language, **self.words[language]}
        )

    def missing(self, language: str) -> str:
        """Which file the language needs, and where it comes from."""
        words = {"language": language, **self.words[language]}
        return f"{self.files[0].format(**words)}. {self._where_from(words)}".removesuffix(".")

    def _question(self, row: Row, words: Mapping[str, str], where: str) -> Row:
        values = {**words, **row}
        try:
            texts: Row = {
                "context": self.context.format(**values),
                "choices": [template.format(**values) for template in self.choices],
                "contexts": [template.format(**values) for template in self.contexts],
                "continuation": self.continuation.format(**values),
            }
        except KeyError as error:
            raise InputError(f"{where}: the field {error} is missing. {self._where_from(words)}") from error
        for text in (*texts["choices"], *([texts["continuation"]] if self.contexts else [])):
            if not text.strip():
                raise InputError(f"{where}: a choice is empty, so nothing can be compared.")
        answer = {key: row[key] for key in ("answer", "references") if key in row}
        return {key: value for key, value in texts.items() if value or key == "context"} | answer

    def _find(self, folder: Path, patterns: Sequence[str], words: Mapping[str, str]) -> Path:
        names = [pattern.format(**words) for pattern in patterns]
        for base in (folder / self.name, folder):
            for name in names:
                if found := sorted(base.rglob(name)):
                    return found[0]
        raise InputError(
            f"{self.title} in {words['language']!r} needs {' or '.join(names)} in {folder} or a folder below it. "
            f"{self._where_from(words)}"
        )

    def _where_from(self, words: Mapping[str, str]) -> str:
        return f"It comes from {self.source.format(**words)}."


@functools.cache
def task_groups() -> dict[str, TaskGroup]:
    """All groups by name, in the order of the paper."""
    import yaml

    order = ("xnli", "pawsx", "xwinograd", "xcopa", "tydiqa", "mtg_sg", "mtg_tg", "mtg_qg", "mtg_sum", "wmt20")
    texts = {name: (TASK_FOLDER / f"{name}.yaml").read_text(encoding="utf-8") for name in order}
    return {name: TaskGroup(name=name, **yaml.safe_load(text)) for name, text in texts.items()}


def chosen_groups(names: Iterable[str]) -> list[TaskGroup]:
    """The groups of the given names: 'paper' for all, 'mtg' for its four. Raises OptionError for an unknown one."""
    groups = task_groups()
    found: dict[str, TaskGroup] = {}
    for name in names:
        own = [group for key, group in groups.items() if name in ("paper", key, key.partition("_")[0])]
        if not own:
            raise OptionError(f"There is no task {name!r}: {suggestion(name, ['paper', 'mtg', *groups])}")
        found |= {group.name: group for group in own}
    return list(found.values())


def chosen_languages(group: TaskGroup, wanted: Sequence[str]) -> list[str]:
    """Those of the wanted languages that the group has; the paper's main ones if none are wanted.

    A pair such as 'en-de' is also found by either of its languages other than English.
    """
    known = [*group.languages, *group.other_languages]
    if not wanted:
        return group.languages
    return [language for language in known if any(_is_meant(language, each) for each in wanted)]


def _is_meant(language: str, wanted: str) -> bool:
    # English is in every pair, so it alone names none
    return wanted == language or (wanted != "en" and wanted in language.split("-"))


def check_languages(groups: Iterable[TaskGroup], wanted: Sequence[str]) -> None:
    """Raise OptionError for a language that no group has."""
    known = {each for group in groups for each in group.words}
    known |= {part for each in known for part in each.split("-")}
    for language in wanted:
        if language not in known:
            raise OptionError(f"No chosen task has the language {language!r}: {suggestion(language, sorted(known))}")


def _read(file: Path, reader: Callable[[Path, Mapping[str, str]], Iterable[Row]], words: Mapping[str, str]) -> Any:
    number = 0
    try:
        for number, row in enumerate(reader(file, words), 1):
            yield number - 1, row
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{file} cannot be read after {number} rows of {words['language']!r} ({type(error).__name__}: {error})."
        ) from error


def _tab_separated(file: Path) -> Iterator[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


def _json_lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.strip())


def _label(given: object, labels: Sequence[str]) -> int:
    """Which of the labels it is. Raises ValueError for another one."""
    if str(given) not in labels:
        raise ValueError(f"the label {given!r} is none of {', '.join(labels)}")
    return labels.index(str(given))


def _read_xnli(file: Path, words: Mapping[str, str]) -> Iterator[Row]:
    for row in _tab_separated(file):
        if row["language"] == words["language"]:
            texts = {name: row[name] for name in ("sentence1", "sentence2")}
            yield {**texts, "answer": _label(row["gold_label"], XNLI_LABELS)}


def _read_pawsx(file: Path, words: Mapping[str, str]) -> Iterator[Row]:
    for row in _tab_separated(file):
        yield {"sentence1": row["sentence1"], "sentence2": row["sentence2"], "answer": _label(row["label"], ("0", "1"))}


def _read_xwinograd(file: Path, words: Mapping[str, str]) -> Iterator[Row]:
    for row in _json_lines(file):
        before, after = row["sentence"].split("_", 1)
        options = {name: row[name] for name in ("option1", "option2")}
        yield {"before": before, "after": after.strip(), **options, "answer": _label(row["answer"], ("1", "2"))}


def _read_xcopa(file: Path, words: Mapping[str, str]) -> Iterator[Row]:
    for row in _json_lines(file):
        choices = {name: row[name][:1].lower() + row[name][1:] for name in ("choice1", "choice2")}
        # without its full stop, as the connector goes on
        premise = row["premise"].strip()[:-1]
        yield {
            "premise": premise,
            "connector": words[row["question"]],
            **choices,
            "answer": _label(row["label"], ("0", "1")),
        }


def _read_tydiqa(file: Path, words: Mapping[str, str]) -> Iterator[Row]:
    language = words["name"].lower()
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                if question["id"].partition("-")[0] == language:
                    answers = list(dict.fromkeys(answer["text"] for answer in question["answers"]))
                    passage = paragraph["context"]
                    yield {"passage": passage, "question": question["question"], "references": answers}


def _read_mtg(file: Path, words: Mapping[str, str]) -> Iterator[Row]:
    for row in _json_lines(file):
        yield {**row, "references": [row["target"]]}


def _read_wmt20(file: Path, words: Mapping[str, str]) -> Iterator[Row]:
    target = words["language"].partition("-")[2]
    translated = f"newstest2020-{words['pair']}-ref.{target}.sgm"
    reference = file.with_name(translated) if file.suffix == ".sgm" else file.with_suffix(".ref")
    if not reference.exists():
        raise InputError(f"{reference} is missing: it belongs to {file}, and comes from the same place.")
    sources, targets = (_segments(each) for each in (file, reference))
    if len(sources) != len(targets):
        raise InputError(f"{file} has {len(sources)} sentences, but {reference} has {len(targets)}.")
    for source, translation in zip(sources, targets, strict=True):
        # sacrebleu scores against references as they are; a model should not have to translate entities
        yield {"sentence": html.unescape(source), "references": [translation]}


def _segments(file: Path) -> list[str]:
    """The sentences of WMT's own file, cleaned as sacrebleu does it, or of a file with a sentence a line."""
    # not splitlines(), which also cuts at separators within a sentence
    lines = file.read_text(encoding="utf-8").split("\n")
    if file.suffix == ".sgm":
        return [" ".join(found[1].split()) for line in lines if (found := SEGMENT.match(line.strip()))]
    return lines[:-1] if lines[-1] == "" else lines


READERS: Mapping[str, Callable[[Path, Mapping[str, str]], Iterable[Row]]] = {
    "xnli": _read_xnli,
    "pawsx": _read_pawsx,
    "xwinograd": _read_xwinograd,
    "xcopa": _read_xcopa,
    "tydiqa": _read_tydiqa,
    "mtg": _read_mtg,
    "wmt20": _read_wmt20,
}
"""Take a file and the words of a language; yield the fields of the templates, and 'answer' or 'references'."""
