"""Requests of the operator that a generation can meet while it trains: the agent writes them, rank 0 looks."""

from pathlib import Path

_VALIDATE = "validate-request"


def write_request(folder: Path, text: str) -> None:
    """Ask the workers that report to `folder` for a validation; each new text asks anew."""
    temporary = folder / f".{_VALIDATE}"
    temporary.write_text(text)
    temporary.replace(folder / _VALIDATE)


def read_request(folder: Path) -> str:
    """Return the newest request; empty while there is none."""
    try:
        return (folder / _VALIDATE).read_text()
    except OSError:
        return ""
