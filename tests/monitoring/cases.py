"""Synthetic series in which each alert fires, others in which it stays silent; and what fills panels of trouble."""

from dataclasses import dataclass, field

Series = dict[str, str]
"""Values, in promtool's notation at one a minute, by series."""
WHO = 'namespace="research",run="demo"'
POD = 'namespace="sys",pod="operator-0"'


def run(name: str, more: str = "") -> str:
    return f"skywork_run_{name}{{{WHO}{',' if more else ''}{more}}}"


def trainer(name: str, more: str = "") -> str:
    return f'skywork_{name}{{{WHO},stage="general",pod="demo-0"{"," if more else ""}{more}}}'


def operator(name: str, more: str = "", pod: str = POD) -> str:
    return f"skywork_operator_{name}{{{pod}{',' if more else ''}{more}}}"


def said(type: str, value: int = 1, minutes: int = 120, status: str = "True") -> Series:
    return {run("condition", f'type="{type}",status="{status}"'): f"{value}x{minutes}"}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One alert's test: it fires at `minute` with these labels, and is silent with each of `quiet`."""

    fires: Series
    minute: int
    quiet: dict[str, Series]
    labels: dict[str, str] = field(default_factory=lambda: {"namespace": "research", "run": "demo"})
    seen: dict[str, int] = field(default_factory=dict)
    """Minute from which on one of `quiet` holds: before, Prometheus cannot know that what it sees first is old."""
    value: str = ""
    """What `{{ $value ... }}` reads as."""


def diagnosis(type: str) -> Case:
    return Case(
        fires=said(type),
        minute=3,
        quiet={"not found": said(type, 0), "the run is over": said(type) | said("Succeeded")},
    )


TRAINS = said("Running")
_MOVING = {run("step"): "0+10x120"}
_STANDING = {run("step"): "500x120"}
_SPENT = {
    run("time_seconds_total", f'state="{state}"'): f"0+{each}x240"
    for state, each in (("train", 30), ("restore", 20), ("idle", 10))
}
_GOOD = {
    run("time_seconds_total", f'state="{state}"'): f"0+{each}x240"
    for state, each in (("train", 57), ("checkpoint", 1), ("idle", 2))
}
_OK = {trainer("storage_requests_total", 'operation="GetObject",code="200",local_rank="0"'): "0+600x120"}
_503 = trainer("storage_requests_total", 'operation="GetObject",code="503",local_rank="0"')
_PASSES = {operator("reconcile_total", 'result="ok"'): "0+60x120"}
_HANG = 'node="node-1",section="step"'
_SYS = {"namespace": "sys", "pod": "operator-0"}

