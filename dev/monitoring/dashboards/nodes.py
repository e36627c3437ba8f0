"""Dashboard of a run's nodes and of its data plane."""

from dev.monitoring.dashboard import Dashboard, Variable
from dev.monitoring.panels import Panel, Query, Row

_RUN = 'namespace=~"$namespace",run=~"$run"'
_HERE = f'{_RUN},stage=~"$stage",node=~"$node"'
_WORKER = "namespace, run, node, pod, local_rank"
_LEGEND = "{{node}} worker {{local_rank}}"


def _worker(metric: str) -> str:
    return f"max by ({_WORKER}) (skywork_{metric}{{{_HERE}}})"


def _agent(metric: str, by: str = "node, pod") -> str:
    return f"max by ({by}) (skywork_agent_{metric}{{{_HERE}}})"


def _rate(metric: str, by: str) -> str:
    return f"sum by ({by}) (rate(skywork_{metric}{{{_HERE}}}[$__rate_interval]))"


_TO_THE_MEDIAN = (
    f"{_worker('worker_forward_seconds')} / on (namespace, run) group_left ()"
    f" (quantile by (namespace, run) (0.5, skywork_worker_forward_seconds{{{_RUN}}}) > 0)"
)

_COMPUTE = Row(
    title="Computing",
    panels=(
        Panel(
            title="Forward passes of a step",
            description="What they take on each worker, lately. Nobody waits for anybody in them.",
            unit="s",
            width=6,
            least=0,
            queries=(Query(expr=_worker("worker_forward_seconds"), legend=_LEGEND),),
        ),
        Panel(
            title="Against the median",
            description="The same by the median of the run's workers. One that stays above 1.25 is a straggler.",
            unit="none",
            width=6,
            least=0,
            steps=((None, "green"), (1.25, "red")),
            queries=(Query(expr=_TO_THE_MEDIAN, legend=_LEGEND),),
        ),
        Panel(
            title="Slowest workers",
            description="The ten with the longest forward passes now, by times the median of their run.",
            unit="none",
            kind="bargauge",
            width=6,
            least=0,
            steps=((None, "green"), (1.25, "red")),
            queries=(Query(expr=f"topk(10, {_TO_THE_MEDIAN})", legend=_LEGEND, instant=True),),
        ),
        Panel(
            title="Stragglers",
            description="Nodes that the operator finds slow: times as long as the median.",
            unit="none",
            width=6,
            least=1,
            queries=(
                Query(
                    expr=f'max by (run, node) (skywork_run_straggler_slowdown{{{_RUN},node=~"$node"}})',
                    legend="{{run}} {{node}}",
                ),
            ),
        ),
        Panel(
            title="CPU",
            description="Cores that the pod uses.",
            unit="none",
            least=0,
            queries=(Query(expr=_rate("agent_cpu_seconds_total", "node, pod"), legend="{{node}} {{pod}}"),),
        ),
        Panel(
            title="Memory of the pod",
            description="In use, and what it may use at most.",
            unit="bytes",
            least=0,
            queries=(
                Query(expr=_agent("memory_bytes"), legend="{{node}} {{pod}}"),
                Query(expr=_agent("memory_limit_bytes"), legend="limit {{node}} {{pod}}"),
            ),
        ),
        Panel(
            title="Memory of the workers",
            description="Resident, of each worker process.",
            unit="bytes",
            least=0,
            queries=(Query(expr=_worker("worker_resident_memory_bytes"), legend=_LEGEND),),
        ),
        Panel(
            title="Device memory",
            description="In use on each worker's device. Only with GPUs.",
            unit="bytes",
            width=12,
            least=0,
            queries=(Query(expr=_worker("worker_device_memory_bytes"), legend=_LEGEND),),
        ),
        Panel(
            title="Device memory in use",
            description="As a share of what the device has. Only with GPUs.",
            unit="percentunit",
            width=12,
            least=0,
            most=1,
            queries=(
                Query(
                    expr=f"{_worker('worker_device_memory_bytes')} / {_worker('worker_device_memory_limit_bytes')}",
                    legend=_LEGEND,
                ),
            ),
        ),
    ),
)

