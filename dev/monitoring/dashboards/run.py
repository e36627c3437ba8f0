"""Dashboard of one run."""

from dev.monitoring.dashboard import Annotation, Dashboard, Variable
from dev.monitoring.dashboards.queries import CHOSEN, LOSS, of_run
from dev.monitoring.dashboards.run_course import CHECKPOINTS, FAULTS, PACE
from dev.monitoring.dashboards.run_learning import DATA, OPTIMISATION, VALIDATION
from dev.monitoring.panels import Panel, Query, Row
from dev.monitoring.promql import RUN
from dev.monitoring.run_rules import RESTARTS

_DIAGNOSES = (
    "DomainsDiverging|Forgetting|Plateau|GapGrowing|LossSpiking|DataStarved|ThroughputLow|ValidationIncomplete"
    "|Straggling|CheckpointStale|CheckpointCorrupt|MicroBatchReduced|DataRepeated"
)


def _number(
    title: str, description: str, expr: str, unit: str, steps: tuple[tuple[float | None, str], ...] = ()
) -> Panel:
    query = Query(expr=expr, instant=True)
    return Panel(
        title=title, description=description, unit=unit, kind="stat", width=3, height=4, steps=steps, queries=(query,)
    )


def _word(title: str, description: str, expr: str, legend: str) -> Panel:
    query = Query(expr=expr, legend=legend, instant=True)
    return Panel(
        title=title, description=description, unit="none", kind="stat", width=3, height=4, text=True, queries=(query,)
    )


_NOW = Row(
    title="Now",
    panels=(
        _word("State", "As in kubectl get skyworkruns.", f"{of_run('state_info', 'state')} == 1", "{{state}}"),
        _word("Stage", "Stage being trained.", f"{of_run('stage_info', 'stage')} == 1", "{{stage}}"),
        _number("Progress", "Part of all stages' tokens that is trained.", of_run("progress_ratio"), "percentunit"),
        _number(
            "ETA",
            "When the last stage should end, by the pace of late.",
            f"1000 * {of_run('estimated_completion_timestamp_seconds')}",
            "dateTimeFromNow",
        ),
        _number("Tokens", "Trained in all stages.", of_run("tokens"), "short"),
        _number("Tokens in all", "Tokens of all stages.", of_run("tokens_target"), "short"),
        _number("Running for", "Since the first stage began.", f"time() - {of_run('start_timestamp_seconds')}", "s"),
        _number("Step", "Steps that are done.", of_run("step"), "none"),
        _number("Validation loss", f"Mean over the domains. {LOSS}", of_run("validation_average_loss"), "none"),
        _number(
            "Perplexity",
            "exp of the mean of the domains' log perplexities, as the Skywork report averages.",
            of_run("validation_average_perplexity"),
            "none",
        ),
        _number("Train loss", f"Of the newest step. {LOSS}", of_run("train_loss"), "none"),
        _number("Throughput", "Tokens per second over all nodes.", of_run("tokens_per_second"), "suffix: tok/s"),
        _number(
            "Goodput so far",
            "Part of all time since the start in which steps were trained that count.",
            of_run("goodput_ratio"),
            "percentunit",
            ((None, "red"), (0.7, "orange"), (0.9, "green")),
        ),
        _number("Nodes training", "Nodes of the world that trains.", of_run("nodes", more=',state="training"'), "none"),
        _number("Restarts", "Generations that ended early.", f"{RESTARTS}{{{CHOSEN}}}", "none"),
        _number(
            "Checkpoint age",
            "Age of the newest commit.",
            f"time() - {of_run('last_checkpoint_timestamp_seconds')}",
            "s",
        ),
    ),
)

_ANNOTATIONS = (
    Annotation(
        name="Stages",
        expr=(
            f"max by (stage) (skywork_run_stage_info{{{CHOSEN}}})"
            f" unless on (stage) skywork_run_stage_info{{{CHOSEN}}} offset 1m"
        ),
        color="purple",
        title="Stage {{stage}}",
    ),
    Annotation(
        name="Generations",
        expr=f"max by ({RUN}) (changes(skywork_run_generation{{{CHOSEN}}}[1m])) > 0",
        color="blue",
        title="New generation",
        shown=False,
    ),
    Annotation(
        name="Restarts",
        expr=(
            f"max by (reason) (skywork_run_restarts_total{{{CHOSEN}}}) - on (reason)"
            f" (max by (reason) (skywork_run_restarts_total{{{CHOSEN}}} offset 1m)"
            f" or 0 * max by (reason) (skywork_run_restarts_total{{{CHOSEN}}})) > 0"
        ),
        color="orange",
        title="Restart: {{reason}}",
    ),
    Annotation(
        name="Diagnoses",
        expr=f'max by (type) (skywork_run_condition{{{CHOSEN},status="True",type=~"{_DIAGNOSES}"}}) == 1',
        color="red",
        title="{{type}}",
        text="The condition of that name has evidence and advice.",
    ),
)

RUN_DASHBOARD = Dashboard(
    uid="skywork-run",
    title="Skywork / Run",
    description="One run: what it learns, at what pace, and what came between.",
    variables=(
        Variable(name="namespace", metric="skywork_run_generation", several=False),
        Variable(name="run", metric='skywork_run_generation{namespace="$namespace"}', several=False),
        Variable(name="stage", metric=f"skywork_train_loss{{{CHOSEN}}}"),
    ),
    rows=(_NOW, VALIDATION, OPTIMISATION, DATA, PACE, FAULTS, CHECKPOINTS),
    annotations=_ANNOTATIONS,
)