ALERTS: dict[str, Case] = {
    "SkyworkRunFailed": Case(
        fires=said("Failed"), minute=1, quiet={"it trains": said("Failed", 0), "it succeeded": said("Succeeded")}
    ),
    "SkyworkRunNoProgress": Case(
        fires=TRAINS | _STANDING,
        minute=21,
        quiet={
            "it steps": TRAINS | _MOVING,
            "it waits": said("Running", 0) | _STANDING,
            "another operator tells of it": TRAINS
            | {run("step", 'pod="a"'): "0+10x110 _x10", run("step", 'pod="b"'): "_x110 1100x10"},
        },
    ),
    "SkyworkRunNotTraining": Case(
        fires={
            run("state_info", 'state="Starting"'): "1x15 stale",
            run("state_info", 'state="Recovering"'): "_x16 1x100",
        },
        minute=32,
        quiet={
            "it trains": {run("state_info", 'state="Training"'): "1x120"},
            "suspended": {run("state_info", 'state="Suspended"'): "1x120"},
            "text is prepared": {run("state_info", 'state="Preparing"'): "1x120"},
            "over": {run("state_info", 'state="Failed"'): "1x120"},
            "again and again for ten minutes": {
                run("state_info", 'state="Recovering"'): "1x10 stale _x20 1x10 stale _x20"
            },
        },
    ),
    "SkyworkLossNotFinite": Case(
        fires={run("train_loss"): "2.5x5 NaN NaN NaN NaN"},
        minute=8,
        quiet={"a loss": {run("train_loss"): "2.5x120", run("validation_loss", 'domain="en"'): "2.6x120"}},
    ),
    "SkyworkLossAbsent": Case(
        fires=TRAINS, minute=31, quiet={"a loss": TRAINS | {run("train_loss"): "2.5x120"}, "no run": {}}
    ),
    "SkyworkTrainerNotScraped": Case(
        fires=TRAINS | {run("train_loss"): "2.5x120"},
        minute=16,
        quiet={"scraped": TRAINS | {trainer("train_loss"): "2.5x120"}, "waits": said("Running", 0)},
    ),
    "SkyworkRestartsOften": Case(
        fires={run("generation"): "1+1x120", run("restarts_total", 'reason="Killed"'): "_x30 1x5 3x5 7x80"},
        minute=60,
        quiet={
            "three in an hour": {
                run("generation"): "1x120",
                run("restarts_total", 'reason="Killed"'): "_x30 1x20 3x70",
            },
            "seven in a day": {
                run("generation"): "1x900",
                run("restarts_total", 'reason="PodLost"'): "0x200 2x200 4x200 7x300",
            },
            "seven long ago, and the operator is new": {
                run("generation", 'pod="a"'): "8x110 _x10",
                run("restarts_total", 'reason="Killed",pod="a"'): "7x110 _x10",
                run("generation", 'pod="b"'): "_x110 8x10",
                run("restarts_total", 'reason="Killed",pod="b"'): "_x110 7x10",
            },
        },
        value="7",
    ),
    "SkyworkGoodputLow": Case(
        fires=_SPENT | _MOVING,
        minute=91,
        quiet={"it trains": _GOOD | _MOVING, "no step yet": _SPENT | {run("step"): "0x120"}},
        value="50%",
    ),
    "SkyworkDomainsDiverging": diagnosis("DomainsDiverging"),
    "SkyworkForgetting": diagnosis("Forgetting"),
    "SkyworkPlateau": diagnosis("Plateau"),
    "SkyworkGapGrowing": diagnosis("GapGrowing"),
    "SkyworkLossSpiking": diagnosis("LossSpiking"),
    "SkyworkDataRepeated": diagnosis("DataRepeated"),
    "SkyworkValidationIncomplete": diagnosis("ValidationIncomplete"),
    "SkyworkDataStarved": diagnosis("DataStarved"),
    "SkyworkThroughputLow": diagnosis("ThroughputLow"),
    "SkyworkCheckpointStale": diagnosis("CheckpointStale"),
    "SkyworkCheckpointCorrupt": diagnosis("CheckpointCorrupt"),
    "SkyworkStraggling": Case(
        fires=said("Straggling") | {run("straggler_slowdown", 'node="node-1"'): "1.6x120"},
        minute=3,
        quiet={
            "not for long yet": said("Straggling", 0) | {run("straggler_slowdown", 'node="node-1"'): "1.6x120"},
            "over": said("Straggling") | {run("straggler_slowdown", 'node="node-1"'): "1.6x120"} | said("Failed"),
        },
        labels={"namespace": "research", "run": "demo", "node": "node-1"},
        value="1.6",
    ),
    "SkyworkOutOfMemory": Case(
        fires={run("restarts_total", 'reason="OutOfMemory"'): "_x10 1x110"},
        minute=12,
        quiet={
            "killed": {run("restarts_total", 'reason="Killed"'): "_x10 1x110"},
            "long ago": {run("restarts_total", 'reason="OutOfMemory"'): "1x300"},
        },
        seen={"long ago": 70},
        labels={"namespace": "research", "run": "demo", "reason": "OutOfMemory"},
    ),
    "SkyworkWorkersHang": Case(
        fires={trainer("agent_hangs_total", _HANG): "_x10 1x110"},
        minute=12,
        quiet={"none": {trainer("agent_hangs_total", _HANG): "0x300"}},
        labels={"namespace": "research", "run": "demo", "node": "node-1", "section": "step"},
    ),
    "SkyworkNodeAvoided": Case(
        fires={run("avoided_nodes"): "2x120"},
        minute=2,
        quiet={"none": {run("avoided_nodes"): "0x120"}, "over": {run("avoided_nodes"): "2x120"} | said("Succeeded")},
        value="2",
    ),
    "SkyworkStorageErrors": Case(
        fires=_OK | {_503: "0+60x120"},
        minute=12,
        quiet={
            "all well": _OK,
            "one in a hundred": _OK | {_503: "0+6x120"},
            "what is not there is no error": _OK | {_503.replace("503", "404"): "0+600x120"},
        },
        value="9.091%",
    ),
    "SkyworkCheckpointsFail": Case(
        fires={trainer("checkpoint_failures_total", 'reason="StorageUnreachable"'): "_x10 1x110"},
        minute=12,
        quiet={
            "long ago": {trainer("checkpoint_failures_total", 'reason="StorageUnreachable"'): "1x300"},
            "another pod goes on with the count": {
                trainer("checkpoint_failures_total", 'reason="StorageUnreachable"'): "3x110 _x10",
                trainer("checkpoint_failures_total", 'reason="StorageUnreachable"').replace("demo-0", "demo-1"): (
                    "_x110 3x10"
                ),
            },
        },
        seen={"long ago": 40, "another pod goes on with the count": 40},
        labels={"namespace": "research", "run": "demo", "reason": "StorageUnreachable"},
    ),
    "SkyworkOperatorAbsent": Case(
        fires={run("step"): "0+1x20"},
        minute=6,
        quiet={"there": {operator("build_info", 'version="0.1.0"'): "1x120"}},
        labels={},
    ),
    "SkyworkOperatorNoLeader": Case(
        fires={operator("is_leader"): "0x60", operator("is_leader", pod='namespace="sys",pod="operator-1"'): "0x60"},
        minute=3,
        quiet={
            "one leads": {
                operator("is_leader"): "1x120",
                operator("is_leader", pod='namespace="sys",pod="operator-1"'): "0x120",
            }
        },
        labels={"namespace": "sys"},
    ),
    "SkyworkOperatorWatchStalled": Case(
        fires={operator("watch_age_seconds"): "5x5 80+60x60"},
        minute=9,
        quiet={"heartbeats": {operator("watch_age_seconds"): "5 19 3 12 8 1x115"}},
        labels=_SYS,
        value="260",
    ),
    "SkyworkOperatorQueueOld": Case(
        fires={operator("queue_oldest_wait_seconds"): "45x60", operator("longest_pass_seconds"): "1x60"},
        minute=3,
        quiet={
            "quick": {operator("queue_oldest_wait_seconds"): "0.1x120", operator("longest_pass_seconds"): "2x120"},
            "one slow moment": {operator("queue_oldest_wait_seconds"): "0x118 40x1 0x1"},
        },
        labels=_SYS,
        value="45",
    ),
    "SkyworkOperatorErrors": Case(
        fires=_PASSES | {operator("reconcile_total", 'result="error"'): "0+20x60"},
        minute=10,
        quiet={
            "conflicts are no errors": _PASSES | {operator("reconcile_total", 'result="conflict"'): "0+20x120"},
            "few": _PASSES | {operator("reconcile_total", 'result="error"'): "0+1x120"},
        },
        labels=_SYS,
        value="25%",
    ),
}

