"""Dashboard of all runs, and of the operator that keeps them."""

from dev.monitoring.dashboard import Dashboard, Variable
from dev.monitoring.panels import Panel, Query, Row
from dev.monitoring.promql import RUN
from dev.monitoring.run_rules import GOODPUT, RESTARTS

_CHOSEN = 'namespace=~"$namespace",run=~"$run"'
# Conditions of these types tell of a run's normal course; all others of something to look at.
_TO_LOOK_AT = ',status="True",type!~"Accepted|Prepared|Running|Suspended|Succeeded|Failed"'


def _newest(metric: str, *, by: str = RUN, more: str = "") -> str:
    return f"max by ({by}) (skywork_run_{metric}{{{_CHOSEN}{more}}})"


def _cell(metric: str, **words: str) -> Query:
    return Query(expr=_newest(metric, **words), instant=True)


_TABLE = Panel(
    title="Runs",
    description="Every run that exists, finished ones among them. A name leads to that run's dashboard.",
    kind="table",
    width=24,
    height=9,
    unit="none",
    queries=(
        Query(expr=f"{_newest('state_info', by=f'{RUN}, state')} == 1", instant=True),
        Query(expr=f"{_newest('stage_info', by=f'{RUN}, stage')} == 1", instant=True),
        _cell("progress_ratio"),
        _cell("tokens"),
        Query(expr=f"1000 * {_newest('estimated_completion_timestamp_seconds')}", instant=True),
        _cell("validation_average_loss"),
        _cell("train_loss"),
        _cell("tokens_per_second"),
        _cell("goodput_ratio"),
        _cell("nodes", more=',state="training"'),
        Query(expr=f"{RESTARTS}{{{_CHOSEN}}}", instant=True),
        Query(expr=f"time() - {_newest('last_checkpoint_timestamp_seconds')}", instant=True),
    ),
    columns={
        "namespace": ("namespace", "none"),
        "run": ("run", "none"),
        "state": ("state", "none"),
        "stage": ("stage", "none"),
        "Value #C": ("progress", "percentunit"),
        "Value #D": ("tokens", "short"),
        "Value #E": ("ETA", "dateTimeFromNow"),
        "Value #F": ("validation loss", "none"),
        "Value #G": ("train loss", "none"),
        "Value #H": ("tokens/s", "short"),
        "Value #I": ("goodput", "percentunit"),
        "Value #J": ("nodes", "none"),
        "Value #K": ("restarts", "none"),
        "Value #L": ("checkpoint age", "s"),
    },
    links={
        "run": (
            "/d/skywork-run?var-namespace=${__data.fields.namespace}&var-run=${__data.fields.run}"
            "&${datasource:queryparam}&${__url_time_range}"
        )
    },
)

_RUNS = Row(
    title="Runs",
    panels=(
        Panel(
            title="Runs by state",
            description="How many runs are in each state now.",
            kind="bargauge",
            unit="none",
            width=8,
            height=6,
            least=0,
            queries=(
                Query(
                    expr=f"sum by (state) ({_newest('state_info', by=f'{RUN}, state')})",
                    legend="{{state}}",
                    instant=True,
                ),
            ),
        ),
        Panel(
            title="Throughput of all runs",
            description="Tokens trained per second.",
            unit="suffix: tok/s",
            width=8,
            height=6,
            least=0,
            queries=(Query(expr=f"sum({_newest('tokens_per_second')})", legend="all runs"),),
        ),
        Panel(
            title="Alerts that fire",
            description="Alerts of the chart's rules; empty when all is well.",
            kind="table",
            unit="none",
            width=8,
            height=6,
            queries=(
                Query(
                    expr=(
                        f'max by (alertname, severity, {RUN}) (ALERTS{{alertname=~"Skywork.*",alertstate="firing"}})'
                    ),
                    instant=True,
                ),
            ),
            columns={
                "alertname": ("alert", "none"),
                "severity": ("severity", "none"),
                "namespace": ("namespace", "none"),
                "run": ("run", "none"),
            },
        ),
        _TABLE,
        Panel(
            title="Progress",
            description="Part of all stages' tokens that is trained.",
            unit="percentunit",
            least=0,
            most=1,
            queries=(Query(expr=_newest("progress_ratio"), legend="{{namespace}}/{{run}}"),),
        ),
        Panel(
            title="Average validation loss",
            description="Mean over the held-out domains, each weighing the same; nats per token.",
            unit="none",
            queries=(Query(expr=_newest("validation_average_loss"), legend="{{namespace}}/{{run}}"),),
        ),
        Panel(
            title="Training loss",
            description="Newest step's, nats per token.",
            unit="none",
            queries=(Query(expr=_newest("train_loss"), legend="{{namespace}}/{{run}}"),),
        ),
        Panel(
            title="Goodput of the last hour",
            description="Part of the time in which steps were trained that count.",
            unit="percentunit",
            least=0,
            most=1,
            queries=(Query(expr=f"{GOODPUT}{{{_CHOSEN}}}", legend="{{namespace}}/{{run}}"),),
        ),
        Panel(
            title="Restarts",
            description="Generations that ended early, since each run's start.",
            unit="none",
            least=0,
            queries=(Query(expr=f"{RESTARTS}{{{_CHOSEN}}}", legend="{{namespace}}/{{run}}"),),
        ),
        Panel(
            title="Conditions to look at",
            description="Spans in which a condition held that is no part of a run's normal course.",
            kind="state-timeline",
            unit="none",
            queries=(
                Query(
                    expr=f"{_newest('condition', by=f'{RUN}, type', more=_TO_LOOK_AT)} == 1",
                    legend="{{run}} {{type}}",
                ),
            ),
        ),
    ),
)


