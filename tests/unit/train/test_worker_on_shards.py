"""The worker as the agent calls it, on shards prepared from text."""

import json
import random
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from skywork_trainer.checkpoint.history import audit
from skywork_trainer.config import (
    EXIT_CONFIG,
    Attention,
    Checkpoints,
    Failure,
    Progress,
    RunConfig,
    Source,
    Validation,
)
from skywork_trainer.storage import open_store

from tests.unit.train.world import MODEL, TOKENS_PER_STEP, done, place, run_config, start


def _prepare(rank: int, size: int, port: int, folder: Path) -> None:
    """Write a tokenizer, a source and a held-out domain."""
    from skywork_trainer.config import Preparation
    from skywork_trainer.prepare.pipeline import prepare
    from skywork_trainer.tokenizer import train_tokenizer

    draw = random.Random(0)
    texts = [" ".join(draw.choices(["one", "two", "three", "four", "five"], k=60)) for _ in range(60)]
    raw = folder / "raw"
    raw.mkdir()
    tokenizer = train_tokenizer(iter(texts), 300)
    (folder / "tokenizer.json").write_bytes(tokenizer.content)
    for name, part in (("main", texts[:50]), ("held", texts[50:])):
        (raw / f"{name}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in part))
        options = Preparation(
            inputs=(str(raw / f"{name}.jsonl"),),
            output=(folder / name).as_uri(),
            tokenizer_uri=(folder / "tokenizer.json").as_uri(),
        )
        prepare(options, say=lambda line: None)


def _work(rank: int, size: int, port: int, config: RunConfig, folder: Path, generation: int) -> int:
    from skywork_trainer import worker

    return worker.run(config, place(folder, rank=rank, size=size, port=port, generation=generation))


def test_a_worker_trains_on_shards_and_measures_the_held_out_domain(tmp_path: Path) -> None:
    assert start(_prepare, 1, tmp_path).codes() == [0]
    config = run_config(
        tmp_path,
        model=MODEL.model_copy(update={"vocab_size": 320}),
        tokenizer_uri=(tmp_path / "tokenizer.json").as_uri(),
        sources=(Source(name="main", uri=(tmp_path / "main").as_uri()),),
        validation=Validation(
            every_tokens=4 * TOKENS_PER_STEP,
            windows=4,
            domains=(Source(name="held", uri=(tmp_path / "held").as_uri()),),
        ),
    )
    assert start(_work, 2, config, tmp_path, 1).codes() == done(2)
    progress = Progress.model_validate_json((tmp_path / "state-1" / "progress.json").read_bytes())
    assert progress.step == 8
    assert progress.validation[0].loss < progress.stage_start_validation[0].loss
    for rank in range(2):
        told = (tmp_path / f"state-1/worker-{rank}.prom").read_text()
        samples = {s.name: s for family in text_string_to_metric_families(told) for s in family.samples}
        read = samples["skywork_data_cache_hits_total"].value + samples["skywork_data_cache_misses_total"].value
        assert read > 0 and samples["skywork_data_corrupt_answers_total"].value == 0
        assert samples["skywork_data_wait_seconds_total"].labels["local_rank"] == str(rank)
    result = audit(open_store(config.checkpoints.uri))
    assert (result.steps, result.samples_lost, result.samples_repeated) == (8, 0, 0)

    # Documents that see themselves only: another loss from the first step on, over the same sequences.
    uri = (tmp_path / "within").as_uri()
    changes = {"attention": Attention.WITHIN_DOCUMENT, "checkpoints": Checkpoints(uri=uri)}
    assert start(_work, 2, config.model_copy(update=changes), tmp_path, 3).codes() == done(2)
    within = Progress.model_validate_json((tmp_path / "state-3" / "progress.json").read_bytes())
    assert within.source_sequences == progress.source_sequences
    assert within.stage_start_validation[0].loss != progress.stage_start_validation[0].loss

    # Another tokenizer: its own error, from every worker, before any of them waits for the others.
    other = config.model_copy(update={"model": MODEL.model_copy(update={"vocab_size": 256})})
    assert start(_work, 2, other, tmp_path, 2).codes() == [EXIT_CONFIG, EXIT_CONFIG]
    failure = Failure.model_validate_json((tmp_path / "state-2" / "failure-1.json").read_bytes())
    assert (failure.reason, failure.rank) == ("VocabularyTooLarge", 1)