_DATA = Row(
    title="Data",
    panels=(
        Panel(
            title="Waiting for data",
            description="Part of each second that a worker waits for its sequences.",
            unit="percentunit",
            least=0,
            queries=(Query(expr=_rate("data_wait_seconds_total", _WORKER), legend=_LEGEND),),
        ),
        Panel(
            title="Fetched",
            description="Bytes of shards fetched and verified per second.",
            unit="Bps",
            least=0,
            queries=(Query(expr=_rate("data_fetched_bytes_total", "node"), legend="{{node}}"),),
        ),
        Panel(
            title="Parts fetched",
            description="Parts of shards fetched and verified per second.",
            unit="none",
            least=0,
            queries=(Query(expr=_rate("data_fetched_parts_total", "node"), legend="{{node}}"),),
        ),
        Panel(
            title="Cache hits",
            description="Part of the parts read that were on the node's disk already.",
            unit="percentunit",
            least=0,
            most=1,
            queries=(
                Query(
                    expr=(
                        f"{_rate('data_cache_hits_total', 'node')} / ({_rate('data_cache_hits_total', 'node')}"
                        f" + {_rate('data_cache_misses_total', 'node')} > 0)"
                    ),
                    legend="{{node}}",
                ),
            ),
        ),
        Panel(
            title="Cache",
            description="Used part of the file system that holds the cache of shards.",
            unit="percentunit",
            least=0,
            most=1,
            queries=(
                Query(
                    expr=f"1 - {_agent('cache_free_bytes')} / {_agent('cache_size_bytes')}",
                    legend="{{node}} {{pod}}",
                ),
            ),
        ),
        Panel(
            title="Trouble with parts",
            description=(
                "Per second: requests raced because they were slow, requests that failed, answers with wrong bytes."
            ),
            unit="none",
            least=0,
            queries=(
                Query(expr=_rate("data_hedged_requests_total", "node"), legend="hedged {{node}}"),
                Query(expr=_rate("data_failed_requests_total", "node"), legend="failed {{node}}"),
                Query(expr=_rate("data_corrupt_answers_total", "node"), legend="corrupt {{node}}"),
            ),
        ),
    ),
)

_STORAGE = Row(
    title="Object storage",
    panels=(
        Panel(
            title="Requests by code",
            description="Per second, every attempt, by HTTP status or error.",
            unit="reqps",
            width=12,
            least=0,
            stacked=True,
            queries=(Query(expr=_rate("storage_requests_total", "code"), legend="{{code}}"),),
        ),
        Panel(
            title="Requests by operation",
            description="Per second, every attempt.",
            unit="reqps",
            width=12,
            least=0,
            stacked=True,
            queries=(Query(expr=_rate("storage_requests_total", "operation"), legend="{{operation}}"),),
        ),
    ),
)

_AGENTS = Row(
    title="Agents",
    panels=(
        Panel(
            title="Workers",
            description="Worker processes that run on each node.",
            unit="none",
            least=0,
            queries=(Query(expr=_agent("workers"), legend="{{node}} {{pod}}"),),
        ),
        Panel(
            title="Generation",
            description="Newest generation started on each node; all should show the same.",
            unit="none",
            least=0,
            queries=(Query(expr=_agent("generation"), legend="{{node}} {{pod}}"),),
        ),
        Panel(
            title="Longest silence",
            description="Since the oldest of the workers' newest signs of progress.",
            unit="s",
            least=0,
            queries=(Query(expr=_agent("longest_silence_seconds"), legend="{{node}} {{pod}}"),),
        ),
        Panel(
            title="Ends of workers",
            description="Workers that ended, by reason: the restarts of each node.",
            unit="none",
            width=6,
            least=0,
            queries=(Query(expr=_agent("worker_exits_total", "node, pod, reason"), legend="{{node}} {{reason}}"),),
        ),
        Panel(
            title="Hangs",
            description="Generations given up on a node for lack of progress, by what they were doing.",
            unit="none",
            width=6,
            least=0,
            queries=(Query(expr=_agent("hangs_total", "node, pod, section"), legend="{{node}} {{section}}"),),
        ),
        Panel(
            title="Start of workers",
            description=(
                "From reading a membership to running workers; and, once a pod, until workers could be forked at all."
            ),
            unit="s",
            width=6,
            least=0,
            queries=(
                Query(expr=_agent("last_start_seconds"), legend="{{node}} {{pod}}"),
                Query(expr=_agent("fork_server_warm_seconds"), legend="warm {{node}} {{pod}}"),
            ),
        ),
        Panel(
            title="Nodes avoided",
            description="Nodes that each run's pods stay away from.",
            unit="none",
            width=6,
            least=0,
            queries=(Query(expr=f"max by (run) (skywork_run_avoided_nodes{{{_RUN}}})", legend="{{run}}"),),
        ),
    ),
)

NODES = Dashboard(
    uid="skywork-nodes",
    title="Skywork / Nodes and data",
    description="What each node of a run does: computing, memory, data, object storage, agents.",
    variables=(
        Variable(name="namespace", metric="skywork_agent_workers"),
        Variable(name="run", metric='skywork_agent_workers{namespace=~"$namespace"}'),
        Variable(name="stage", metric=f"skywork_agent_workers{{{_RUN}}}"),
        Variable(name="node", metric=f"skywork_agent_workers{{{_RUN}}}"),
    ),
    rows=(_COMPUTE, _DATA, _STORAGE, _AGENTS),
    since="now-6h",
)
