"""A run followed line by line, where there is no terminal to draw in. Pure."""

from skywork_trainer.watch.view import View


def lines(before: View | None, now: View, *, progress: bool = True) -> list[str]:
    """Return what is new since the view before, as lines of a log; how far it is only with `progress`."""
    told = []
    if before is None or (before.state, before.why) != (now.state, now.why):
        told.append(f"{now.name}: {now.state}" + (f": {now.why}" if now.why else ""))
    if before is None or before.problem != now.problem:
        told += [now.problem] if now.problem else ["the cluster answers again"] if before is not None else []
    if progress and (before is None or now.step):
        facts = dict(now.facts)
        bars = [f"{bar.label} {bar.part:.1%}" for bar in now.bars]
        some = [f"{name} {facts[name]}" for name in ("train loss", "throughput", "done in") if name in facts]
        told.append(f"step {now.step:,}: " + ", ".join([*bars, *some]))
    known = {} if before is None else {one.name: one.loss for one in before.domains}
    moved = [one for one in now.domains if known.get(one.name) != one.loss]
    if moved:
        told.append(
            "validation: " + ", ".join(f"{d.name} {d.loss}" + (f" ({d.change})" if d.change else "") for d in moved)
        )
    found = set() if before is None else {kind for kind, _ in before.diagnoses}
    told += [f"{kind}: {message}" for kind, message in now.diagnoses if kind not in found]
    if before is not None:
        seen = {(event.reason, event.message) for event in before.events}
        told += [f"{e.reason}: {e.message}" for e in now.events if (e.reason, e.message) not in seen]
    return told
