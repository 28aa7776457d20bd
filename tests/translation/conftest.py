"""The bundled model."""

from __future__ import annotations

from tests.commands import tiny
