"""Rules about runs: that they go on, what their curves say, their checkpoints and nodes."""

from typing import Literal

from dev.monitoring.promql import RUN, condition, rose, unfinished
from dev.monitoring.rules import Alert, Group, Recording

_WAITING = "Starting|Recovering|Queued|Invalid"
"""States in which a run should train and does not; while text is prepared, or it is suspended, it should not."""
_WHICH = "{{ $labels.namespace }}/{{ $labels.run }}"
RESTARTS = "namespace_run:skywork_run_restarts:sum"
GOODPUT = "namespace_run:skywork_run_goodput:ratio_rate1h"
FAILED_REQUESTS = "namespace_run:skywork_storage_failed_requests:ratio_rate15m"


def _diagnosis(
    name: str, type: str, severity: Literal["critical", "warning", "info"], summary: str, description: str
) -> Alert:
    """Return the alert of a condition; it has been weighed before it was set, so it need not last."""
    return Alert(
        name=name,
        expr=unfinished(condition(type)),
        lasting="1m",
        severity=severity,
        summary=f"{_WHICH}: {summary}",
        description=f"{description} Evidence and advice: condition {type} of the run.",
    )


RECORDED = (
    Recording(
        name=RESTARTS,
        # Every run has a generation from its start on: a run without restarts counts as 0, so that the first one shows.
        expr=(
            f"max by ({RUN}) (sum without (reason) (skywork_run_restarts_total))"
            f" or 0 * max by ({RUN}) (skywork_run_generation)"
        ),
    ),
    Recording(
        name=GOODPUT,
        expr=(
            f'sum by ({RUN}) (increase(skywork_run_time_seconds_total{{state="train"}}[1h]))'
            f" / (sum by ({RUN}) (increase(skywork_run_time_seconds_total[1h])) > 0)"
        ),
    ),
    Recording(
        name=FAILED_REQUESTS,
        expr=(
            f'(sum by ({RUN}) (rate(skywork_storage_requests_total{{code!~"2..|304|404|412"}}[15m]))'
            f" or 0 * sum by ({RUN}) (rate(skywork_storage_requests_total[15m])))"
            f" / (sum by ({RUN}) (rate(skywork_storage_requests_total[15m])) > 0)"
        ),
    ),
)

_RUNS = (
    Alert(
        name="SkyworkRunFailed",
        expr=condition("Failed"),
        severity="critical",
        summary=f"{_WHICH} has failed",
        description="The run gave up; nothing trains it any more. Its checkpoints are kept.",
    ),
    Alert(
        name="SkyworkRunNoProgress",
        expr=(f"({condition('Running')}) and on ({RUN}) (max by ({RUN}) (changes(skywork_run_step[15m])) == 0)"),
        lasting="5m",
        severity="critical",
        summary=f"{_WHICH} is said to run, but no step was done for 15 minutes",
        description="Neither training nor hang detection does anything. Every node of the run is idle and paid for.",
    ),
    Alert(
        name="SkyworkRunNotTraining",
        expr=f'max by ({RUN}) (skywork_run_state_info{{state=~"{_WAITING}"}}) == 1',
        lasting="30m",
        severity="warning",
        summary=f"{_WHICH} has not trained for half an hour",
        description="It waits for pods, quota, storage or an image, or is invalid. Condition Running says for what.",
    ),
    Alert(
        name="SkyworkLossNotFinite",
        expr=(
            f"count by ({RUN}) (skywork_run_train_loss != skywork_run_train_loss"
            " or abs(skywork_run_train_loss) == Inf"
            " or skywork_run_validation_loss != skywork_run_validation_loss"
            " or abs(skywork_run_validation_loss) == Inf)"
        ),
        severity="critical",
        summary=f"{_WHICH}: a loss is not a number",
        description="The newest training loss, or that of a held-out domain, is NaN or infinite: the weights are lost.",
    ),
    Alert(
        name="SkyworkLossAbsent",
        expr=f"({condition('Running')}) unless on ({RUN}) skywork_run_train_loss",
        lasting="30m",
        severity="warning",
        summary=f"{_WHICH} runs, but has no training loss",
        description="No step has told its loss for half an hour: the first one takes long, or rank 0 is not heard.",
    ),
    Alert(
        name="SkyworkTrainerNotScraped",
        expr=f"({condition('Running')}) unless on ({RUN}) skywork_train_loss",
        lasting="15m",
        severity="warning",
        summary=f"{_WHICH} runs, but Prometheus has no series of its pods",
        description="The operator reads the pods, Prometheus does not: PodMonitor, annotations or a NetworkPolicy.",
    ),
    Alert(
        name="SkyworkRestartsOften",
        expr=f"round(increase({RESTARTS}[1h])) > 5",
        severity="warning",
        summary=f"{_WHICH} has started again {{{{ $value }}}} times within an hour",
        description="Each restart costs a recovery and the steps since the last checkpoint.",
    ),
    Alert(
        name="SkyworkGoodputLow",
        expr=unfinished(f"({GOODPUT} < 0.7) and on ({RUN}) (max by ({RUN}) (skywork_run_step) > 0)"),
        lasting="30m",
        severity="warning",
        summary=f"{_WHICH} trained in {{{{ $value | humanizePercentage }}}} of the last hour",
        description="The rest was spent on waiting, restoring, saving or training again what had been lost.",
    ),
)

