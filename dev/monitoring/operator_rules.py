"""Rules about the operator itself."""

from dev.monitoring.rules import Alert, Group

OPERATOR_GROUPS = (
    Group(
        name="skywork-operator",
        rules=(
            Alert(
                name="SkyworkOperatorAbsent",
                expr="absent(skywork_operator_build_info)",
                lasting="5m",
                severity="critical",
                summary="No Skywork operator is seen by Prometheus",
                description="Training goes on, but no failure is noticed and nothing is started.",
            ),
            Alert(
                name="SkyworkOperatorNoLeader",
                expr="sum by (namespace) (skywork_operator_is_leader) == 0",
                lasting="2m",
                severity="critical",
                summary="None of the operators in {{ $labels.namespace }} leads",
                description="They run, and none of them acts: no failure is answered until one gets the Lease.",
            ),
            Alert(
                name="SkyworkOperatorWatchStalled",
                expr="max by (namespace, pod) (skywork_operator_watch_age_seconds) > 60",
                lasting="1m",
                severity="critical",
                summary="The operator {{ $labels.namespace }}/{{ $labels.pod }} hears nothing from the API server",
                description="Not even its own heartbeat, due every 20 s, came back for {{ $value | humanize }} s.",
            ),
            Alert(
                name="SkyworkOperatorQueueOld",
                expr=(
                    "max by (namespace, pod) (skywork_operator_queue_oldest_wait_seconds) > 30"
                    " or max by (namespace, pod) (skywork_operator_longest_pass_seconds) > 45"
                ),
                lasting="2m",
                severity="warning",
                summary="Runs wait for the operator {{ $labels.namespace }}/{{ $labels.pod }}",
                description="A run waits, or a pass takes, for {{ $value | humanize }} s: failures are answered late.",
            ),
            Alert(
                name="SkyworkOperatorErrors",
                expr=(
                    'sum by (namespace, pod) (rate(skywork_operator_reconcile_total{result="error"}[10m]))'
                    " / (sum by (namespace, pod) (rate(skywork_operator_reconcile_total[10m])) > 0) > 0.1"
                ),
                lasting="5m",
                severity="warning",
                summary="{{ $value | humanizePercentage }} of the passes of the operator {{ $labels.pod }} fail",
                description="They are repeated with growing pauses. Its log names the runs and the errors.",
            ),
        ),
    ),
)