def _own(metric: str, by: str = "namespace, pod") -> str:
    return f"max by ({by}) (skywork_operator_{metric})"


def _quantile(metric: str, share: float) -> str:
    buckets = f"sum by (le) (rate(skywork_operator_{metric}_bucket[$__rate_interval]))"
    return f"histogram_quantile({share}, {buckets})"


_OPERATOR = Row(
    title="Operator",
    panels=(
        Panel(
            title="Operators",
            description="1 leads and acts, 0 stands by.",
            unit="none",
            least=0,
            queries=(Query(expr=_own("is_leader"), legend="{{namespace}}/{{pod}} leads"),),
        ),
        Panel(
            title="Queue",
            description="Runs that wait for a worker of the operator.",
            unit="none",
            least=0,
            queries=(Query(expr=_own("queue_depth"), legend="{{pod}}"),),
        ),
        Panel(
            title="Waiting",
            description=(
                "How long runs wait for a worker of the operator. Oldest and longest pass are of now; the liveness "
                "probe turns red at 90 s."
            ),
            unit="s",
            least=0,
            queries=(
                Query(expr=_quantile("queue_duration_seconds", 0.99), legend="99 % wait less"),
                Query(expr=_own("queue_oldest_wait_seconds"), legend="oldest, {{pod}}"),
                Query(expr=_own("longest_pass_seconds"), legend="longest pass, {{pod}}"),
            ),
        ),
        Panel(
            title="Passes",
            description="Passes over runs per second, by how they ended; and how many were asked for, and repeated.",
            unit="ops",
            width=6,
            least=0,
            queries=(
                Query(
                    expr="sum by (result) (rate(skywork_operator_reconcile_total[$__rate_interval]))",
                    legend="{{result}}",
                ),
                Query(expr="sum(rate(skywork_operator_queue_adds_total[$__rate_interval]))", legend="asked for"),
                Query(expr="sum(rate(skywork_operator_queue_retries_total[$__rate_interval]))", legend="repeated"),
            ),
        ),
        Panel(
            title="Duration of a pass",
            description="Observe, decide, act: mostly waiting for the API server and for agents.",
            unit="s",
            width=6,
            least=0,
            queries=(
                Query(expr=_quantile("reconcile_duration_seconds", 0.5), legend="median"),
                Query(expr=_quantile("reconcile_duration_seconds", 0.99), legend="99 %"),
            ),
        ),
        Panel(
            title="Age of the watch",
            description="Since the newest event, the operator's own heartbeat among them: below 20 s when all is well.",
            unit="s",
            width=6,
            least=0,
            steps=((None, "green"), (60, "red")),
            queries=(Query(expr=_own("watch_age_seconds"), legend="{{pod}}"),),
        ),
        Panel(
            title="Version",
            description="Versions of the operators that run.",
            kind="stat",
            unit="none",
            width=6,
            text=True,
            queries=(Query(expr="max by (version) (skywork_operator_build_info)", legend="{{version}}", instant=True),),
        ),
    ),
)

FLEET = Dashboard(
    uid="skywork-fleet",
    title="Skywork / Fleet",
    description="All runs, and the operator that keeps them.",
    variables=(
        Variable(name="namespace", metric="skywork_run_generation"),
        Variable(name="run", metric='skywork_run_generation{namespace=~"$namespace"}'),
    ),
    rows=(_RUNS, _OPERATOR),
)