_CURVES = (
    _diagnosis(
        "SkyworkDomainsDiverging",
        "DomainsDiverging",
        "warning",
        "held-out domains drift apart",
        "The loss of one domain rises while others fall: the mixture has shifted, or a source is over-fitted.",
    ),
    _diagnosis(
        "SkyworkForgetting",
        "Forgetting",
        "warning",
        "general domains are forgotten",
        "A domain's loss is further above that of its stage's start than guards.forgetting allows.",
    ),
    _diagnosis(
        "SkyworkPlateau",
        "Plateau",
        "info",
        "held-out losses no longer fall",
        "The learning rate or the data is exhausted; more of the same brings little.",
    ),
    _diagnosis(
        "SkyworkGapGrowing",
        "GapGrowing",
        "warning",
        "training loss falls away from held-out loss",
        "The gap grows: data is repeated, or has duplicates.",
    ),
    _diagnosis(
        "SkyworkLossSpiking", "LossSpiking", "warning", "the training loss spikes", "It lies far above its recent mean."
    ),
    _diagnosis(
        "SkyworkDataRepeated",
        "DataRepeated",
        "info",
        "a source is read too often",
        "More often than epochs.max, or than five times; or it has ended and others take its share.",
    ),
    _diagnosis(
        "SkyworkValidationIncomplete",
        "ValidationIncomplete",
        "warning",
        "domains are not measured",
        "A domain is missing, empty or does not fit into the time of a validation.",
    ),
)

_PACE = (
    _diagnosis(
        "SkyworkDataStarved",
        "DataStarved",
        "warning",
        "training waits for data",
        "A notable part of every step goes by until its sequences are there.",
    ),
    _diagnosis(
        "SkyworkThroughputLow",
        "ThroughputLow",
        "warning",
        "throughput has dropped",
        "Steps take longer than the same world took before.",
    ),
    Alert(
        name="SkyworkStraggling",
        expr=unfinished(
            f"max by ({RUN}, node) (skywork_run_straggler_slowdown) and on ({RUN}) ({condition('Straggling')})"
        ),
        lasting="1m",
        severity="warning",
        summary=f"{_WHICH}: node {{{{ $labels.node }}}} holds the others up",
        description="Its forward passes take {{ $value | humanize }} times the median; all nodes wait for it.",
    ),
    Alert(
        name="SkyworkOutOfMemory",
        expr=unfinished(
            rose('skywork_run_restarts_total{reason=~"OutOfMemory|HostOutOfMemory"}', f"{RUN}, reason", "1h")
        ),
        severity="warning",
        summary=f"{_WHICH} ran out of memory ({{{{ $labels.reason }}}})",
        description="OutOfMemory is the device's: the micro-batch was halved. HostOutOfMemory is the pod's limit.",
    ),
    Alert(
        name="SkyworkWorkersHang",
        expr=rose("skywork_agent_hangs_total", f"{RUN}, node, section", "1h"),
        severity="warning",
        summary=f"{_WHICH}: workers of node {{{{ $labels.node }}}} hung ({{{{ $labels.section }}}})",
        description="They showed no progress for longer than hangDetection allows; their stacks are in the pod's log.",
    ),
    Alert(
        name="SkyworkNodeAvoided",
        expr=unfinished(f"max by ({RUN}) (skywork_run_avoided_nodes) > 0"),
        lasting="1m",
        severity="warning",
        summary=f"{_WHICH} stays away from {{{{ $value }}}} node(s)",
        description="They failed too often, or show a hardware fault. status.nodeStrikes names them.",
    ),
    Alert(
        name="SkyworkStorageErrors",
        expr=f"{FAILED_REQUESTS} > 0.05",
        lasting="10m",
        severity="warning",
        summary=f"{_WHICH}: {{{{ $value | humanizePercentage }}}} of requests to object storage fail",
        description="Each is tried again, so training goes on, but more slowly, and soon not at all.",
    ),
)

_CHECKPOINTS = (
    _diagnosis(
        "SkyworkCheckpointStale",
        "CheckpointStale",
        "critical",
        "the newest checkpoint is too old",
        "More than twice the interval has gone by without a commit: the next crash costs all of it.",
    ),
    _diagnosis(
        "SkyworkCheckpointCorrupt",
        "CheckpointCorrupt",
        "warning",
        "a checkpoint cannot be read as it was written",
        "It was passed over, and an older one used.",
    ),
    Alert(
        name="SkyworkCheckpointsFail",
        expr=rose("skywork_checkpoint_failures_total", f"{RUN}, reason", "30m"),
        severity="warning",
        summary=f"{_WHICH}: checkpoints are not stored ({{{{ $labels.reason }}}})",
        description="Training goes on, and every failed save makes the next crash dearer.",
    ),
)

RUN_GROUPS = (
    Group(name="skywork-recorded", rules=RECORDED),
    Group(name="skywork-runs", rules=_RUNS),
    Group(name="skywork-curves", rules=_CURVES),
    Group(name="skywork-pace", rules=_PACE),
    Group(name="skywork-checkpoints", rules=_CHECKPOINTS),
)
