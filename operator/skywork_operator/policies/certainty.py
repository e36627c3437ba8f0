"""Which plans may rest on what watches told, and which only on a read of this moment.

A watch may be late. A pass that took a pod for gone that is only not heard of yet would end a generation that is well,
so whatever touches pods or Jobs, or counts, is decided once more on what the API server says when asked.
"""

from skywork_operator.api.status import SkyworkRunStatus
from skywork_operator.world import Plan


def wanted(before: SkyworkRunStatus, plan: Plan) -> bool:
    """Whether `plan` has to be made again from fresh reads before it is carried out.

    Pods may be let go to the scheduler without: that is meant for exactly one pod, and right whenever it is gated.
    """
    acts = (
        *(plan.objects, plan.suspend, plan.delete_jobs, plan.resize, plan.memberships),
        *(plan.untrack, plan.forget, plan.delete_pods),
    )
    return any(acts) or plan.delete_run or _turns(before) != _turns(plan.status)


def _turns(status: SkyworkRunStatus) -> tuple[object, ...]:
    """What of a status decides what comes next, as opposed to what it merely tells."""
    conditions = {said.type: said.status for said in status.conditions}
    return status.generation, status.generation_end, status.restarts, status.node_strikes, status.stage, conditions
