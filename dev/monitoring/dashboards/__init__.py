"""The three dashboards."""
