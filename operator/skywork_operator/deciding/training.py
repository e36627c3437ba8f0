"""A stage that has a Job: its world is left alone, ended, formed anew, grown or resized."""

from collections.abc import Sequence
from dataclasses import replace

from skywork_trainer.config import HANG, PEER_LOST, AgentStatus, Membership, Role

from skywork_operator.api.quantities import parse_duration_seconds
from skywork_operator.api.status import NodeCounts
from skywork_operator.deciding.draft import Draft
from skywork_operator.deciding.hearing import hear
from skywork_operator.policies import (
    delivery,
    failures,
    membership,
    nodes,
    pace,
    recovery,
    report,
    staleness,
    stragglers,
    strikes,
)
from skywork_operator.policies.conditions import find
from skywork_operator.policies.membership import Generation
from skywork_operator.render import object_name
from skywork_operator.times import seconds, timestamp
from skywork_operator.world import Job, Plan, Pod, World

STARTING_POLL_SECONDS = 1.0
TRAINING_POLL_SECONDS = 5.0
"""Failures come as events, by the pods' readiness: this is for how far training is."""
GATHER_SECONDS = 3.0
"""How long members that answer have to tell where they stand in a world that hangs, or what it was that lost a peer."""
EXPLAIN_SECONDS = 5.0
"""How long a kubelet has to say why a member that is silent has ended: it takes one to three seconds."""


def train(draft: Draft, world: World, stage: str) -> Plan:
    """One pass over a stage whose Job exists, and whose pods are judged."""
    plan = _with_pods(draft, world, stage)
    policy = draft.run.spec.failure_policy
    after = parse_duration_seconds(policy.node_lost_after)
    forgotten = nodes.to_forget(world.pods, world.nodes, draft.now, after_seconds=after)
    for pod in forgotten:
        reason, message = pod.lost or ("", "")
        draft.tell("Warning", reason, f"pod {pod.name} is given up, so that it is replaced: {message}")
    due = nodes.next_to_forget_seconds(world.pods, world.nodes, draft.now, after_seconds=after)
    shunned = strikes.avoided(draft.status.node_strikes)
    admitted = tuple((pod, shunned) for pod in world.pods if pod.gated and not pod.terminating)
    spoken_to = {pod.uid for pod, _ in plan.memberships}
    again = [(pod, word) for pod, word in delivery.unheard(world.pods, draft.now) if pod.uid not in spoken_to]
    for pod, word in again:
        draft.tell("Normal", "ToldAgain", f"pod {pod.name} has not heard of generation {word.generation}: told again")
    return replace(
        plan,
        memberships=(*plan.memberships, *again),
        events=draft.events,
        untrack=nodes.to_untrack(world.pods),
        forget=forgotten,
        admit=admitted,
        resize=_resize(draft, world, stage),
        requeue_after_seconds=min((s for s in (plan.requeue_after_seconds, due) if s is not None), default=None),
    )


def _resize(draft: Draft, world: World, stage: str) -> tuple[tuple[str, int], ...]:
    wanted, job = pods_wanted(draft), world.jobs[stage]
    if job.pods in (None, wanted) or job.deleting or any(pod.done for pod in world.pods):
        return ()
    draft.tell("Normal", "Resized", f"stage {stage} asks for {wanted} pods instead of {job.pods}")
    return ((object_name(draft.run.name, stage), wanted),)


def pods_wanted(draft: Draft) -> int:
    """Pods of a stage: its most nodes, and the spares."""
    return draft.run.spec.trainer.nodes.max + draft.run.spec.trainer.nodes.spares


def _with_pods(draft: Draft, world: World, stage: str) -> Plan:
    generation = membership.observe_generation(world.pods)
    words = report.newest_progress(world.pods)
    hear(draft, words, stage)
    draft.update(
        stage=stage,
        nodes=NodeCounts(
            desired=draft.run.spec.trainer.nodes.max,
            ready=sum(pod.usable or pod.phase == "Succeeded" for pod in world.pods),
            training=generation.nodes if generation.intact else 0,
        ),
    )
    _look_for_recovery(draft, world)
    if generation.finished and not generation.intact:
        # What is left of the world, spares and late comers have nothing to do: the stage is trained and committed.
        leaving = tuple(membership.dismissals(world.pods, generation=_fresh_number(draft, generation)))
        draft.update(generation=leaving[0][1].generation if leaving else draft.status.generation)
        return draft.plan(memberships=leaving, requeue_after_seconds=STARTING_POLL_SECONDS)
    if generation.intact:
        return _go_on(draft, world, generation, words)
    # status.generation runs ahead of the pods between the two writes of a pass: that end is counted already.
    if generation.number and generation.number >= draft.status.generation and not draft.denied("Running"):
        if _still_gathering(generation, draft.now):
            return draft.plan(requeue_after_seconds=0.3)
        return _end(draft, world, stage, generation)
    return _form_world(draft, world, stage, generation)


