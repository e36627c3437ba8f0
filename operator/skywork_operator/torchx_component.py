"""`torchx run -s SCHEDULER skywork.pretrain --run run.yaml`: a SkyworkRun on whatever TorchX can start processes on.

The only module that imports torchx, and torchx is no dependency of ours: it pins an old urllib3, so it lives in an
environment of its own, in which this package is installed without extras.
"""

from pathlib import Path

import torchx.specs as specs

from skywork_operator.standalone import embedded, manifest


def pretrain(
    run: str,
    nodes: int = 0,
    name: str = "",
    image: str = "",
    entrypoint: str = "skywork-pretrain",
    cpu: int = -1,
    memory_mb: int = -1,
    state_dir: str = "",
    cache_dir: str = "",
    max_retries: int = 0,
) -> specs.AppDef:
    """Trains a SkyworkRun, all its stages, with the data order, checkpoints and metrics that it has in Kubernetes.

    Args:
        run: manifest with the SkyworkRun, as for kubectl apply
        nodes: nodes to train on; 1 when left out
        name: which run, where the manifest holds several
        image: container image, or the working directory for schedulers without containers; the manifest's by default
        entrypoint: the command in that image, or its path where it is not on PATH
        cpu: CPUs of each node, for schedulers that ask
        memory_mb: memory of each node in MiB, for schedulers that ask
        state_dir: folder for the logs of workers
        cache_dir: folder for token shards, best on a local disk
        max_retries: how often the scheduler starts everything anew after a failure
    """
    text = Path(run).read_text()
    body = manifest.choose(text, name or None)
    planned = manifest.parse(body, nodes=max(nodes, 1), gpus_per_node=0, now=0.0)
    given = body["spec"].get("trainer", {})
    options = {"--name": name, "--state-dir": state_dir, "--cache-dir": cache_dir}
    return specs.AppDef(
        name=planned.name,
        roles=[
            specs.Role(
                name="trainer",
                image=image or given.get("image", ""),
                entrypoint=entrypoint,
                args=[
                    "--nodes", str(max(nodes, 1)),
                    "--node", specs.macros.replica_id,
                    "--leader-env", specs.macros.rank0_env,
                    "--job", specs.macros.app_id,
                    *(word for option, value in options.items() if value for word in (option, value)),
                ],
                env={embedded.VARIABLE: embedded.encode(text)},
                num_replicas=max(nodes, 1),
                max_retries=max_retries,
                retry_policy=specs.RetryPolicy.APPLICATION,
                resource=specs.Resource(cpu=cpu, gpu=given.get("gpusPerNode", 0), memMB=memory_mb),
            )
        ],
    )  # fmt: skip
