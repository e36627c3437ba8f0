"""A certificate authority, certificates and kubeconfigs, by the openssl command."""

import base64
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Pki:
    """Keys of one control plane in one folder."""

    folder: Path
    server: str
    """URL of the API server."""

    @property
    def ca(self) -> Path:
        """Certificate of the authority."""
        return self.folder / "ca.crt"

    def create(self) -> None:
        """Make the authority, and the key that signs service-account tokens."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(self.folder / "ca.key"))
        _openssl(
            "req", "-x509", "-new", "-key", str(self.folder / "ca.key"), "-subj", "/CN=skywork-development",
            "-days", "3650", "-out", str(self.ca),
        )  # fmt: skip
        _openssl("genrsa", "-out", str(self.folder / "sa.key"), "2048")
        _openssl("rsa", "-in", str(self.folder / "sa.key"), "-pubout", "-out", str(self.folder / "sa.pub"))

    def issue(self, name: str, *, user: str, group: str = "", hosts: tuple[str, ...] = ()) -> tuple[Path, Path]:
        """Certificate and key for a client `user` of `group`, or a server reached as `hosts`."""
        key, request, certificate = (self.folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
        subject = (f"/O={group}" if group else "") + f"/CN={user}"
        _openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
        _openssl("req", "-new", "-key", str(key), "-subj", subject, "-out", str(request))
        lines = ["extendedKeyUsage=clientAuth,serverAuth"]
        if hosts:
            names = [f"IP:{h}" if h.replace(".", "").isdigit() else f"DNS:{h}" for h in hosts]
            lines.append("subjectAltName=" + ",".join(names))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text("\n".join(lines) + "\n")
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.ca), "-CAkey", str(self.folder / "ca.key"),
            "-CAcreateserial", "-days", "3650", "-extfile", str(extensions), "-out", str(certificate),
        )  # fmt: skip
        return certificate, key

    def kubeconfig(self, path: Path, *, user: str, group: str = "") -> Path:
        """Write a kubeconfig with a fresh client certificate."""
        certificate, key = self.issue(f"client-{path.name}-{user.replace(':', '-')}", user=user, group=group)
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "skywork-development",
            "clusters": [
                {
                    "name": "skywork-development",
                    "cluster": {"server": self.server, "certificate-authority-data": _base64(self.ca)},
                }
            ],
            "users": [
                {
                    "name": user,
                    "user": {"client-certificate-data": _base64(certificate), "client-key-data": _base64(key)},
                }
            ],
            "contexts": [{"name": "skywork-development", "context": {"cluster": "skywork-development", "user": user}}],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        path.write_text(json.dumps(content))
        return path


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _openssl(*arguments: str) -> None:
    ended = subprocess.run(["openssl", *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"openssl {arguments[0]} failed: {ended.stderr.strip()}")
