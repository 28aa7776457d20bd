"""Fixtures of the command line."""

from __future__ import annotations

from tests.commands import own_environment, polylm, tiny
from tests.packaged import package
