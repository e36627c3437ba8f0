"""Every committed expression, executed by a real Prometheus that scrapes the product's own registries."""

import json
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.build import ensure_built
from dev.demo.prometheus import Prometheus
from dev.monitoring.draw import draw
from dev.monitoring.expressions import Expression, expressions
from dev.monitoring.files import CHART
from dev.monitoring.sometimes import EMPTY_WITHOUT
from dev.monitoring.walk import QueryError, Shown, Walk, walk
from tests.monitoring.exporters import NAMESPACE, NODE, POD, RUN, OperatorPage, TrainerPod
from tests.waiting import until

SCRAPE_SECONDS = 0.5
THE_MACHINES = {"nodes/Device memory/A", "nodes/Device memory in use/A", "nodes/Memory of the pod/B"}
"""Whether this machine has a GPU, and a limit to its memory, is not for the test to say."""


def served(page: Callable[[], str]) -> ThreadingHTTPServer:
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                body = page().encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


class Watched:
    """A Prometheus, and what a person would look at in it."""

    def __init__(self, prometheus: Prometheus, started: float) -> None:
        self.prometheus, self._started = prometheus, started

    def shown(self) -> Shown:
        return Shown(namespace=NAMESPACE, run=RUN, start=self._started, end=time.time(), rate_interval="5s")

    def walk(self, committed: list[Expression] | None = None) -> Walk:
        return walk(self.prometheus.address, self.shown(), committed)


def watched(folder: Path, port: int, *, trouble: bool) -> Iterator[Watched]:
    ensure_built(print)
    pod = TrainerPod(folder)
    if trouble:
        pod.trouble()
    servers = [served(pod.page), served(OperatorPage(trouble=trouble).page)]
    labels = ({"namespace": NAMESPACE, "pod": POD, "node": NODE}, {"namespace": "skywork-system", "pod": "operator"})
    targets: list[dict[str, Any]] = [
        {"targets": [f"127.0.0.1:{server.server_port}"], "labels": own}
        for server, own in zip(servers, labels, strict=True)
    ]
    started = time.time()
    prometheus = Prometheus(lambda: targets, folder / "prometheus", port=port, scrape_seconds=SCRAPE_SECONDS)
    with prometheus:
        # Rates need two scrapes, rules theirs, and the newer generation comes with the eighth.
        scraped = f'count_over_time(skywork_run_generation{{run="{RUN}"}}[1m]) >= 12'
        until(lambda: prometheus.query(scraped), 60)
        yield Watched(prometheus, started)
    for server in servers:
        server.shutdown()


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    yield from watched(tmp_path_factory.mktemp("healthy"), 9491, trouble=False)


@pytest.fixture(scope="module")
def troubled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    yield from watched(tmp_path_factory.mktemp("troubled"), 9492, trouble=True)


def test_of_a_healthy_run_only_what_tells_of_trouble_is_empty(healthy: Watched) -> None:
    assert healthy.walk().empty == ()


def test_of_a_run_in_trouble_every_panel_has_data(troubled: Watched) -> None:
    # The chart's own rules bring this one about; it lasts a minute first.
    late = {"fleet/Alerts that fire/A"}
    found = troubled.walk()
    assert found.empty == ()
    assert {where for where in found.quiet if where in EMPTY_WITHOUT} <= THE_MACHINES | late


def test_the_dashboards_are_drawn_with_all_their_panels(troubled: Watched, tmp_path: Path) -> None:
    for path in draw(troubled.prometheus.address, troubled.shown(), tmp_path):
        words = [element.text for element in ElementTree.parse(path).iter() if element.tag.endswith("}text")]
        model = json.loads((CHART / "dashboards" / f"{path.stem}.json").read_text())
        assert {panel["title"] for panel in model["panels"]} <= set(words)
        assert words.count("No data") <= len(THE_MACHINES) + 1


def test_the_charts_rules_are_evaluated(healthy: Watched) -> None:
    def recorded() -> list[dict[str, Any]]:
        return healthy.prometheus.query(f'namespace_run:skywork_run_restarts:sum{{run="{RUN}"}}')

    until(recorded, 30)
    assert [series["value"][1] for series in recorded()] == ["0"]


def test_series_of_a_run_keep_the_runs_namespace(healthy: Watched) -> None:
    (series,) = healthy.prometheus.query("skywork_run_step")
    assert series["metric"]["namespace"] == NAMESPACE
    (own,) = healthy.prometheus.query("skywork_operator_queue_depth")
    assert own["metric"]["namespace"] == "skywork-system"
    (worker,) = healthy.prometheus.query("skywork_worker_forward_seconds")
    assert worker["metric"]["node"] == NODE


def test_an_expression_without_data_is_named(healthy: Watched) -> None:
    nothing = Expression(where="run/Nothing/A", text='skywork_run_step{namespace="$namespace",run="$run",stage="none"}')
    found = healthy.walk([nothing, *expressions()])
    assert found.empty == ("run/Nothing/A",)


def test_an_expression_that_is_refused_is_named_in_prometheus_words(healthy: Watched) -> None:
    with pytest.raises(QueryError, match=r"run/Wrong/A: sum\(: .*parse error"):
        healthy.walk([Expression(where="run/Wrong/A", text="sum(")])


def test_a_variable_without_a_value_is_named(healthy: Watched) -> None:
    with pytest.raises(KeyError, match="cluster"):
        healthy.walk([Expression(where="run/Wrong/A", text='up{cluster="$cluster"}')])


def test_another_run_has_no_data(healthy: Watched) -> None:
    shown = Shown(namespace=NAMESPACE, run="other", start=time.time() - 10, end=time.time(), rate_interval="5s")
    found = walk(healthy.prometheus.address, shown)
    assert "run/Learning rate/A" in found.empty and "run/variable/stage" in found.empty
