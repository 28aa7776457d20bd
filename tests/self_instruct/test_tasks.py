"""Prompts, and what is read out of answers."""

from __future__ import annotations

import time

import pytest

from modelscope_polylm.self_instruct.tasks import Dropped, Task, numbered, parse_tasks, task_prompt, translation_prompt

ADD = Task("Addiere die Zahlen.", "2 und 3", "5")
CITY = Task("Nenne eine Stadt in Polen.", "", "Krakau")
RHYME = Task("Schreibe einen Reim.", "", "Haus\nMaus")


def answer(*tasks: Task, first: int = 4) -> str:
    return "\n\n".join(numbered(task, number) for number, task in enumerate(tasks, start=first))


def reasons(found: list[Task | Dropped]) -> list[str]:
    return [each.reason for each in found if isinstance(each, Dropped)]


def test_the_prompt_is_the_papers() -> None:
    prompt = task_prompt("de", [ADD, CITY, RHYME], 17)
    assert prompt.startswith("You are asked to come up with a set of 20 diverse task instructions.")
    assert "\n5. The instructions should be in German.\n" in prompt
    assert "There are 3 examples.\n\n1. Instruction: Addiere die Zahlen.\n1. Input:\n2 und 3\n1. Output:\n5\n" in prompt
    assert "2. Input:\n<noinput>\n2. Output:\nKrakau" in prompt
    assert prompt.endswith("Please generate the following 17 tasks that are similar to the above examples.")


def test_a_translation_is_asked_for_in_the_same_form() -> None:
    prompt = translation_prompt(CITY, "en", "th")
    assert "from English into Thai" in prompt
    assert parse_tasks(prompt.partition("write nothing else.")[2]) == [CITY]


def test_what_is_written_is_read_again() -> None:
    assert parse_tasks(answer(ADD, CITY, RHYME)) == [ADD, CITY, RHYME]
    assert parse_tasks(f"Gern!\n\n{answer(ADD)}\n###\n{answer(CITY, first=5)}\n---\n") == [ADD, CITY]


@pytest.mark.parametrize(
    "text",
    [
        "**4. Instruction:** Addiere die Zahlen.\n**4. Input:**\n2 und 3\n**4. Output:**\n5",
        "### 4. Instruction： Addiere die Zahlen.\n### 4. Input： 2 und 3\n### 4. Output： 5",
        "4) INSTRUCTION: Addiere die Zahlen.\n4) input: 2 und 3\n4) OUTPUT: 5\n\n###",
        "  4. Instruction:Addiere die Zahlen.\r\n4. Input:2 und 3\r\n4. Output:5\r\n",
    ],
)
def test_how_models_write_labels(text: str) -> None:
    assert parse_tasks(text) == [ADD]


@pytest.mark.parametrize("none", ["<noinput>", "<no input>", "noinput", "No Input.", "<NoInput>", ""])
def test_no_input(none: str) -> None:
    assert parse_tasks(f"4. Instruction: Was?\n4. Input: {none}\n4. Output: Das.") == [Task("Was?", "", "Das.")]


def test_a_numbered_list_within_an_output_stays_text() -> None:
    steps = Task("Wie liest man Aufgaben?", "", "So:\n1. Input: lesen\n2. Output: schreiben")
    assert parse_tasks(answer(steps, CITY)) == [steps, CITY]


def test_numbers_that_begin_at_one() -> None:
    assert parse_tasks(answer(ADD, CITY, first=1)) == [ADD, CITY]


def test_missing_and_empty_fields() -> None:
    text = (
        "4. Instruction: Ohne Eingabe\n4. Output: x\n"
        "5. Instruction: Ohne Ausgabe\n5. Input: y\n"
        "6. Instruction:\n6. Input: y\n6. Output: x\n"
        "7. Instruction: Leer\n7. Input: y\n7. Output: <noinput>\n"
    )
    assert reasons(parse_tasks(f"{text}{answer(ADD, first=8)}")) == [
        "no input",
        "no output",
        "empty instruction",
        "empty output",
    ]
    assert parse_tasks(f"{text}{answer(ADD, first=8)}")[-1] == ADD


def test_the_last_task_of_a_cut_answer_is_dropped() -> None:
    assert parse_tasks(answer(ADD, CITY), is_cut=True) == [
        ADD,
        Dropped(
            "cut off by the limit of tokens",
            "Instruction: Nenne eine Stadt in Polen.\nInput: <noinput>\nOutput: Krakau",
        ),
    ]


@pytest.mark.parametrize(
    "nonsense", ["", "Ich kann das nicht.", "Output: 5", "4. Input: 5\n4. Output: 6", "\0\ufffd" * 9]
)
def test_nonsense_is_dropped_with_what_it_was(nonsense: str) -> None:
    assert parse_tasks(nonsense) == [Dropped("no task in the answer", nonsense.strip())]


def test_long_nonsense_takes_no_long_time() -> None:
    start = time.perf_counter()
    for nonsense in ("\n" * 100_000, "4. Instruction: x\n" + "#" * 100_000, "1. " * 50_000, "\n---" * 50_000):
        parse_tasks(nonsense)
    assert time.perf_counter() - start < 2
