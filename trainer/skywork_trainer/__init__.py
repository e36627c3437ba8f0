"""Trainer of SkyworkRuns: the agent that is PID 1 of each pod, and the workers it runs."""

__version__ = "0.1.0"
