"""mosaicml-streaming, in an environment of its own: a fresh process, from constructing the dataset to its first batch.

streaming_start.py make FOLDER            write the real shards
streaming_start.py first FOLDER N RESUME  construct over N samples, read 8, print seconds and MiB
streaming_start.py read FOLDER SECONDS    read on, print tokens a second
"""

import json
import os
import shutil
import sys
import time
from pathlib import Path

TOKENS = 2049
SHARD_SAMPLES = 16000


def make(folder: str) -> None:
    """Write two real shards of 64 MiB."""
    import numpy
    from streaming import MDSWriter

    draw = numpy.random.default_rng(0)
    limit = SHARD_SAMPLES * (TOKENS * 2 + 4) + 400
    with MDSWriter(out=f"{folder}/real", columns={"tokens": f"ndarray:uint16:{TOKENS}"}, size_limit=limit) as writer:
        for _ in range(2 * SHARD_SAMPLES):
            writer.write({"tokens": draw.integers(0, 65536, TOKENS, dtype=numpy.uint16)})


def large(folder: str, samples: int) -> str:
    """An index of so many samples that names one real shard again and again: order and index cost what they cost."""
    path, real = Path(folder, f"index-{samples}"), Path(folder, "real")
    path.mkdir(exist_ok=True)
    shard = json.loads((real / "index.json").read_text())["shards"][0]
    name = shard["raw_data"]["basename"]
    if not (path / name).exists():
        (path / name).hardlink_to(real / name)
    full, rest = divmod(samples, shard["samples"])
    shards = [shard] * full + ([shard | {"samples": rest}] if rest else [])
    (path / "index.json").write_text(json.dumps({"shards": shards, "version": 2}))
    return str(path)


def first(folder: str, samples: int, resume: bool) -> None:
    """Print what the first batch of 8 took."""
    from streaming import StreamingDataset

    path = large(folder, samples)
    begun = time.monotonic()
    dataset = StreamingDataset(local=path, shuffle=True, shuffle_algo="py1e", shuffle_seed=1, batch_size=8)
    if resume:
        state = {"epoch": 0, "sample_in_epoch": samples // 2 // 8 * 8, "num_canonical_nodes": 1, "shuffle_seed": 1}
        dataset.load_state_dict(state | {"initial_physical_nodes": 1})
    samples_read = iter(dataset)
    for _ in range(8):
        assert next(samples_read)["tokens"].shape == (TOKENS,)
    print(json.dumps({"start_seconds": time.monotonic() - begun, "peak_mib": _peak_mib()}), flush=True)
    os._exit(0)


def read(folder: str, seconds: float) -> None:
    """Print how fast one process reads from local disk."""
    from streaming import StreamingDataset

    dataset = StreamingDataset(local=f"{folder}/real", shuffle=True, shuffle_seed=1, batch_size=8)
    count, begun = 0, 0.0
    for count, _ in enumerate(dataset):
        if count == 500:
            begun = time.monotonic()
        if begun and time.monotonic() - begun > seconds:
            break
    rate = (count - 500) * (TOKENS - 1) / (time.monotonic() - begun)
    print(json.dumps({"tokens_per_second": rate}), flush=True)
    os._exit(0)


def _peak_mib() -> float:
    with open("/proc/self/status") as status:
        (line,) = [line for line in status if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


def main() -> None:
    """Do one of the three."""
    from streaming.base.util import clean_stale_shared_memory

    what, folder, *rest = sys.argv[1:]
    clean_stale_shared_memory()
    if what == "make":
        shutil.rmtree(f"{folder}/real", ignore_errors=True)
        make(folder)
    elif what == "first":
        first(folder, int(rest[0]), rest[1] == "1")
    else:
        read(folder, float(rest[0]))


if __name__ == "__main__":
    main()
