"""Calls to one bucket: each is made again after what may pass, with other credentials after they expired."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, cast

from skywork_trainer.storage import answers, client
from skywork_trainer.storage.body import LeastRate, Raw, read_body
from skywork_trainer.storage.retry import Retry
from skywork_trainer.storage.store import StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
_MARK = "skywork-write"


@dataclass(frozen=True)
class Calls:
    """A bucket and how patient its callers are; `key` is an object's whole key everywhere below."""

    bucket: str
    retry: Retry
    least_rate: LeastRate = field(default_factory=LeastRate)

    def run(self, key: str, ask: Callable[["S3Client"], T]) -> T:
        """Return what `ask` returns, asking again after what may pass; StorageError."""
        return self.retry.run(lambda failures: self._once(key, ask))

    def read(self, key: str, span: tuple[int, int] | None = None, if_match: str | None = None) -> bytes:
        """Return the object, or the bytes of it from `span`'s first to its last; Replaced if its ETag is another."""
        options: dict[str, Any] = {} if span is None else {"Range": f"bytes={span[0]}-{span[1]}"}
        if if_match is not None:
            options["IfMatch"] = if_match

        def ask(s3: "S3Client") -> bytes:
            answer = s3.get_object(Bucket=self.bucket, Key=key, **options)
            if span is not None:
                self._check_range(key, span, answer)
            # Entering the body is botocore's way to the stream itself, whose read1 it does not pass on.
            with answer["Body"] as raw:
                return read_body(cast(Raw, raw), answer.get("ContentLength"), self.least_rate)

        try:
            return self.run(key, ask)
        except StorageError as error:
            if if_match is None or error.reason != "AlreadyExists":
                raise
            raise StorageError(
                "Replaced", f"{self._where(key)} was replaced while it was read", retryable=True
            ) from error

    def write_once(self, key: str, mark: str, write: Callable[["S3Client"], object], done_by_us: str) -> None:
        """Make a write that cannot be made twice; it carries `mark` in its metadata.

        An attempt whose answer was lost may have written. The next one then fails with the reason `done_by_us`, though
        nobody else was there: whose write it was is told by the mark, which content could not tell.
        """

        def attempt(failures: int) -> None:
            try:
                self._once(key, write)
            except StorageError as error:
                if not failures or error.reason != done_by_us or not self._carries(key, mark):
                    raise

        self.retry.run(attempt)

    def _carries(self, key: str, mark: str) -> bool:
        # Once: if this fails, the write is tried again, and finds the same.
        try:
            head = self._once(key, lambda s3: s3.head_object(Bucket=self.bucket, Key=key))
        except StorageError as error:
            if error.reason != "NotFound":
                raise
            return False
        return head["Metadata"].get(_MARK) == mark

    def _check_range(self, key: str, span: tuple[int, int], answer: Mapping[str, Any]) -> None:
        # A cache or gateway that ignores Range answers with the whole object: other bytes than were asked for.
        if not str(answer.get("ContentRange", "")).startswith(f"bytes {span[0]}-"):
            raise StorageError("Refused", f"{self._where(key)}: the server does not answer ranges with ranges")

    def _once(self, key: str, ask: Callable[["S3Client"], T]) -> T:
        opened: client.Opened | None = None
        try:
            opened = client.current()
            return ask(opened.client)
        except StorageError:
            raise
        except Exception as error:
            explained = self._explained(key, error, opened)
            if explained is None:
                raise
            raise explained from error

    def _explained(self, key: str, error: Exception, opened: client.Opened | None) -> StorageError | None:
        endpoint = opened.client.meta.endpoint_url if opened else "the configured endpoint"
        if opened and answers.code_of(error) in ("400", "403", "404"):
            error = self._with_words(key, error, opened)
        explained = answers.explain(error, self._where(key), self.bucket, endpoint)
        if explained is None or opened is None:
            return explained
        if explained.reason == "CredentialsExpired":
            client.drop(opened)
        elif explained.reason == "AccessDenied":
            # Pods whose Secret comes later, or is replaced, must not stay with what was read first.
            client.drop(opened)
            if answers.code_of(error) in answers.REFUSED_KEYS:
                explained.retryable = client.has_other_credentials(opened)
        return explained

    def _with_words(self, key: str, error: Exception, opened: client.Opened) -> Exception:
        """Return the error that a GET of the object meets, or `error` if it meets none.

        The answer to HEAD has no body: it tells neither a missing bucket from a missing key, nor expired credentials
        from forbidden ones.
        """
        try:
            opened.client.get_object(Bucket=self.bucket, Key=key, Range="bytes=0-0")["Body"].close()
        except Exception as found:
            return error if answers.code_of(found) in ("InvalidRange", "416") else found
        return error

    def _where(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"


def marked(mark: str) -> dict[str, str]:
    """Return the metadata by which `Calls.write_once` knows its own write again."""
    return {_MARK: mark}
