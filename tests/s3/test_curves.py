"""Curves read from a real S3 that misbehaves: the run as it counts, or a clear error."""

import random

import numpy as np
import pytest
from skywork_trainer import cli
from skywork_trainer.curve import StepRecord
from skywork_trainer.curves.reading import read_curve
from skywork_trainer.storage import S3Store, StorageError

from tests.s3.proxy import Fault, Proxy, Request
from tests.unit.curves.writing import Run, of


def is_part(request: Request) -> bool:
    return request.method == "GET" and "curves/" in request.target and "list-type" not in request.target


def trained(store: S3Store, saves: int) -> Run:
    run = Run(store, random.Random(1)).started()
    for at in range(saves):
        run.train(3)
        run.validate()
        run.save()
        if at % 7 == 3:
            run.train(2)
            run.crash()
    return run


def test_a_long_chain_is_read_through_requests_that_fail(store: S3Store, proxy: Proxy) -> None:
    run = trained(store, 60)
    # Behind the first few, when many are asked for at once; no object can meet more of them than it has attempts.
    faults = [Fault.SLOW_DOWN, Fault.RESET, Fault.TRUNCATED, Fault.STALLED, Fault.RESET_IN_BODY]
    proxy.plan(*[Fault.NONE] * 10, *faults, spoils=is_part)
    curve = read_curve(store)
    assert curve.steps.step.tolist() == list(range(1, 181))
    assert curve.notes == ()
    counts = run.counts()
    assert counts is not None
    losses = [record.loss for record in of(counts.records, StepRecord)]
    np.testing.assert_array_equal(curve.steps.loss, losses)


def test_every_part_is_asked_for_once(store: S3Store, proxy: Proxy) -> None:
    trained(store, 60)
    proxy.plan()
    read_curve(store)
    assert sum(is_part(request) for request in proxy.requests) == 60


def test_a_fork_is_followed_into_the_other_run_s_folder(store: S3Store) -> None:
    run = trained(store, 5)
    forked = run.fork(S3Store(store.bucket, f"{store.prefix.rstrip('/')}-fork"), 2)
    assert forked is not None
    forked.train(4)
    forked.save()
    curve = read_curve(forked.store)
    assert curve.steps.step.tolist() == list(range(1, 14))
    assert [fork.step for fork in curve.forks] == [9]


def test_a_bucket_that_is_not_there_is_an_error_in_words(store: S3Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert store
    assert cli.main(["report", "s3://no-such-bucket/run", "--json"]) == 1
    assert "BucketMissing" in capsys.readouterr().err


def test_an_object_that_stays_unreadable_ends_the_reading(store: S3Store, proxy: Proxy) -> None:
    trained(store, 3)
    proxy.plan(*[Fault.SLOW_DOWN] * 50, spoils=is_part)
    with pytest.raises(StorageError):
        read_curve(store)
