#!/usr/bin/env bash
# Makes the project's Python environment (.venv) from the lock file; says what it does, and does nothing twice.
set -euo pipefail
cd "$(dirname "$0")/.."
cache="${SKYWORK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skywork}"

python=$(command -v python3.11 || true)
if [ -z "$python" ]; then
  echo "setup: Python 3.11 is missing; on Debian: apt-get install python3.11 python3.11-venv" >&2
  exit 1
fi
uv="$cache/uv/bin/uv"
if [ ! -x "$uv" ]; then
  echo "setup: installing uv into $cache/uv"
  if ! "$python" -m venv "$cache/uv" >/dev/null 2>&1; then
    echo "setup: installing python3-venv (apt-get)"
    apt-get -qq update && apt-get -qq install -y --no-install-recommends python3-venv >/dev/null
    "$python" -m venv --clear "$cache/uv"
  fi
  "$cache/uv/bin/pip" install --quiet --disable-pip-version-check 'uv>=0.9,<1'
fi
stamp=.venv/.synced
if [ ! -e "$stamp" ] || [ uv.lock -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
  echo "setup: installing the locked Python packages into .venv (torch alone is several gigabytes the first time)"
  started=$SECONDS
  # Compiled now, because pods mount the packages read-only: each of them would compile torch anew at every start.
  "$uv" sync --quiet --frozen --all-extras --compile-bytecode --python "$python"
  touch "$stamp"
  echo "setup: done in $((SECONDS - started)) s"
fi
warm=$(find .venv/share/skywork -name lazy-imports.json -newer "$stamp" 2>/dev/null || true)
if [ -z "$warm" ]; then
  echo "setup: noting what a worker's first step imports, so that pods start sooner"
  .venv/bin/python -m skywork_trainer.lazy_imports
fi
