"""The operator's metrics of runs, out of their statuses."""

from prometheus_client import CollectorRegistry, generate_latest
from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.metrics import OperatorCollector
from skywork_operator.queue import WorkQueue
from skywork_operator.run_metrics import Key

from tests.unit.operator.build import NOW, failed, plan, pod, progress, status_after, world


def exposed(runs: dict[Key, SkyworkRunStatus]) -> str:
    registry = CollectorRegistry()
    registry.register(
        OperatorCollector(
            WorkQueue(lambda: 0.0), runs, watch_age_seconds=lambda: 1.5, leads=lambda: True, wall=lambda: NOW
        )
    )
    return generate_latest(registry).decode()


def test_validation_losses_conditions_and_restarts_of_a_run_are_exported() -> None:
    said = progress(40, validation=({"domain": "zh", "loss": 3.25, "tokens": 10, "step": 40},))
    status = status_after(world(pod(0), pod(1), pod(2)))
    status = plan(world(pod(0, generation=1, agent=said), failed(1, 1), pod(2, generation=1), status=status)).status
    text = exposed({("research", "demo"): status})
    assert 'skywork_run_validation_loss{domain="zh",namespace="research",run="demo"} 3.25' in text
    assert 'skywork_run_restarts_total{namespace="research",reason="Killed",run="demo"} 1.0' in text
    assert 'skywork_run_condition{namespace="research",run="demo",status="True",type="Accepted"} 1.0' in text
    assert 'skywork_run_generation{namespace="research",run="demo"} 2.0' in text
    assert 'skywork_run_step{namespace="research",run="demo"} 40.0' in text


def test_a_deleted_run_leaves_no_series_behind() -> None:
    assert "demo" not in exposed({})
    assert "skywork_operator_queue_depth 0.0" in exposed({})
