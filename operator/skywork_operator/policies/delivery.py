"""Words that a pod has not heard, to be said again.

A kubelet takes a pod's annotations into its downward-API volume when it syncs the pod. One that was just about to do
so when an annotation changed may write the old text, and looks again only after 10 to 15 s: a world would wait so long
for one member. A further change to the annotation makes it look at once.
"""

from collections.abc import Iterable

from skywork_trainer.config import Membership

from skywork_operator.world import Pod

FIRST_SECONDS = 3.0
"""More than ten times what a kubelet takes: one that is late because all are busy is not helped by more of this."""
_MOST_DOUBLINGS = 6


def unheard(pods: Iterable[Pod], now: float) -> list[tuple[Pod, Membership]]:
    """The words of pods whose agents answer, but have not read them after 3 s; after 6 the next time, and so on.

    An agent that cannot be asked may well have heard, and one that does not say what it has heard is of an older
    version: both are left alone.
    """
    again = []
    for pod in pods:
        word, agent = pod.membership, pod.agent
        if word is None or not word.sent or agent is None or agent.heard is None or pod.terminating:
            continue
        patience = FIRST_SECONDS * 2 ** min(word.repeated, _MOST_DOUBLINGS)
        if agent.heard < word.generation and now - word.sent >= patience:
            again.append((pod, word.model_copy(update={"repeated": word.repeated + 1})))
    return again
