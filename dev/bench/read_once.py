"""A fresh process that reads a run's sequences as a trainer does: `python -m dev.bench.read_once CONFIG CACHE ...`."""

import json
import sys
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from skywork_trainer.batch import rank_sequences
from skywork_trainer.config import load
from skywork_trainer.data.shards import Tokens
from skywork_trainer.data.stream import SequenceStream


def main() -> None:
    """Read STEPS steps from FIRST_STEP on, each followed by COMPUTE_SECONDS of rest; print one JSON object."""
    config_path, cache, first_step, steps, compute_seconds = sys.argv[1:]
    begun = time.monotonic()
    reader = Reader(config_path, Path(cache))
    waited = []
    tokens = checksum = 0
    for step in range(int(first_step), int(first_step) + int(steps)):
        asked = time.monotonic()
        batch = reader.read(step)
        waited.append(time.monotonic() - asked)
        tokens += batch[:, :-1].size
        checksum += int(batch[:, :-1].sum())
        time.sleep(float(compute_seconds))
    ended = time.monotonic()
    traffic = reader.stream.traffic()
    # Whoever reads a first batch waits for it; what one that trains for weeks waits for is the rest.
    later_seconds = ended - begun - (reader.opened - begun) - waited[0] - float(compute_seconds)
    print(
        json.dumps(
            {
                "tokens_per_second": tokens / (ended - begun),
                "open_seconds": reader.opened - begun,
                "first_step_seconds": waited[0],
                "later_waited_seconds": sum(waited[1:]),
                "later_seconds": later_seconds,
                "longest_later_seconds": max(waited[1:]),
                "fetched_parts": traffic.fetched_parts,
                "fetched_bytes": traffic.fetched_bytes,
                "tokens": tokens,
                "checksum": checksum,
            }
        )
    )
    reader.stream.close()


class Reader:
    """The stream of one process, read a step at a time into one batch."""

    def __init__(self, config_path: str, cache: Path) -> None:
        self._config = load(config_path)
        self.stream = SequenceStream(self._config, cache)
        self.opened = time.monotonic()

    def read(self, step: int) -> Tokens:
        """Return a step's sequences, with what comes next fetched meanwhile."""
        self.stream.advance(step, self._sequences)
        sequences = self._sequences(step)
        batch: npt.NDArray[np.int64] = np.zeros((len(sequences), self._config.sequence_length + 1), dtype=np.int64)
        for row, sequence in enumerate(sequences):
            batch[row] = self.stream.read(sequence)
        return batch

    def _sequences(self, step: int) -> range:
        return rank_sequences(step, 0, 1, self._config)


if __name__ == "__main__":
    main()
