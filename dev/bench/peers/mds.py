"""mosaicml-streaming, run by the Python of an environment of its own; prints one JSON object of numbers.

mds.py make FOLDER LENGTH FILE...          write files of uint16 tokens as samples of LENGTH + 1 tokens
mds.py first FOLDER SAMPLES POSITION       a fresh process: construct over so many samples, read a batch of 8
mds.py read FOLDER LENGTH [REMOTE]         read every sample once, through FOLDER from REMOTE if there is one
"""

import json
import os
import sys
import time
from pathlib import Path

_BATCH = 8
_SHARD_BYTES = 1 << 26


def make(folder: str, length: int, files: list[str]) -> dict[str, float]:
    """Write the samples; neighbours share one token, as the windows of our shards do."""
    import numpy
    from streaming import MDSWriter

    samples = 0
    columns = {"tokens": f"ndarray:uint16:{length + 1}"}
    with MDSWriter(out=folder, columns=columns, size_limit=_SHARD_BYTES) as writer:
        for file in files:
            tokens = numpy.fromfile(file, dtype="<u2")
            for start in range(0, len(tokens) - length, length):
                writer.write({"tokens": tokens[start : start + length + 1]})
                samples += 1
    return {"samples": samples}


def first(folder: str, samples: int, position: int) -> dict[str, float]:
    """Return seconds from constructing to a batch in hand, and MiB held."""
    from streaming import Stream, StreamingDataset

    imported_mib = _memory_mib("VmRSS")
    path = _large(folder, samples)
    index_seconds = 0.0
    read_index = Stream.get_shards

    def timed(*arguments: object) -> object:
        nonlocal index_seconds
        asked = time.monotonic()
        shards = read_index(*arguments)
        index_seconds += time.monotonic() - asked
        return shards

    Stream.get_shards = timed
    begun = time.monotonic()
    dataset = StreamingDataset(local=path, shuffle=True, shuffle_algo="py1e", shuffle_seed=1, batch_size=_BATCH)
    if position:
        state = {"epoch": 0, "sample_in_epoch": position, "num_canonical_nodes": 1, "shuffle_seed": 1}
        dataset.load_state_dict(state | {"initial_physical_nodes": 1})
    reading = iter(dataset)
    for _ in range(_BATCH):
        assert next(reading)["tokens"].any()
    seconds = time.monotonic() - begun
    return {
        "start_seconds": seconds,
        "index_seconds": index_seconds,
        "imported_mib": imported_mib,
        "peak_mib": _memory_mib("VmHWM"),
    }


def read(folder: str, length: int, remote: str | None) -> dict[str, float]:
    """Return seconds from constructing to the last sample, and from the first batch on."""
    from streaming import StreamingDataset

    begun = time.monotonic()
    dataset = StreamingDataset(local=folder, remote=remote, shuffle=True, shuffle_seed=1, batch_size=_BATCH)
    count, checksum, started = 0, 0, begun
    for sample in dataset:
        count += 1
        checksum += int(sample["tokens"][:-1].sum())
        if count == _BATCH:
            started = time.monotonic()
    ended = time.monotonic()
    return {
        "tokens_per_second": count * length / (ended - begun),
        "tokens_per_second_once_started": (count - _BATCH) * length / (ended - started),
        "tokens": count * length,
        "checksum": checksum,
    }


def _large(folder: str, samples: int) -> str:
    """Return an index of so many samples that names one real shard again and again: its order costs what it costs."""
    path, real = Path(folder, f"mds-{samples}"), Path(folder, "mds")
    if path.exists():
        return str(path)
    path.mkdir()
    shard = json.loads((real / "index.json").read_text())["shards"][0]
    (path / shard["raw_data"]["basename"]).hardlink_to(real / shard["raw_data"]["basename"])
    full, rest = divmod(samples, shard["samples"])
    shards = [shard] * full + ([shard | {"samples": rest}] if rest else [])
    (path / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
    return str(path)


def _memory_mib(field: str) -> float:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Do one of the three."""
    from streaming.base.util import clean_stale_shared_memory

    what, folder, *rest = sys.argv[1:]
    clean_stale_shared_memory()
    if what == "make":
        numbers = make(folder, int(rest[0]), rest[1:])
    elif what == "first":
        numbers = first(folder, int(rest[0]), int(rest[1]))
    else:
        numbers = read(folder, int(rest[0]), rest[1] if len(rest) > 1 else None)
    print(json.dumps(numbers), flush=True)
    # Its threads and shared memory would otherwise take seconds to end.
    os._exit(0)


if __name__ == "__main__":
    main()
