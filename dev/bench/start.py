"""A fresh process that reads one batch at a place of a run: `python -m dev.bench.start CONFIG CACHE POSITION COUNT`."""

import json
import sys
import time
from pathlib import Path

import numpy  # noqa: F401 - what every program with tensors holds is not the order's

from dev.bench.memory import peak_mib, resident_mib

_PYTHON_MIB = resident_mib()


def main() -> None:
    """Print one JSON object of seconds and MiB."""
    begun = time.monotonic()
    from skywork_trainer.config import load
    from skywork_trainer.data import catalog
    from skywork_trainer.data.shards import SourceIndex, read_index
    from skywork_trainer.data.stream import SequenceStream

    imported, imported_mib = time.monotonic(), resident_mib()
    config_path, cache, position, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    config = load(config_path)
    index_seconds = 0.0

    def timed(name: str, uri: str) -> SourceIndex:
        nonlocal index_seconds
        asked = time.monotonic()
        index = read_index(name, uri)
        index_seconds += time.monotonic() - asked
        return index

    # Timed where the catalog calls it: reading it a second time would fill memory that the first reading needs.
    catalog.read_index = timed  # type: ignore[attr-defined]
    asked = time.monotonic()
    stream = SequenceStream(config, cache)
    tokens = [stream.read(sequence) for sequence in range(position, position + count)]
    start_seconds = time.monotonic() - asked
    assert all(len(row) == config.sequence_length + 1 and row.any() for row in tokens)
    took = {
        "import_seconds": imported - begun,
        "start_seconds": start_seconds,
        "index_seconds": index_seconds,
        "python_mib": _PYTHON_MIB,
        "imported_mib": imported_mib,
        "peak_mib": peak_mib(),
    }
    print(json.dumps(took))


if __name__ == "__main__":
    main()