# -- a world that trains ---------------------------------------------------------------------------------------------


def _go_on(draft: Draft, world: World, generation: Generation, words: AgentStatus | None) -> Plan:
    progress = words.progress if words is not None else None
    # Until a world tells of itself, the last one's words are the newest: they say nothing of how far this one is.
    of_this = words is not None and words.generation == generation.number
    started = of_this and progress is not None and progress.first_step_time > 0
    draft.say("Running", True, "Training", f"generation {generation.number} trains on {generation.nodes} nodes")
    draft.update(state="Training" if started else "Starting", generation=generation.number)
    due = TRAINING_POLL_SECONDS if started else STARTING_POLL_SECONDS
    if started and progress is not None:
        _tell_first_step(draft, generation, progress.first_step_time)
        draft.update(first_step_time=timestamp(progress.first_step_time))
        due = min(due, _look_for_stale_checkpoint(draft, pace.mean_step_seconds(progress)) or due)
    _look_for_stragglers(draft, world, generation)
    better = _better_world(draft, world, generation) if started else None
    if better is not None:
        step = progress.step if progress is not None else draft.status.step
        way = "grows" if len(better) > generation.nodes else "shrinks"
        draft.tell("Normal", "Resizing", f"the world {way} from {generation.nodes} to {len(better)} at step {step}")
        return _new_generation(draft, world, better, generation.number + 1, drain=True)
    asked = membership.request_validation(world.pods, generation=generation.number, request=draft.validate_request)
    return draft.plan(memberships=tuple(asked), requeue_after_seconds=due)


def _tell_first_step(draft: Draft, generation: Generation, at: float) -> None:
    recovered = draft.status.recovery is not None and draft.status.recovery.generation == generation.number
    formed = draft.status.generation_start_time
    if draft.status.first_step_time is None and formed is not None and not recovered:
        took = max(at - seconds(formed), 0.0)
        draft.tell("Normal", "Training", f"generation {generation.number} trains: first step after {took:.0f} s")


def _look_for_recovery(draft: Draft, world: World) -> None:
    before = draft.status.recovery
    if before is None:
        return
    after = recovery.completed(before, world.pods)
    if after.first_step is not None and before.first_step is None:
        draft.tell("Normal", "Recovered", recovery.sentence(after))
    draft.update(recovery=after)


def _look_for_stale_checkpoint(draft: Draft, step_seconds: float | None) -> float | None:
    """Say whether the newest checkpoint is too old; the seconds until it will be, None where nothing tells."""
    interval = staleness.interval_seconds(draft.run.spec, step_seconds)
    at = staleness.stale_at(draft.status, interval) if interval is not None else None
    if interval is None or at is None:
        return None
    if draft.now > at:
        message = staleness.sentence(draft.status, interval, draft.now)
        if not draft.holds("CheckpointStale"):
            draft.tell("Warning", "CheckpointStale", message)
        draft.say("CheckpointStale", True, "Overdue", message)
        return None
    if draft.holds("CheckpointStale"):
        draft.say("CheckpointStale", False, "Saved", "the newest checkpoint is as young as it should be")
    return at - draft.now


def _look_for_stragglers(draft: Draft, world: World, generation: Generation) -> None:
    members = [pod for pod in world.pods if pod.trains(generation.number) and pod.usable]
    found = stragglers.observed(draft.status.stragglers, members, draft.now)
    draft.update(stragglers=found)
    lasting, known = stragglers.lasting(found, draft.now), draft.holds("Straggling")
    if lasting:
        message = stragglers.sentence(lasting)
        if not known:
            draft.tell("Warning", "SlowNode", message)
        draft.say("Straggling", True, "SlowNode", message)
    elif known and not found:
        draft.say("Straggling", False, "NoneFound", "no node is slower than the others")


def _better_world(draft: Draft, world: World, generation: Generation) -> list[Pod] | None:
    """Pods of a world of another size that should take over from one that trains well; None while it is right."""
    sizes, spec = _sizes(draft), draft.run.spec.trainer.nodes
    # A world that trains would stand still while one that comes along imports everything: that can be done before.
    pods = [pod for pod in world.pods if pod.ready or pod.trains(generation.number)]
    chosen = membership.next_world(
        pods=pods, sizes=sizes, waited_seconds=0, shrink_after_seconds=0, members_of=generation.number
    )
    if chosen is None or len(chosen) == generation.nodes:
        return None
    if len(chosen) < generation.nodes:
        # Members that only do not answer just now are members still: smaller is wanted only where it was asked for.
        return chosen if generation.nodes > spec.max else None
    since = seconds(draft.status.generation_start_time or timestamp(draft.now))
    young = draft.now - since < parse_duration_seconds(spec.grow_after)
    return None if young else chosen


