"""The S3 client of this process: where it connects, whose credentials it signs with, how often it has asked.

Everything comes from the standard AWS variables and files. AWS_ENDPOINT_URL_S3, or AWS_ENDPOINT_URL, names a server
that is not AWS; buckets are then in the path, for such servers seldom have a name in DNS for each of them. AWS_REGION,
or AWS_DEFAULT_REGION, or the profile's, is what requests are signed for. Credentials are those of the chain of every
AWS SDK: variables, AWS_WEB_IDENTITY_TOKEN_FILE, AWS_SHARED_CREDENTIALS_FILE, and so on. AWS_MAX_ATTEMPTS is in `retry`.
"""

import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from boto3.session import Session
    from botocore.loaders import Loader
    from mypy_boto3_s3 import S3Client

CONNECT_TIMEOUT_SECONDS = 5
READ_TIMEOUT_SECONDS = 20

requests: Counter[tuple[str, str]] = Counter()
"""Requests of this process by operation and answer (HTTP status, or the error's name), every attempt counted."""

_generation = 0
_loader: "Loader | None" = None
"""Keeps botocore's description of S3 once it is read."""
_building = threading.Lock()


def _after_fork() -> None:
    global _building
    # A thread of the parent may have held it, and does not exist here.
    _building = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Settings(NamedTuple):
    """Where a client connects; None leaves the choice to boto3."""

    endpoint: str | None
    region: str | None
    addressing_style: Literal["auto", "path"]


@dataclass(frozen=True, eq=False)
class Opened:
    """A client and the session whose credentials it signs with."""

    client: "S3Client"
    session: "Session"
    generation: int


def settings(environment: Mapping[str, str], profile_region: str | None = None) -> Settings:
    """Return where to connect; the more specific variable wins."""
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL") or None
    # boto3 itself reads only AWS_DEFAULT_REGION; the other SDKs and the pod-identity webhook set AWS_REGION.
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or profile_region
    # Servers that are not AWS take any region, but boto3 signs for none without one.
    return Settings(endpoint, region or ("us-east-1" if endpoint else None), "path" if endpoint else "auto")


def prepare() -> None:
    """Import boto3 and read its description of S3, half a second that forks of this process then save.

    Connects nowhere and asks for no credentials: each process does that for itself, since they may have changed.
    """
    global _loader
    import boto3  # noqa: F401 - and all that it imports
    import botocore.session

    session = botocore.session.get_session()
    nobody = "none"
    session.create_client("s3", region_name=nobody, aws_access_key_id=nobody, aws_secret_access_key=nobody)
    _loader = session.get_component("data_loader")


def current() -> Opened:
    """Return this process's client: sockets inherited through a fork would mix two processes' answers."""
    # One at a time: building one takes a fifth of a second, and threads that start or fail together all want one.
    with _building:
        return _open(os.getpid(), _generation)


def drop(stale: Opened) -> None:
    """Let the next call build a new client, which reads the credential chain anew.

    botocore reads static keys, those of a file too, once for the life of a session; only what has an expiry time in
    it, as a web identity's credentials have, is refreshed without this.
    """
    global _generation
    # By maximum, so that threads that fail together drop one client, not each a newer one.
    _generation = max(_generation, stale.generation + 1)


def has_other_credentials(stale: Opened) -> bool:
    """Return whether the chain now gives other keys than the client had."""
    from botocore.exceptions import BotoCoreError

    try:
        now, then = (opened.session.get_credentials() for opened in (current(), stale))
        if now is None or then is None:
            return now is not then
        return now.get_frozen_credentials() != then.get_frozen_credentials()
    except BotoCoreError:
        # A file half written, or a token service that is away: whoever asks next finds out.
        return False


@lru_cache(maxsize=1)
def _open(pid: int, generation: int) -> Opened:
    import boto3
    import botocore.session
    from botocore.config import Config

    inner = botocore.session.get_session()
    if _loader is not None:
        inner.register_component("data_loader", _loader)
    session = boto3.session.Session(botocore_session=inner)
    chosen = settings(os.environ, session.region_name)
    client = session.client(
        "s3",
        region_name=chosen.region,
        endpoint_url=chosen.endpoint,
        config=Config(
            # Our loop includes the body, which botocore's does not; two loops would multiply.
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            max_pool_connections=32,
            s3={"addressing_style": chosen.addressing_style},
            # The default since 2025 sends CRC trailers that older MinIO and other servers reject or store as content.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    # Emitted after every attempt, whether or not it is made again.
    client.meta.events.register("needs-retry.s3", _count)
    return Opened(client, session, generation)


def _count(
    operation: object = None, response: object = None, caught_exception: Exception | None = None, **_: object
) -> None:
    answered = isinstance(response, tuple)
    answer = str(response[0].status_code) if answered else type(caught_exception).__name__  # type: ignore[index]
    requests[str(getattr(operation, "name", "")), answer] += 1
