#!/usr/bin/env bash
# Tests by level: lint, unit, monitoring, s3, control_plane, cluster; all of them without an argument. Apart from those: full.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH" PYTHONDONTWRITEBYTECODE=1
level="${1:-all}"

lint() {
  ruff check operator trainer dev tests
  ruff format --check operator trainer dev tests
  mypy
  lint-imports
}
build() { python -m dev.cluster build; }
# In a network of its own. What a shell starts in the background would not hear Ctrl-C.
alone() { unshare --net env --default-signal=INT bash -c 'ip link set lo up && exec "$@"' -- "$@"; }
control_plane() {
  local slow=tests/control_plane/test_api_faults.py others log failed=0
  if ! alone true 2>/dev/null; then
    pytest tests/control_plane
    return
  fi
  # Both halves mostly wait, so they run side by side; both take the same ports, so each in its own network.
  log="$(mktemp)"
  alone pytest tests/control_plane --ignore="$slow" >"$log" 2>&1 &
  others=$!
  alone pytest "$slow" || failed=1
  wait "$others" || failed=1
  cat "$log"
  rm "$log"
  return "$failed"
}

case "$level" in
  lint) lint ;;
  unit) pytest tests/unit ;;
  full) pytest tests/unit -m full ;;
  monitoring) build; pytest tests/monitoring ;;
  s3) build; pytest tests/s3 ;;
  control_plane) build; control_plane ;;
  cluster) build; pytest tests/cluster ;;
  all)
    lint
    build
    failed=0
    pytest tests --ignore=tests/control_plane || failed=1
    control_plane || failed=1
    exit "$failed"
    ;;
  *) echo "usage: dev/test.sh [lint|unit|full|monitoring|s3|control_plane|cluster]" >&2; exit 2 ;;
esac
