"""A fresh process that reads one batch at a place of a run, and prints what that took: `python -m dev.bench.start`."""

import sys
import time

_BEGUN = time.monotonic()


def main() -> None:
    """Print one JSON object of seconds and MiB."""
    import json
    from pathlib import Path

    from skywork_trainer.config import load
    from skywork_trainer.data.shards import read_index
    from skywork_trainer.data.stream import SequenceStream

    config_path, cache, position, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    imported, before = time.monotonic(), _memory_mib("VmRSS")
    config = load(config_path)
    configured = time.monotonic()
    index = read_index("main", config.sources[0].uri)
    indexed, held = time.monotonic(), _memory_mib("VmRSS")
    del index
    again = time.monotonic()
    stream = SequenceStream(config, cache)
    tokens = [stream.read(sequence) for sequence in range(position, position + count)]
    done = time.monotonic()
    assert all(len(row) == config.sequence_length + 1 for row in tokens)
    took = {
        "import_seconds": imported - _BEGUN,
        "config_seconds": configured - imported,
        "index_seconds": indexed - configured,
        "start_seconds": done - again,
        "imported_mib": before,
        "indexed_mib": held,
        "peak_mib": _memory_mib("VmHWM"),
    }
    print(json.dumps(took))


def _memory_mib(field: str) -> float:
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith(field)]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
