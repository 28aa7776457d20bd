"""One server for most tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelscope_polylm.generator import TextGenerator
from tests.commands import own_environment, polylm, tiny
from tests.serve.running import Running, serving


@pytest.fixture(scope="session")
def server(tiny: TextGenerator) -> Iterator[Running]:
    """The bundled model, served without a key."""
    with serving(tiny) as running:
        yield running
