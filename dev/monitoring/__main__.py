"""Write the chart's dashboards and rules: `python -m dev.monitoring`."""

import sys

from dev.monitoring.files import generated


def main() -> int:
    """Write every file, and remove dashboards and rules that are no longer generated."""
    files = generated()
    for folder in {path.parent for path in files}:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.iterdir():
            if path not in files:
                path.unlink()
    for path, content in files.items():
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
