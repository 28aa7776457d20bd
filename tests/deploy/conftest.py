"""The server that the files of deploy/ put into operation, with keys of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modelscope_polylm.generator import TextGenerator
from modelscope_polylm.serve.middleware import Access
from tests.commands import own_environment, polylm, tiny
from tests.deploy.files import KEY, METRICS_KEY
from tests.serve.running import Running, serving


@pytest.fixture(scope="session")
def server(tiny: TextGenerator) -> Iterator[Running]:
    """The bundled model, served with a key for answers and one for metrics."""
    with serving(tiny, Access((KEY,), METRICS_KEY)) as running:
        running.http.headers["Authorization"] = f"Bearer {KEY}"
        yield running
