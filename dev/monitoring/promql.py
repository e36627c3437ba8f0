"""Pieces of PromQL that several rules and panels are made of."""

import re

RUN = "namespace, run"
_WORD = re.compile(r"\b(?:[a-z_]+:)?skywork_[a-z0-9_]+(?::[a-z0-9_]+)*")
_STRING = re.compile(r"\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'")
_SUFFIX = re.compile(r"_(bucket|sum|count)$")


def names(expression: str) -> frozenset[str]:
    """Return the metrics of ours that an expression reads, as they are scraped; recorded ones among them."""
    return frozenset(_WORD.findall(_STRING.sub("", expression)))


def family(name: str) -> str:
    """Return the histogram that a scraped name belongs to, or the name itself."""
    return _SUFFIX.sub("", name)


def condition(type: str, *, status: str = "True", selector: str = "") -> str:
    """Runs whose condition has this status; a regular expression is taken as one."""
    equals = "=~" if "|" in type else "="
    chosen = f'type{equals}"{type}",status="{status}"' + (f",{selector}" if selector else "")
    return f"max by ({RUN}) (skywork_run_condition{{{chosen}}}) == 1"


def unfinished(expression: str) -> str:
    """Return the runs of an expression that are not over: conditions of a finished run stay as they were."""
    return f"({expression}) unless on ({RUN}) ({condition('Succeeded|Failed')})"


def rose(metric: str, by: str, window: str) -> str:
    """Where a counter grew within a window, also by coming into being: `increase` does not see the first count.

    A pod that goes on with the count of another is a new series but no rise.
    """
    grown = f"sum by ({by}) (increase({metric}[{window}])) > 0"
    born = f"max by ({by}) ({metric}) > 0 unless max by ({by}) (max_over_time({metric}[{window}] offset {window}))"
    return f"({grown}) or ({born})"
