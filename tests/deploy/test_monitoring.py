"""The Prometheus scrape and the Grafana dashboard, over the metrics that the server really has."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.files import DEPLOY, METRICS_KEY, check, documents, read
from tests.serve.running import CHAT, Running, chat

promql = pytest.importorskip("promql_parser", reason="promql-parser is not installed")

NAME = re.compile(r"\bpolylm_\w+")


def panels() -> list[dict[str, Any]]:
    return list(json.loads(read("grafana.json"))["panels"])


def queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


@pytest.fixture(scope="module")
def series(server: Running) -> set[str]:
    """The names of the time series, after an answer."""
    server.post(CHAT, chat())
    text = server.http.get("/metrics").text
    return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}


def test_the_scrape_reads_the_metrics_with_its_key(server: Running) -> None:
    [job] = documents("prometheus.yaml")[0]["scrape_configs"]
    headers = {"Authorization": f"{job['authorization']['type']} {METRICS_KEY}"}
    [target] = job["static_configs"][0]["targets"]
    [compose] = documents("compose.yaml")
    assert target.partition(":")[0] in compose["services"]["polylm"]["networks"]["default"]["aliases"]
    assert job["authorization"]["credentials_file"] in compose["services"]["polylm"]["environment"].values()
    assert httpx.get(f"{server.url}{job['metrics_path']}", headers=headers).status_code == 200
    assert httpx.get(f"{server.url}{job['metrics_path']}").status_code == 401


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_scrape(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text(METRICS_KEY)
    (tmp_path / "prometheus.yaml").write_text(read("prometheus.yaml").replace("/run/secrets/metrics_key", str(key)))
    check("promtool", "check", "config", tmp_path / "prometheus.yaml")


def test_queries_are_right_and_ask_for_metrics_that_exist(series: set[str]) -> None:
    for query in queries():
        promql.parse(query.replace("$__rate_interval", "1m"))
        assert set(NAME.findall(query)) <= series, query
    with pytest.raises(ValueError):
        promql.parse("sum(rate(polylm_requests_total[1m])")


def test_every_metric_is_shown(series: set[str]) -> None:
    shown = {name.removesuffix("_bucket") for query in queries() for name in NAME.findall(query)}
    lasting = {name for name in series if name.startswith("polylm_") and not name.endswith("_created")}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in lasting} == shown


def test_panels_have_their_own_numbers_and_places() -> None:
    assert len({panel["id"] for panel in panels()}) == len(panels()) > 5
    for one, other in itertools.combinations((panel["gridPos"] for panel in panels()), 2):
        apart_x = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        apart_y = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert apart_x or apart_y
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels())
    assert DEPLOY.joinpath("grafana.json").read_bytes().endswith(b"}\n")
