"""promtool, as Debian packages it beside Prometheus."""

import shutil
import subprocess

from dev.cluster.build import ensure_built


def promtool(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        ensure_built(print)
    return subprocess.run(["promtool", *arguments], input=text, text=True, capture_output=True, check=False)
