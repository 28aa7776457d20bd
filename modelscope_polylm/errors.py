"""Errors for people: each message says what was wrong, which value, and what to do.

Every class takes one message argument, because ModelScope raises constructor errors again as `type(e)(message)`.
None is a KeyError, which ModelScope swallows.
"""

from __future__ import annotations

import difflib
import importlib.metadata
from collections.abc import Iterable

DISTRIBUTION = "modelscope-polylm"

MOST_LINES = 20
LONGEST_SHOWN_NAME = 100


class PolyLMError(Exception):
    """Base of every error that this package raises on purpose."""


class InputError(PolyLMError, ValueError):
    """A prompt, a message list or a token sequence that cannot be used."""


class ContextLengthError(InputError):
    """A prompt that leaves its answer no room in the model's context."""


class OptionError(PolyLMError, ValueError):
    """A generation or backend option with a wrong name or value."""


class SnapshotError(PolyLMError, ValueError):
    """A model folder that is not a complete, consistent PolyLM snapshot."""


class DeviceError(PolyLMError, RuntimeError):
    """A device that does not exist, lacks a needed feature, or is too small."""


class DownloadError(PolyLMError, OSError):
    """A snapshot that could not be fetched from the hub or written to disk."""


class EndpointError(PolyLMError, OSError):
    """A server of OpenAI's interface that cannot be reached, refuses its clients, or answers something else."""


class DependencyError(PolyLMError, ImportError):
    """An optional package that is missing or has an unsupported version."""


def nearest_name(name: object, known: Iterable[object], cutoff: float = 0.6) -> str | None:
    """The known name that a misspelt one most resembles; None if none is near."""
    matches = difflib.get_close_matches(str(name), [str(each) for each in known], n=1, cutoff=cutoff)
    return matches[0] if matches else None


def suggestion(name: object, known: Iterable[object], listing: str = "choose one of") -> str:
    """The end of an error about an unknown name: 'did you mean X?', or `listing` and all known names."""
    names = [str(each) for each in known]
    nearest = nearest_name(name, names)
    return f"did you mean {nearest}?" if nearest else f"{listing} {', '.join(names)}."


def shown(name: str) -> str:
    """A name out of a file, fit for a line of text."""
    return name if name.isprintable() and len(name) <= LONGEST_SHOWN_NAME else f"{name[:LONGEST_SHOWN_NAME]!r}"


def shortened(lines: list[str]) -> list[str]:
    """The first 20 lines, and how many more there are."""
    return (
        lines if len(lines) <= MOST_LINES else [*lines[:MOST_LINES], f"and {len(lines) - MOST_LINES} more like these"]
    )


def install_command(extra: str) -> str:
    """How to install what an extra of this package needs. The package itself is on no registry that pip asks."""
    from packaging.requirements import Requirement

    try:
        declared = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        declared = []
    markers = [(each, each.marker) for each in map(Requirement, declared) if each.marker is not None]
    optional = [(each, marker) for each, marker in markers if not marker.evaluate({"extra": ""})]
    needed = [f"'{each.name}{each.specifier}'" for each, marker in optional if marker.evaluate({"extra": extra})]
    return f"pip install {' '.join(needed)}" if needed else f"pip install '.[{extra}]' in a clone of the repository"
