"""`skywork agent`: run the agent, PID 1 of a training pod."""

import argparse
import logging
import os
import sys
from pathlib import Path

from skywork_trainer.agent.supervisor import Settings, Supervisor
from skywork_trainer.config import AGENT_PORT, CONFIG_PATH, MEMBERSHIP_PATH


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the agent."""
    parser.add_argument("--config", type=Path, default=Path(CONFIG_PATH), help="the stage's configuration")
    parser.add_argument("--membership", type=Path, default=Path(MEMBERSHIP_PATH), help="file with this pod's place")
    parser.add_argument("--state-dir", type=Path, default=Path("/tmp/skywork"), help="where workers report")
    parser.add_argument("--cache-dir", type=Path, default=Path("/cache"), help="node cache of token shards")
    parser.add_argument("--termination-log", type=Path, default=Path("/dev/termination-log"))
    parser.add_argument("--workers", type=int, default=int(os.environ.get("SKYWORK_WORKERS", "1")), help="one per GPU")
    parser.add_argument("--port", type=int, default=AGENT_PORT)
    parser.add_argument("--drain-seconds", type=float, default=30.0, help="time to save when the world changes")
    parser.add_argument("--grace-seconds", type=float, default=25.0, help="time to save when the pod is deleted")
    parser.add_argument("--worker-module", default="skywork_trainer.worker", help="module with preload() and run()")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Supervise until the end; the exit code is the operator's contract (0, 64, 75)."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(asctime)s agent %(levelname)s %(message)s")
    settings = Settings(
        config_path=options.config,
        membership_path=options.membership,
        state_dir=options.state_dir,
        cache_dir=options.cache_dir,
        termination_log=options.termination_log,
        workers=options.workers,
        port=options.port,
        drain_seconds=options.drain_seconds,
        grace_seconds=options.grace_seconds,
        worker_module=options.worker_module,
    )
    return Supervisor(settings).run()
