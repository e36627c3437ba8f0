"""Dashboards and rules of the chart, written from code: `python -m dev.monitoring`, which `make generate` runs."""
