"""What Kopf remembers of objects between events: nothing, because our handlers only take events in.

Its own storages copy every pod, several times at each event, to find differences that nobody asks for: a fifth of the
operator's processor time.
"""

from typing import Any

import kopf


class NoProgress(kopf.ProgressStorage):
    """Handlers of events make no progress that could be kept."""

    def fetch(self, *, key: Any, body: kopf.Body) -> None:
        """Return that there is none."""

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Keep nothing."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Remove nothing."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """Write nothing: no handler asks to be called again."""

    def clear(self, *, essence: kopf.BodyEssence) -> kopf.BodyEssence:
        """Return what is left without any progress in it."""
        return essence


class NoDifferences(kopf.DiffBaseStorage):
    """Handlers of events get the whole object and compare nothing."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> kopf.BodyEssence:
        """Return nothing to compare."""
        return kopf.BodyEssence({})

    def fetch(self, *, body: kopf.Body) -> None:
        """Return that nothing was kept."""

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: kopf.BodyEssence) -> None:
        """Keep nothing."""
