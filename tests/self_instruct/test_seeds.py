"""Files of seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelscope_polylm.errors import InputError
from modelscope_polylm.self_instruct.seeds import Seed, read_seeds, seeds_for
from modelscope_polylm.self_instruct.tasks import Task, numbered, parse_tasks

EXAMPLE = Path(__file__).parents[2] / "examples" / "seeds.jsonl"
GOOD = {"instruction": "Name a fruit.", "input": "<noinput>", "output": "Apple", "language": "en", "keep": ["output"]}


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row(tmp_path: Path) -> None:
    seed = Seed(Task("Name a fruit.", "", "Apple"), "en", ("output",))
    assert read_seeds(written(tmp_path / "seeds.jsonl", GOOD)) == [seed]


def test_alpacas_layout(tmp_path: Path) -> None:
    row = {
        "id": "seed_task_0",
        "name": "fruit",
        "instruction": "Name a fruit.",
        "instances": [{"input": "red", "output": "Apple"}, {"input": "yellow", "output": "Banana"}],
        "is_classification": False,
    }
    assert read_seeds(written(tmp_path / "seeds.jsonl", row)) == [Seed(Task("Name a fruit.", "red", "Apple"), "en")]


def test_the_example_is_read_and_can_be_shown_in_prompts() -> None:
    seeds = read_seeds(EXAMPLE)
    assert len(seeds) == 12
    for seed in seeds:
        assert parse_tasks(numbered(seed.task, 1)) == [seed.task]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([], "is no JSON object"),
        ("text", "is no JSON object"),
        ({"output": "Apple"}, "has no text as 'instruction'"),
        ({**GOOD, "output": " "}, "has no text as 'output'"),
        ({**GOOD, "input": 5}, "has no text as 'input'"),
        ({**GOOD, "instances": [], "output": None}, "has no text as 'output'"),
        ({**GOOD, "language": "eng"}, "has the language 'eng': did you mean en?"),
        ({**GOOD, "keep": "output"}, "has keep='output'"),
        ({**GOOD, "keep": ["instruction"]}, "has keep=['instruction']"),
        ({**GOOD, "instuction": "x"}, "has 'instuction', which no seed has: did you mean instruction?"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: Any, said: str) -> None:
    with pytest.raises(InputError, match="Row 2 of") as error:
        read_seeds(written(tmp_path / "seeds.jsonl", GOOD, row))
    assert said in str(error.value)


def test_empty_and_damaged_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no row"):
        read_seeds(written(tmp_path / "seeds.jsonl"))
    (tmp_path / "seeds.png").write_bytes(b"\x89PNG")
    with pytest.raises(InputError, match="unknown kind"):
        read_seeds(tmp_path / "seeds.png")


def test_seeds_of_a_language_come_before_those_to_translate(tmp_path: Path) -> None:
    english = [Seed(Task(f"{number}", "", "x"), "en") for number in range(4)]
    german = [Seed(Task(f"{number}", "", "x"), "de") for number in range(3)]
    assert seeds_for([*english, *german], "de") == german
    assert seeds_for([*english, *german], "th") == english
    with pytest.raises(InputError, match="The seeds have 0 tasks in English, and th needs at least 3"):
        seeds_for(german, "th")
    with pytest.raises(InputError, match="The seeds have 2 tasks in German"):
        seeds_for([*english, *german[:2]], "de")
