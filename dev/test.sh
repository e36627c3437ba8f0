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

case "$level" in
  lint) lint ;;
  unit) pytest tests/unit ;;
  full) pytest tests/unit -m full ;;
  monitoring) build; pytest tests/monitoring ;;
  s3) build; pytest tests/s3 ;;
  control_plane) build; pytest tests/control_plane ;;
  cluster) build; pytest tests/cluster ;;
  all) lint; build; pytest tests ;;
  *) echo "usage: dev/test.sh [lint|unit|full|monitoring|s3|control_plane|cluster]" >&2; exit 2 ;;
esac
