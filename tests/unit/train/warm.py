"""Preloaded by the fork server of these tests: what the agent's parent process does, so that ranks start in no time."""

from skywork_trainer import worker

worker.preload()
