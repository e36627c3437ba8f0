"""What decides about a call to storage, as tables: when it is made again, where it goes, what its failure means."""

import subprocess
import sys
from collections.abc import Iterable

import pytest
from botocore.exceptions import ClientError, NoCredentialsError, ReadTimeoutError
from botocore.parsers import ResponseParserError
from hypothesis import given
from hypothesis import strategies as st
from skywork_trainer.storage import StorageError
from skywork_trainer.storage.answers import explain
from skywork_trainer.storage.body import BodyError, LeastRate, read_body
from skywork_trainer.storage.client import Settings, settings
from skywork_trainer.storage.retry import Retry, configured

PASSING = StorageError("StorageUnreachable", "later", retryable=True)
FINAL = StorageError("AccessDenied", "never")


@pytest.mark.parametrize(
    ("answers", "attempts", "calls", "pauses"),
    [
        pytest.param(["ok"], 4, 1, [], id="at once"),
        pytest.param([PASSING, PASSING, "ok"], 4, 3, [0.25, 0.5], id="at last"),
        pytest.param([PASSING] * 4, 4, 4, [0.25, 0.5, 1.0], id="given up"),
        pytest.param([PASSING, FINAL], 4, 2, [0.25], id="final after all"),
        pytest.param([FINAL], 4, 1, [], id="final"),
        pytest.param([PASSING], 1, 1, [], id="once"),
        pytest.param([PASSING] * 9 + ["ok"], 10, 10, [0.25, 0.5, 1, 2, 4, 8, 10, 10, 10], id="the cap"),
    ],
)
def test_a_call_is_made_again_after_what_may_pass(
    answers: list[object], attempts: int, calls: int, pauses: list[float]
) -> None:
    slept: list[float] = []
    told: list[int] = []
    retry = Retry(attempts=attempts, sleep=slept.append, chance=lambda: 0.5)

    def attempt(failures: int) -> object:
        told.append(failures)
        answer = answers[failures]
        if isinstance(answer, Exception):
            raise answer
        return answer

    if isinstance(answers[-1], StorageError):
        with pytest.raises(StorageError, match=answers[-1].message):
            retry.run(attempt)
    else:
        assert retry.run(attempt) == "ok"
    assert told == list(range(calls))
    assert slept == pauses


@given(failures=st.integers(1, 10_000), chance=st.floats(0, 1, exclude_max=True))
def test_pauses_are_spread_from_nothing_to_the_cap(failures: int, chance: float) -> None:
    retry = Retry()
    assert 0 <= retry.pause_seconds(failures, chance) <= retry.backoff_cap_seconds
    assert retry.pause_seconds(failures, 0.0) == 0.0


def test_the_number_of_attempts_is_that_of_every_aws_sdk() -> None:
    assert configured({}).attempts == configured({"AWS_MAX_ATTEMPTS": ""}).attempts == 6
    assert configured({"AWS_MAX_ATTEMPTS": "2"}).attempts == 2
    for wrong in ("0", "-1", "many", "1.5"):
        with pytest.raises(StorageError, match="must be a whole number, 1 or more"):
            configured({"AWS_MAX_ATTEMPTS": wrong})


ENDPOINT, OTHER = "https://minio.example:9000", "https://ceph.example"


@pytest.mark.parametrize(
    ("environment", "profile_region", "expected"),
    [
        ({}, None, Settings(None, None, "auto")),
        ({}, "eu-west-1", Settings(None, "eu-west-1", "auto")),
        ({"AWS_DEFAULT_REGION": "eu-west-2"}, "eu-west-1", Settings(None, "eu-west-2", "auto")),
        ({"AWS_REGION": "eu-west-3", "AWS_DEFAULT_REGION": "eu-west-2"}, None, Settings(None, "eu-west-3", "auto")),
        ({"AWS_ENDPOINT_URL": ENDPOINT}, None, Settings(ENDPOINT, "us-east-1", "path")),
        ({"AWS_ENDPOINT_URL": ENDPOINT}, "eu-west-1", Settings(ENDPOINT, "eu-west-1", "path")),
        ({"AWS_ENDPOINT_URL": ENDPOINT, "AWS_REGION": "garage"}, None, Settings(ENDPOINT, "garage", "path")),
        ({"AWS_ENDPOINT_URL": OTHER, "AWS_ENDPOINT_URL_S3": ENDPOINT}, None, Settings(ENDPOINT, "us-east-1", "path")),
        ({"AWS_ENDPOINT_URL": "", "AWS_ENDPOINT_URL_S3": "", "AWS_REGION": ""}, None, Settings(None, None, "auto")),
    ],
)
def test_where_a_client_connects(environment: dict[str, str], profile_region: str | None, expected: Settings) -> None:
    assert settings(environment, profile_region) == expected


