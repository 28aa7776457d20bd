"""What errors are made of: nearest names, and commands that install what is missing."""

from __future__ import annotations

import importlib.metadata

import pytest

from modelscope_polylm.errors import install_command, nearest_name, suggestion


def test_the_nearest_name_or_all() -> None:
    assert nearest_name("temprature", ["temperature", "top_p"]) == "temperature"
    assert nearest_name("x", ["temperature"]) is None
    assert suggestion("temprature", ["temperature", "top_p"]) == "did you mean temperature?"
    assert suggestion("x", ["a", "b"]) == "choose one of a, b."


@pytest.mark.parametrize(
    ("declared", "command"),
    [
        (
            ["torch>=2", 'gradio>=6.31; extra == "web"', 'a; extra == "other"'],
            "pip install 'gradio>=6.31'",
        ),
        (["b>=1,<2; extra == 'web'", "c; platform_system == 'None' and extra == 'web'"], "pip install 'b<2,>=1'"),
        (["torch>=2"], "pip install '.[web]' in a clone of the repository"),
        (None, "pip install '.[web]' in a clone of the repository"),
    ],
)
def test_what_an_extra_needs(monkeypatch: pytest.MonkeyPatch, declared: list[str] | None, command: str) -> None:
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: declared)
    assert install_command("web") == command


def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert install_command("web") == "pip install '.[web]' in a clone of the repository"
