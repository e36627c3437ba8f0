"""What a failure of boto3, botocore or urllib3 means: the table from their errors to a StorageError."""

from skywork_trainer.storage.body import BodyError
from skywork_trainer.storage.store import StorageError

_EXPIRED = frozenset(
    {
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidIdentityToken",
        "InvalidToken",
        "RequestExpired",
        "RequestTimeTooSkewed",
        "TokenRefreshRequired",
    }
)
REFUSED_KEYS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch"})
"""The keys themselves are wrong: final, unless they have just been replaced."""
_TRANSIENT = frozenset(
    {
        "SlowDown",
        "RequestTimeout",
        "IncompleteBody",
        # What arrived is not what was signed or digested: it was damaged on the way.
        "BadDigest",
        "XAmzContentSHA256Mismatch",
        "XAmzContentChecksumMismatch",
        # From the token service of a web identity.
        "IDPCommunicationError",
    }
)


def code_of(error: Exception) -> str:
    """Return the server's word for the error, its HTTP status where an answer has no body, "" for any other error."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def explain(error: Exception, where: str, bucket: str, endpoint: str) -> StorageError | None:
    """Return the StorageError for a failed call about `where`; None for an error that is none of storage's."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError
    from urllib3.exceptions import HTTPError

    if isinstance(error, ClientError):
        return _from_answer(error, code_of(error), where, bucket, endpoint)
    if isinstance(error, BotoCoreError | Boto3Error):
        return _from_client(error, where, endpoint)
    # An answer that was cut short is no XML any more; what a parser says then is about the way, not the object.
    if isinstance(error, HTTPError | BodyError | ResponseParserError):
        return _unreachable(error, where, endpoint)
    if isinstance(error, RuntimeError) and "credentials" in str(error):
        # Raised bare by botocore where refreshing brought credentials that had expired before.
        return _expired(str(error), where, endpoint)
    if isinstance(error, ValueError) and "endpoint" in str(error):
        return StorageError("InvalidUri", f"AWS_ENDPOINT_URL: {error}: it must be like https://host:port")
    return None


def _from_answer(error: Exception, code: str, where: str, bucket: str, endpoint: str) -> StorageError:
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))  # type: ignore[attr-defined]
    at = f"{where} at {endpoint}"
    if code in _EXPIRED:
        return _expired(code, where, endpoint)
    if code == "NoSuchBucket":
        return StorageError(
            "BucketMissing", f"bucket {bucket!r} does not exist at {endpoint}: create it or correct {where}"
        )
    if code in ("PreconditionFailed", "412"):
        return StorageError("AlreadyExists", f"{where} exists already")
    if code in ("InvalidRange", "416"):
        return StorageError("InvalidRange", f"{where}: the range starts behind the end")
    if code in _TRANSIENT or status in (408, 409, 429) or (status >= 500 and status != 501):
        return _unreachable(error, where, endpoint)
    if status == 404:
        return StorageError("NotFound", f"{where} does not exist at {endpoint}")
    if status in (401, 403):
        return StorageError("AccessDenied", f"{at}: {code}: check the credentials and the bucket's policy")
    return StorageError("Refused", f"{at}: {error}")


def _from_client(error: Exception, where: str, endpoint: str) -> StorageError:
    from botocore import exceptions as known

    if isinstance(error, known.NoCredentialsError | known.PartialCredentialsError):
        return StorageError(
            "AccessDenied", f"{where}: no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
        )
    wrong = (
        known.ParamValidationError,
        known.ValidationError,
        known.NoRegionError,
        known.ProfileNotFound,
        known.ConfigNotFound,
        known.ConfigParseError,
        known.InvalidConfigError,
        known.EndpointProviderError,
        known.MissingDependencyException,
    )
    if isinstance(error, wrong):
        return StorageError("Refused", f"{where}: {error}: correct the URI or the AWS configuration")
    return _unreachable(error, where, endpoint)


def _unreachable(error: Exception, where: str, endpoint: str) -> StorageError:
    return StorageError("StorageUnreachable", f"{where} at {endpoint}: {error}", retryable=True)


def _expired(code: str, where: str, endpoint: str) -> StorageError:
    # Retryable: a pod that starts again gets what its Secret holds by then.
    return StorageError(
        "CredentialsExpired",
        f"{where} at {endpoint}: {code}: the credentials have expired, or this machine's clock is wrong: renew the "
        "Secret or the credentials file that they come from",
        retryable=True,
    )
