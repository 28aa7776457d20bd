"""Commands run in this process."""

from __future__ import annotations

from tests.commands import own_environment, polylm, tiny
