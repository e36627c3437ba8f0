"""A SkyworkRun without Kubernetes: node 0 decides as the operator does, every node runs the agent that pods run.

What differs from a cluster is only who carries the words: reports and orders over HTTP instead of pods, Jobs and
annotations. Policies, configuration, order of the data, checkpoints and metrics are those of the operator and the
trainer.
"""
