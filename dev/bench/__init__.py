"""Benchmarks: every figure is one JSON line, with the peer measured in the same run where there is one."""
