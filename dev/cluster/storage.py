"""An S3 server on the bridge, so that pods and the host reach it at one address."""

import json
import secrets
import socket
from pathlib import Path

from dev.cluster import processes
from dev.cluster.network import HOST_ADDRESS

PORT = 7070
REGION = "us-east-1"


def start_storage(folder: Path, binaries: Path, *, address: str = HOST_ADDRESS, port: int = PORT) -> dict[str, str]:
    """Start it with fresh keys; returns, and writes to `folder`/s3.json, where it is and what opens it."""
    described = {
        "endpoint": f"http://{address}:{port}",
        "accessKey": secrets.token_hex(8),
        "secretKey": secrets.token_hex(16),
        "region": REGION,
    }
    buckets, folder_iam = folder / "s3/buckets", folder / "s3/iam"
    for made in (buckets, folder_iam):
        made.mkdir(parents=True, exist_ok=True)
    keys = {"ROOT_ACCESS_KEY": described["accessKey"], "ROOT_SECRET_KEY": described["secretKey"]}
    command = [str(binaries / "versitygw"), "--port", f"{address}:{port}", "--region", REGION]
    daemon = processes.start("s3", [*command, "--iam-dir", str(folder_iam), "posix", str(buckets)], folder, keys)
    processes.wait("the S3 server", lambda: _listens(address, port), 15, folder / "s3.log", daemon)
    (folder / "s3.json").touch(mode=0o600)
    (folder / "s3.json").write_text(json.dumps(described))
    return described


def _listens(address: str, port: int) -> bool:
    try:
        with socket.create_connection((address, port), timeout=1):
            return True
    except OSError:
        return False
