"""Tasks as prompts show them and as answers hold them.

The prompt is that of PolyLM's paper (arXiv 2307.06018, table 6), which follows Stanford Alpaca's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from modelscope_polylm.text.languages import LANGUAGES
from modelscope_polylm.training.layouts import NO_INPUT

EXAMPLES = 3
"""Tasks that a prompt shows."""
WRITE_TASKS = """\
You are asked to come up with a set of {total} diverse task instructions. These task instructions will be given to a \
GPT model and we will evaluate the GPT model for completing the instructions.

Here are the requirements:
1. Try not to repeat the verb for each instruction to maximize diversity.
2. The language used for the instruction also should be diverse. For example, you should combine questions with \
imperative instructions.
3. The type of instructions should be diverse. The list should include diverse types of tasks like open-ended \
generation, classification, editing, etc.
4. A GPT language model should be able to complete the instruction. For example, do not ask the assistant to create \
any visual or audio output. For another example, do not ask the assistant to wake you up at 5pm or set a reminder \
because it cannot perform any action.
5. The instructions should be in {language}.
6. The instructions should be 1 to 2 sentences long. Either an imperative sentence or a question is permitted.
7. You should generate an appropriate input to the instruction. The input field should contain a specific example \
provided for the instruction. It should involve realistic data and should not contain simple placeholders. The input \
should provide substantial content to make the instruction challenging but should ideally not exceed 100 words.
8. Not all instructions require input. For example, when an instruction asks about some general information, "what is \
the highest peak in the world", it is not necessary to provide a specific context. In this case, we simply put \
"<noinput>" in the input field.
9. The output should be an appropriate response to the instruction and the input. Make sure the output is less than \
200 words.

There are {shown} examples.

{examples}

Please generate the following {asked} tasks that are similar to the above examples."""
TRANSLATE_TASK = """\
Translate this task from {source} into {language}. Translate the instruction, the input and the output. Keep the names \
of the fields and their number as they are ("1. Instruction:", "1. Input:", "1. Output:"), keep "<noinput>", and write \
nothing else.

{task}"""
FIELDS = ("Instruction", "Input", "Output")
LABEL = re.compile(rf"^([#* \t]*(\d+) ?[.)][* \t]*({'|'.join(FIELDS)})[* \t]*[:：]\**)", re.MULTILINE | re.IGNORECASE)
"""A field's name and its task's number, perhaps as a heading or in bold. Groups: all of it, the number, the name."""
RULE = re.compile(r"\n[ \t]*(?:#+|-{3,}|\*{3,})$")
"""What models put between two tasks."""


@dataclass(frozen=True)
class Task:
    """An instruction, what it is about ("" where it needs nothing), and the answer to it."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Dropped:
    """Something that an answer held and that is not kept.

    Attributes:
        reason: why, in words that are the same for all of a kind.
        text: what it was, or began with.
    """

    reason: str
    text: str


def task_prompt(language: str, examples: Sequence[Task], asked: int) -> str:
    """Ask for further tasks in a language.

    Args:
        language: ISO 639-1 code of one of PolyLM's languages.
        examples: the tasks to show.
        asked: how many more to ask for.
    """
    shown = "\n\n".join(numbered(task, number) for number, task in enumerate(examples, start=1))
    return WRITE_TASKS.format(
        total=len(examples) + asked, language=LANGUAGES[language], shown=len(examples), examples=shown, asked=asked
    )


def translation_prompt(task: Task, source: str, language: str) -> str:
    """Ask for a task in another language, both by their ISO 639-1 codes."""
    return TRANSLATE_TASK.format(source=LANGUAGES[source], language=LANGUAGES[language], task=numbered(task, 1))


def numbered(task: Task, number: int) -> str:
    """The task as it stands in prompts and answers."""
    return (
        f"{number}. Instruction: {task.instruction}\n{number}. Input:\n{task.input or '<noinput>'}\n"
        f"{number}. Output:\n{task.output}"
    )


def parse_tasks(answer: str, is_cut: bool = False) -> list[Task | Dropped]:
    """Read the tasks of an answer.

    Args:
        answer: what a model wrote to `task_prompt` or `translation_prompt`.
        is_cut: whether it ended at the most tokens that were allowed; its last task is dropped then.

    Returns:
        The tasks in their order, and what could not be read as one: at least one item.
    """
    found = _fields(answer)
    if not found:
        return [Dropped("no task in the answer", answer.strip())]
    tasks = [_task(fields) for fields in found]
    return [*tasks[:-1], Dropped("cut off by the limit of tokens", _text(found[-1]))] if is_cut else tasks


def _fields(answer: str) -> list[dict[str, str]]:
    """The fields of each task by their names. What stands before the first task is left out."""
    found: list[dict[str, str]] = []
    current = ""
    parts = iter(LABEL.split(answer)[1:])
    for label, number, name, text in zip(parts, parts, parts, parts, strict=True):
        field = name.title()
        if field == FIELDS[0] and number != current:
            current = number
            found.append({field: text})
        elif found and number == current and field not in found[-1]:
            found[-1][field] = text
        elif found:  # a numbered list within a field
            last = next(reversed(found[-1]))
            found[-1][last] += label + text
    return found


def _task(fields: dict[str, str]) -> Task | Dropped:
    values = {name: RULE.sub("", text.strip()).strip() for name, text in fields.items()}
    for name in FIELDS:
        if name not in values:
            return Dropped(f"no {name.lower()}", _text(fields))
    instruction, context, output = (values[name] for name in FIELDS)
    for name, value in ((FIELDS[0], instruction), (FIELDS[2], output)):
        if not value or NO_INPUT.fullmatch(value):
            return Dropped(f"empty {name.lower()}", _text(fields))
    return Task(instruction, "" if NO_INPUT.fullmatch(context) else context, output)


def _text(fields: dict[str, str]) -> str:
    return "\n".join(f"{name}: {text.strip()}" for name, text in fields.items())
