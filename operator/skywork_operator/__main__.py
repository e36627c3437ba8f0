"""Run the operator: `skywork-operator`, or `python -m skywork_operator`."""

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

import kopf
import yaml
from prometheus_client import start_http_server

from skywork_operator import __version__
from skywork_operator.handlers import Operator
from skywork_operator.render import Defaults


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM (0) or until a part of the operator dies (1)."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=options.log_level, stream=sys.stderr, format=_LOG_FORMAT)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    defaults = _defaults(options.defaults, options.trainer_image)
    return asyncio.run(_run(options, defaults))


async def _run(options: argparse.Namespace, defaults: Defaults) -> int:
    namespaces = options.namespace or []
    operator = Operator(defaults, namespaces, elect=options.leader_election)
    start_http_server(options.metrics_port, registry=operator.registry)
    logging.getLogger(__name__).info("operator %s starts; namespaces: %s", __version__, namespaces or "all")
    await kopf.operator(
        registry=operator.kopf_registry(),
        settings=operator.settings(),
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        liveness_endpoint=f"http://0.0.0.0:{options.health_port}/healthz",
        stop_flag=operator.stop,
    )
    # Kopf has its own handlers of SIGTERM and SIGINT, after which it returns here.
    return 1 if operator.broken else 0


def _defaults(path: Path | None, image: str) -> Defaults:
    if path is None:
        return Defaults(image=image)
    loaded = yaml.safe_load(path.read_text()) or {}
    return Defaults(image=image, template=loaded)


_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skywork-operator", description=__doc__)
    parser.add_argument("--namespace", action="append", help="namespace to watch; repeat for more; all when left out")
    parser.add_argument(
        "--trainer-image", default=os.environ.get("SKYWORK_TRAINER_IMAGE", f"skywork-trainer:{__version__}")
    )
    parser.add_argument("--defaults", type=Path, help="YAML file: pod template patch under every run's own")
    parser.add_argument(
        "--leader-election", action="store_true", help="act only while holding a Lease, so that several may run"
    )
    parser.add_argument("--metrics-port", type=int, default=9401)
    parser.add_argument("--health-port", type=int, default=9402)
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    return parser


if __name__ == "__main__":
    sys.exit(main())