_WORKER = 'node="node-1",local_rank="0"'
_FAILED_SAVES = trainer("checkpoint_failures_total", 'reason="StorageUnreachable"')
_KILLED = run("restarts_total", 'reason="Killed"')
_CAME_TO_AN_END = trainer("agent_worker_exits_total", 'node="node-1",reason="Killed"')

PANELS: dict[str, Series] = {
    "fleet/Alerts that fire/A": {f'ALERTS{{alertname="SkyworkForgetting",alertstate="firing",{WHO}}}': "1x20"},
    "fleet/Conditions to look at/A": said("Forgetting"),
    "run/ETA/A": {run("estimated_completion_timestamp_seconds"): "5000x20"},
    "fleet/Runs/E": {run("estimated_completion_timestamp_seconds"): "5000x20"},
    "run/Reference-normalised loss by domain/A": {run("validation_reference_loss", 'domain="en"'): "2x20"},
    "run/Spikes/A": {trainer("train_spikes_total", 'action="Skip"'): "1x20"},
    "run/Model FLOPs utilisation/A": {run("model_flops_utilization_ratio"): "0.4x20"},
    "run/Failed saves/A": {_FAILED_SAVES: "1x20"},
    "run/Restarts by reason/A": {_KILLED: "1x20"},
    "run/Newest recovery/A": {run("recovery_seconds", 'part="detected"'): "1x20"},
    "run/annotation/Restarts": {_KILLED: "_x10 1x10"},
    "run/annotation/Generations": {run("generation"): "1x9 2x10"},
    "run/annotation/Diagnoses": said("Plateau"),
    "nodes/Stragglers/A": {run("straggler_slowdown", 'node="node-1"'): "1.6x20"},
    "nodes/Memory of the pod/B": {trainer("agent_memory_limit_bytes", 'node="node-1"'): "8x20"},
    "nodes/Device memory/A": {trainer("worker_device_memory_bytes", _WORKER): "8x20"},
    "nodes/Device memory in use/A": {
        trainer("worker_device_memory_bytes", _WORKER): "8x20",
        trainer("worker_device_memory_limit_bytes", _WORKER): "10x20",
    },
    "nodes/Hangs/A": {trainer("agent_hangs_total", _HANG): "1x20"},
    "nodes/Ends of workers/A": {_CAME_TO_AN_END: "1x20"},
}
"""What fills each expression of `dev.monitoring.sometimes`, at minute 10."""
