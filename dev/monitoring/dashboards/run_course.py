"""Rows of a run's dashboard about its course: throughput, goodput and faults, checkpoints."""

from dev.monitoring.dashboards.queries import CHOSEN, of_run, of_trainer, quantile, rate
from dev.monitoring.panels import Panel, Query, Row
from dev.monitoring.run_rules import GOODPUT

_TRUE = ',status="True"'

PACE = Row(
    title="Throughput",
    panels=(
        Panel(
            title="Tokens per second",
            description="Over all nodes, newest step.",
            unit="suffix: tok/s",
            least=0,
            queries=(Query(expr=of_trainer("train_tokens_per_second", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Model FLOPs utilisation",
            description="Model FLOPs as a share of the devices' dense bf16 peak. Only where that is known.",
            unit="percentunit",
            least=0,
            queries=(Query(expr=of_run("model_flops_utilization_ratio"), legend="MFU"),),
        ),
        Panel(
            title="Model FLOPs",
            description="Per second over all ranks, newest step.",
            unit="flops",
            least=0,
            queries=(Query(expr=of_trainer("train_model_flops_per_second", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Duration of a step",
            description="From one step's end to the next's.",
            unit="s",
            least=0,
            queries=(
                Query(expr=quantile("train_step_duration_seconds", 0.5), legend="median"),
                Query(expr=quantile("train_step_duration_seconds", 0.95), legend="95 %"),
            ),
        ),
        Panel(
            title="Steps per second",
            description="Steps that are done; a rollback or a crash does not count backwards.",
            unit="none",
            least=0,
            queries=(Query(expr=rate("train_steps_total", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Time of rank 0",
            description="What rank 0 of this generation does with each second.",
            unit="percentunit",
            least=0,
            most=1,
            stacked=True,
            queries=(Query(expr=rate("train_time_seconds_total", "state"), legend="{{state}}"),),
        ),
    ),
)

_SPENT = "skywork_run_time_seconds_total"

FAULTS = Row(
    title="Goodput and faults",
    panels=(
        Panel(
            title="Where the time goes",
            description=(
                "Share of each second by what the run did with it. Lost are steps that had to be trained again; in "
                "idle time nothing of the run worked."
            ),
            unit="percentunit",
            least=0,
            most=1,
            stacked=True,
            queries=(
                Query(
                    expr=(
                        f"sum by (state) (rate({_SPENT}{{{CHOSEN}}}[$__rate_interval]))"
                        f" / on () group_left () (sum(rate({_SPENT}{{{CHOSEN}}}[$__rate_interval])) > 0)"
                    ),
                    legend="{{state}}",
                ),
            ),
        ),
        Panel(
            title="Goodput",
            description="Part of the time in which steps were trained that count: of all, and of the last hour.",
            unit="percentunit",
            least=0,
            most=1,
            queries=(
                Query(expr=of_run("goodput_ratio"), legend="since the start"),
                Query(expr=f"{GOODPUT}{{{CHOSEN}}}", legend="last hour"),
            ),
        ),
        Panel(
            title="All time so far",
            description="Seconds by state since the run's start; together they are all of it.",
            unit="s",
            kind="bargauge",
            least=0,
            queries=(Query(expr=f"max by (state) ({_SPENT}{{{CHOSEN}}})", legend="{{state}}", instant=True),),
        ),
        Panel(
            title="Restarts by reason",
            description="Generations that ended early.",
            unit="none",
            least=0,
            queries=(Query(expr=of_run("restarts_total", "reason"), legend="{{reason}}"),),
        ),
        Panel(
            title="Newest recovery",
            description="From the end of one generation to the first step of the next, part by part.",
            unit="s",
            least=0,
            stacked=True,
            queries=(Query(expr=of_run("recovery_seconds", "part", more=',part!="total"'), legend="{{part}}"),),
        ),
        Panel(
            title="Nodes",
            description="Nodes asked for, ready, and in the world that trains.",
            unit="none",
            least=0,
            queries=(Query(expr=of_run("nodes", "state"), legend="{{state}}"),),
        ),
        Panel(
            title="Generation",
            description="Newest generation: a world of fixed membership. Any change of it starts the next.",
            unit="none",
            least=0,
            queries=(
                Query(expr=of_run("generation"), legend="operator"),
                Query(expr=of_trainer("generation"), legend="trainer"),
            ),
        ),
        Panel(
            title="Conditions",
            description="Spans in which a condition was True; what each says is in the run's status.",
            kind="state-timeline",
            unit="none",
            width=16,
            queries=(Query(expr=f"{of_run('condition', 'type', more=_TRUE)} == 1", legend="{{type}}"),),
        ),
    ),
)

CHECKPOINTS = Row(
    title="Checkpoints",
    panels=(
        Panel(
            title="Age of the newest checkpoint",
            description="Time since the newest commit, beside the interval that the spec asks for.",
            unit="s",
            least=0,
            queries=(
                Query(expr=f"time() - {of_run('last_checkpoint_timestamp_seconds')}", legend="age"),
                Query(expr=of_run("checkpoint_interval_seconds"), legend="interval"),
            ),
        ),
        Panel(
            title="Duration of a save",
            description="From the copy to the commit, beside training.",
            unit="s",
            least=0,
            queries=(Query(expr=of_trainer("checkpoint_duration_seconds", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Training stands still",
            description="How long for one save, while the state is copied.",
            unit="s",
            least=0,
            queries=(
                Query(expr=quantile("checkpoint_stall_seconds", 0.5), legend="median"),
                Query(expr=quantile("checkpoint_stall_seconds", 0.99), legend="99 %"),
            ),
        ),
        Panel(
            title="Saves",
            description="Committed; kept on the nodes only; and not begun, because another was in flight.",
            unit="none",
            least=0,
            queries=(
                Query(expr=of_trainer("checkpoint_commits_total"), legend="committed"),
                Query(expr=of_trainer("checkpoint_local_commits_total"), legend="nodes only"),
                Query(expr=of_trainer("checkpoint_skipped_total"), legend="not begun"),
                Query(expr=of_trainer("checkpoint_in_flight"), legend="in flight"),
            ),
        ),
        Panel(
            title="Failed saves",
            description="Saves that came to nothing while training went on, by reason.",
            unit="none",
            least=0,
            queries=(Query(expr=of_trainer("checkpoint_failures_total", "reason"), legend="{{reason}}"),),
        ),
        Panel(
            title="Corrupt",
            description="Checkpoints that were passed over when this generation started.",
            unit="none",
            least=0,
            queries=(Query(expr=of_trainer("checkpoint_corrupt"), legend="passed over"),),
        ),
        Panel(
            title="Size",
            description="Of the newest checkpoint, all ranks.",
            unit="bytes",
            width=12,
            least=0,
            queries=(Query(expr=of_trainer("checkpoint_size_bytes", "stage"), legend="{{stage}}"),),
        ),
        Panel(
            title="Steps at risk",
            description="Steps since the newest checkpoint: what a crash would cost now.",
            unit="none",
            width=12,
            least=0,
            queries=(Query(expr=f"{of_run('step')} - {of_run('last_checkpoint_step')}", legend="steps"),),
        ),
    ),
)
