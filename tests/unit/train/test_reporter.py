"""What a worker exports, and from when on."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from skywork_trainer.config import Section
from skywork_trainer.metrics import Reporter

from tests.unit.train.world import place, run_config


def exported(folder: Path) -> dict[str, float]:
    path = folder / "state-2" / "metrics.prom"
    if not path.exists():
        return {}
    families = text_string_to_metric_families(path.read_text())
    return {sample.name: sample.value for family in families for sample in family.samples}


def test_counters_are_exported_only_once_it_is_known_what_they_had_come_to(tmp_path: Path) -> None:
    where = place(tmp_path, rank=0, size=1, port=1, generation=2)
    where.state_dir.mkdir()
    reporter = Reporter(run_config(tmp_path), where)
    for section in (Section.INIT, Section.RESTORE):
        reporter.section(section)
        reporter.flush()
    # A zero now and a hundred in a second would be a rate of a hundred a second.
    assert exported(tmp_path) == {}
    totals = {"skywork_validations": 3.0, "skywork_train_time_seconds/train": 60.0}
    reporter.restored(step=100, checkpoint="c", durable=True, created=1.0, corrupt={}, totals=totals)
    reporter.flush()
    found = exported(tmp_path)
    assert (found["skywork_train_steps_total"], found["skywork_validations_total"]) == (100, 3)