class Stream:
    """A body that comes in pieces, each after so many seconds."""

    def __init__(self, pieces: Iterable[tuple[float, int]]) -> None:
        self._pieces = iter(pieces)
        self.seconds = 0.0

    def read1(self, amt: int, /) -> bytes:
        seconds, length = next(self._pieces, (0.0, 0))
        self.seconds += seconds
        return b"x" * length


LEAST = LeastRate(window_bytes=1000, window_seconds=10)


@pytest.mark.parametrize(
    ("pieces", "expected", "error"),
    [
        pytest.param([(0, 5000)], 5000, None, id="at once"),
        pytest.param([(9, 1), (9, 5000)], 5001, None, id="slow to start"),
        pytest.param([(4, 400)] * 20, 8000, None, id="just fast enough"),
        pytest.param([(5, 1)] * 20, 20, "too slow: 2 bytes in 10 s, 2 of 20 so far", id="a trickle"),
        pytest.param([(0, 5000)] + [(5, 1)] * 20, 5020, "too slow: 2 bytes in 10 s", id="a trickle in the end"),
        pytest.param([(60, 10)], 10, None, id="slow, but whole"),
        pytest.param([(0, 0)], 0, None, id="empty"),
        pytest.param([(1, 4000)], 5000, "ended after 4000 of 5000 bytes", id="short"),
        pytest.param([(1, 6000)], 5000, "ended after 6000 of 5000 bytes", id="long"),
        pytest.param([(1, 6000)], None, None, id="of unknown length"),
    ],
)
def test_a_body_is_whole_and_comes_at_a_least_rate_or_is_an_error(
    pieces: list[tuple[float, int]], expected: int | None, error: str | None
) -> None:
    stream = Stream(pieces)
    if error is None:
        content = read_body(stream, expected, LEAST, now=lambda: stream.seconds)
        assert len(content) == sum(length for _, length in pieces)
    else:
        with pytest.raises(BodyError, match=error):
            read_body(stream, expected, LEAST, now=lambda: stream.seconds)


def answered(status: int, code: str) -> ClientError:
    response = {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "GetObject")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "reason", "retryable"),
    [
        (answered(503, "SlowDown"), "StorageUnreachable", True),
        (answered(500, "InternalError"), "StorageUnreachable", True),
        (answered(502, "502"), "StorageUnreachable", True),
        (answered(429, "TooManyRequests"), "StorageUnreachable", True),
        (answered(409, "ConditionalRequestConflict"), "StorageUnreachable", True),
        (answered(400, "RequestTimeout"), "StorageUnreachable", True),
        (answered(400, "BadDigest"), "StorageUnreachable", True),
        (answered(400, "XAmzContentSHA256Mismatch"), "StorageUnreachable", True),
        (ReadTimeoutError(endpoint_url="http://e"), "StorageUnreachable", True),
        (ResponseParserError("no XML"), "StorageUnreachable", True),
        (BodyError("short"), "StorageUnreachable", True),
        (answered(400, "ExpiredToken"), "CredentialsExpired", True),
        (answered(403, "ExpiredTokenException"), "CredentialsExpired", True),
        (answered(400, "InvalidToken"), "CredentialsExpired", True),
        (answered(403, "RequestTimeTooSkewed"), "CredentialsExpired", True),
        (RuntimeError("the refreshed credentials are still expired."), "CredentialsExpired", True),
        (answered(403, "AccessDenied"), "AccessDenied", False),
        (answered(403, "InvalidAccessKeyId"), "AccessDenied", False),
        (answered(401, "401"), "AccessDenied", False),
        (NoCredentialsError(), "AccessDenied", False),
        (answered(404, "NoSuchKey"), "NotFound", False),
        (answered(404, "404"), "NotFound", False),
        (answered(404, "NoSuchBucket"), "BucketMissing", False),
        (answered(412, "PreconditionFailed"), "AlreadyExists", False),
        (answered(400, "InvalidArgument"), "Refused", False),
        (answered(501, "NotImplemented"), "Refused", False),
    ],
)
def test_what_a_failure_means(error: Exception, reason: str, retryable: bool) -> None:
    explained = explain(error, "s3://b/k", "b", "http://e")
    assert explained is not None
    assert (explained.reason, explained.retryable) == (reason, retryable)
    assert "s3://b/k" in explained.message


def test_an_error_of_our_own_is_not_blamed_on_the_storage() -> None:
    assert explain(RuntimeError("dictionary changed size"), "s3://b/k", "b", "http://e") is None
    assert explain(KeyError("x"), "s3://b/k", "b", "http://e") is None


def test_importing_the_storage_imports_no_client() -> None:
    script = "import sys, skywork_trainer.storage; sys.exit(any(m in sys.modules for m in ('boto3', 'botocore')))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
