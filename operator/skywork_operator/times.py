"""Kubernetes timestamps."""

from datetime import UTC, datetime


def timestamp(seconds: float) -> str:
    """RFC 3339 text of Unix seconds, whole seconds, as Kubernetes writes it."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds(text: str) -> float:
    """Unix seconds of an RFC 3339 timestamp."""
    return datetime.fromisoformat(text).timestamp()


def precise_timestamp(seconds: float) -> str:
    """RFC 3339 text of Unix seconds with milliseconds."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