def _sizes(draft: Draft) -> list[int]:
    spec = draft.run.spec.trainer.nodes
    return membership.world_sizes(fewest=spec.min, most=spec.max, allowed=spec.allowed)


# -- a world that ended ----------------------------------------------------------------------------------------------


def _still_gathering(generation: Generation, now: float) -> bool:
    """Whether members have still to tell where they stand in a world that hangs, or what it was that lost a peer."""
    failure = generation.failure
    if failure is None or failure.reason not in (HANG, PEER_LOST) or generation.lost:
        return False
    if failure.reason == PEER_LOST and generation.silent:
        # They are what was lost, and only a kubelet can tell why; that matters where it may have been memory.
        return any(pod.limited for pod in generation.silent) and now - failure.time < EXPLAIN_SECONDS
    return len(generation.failures) < generation.nodes and now - failure.time < GATHER_SECONDS


def _end(draft: Draft, world: World, stage: str, generation: Generation) -> Plan:
    spec, policy = draft.run.spec, draft.run.spec.failure_policy
    ended = _classified(draft, generation)
    newest = draft.status.last_checkpoint.step if draft.status.last_checkpoint is not None else 0
    before = draft.status.restarts
    restarts = failures.count(
        before,
        ended,
        checkpoint_step=newest,
        step=draft.status.step,
        now=draft.now,
        window_seconds=parse_duration_seconds(policy.window),
    )
    blamed = strikes.struck(
        draft.status.node_strikes,
        ended.blamed,
        reason=ended.reason,
        policy=policy.avoid_nodes,
        nodes=spec.trainer.nodes.max,
        now=draft.now,
    )
    for name in set(strikes.avoided(blamed)) - set(strikes.avoided(draft.status.node_strikes)):
        draft.tell("Warning", "NodeAvoided", f"node {name} is avoided for {policy.avoid_nodes.forgive_after}")
    if restarts.before_step is not None and restarts.before_step != before.before_step:
        text = f"step {ended.step} fails again and again: going back to a checkpoint before step {restarts.before_step}"
        draft.tell("Warning", "GoingBack", text)
    failed = _failed_at(generation, world, draft.now)
    draft.update(
        restarts=restarts,
        node_strikes=blamed,
        generation_end=ended.reason,
        state="Recovering",
        tokens_per_second=0,
        recovery=recovery.begun(ended.reason, failed=failed, now=draft.now),
    )
    message = f"generation {generation.number} ended: {ended.message}"
    draft.say("Running", False, ended.reason, message)
    draft.tell("Warning", ended.reason, message)
    why = failures.gives_up(restarts, budget=policy.restarts_without_progress)
    if why is not None:
        draft.give_up(ended.reason, f"stage {stage}: {why}")
        held = (object_name(draft.run.name, stage),)
        return draft.plan(**({"delete_jobs": held} if spec.scheduling.queue_name else {"suspend": held}))
    return _form_world(draft, world, stage, generation)


def _classified(draft: Draft, generation: Generation) -> failures.Ended:
    if generation.lost and all(pod.index >= pods_wanted(draft) for pod in generation.lost):
        most = draft.run.spec.trainer.nodes.max
        text = f"trainer.nodes.max is {most} now, and the pods above that are gone"
        return failures.Ended(reason="Resized", message=text, cost=failures.Cost.FREE)
    return failures.classify(generation)


def _failed_at(generation: Generation, world: World, now: float) -> float:
    """When the generation ended: as its workers say, or as its node or pod went."""
    nodes = world.nodes or {}
    times = [failure.time for _, failure in generation.failures]
    times += [since for pod in generation.lost if (since := pod.unready_since) is not None]
    unready = [nodes[pod.node].unready_since for pod in generation.lost if pod.node in nodes]
    return min([*times, *(since for since in unready if since is not None)], default=now)


# -- a world to be formed --------------------------------------------------------------------------------------------


