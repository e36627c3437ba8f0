"""Several processes' metrics as one page in Prometheus' text format."""

from collections.abc import Iterable


def merged(expositions: Iterable[str]) -> str:
    """Return the samples of all, those of one metric together under its one HELP and TYPE, as the format demands."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for text in expositions:
        name, known = "", False
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name = line.split(" ", 3)[2]
                known = name in heads
                heads.setdefault(name, [])
                samples.setdefault(name, [])
            if not line.startswith("#"):
                samples.setdefault(name, []).append(line)
            elif not known:
                heads[name].append(line)
    return "".join(f"{line}\n" for name in samples for line in [*heads.get(name, []), *samples[name]])
