"""Puts the product and the demo's data in place: chart, namespace, credentials, tokenizer, shards."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dev.demo.kube import Kube

ROOT = Path(__file__).resolve().parents[2]
RELEASE = "skywork"
OPERATOR_NAMESPACE = "skywork-system"
RUN_NAMESPACE = "skywork-demo"
BUCKET = "skywork-demo"
VOCABULARY = 4096
SHARDED = ("main", "zh", "en", "code", "papers")
"""Prepared here, by the command; source `stem` is left to the operator."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """An S3 server and its keys."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        """The standard AWS variables."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """What pods need to run the code of this checkout, or nothing where a real image holds it."""

    image: str
    command_prefix: str = ""
    volumes: list[dict[str, Any]] = field(default_factory=list)
    mounts: list[dict[str, Any]] = field(default_factory=list)
    env: list[dict[str, Any]] = field(default_factory=list)

    def trainer_template(self) -> dict[str, Any]:
        """Pod-template patch that the chart lays under every run."""
        if not self.command_prefix:
            return {}
        container = {
            "name": "trainer",
            "imagePullPolicy": "Never",
            "command": [f"{self.command_prefix}/skywork"],
            "env": self.env,
            "volumeMounts": self.mounts,
        }
        return {"spec": {"volumes": self.volumes, "containers": [container]}}

    def chart_values(self) -> dict[str, Any]:
        """Values of the Helm chart."""
        repository, _, tag = self.image.rpartition(":")
        values: dict[str, Any] = {
            "image": {"repository": repository, "tag": tag},
            "trainer": {"image": self.image, "template": self.trainer_template()},
        }
        if self.command_prefix:
            values["image"]["pullPolicy"] = "Never"
            values["command"] = [f"{self.command_prefix}/skywork-operator"]
            values |= {"volumes": self.volumes, "volumeMounts": self.mounts, "env": self.env}
            # The code is mounted, not built into an image: only this tells Helm that it has changed.
            values["podAnnotations"] = {"skywork.dev/code": _code_digest()}
        return values


def _code_digest() -> str:
    digest = hashlib.sha256()
    for path in [*sorted((ROOT / "operator").rglob("*.py")), ROOT / "trainer/skywork_trainer/config.py"]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def install_chart(kube: Kube, overlay: Overlay, extra: Mapping[str, Any] | None = None) -> None:
    """`helm upgrade --install` of the operator, waiting until it is ready."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as values:
        json.dump(overlay.chart_values() | dict(extra or {}), values)
        values.flush()
        kube.run_helm(
            "upgrade", "--install", RELEASE, str(ROOT / "charts/skywork-operator"),
            "--namespace", OPERATOR_NAMESPACE, "--create-namespace", "--values", values.name,
            "--wait", "--timeout", "120s",
        )  # fmt: skip


def make_namespace(kube: Kube, name: str, storage: Storage, *, hostpath: bool) -> None:
    """The run's namespace, under Pod Security, with the credentials of the object storage.

    hostPath mounts, which only the development cluster's pods have, are all that `restricted` forbids there, so the
    level is then enforced as a warning only.
    """
    enforce = {} if hostpath else {"pod-security.kubernetes.io/enforce": "restricted"}
    labels = enforce | {
        "pod-security.kubernetes.io/warn": "restricted",
        "pod-security.kubernetes.io/audit": "restricted",
    }
    data = {k: base64.b64encode(v.encode()).decode() for k, v in storage.environment().items()}
    kube.apply(
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "object-storage", "namespace": name}, "data": data},
    )


def s3_client(storage: Storage) -> Any:
    """A boto3 client of the storage."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=storage.endpoint,
        aws_access_key_id=storage.access_key,
        aws_secret_access_key=storage.secret_key,
        region_name=storage.region,
        config=Config(s3={"addressing_style": "path"}),
    )


def forget_run(storage: Storage, prefix: str, bucket: str = BUCKET) -> int:
    """Remove what an earlier demo left of its run, which would otherwise simply go on; number of objects removed."""
    client = s3_client(storage)
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [entry["Key"] for page in pages for entry in page.get("Contents", [])]
    for key in keys:
        client.delete_object(Bucket=bucket, Key=key)
    return len(keys)


def make_bucket(storage: Storage, bucket: str = BUCKET) -> None:
    """Create the bucket unless it is there."""
    from botocore.exceptions import ClientError

    client = s3_client(storage)
    try:
        client.create_bucket(Bucket=bucket)
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
            raise


def prepare_data(storage: Storage, corpus: Path, bucket: str = BUCKET) -> None:
    """Train the tokenizer and write shards; text for the operator is uploaded. What is there is left alone."""
    environment = {**os.environ, **storage.environment()}
    tokenizer = f"s3://{bucket}/data/tokenizer"
    texts = ["--input", str(corpus / "main.jsonl"), str(corpus / "stem.jsonl")]
    _skywork(["tokenizer", "train", "--vocab-size", str(VOCABULARY), "--output", tokenizer, *texts], environment)
    for source in SHARDED:
        uri = f"s3://{bucket}/data/{source}"
        arguments = ["--input", str(corpus / f"{source}.jsonl"), "--tokenizer", tokenizer, "--output", uri]
        _skywork(["data", "prepare", *arguments], environment)
    s3_client(storage).upload_file(str(corpus / "stem.jsonl"), bucket, "text/stem.jsonl")


def _skywork(arguments: list[str], environment: dict[str, str]) -> None:
    command = [str(Path(sys.executable).parent / "skywork"), *arguments]
    subprocess.run(command, env=environment, check=True)
