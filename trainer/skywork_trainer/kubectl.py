"""The cluster as its user sees it: through kubectl, with their own kubeconfig, contexts and plugins for logging in."""

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from skywork_trainer.config import EXIT_CONFIG

RESOURCE = "skyworkruns.skywork.dev"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
_SECONDS = 15
_UNREACHABLE = (
    "unable to connect",
    "connection refused",
    "no such host",
    "i/o timeout",
    "timed out",
    "deadline exceeded",
)


class ClusterError(Exception):
    """kubectl did not give what was asked for: `reason` is CamelCase, the message says what to do.

    Reasons: KubectlMissing, InvalidName, NotFound, NotInstalled, Forbidden, Unreachable, KubectlFailed.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason, self.message = reason, message

    @property
    def exit_code(self) -> int:
        """Return what a command ends with: 1 where trying again may help."""
        return 1 if self.reason in ("Unreachable", "KubectlFailed") else EXIT_CONFIG


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which cluster and namespace are meant."""
    parser.add_argument("-n", "--namespace", metavar="NAME", help="namespace of the run (default: the context's)")
    parser.add_argument("--context", metavar="NAME", help="context of the kubeconfig (default: the current one)")


@dataclass(frozen=True)
class Kubectl:
    """One context and namespace."""

    namespace: str | None = None
    context: str | None = None
    program: str = "kubectl"

    def run(self, name: str) -> dict[str, Any]:
        """Return the SkyworkRun of that name."""
        if not _NAME.fullmatch(name):
            raise ClusterError(
                "InvalidName",
                f"{name!r} is neither a run's name (lower-case letters, digits and -) nor the URI of its checkpoints "
                "(s3://bucket/prefix or file:///folder)",
            )
        found: dict[str, Any] = self._json("get", RESOURCE, name, "-o", "json")
        return found

    def items(self, kind: str, *options: str) -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        found: list[dict[str, Any]] = self._json("get", kind, "-o", "json", *options).get("items") or []
        return found

    def raw(self, path: str) -> Any:
        """Return what the API server answers at a path."""
        return self._json("get", "--raw", path)

    def _json(self, *arguments: str) -> Any:
        text = self._out(*arguments)
        try:
            return json.loads(text)
        except ValueError as error:
            raise ClusterError("KubectlFailed", f"kubectl {' '.join(arguments)} printed no JSON: {error}") from error

    def _out(self, *arguments: str) -> str:
        where = [f"--context={self.context}"] if self.context else []
        where += [f"--namespace={self.namespace}"] if self.namespace else []
        command = [self.program, *where, f"--request-timeout={_SECONDS}s", *arguments]
        try:
            # No terminal of its own: a plugin that asks for a password would spoil the view.
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=2 * _SECONDS, stdin=subprocess.DEVNULL, check=False
            )
        except FileNotFoundError as error:
            raise ClusterError(
                "KubectlMissing",
                "kubectl is not on the PATH: install it, or name the run by the URI of its checkpoints where that is "
                "enough (skywork report)",
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ClusterError("Unreachable", f"kubectl gave no answer within {2 * _SECONDS} s") from error
        if done.returncode:
            raise _refusal(arguments, done.stderr.strip())
        return done.stdout


def _refusal(arguments: Sequence[str], said: str) -> ClusterError:
    last = said.splitlines()[-1][:500] if said else "it said nothing"
    tests: list[tuple[str, Callable[[str], bool]]] = [
        ("NotFound", lambda text: "(notfound)" in text),
        ("NotInstalled", lambda text: "doesn't have a resource type" in text),
        ("Forbidden", lambda text: "(forbidden)" in text or "unauthorized" in text or "must be logged in" in text),
        ("Unreachable", lambda text: any(word in text for word in _UNREACHABLE)),
    ]
    reason = next((reason for reason, test in tests if test(said.lower())), "KubectlFailed")
    advice = {
        "NotFound": "; `kubectl get skyworkruns -A` lists those there are",
        "NotInstalled": "; the skywork operator is not installed in this cluster, or this is the wrong --context",
    }
    return ClusterError(reason, f"kubectl {' '.join(arguments[:3])}: {last}{advice.get(reason, '')}")
