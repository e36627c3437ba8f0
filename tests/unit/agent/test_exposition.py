"""The metrics of a pod's processes on one page."""

from prometheus_client.parser import text_string_to_metric_families
from skywork_trainer.agent.exposition import merged


def worker(rank: int, bytes_: int) -> str:
    return (
        "# HELP skywork_data_fetched_bytes_total Bytes of those parts.\n"
        "# TYPE skywork_data_fetched_bytes_total counter\n"
        f'skywork_data_fetched_bytes_total{{local_rank="{rank}"}} {bytes_}.0\n'
        "# HELP skywork_data_wait_seconds_total Time.\n"
        "# TYPE skywork_data_wait_seconds_total counter\n"
        f'skywork_data_wait_seconds_total{{local_rank="{rank}"}} 0.5\n'
    )


def test_the_metrics_of_all_workers_stand_together_under_one_head() -> None:
    text = merged([worker(0, 10), worker(1, 20), "# HELP alone It.\n# TYPE alone gauge\nalone 3.0\n"])
    families = list(text_string_to_metric_families(text))
    assert [(f.name, f.type, len(f.samples)) for f in families] == [
        ("skywork_data_fetched_bytes", "counter", 2),
        ("skywork_data_wait_seconds", "counter", 2),
        ("alone", "gauge", 1),
    ]
    assert [(s.labels["local_rank"], s.value) for s in families[0].samples] == [("0", 10), ("1", 20)]
    assert text.count("# HELP skywork_data_wait_seconds_total") == 1


def test_one_process_reads_as_it_wrote() -> None:
    assert merged([worker(0, 10)]) == worker(0, 10)
    assert merged([]) == ""
