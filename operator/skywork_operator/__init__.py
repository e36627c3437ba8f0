"""Kubernetes operator of SkyworkRuns: the membership authority of elastic, multi-stage training."""

__version__ = "0.1.0"