def _form_world(draft: Draft, world: World, stage: str, generation: Generation) -> Plan:
    spec, policy = draft.run.spec, draft.run.spec.failure_policy
    waited = draft.now - _waiting_since(draft, stage)
    pause = failures.backoff_seconds(
        draft.status.restarts,
        first_seconds=parse_duration_seconds(policy.backoff.first),
        most_seconds=parse_duration_seconds(policy.backoff.max),
    )
    if generation.number and pause > waited:
        return draft.plan(requeue_after_seconds=pause - waited)
    shunned = strikes.avoided(draft.status.node_strikes)
    moved = tuple(pod for pod in world.pods if pod.usable and pod.node in shunned)
    left = [pod for pod in world.pods if pod not in moved]
    shrink_after = parse_duration_seconds(spec.trainer.nodes.shrink_after)
    chosen = membership.next_world(
        pods=left,
        sizes=_sizes(draft),
        waited_seconds=waited,
        shrink_after_seconds=shrink_after,
        members_of=generation.number,
    )
    for pod in moved:
        draft.tell("Warning", "NodeAvoided", f"pod {pod.name} leaves node {pod.node}")
    if chosen is not None:
        plan = _new_generation(draft, world, chosen, _fresh_number(draft, generation), drain=False, moved=moved)
        return replace(plan, delete_pods=moved)
    stuck = tuple(pod for pod in left if pod.blocked is not None and pod.blocked[0] == "Unschedulable")
    if shunned and stuck and waited > shrink_after:
        # Better on a node that may fail again than on none.
        draft.update(node_strikes=[])
        draft.tell("Warning", "NodesForgiven", f"no world can be formed without {', '.join(shunned)}: used again")
        return draft.plan(delete_pods=stuck, requeue_after_seconds=STARTING_POLL_SECONDS)
    _say_why_waiting(draft, world, stage)
    return draft.plan(delete_pods=moved, requeue_after_seconds=STARTING_POLL_SECONDS)


def _fresh_number(draft: Draft, generation: Generation) -> int:
    """Never a number that was handed out before, not even one that died with its pass: some pod may have seen it."""
    return max(draft.status.generation, generation.number) + 1


def _waiting_since(draft: Draft, stage: str) -> float:
    """When the last world ended, or the stage began: what was prepared before that is no time waited for pods."""
    running = find(draft.status.conditions, "Running")
    record = report.stage_record(draft.status, stage)
    ended = seconds(running.last_transition_time) if running is not None else draft.now
    began = seconds(record.start_time) if record is not None and record.start_time is not None else ended
    return max(ended, began)


def _new_generation(
    draft: Draft, world: World, chosen: Sequence[Pod], number: int, *, drain: bool, moved: Sequence[Pod] = ()
) -> Plan:
    ordered = membership.in_topology_order(chosen, world.nodes, draft.run.spec.scheduling.topology_keys)
    if drain:
        draft.update(generation_end="Resized")
    draft.tell("Normal", "GenerationStarted", f"generation {number} trains on {len(ordered)} nodes")
    draft.say("Running", True, "Training", f"generation {number} trains on {len(ordered)} nodes")
    draft.update(
        state="Starting",
        generation=number,
        generation_start_time=timestamp(draft.now),
        first_step_time=None,
        nodes=draft.status.nodes.model_copy(update={"training": len(ordered)}),
    )
    if draft.status.recovery is not None and draft.status.recovery.first_step is None:
        draft.update(recovery=recovery.decided(draft.status.recovery, generation=number, now=draft.now))
    before_step = draft.status.restarts.before_step
    check = failures.wants_check(draft.status.restarts, draft.run.spec.failure_policy.node_check)
    words = membership.places(
        ordered,
        generation=number,
        drain=drain,
        before_step=before_step,
        check=check,
        after=draft.status.generation_end,
        validate_request=draft.validate_request,
    )
    # A member that gets no place stands by: left alone, it would wait for peers that have moved on.
    benched = [
        (pod, Membership(generation=number, role=Role.STANDBY, drain=drain))
        for pod in world.pods
        if pod.usable
        and pod not in ordered
        and pod not in moved
        and pod.membership is not None
        and pod.membership.role is Role.TRAIN
    ]
    return draft.plan(memberships=(*words, *benched), requeue_after_seconds=STARTING_POLL_SECONDS)


def _say_why_waiting(draft: Draft, world: World, stage: str) -> None:
    usable = sum(pod.usable for pod in world.pods)
    waiting = report.waiting_sentence(stage, usable, draft.run.spec)
    blocked = _blocked(world.jobs[stage], world.pods, draft.now)
    if blocked is not None:
        reason, message = blocked
        if draft.reason("Running") != reason:
            draft.tell("Warning", reason, message)
        draft.say("Running", False, reason, f"{waiting}; {message}")
    elif draft.reason("Running") in ("", "Starting", "WaitingForPods", "Preparing", "Suspended", "WaitingForQuota"):
        draft.say("Running", False, "WaitingForPods", waiting)


def _blocked(job: Job, pods: Sequence[Pod], now: float) -> tuple[str, str] | None:
    for pod in pods:
        if pod.blocked is not None:
            return pod.blocked[0], f"pod {pod.name}: {pod.blocked[1]}"
    if job.blocked is not None:
        return job.blocked
    silent = next(((pod, why) for pod in pods if (why := nodes.silence(pod, now)) is not None), None)
    return (silent[1][0], f"pod {silent[0].name}: {silent[1][1]}") if silent is not None else None
