"""The demo, from nothing to a report: `make demo`, or `python -m dev.demo --help`."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from dev.demo import faults, install
from dev.demo.environment import Environment, development_cluster, named_cluster
from dev.demo.faults import Fault
from dev.demo.install import ROOT, RUN_NAMESPACE
from dev.demo.kube import CommandError
from dev.demo.prometheus import SCRAPE_SECONDS, Prometheus, pods_to_scrape
from dev.demo.report import build_report, print_report
from dev.demo.view import View
from dev.monitoring.draw import draw
from dev.monitoring.walk import Shown, walk

RUN = "demo"
RECOVERY_SECONDS = 120.0
RUN_LIMIT_SECONDS = 1500.0


def main() -> int:
    """Run the demo; 0 when the run succeeded and no sample was lost or repeated."""
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave the cluster up afterwards")
    parser.add_argument("--output", type=Path, default=ROOT / "build/demo")
    options = parser.parse_args()
    view = View()
    context = os.environ.get("KUBECONTEXT")
    environment = named_cluster(context) if context else development_cluster(view.headline)
    try:
        return _demo(environment, view, options.output)
    except (CommandError, RuntimeError, OSError, subprocess.SubprocessError) as error:
        view.headline(f"the demo failed: {error}")
        _explain(environment)
        return 1
    finally:
        if not context and not options.keep:
            view.headline("taking the cluster down (--keep leaves it up)")
            environment.down()


def _demo(environment: Environment, view: View, output: Path) -> int:
    kube, storage = environment.kube, environment.storage
    output.mkdir(parents=True, exist_ok=True)
    view.headline("fetching Chinese, English and code text")
    corpus = environment.cache / "corpus"
    subprocess.run([sys.executable, "-m", "dev.corpus", "--output", str(corpus)], check=True, cwd=ROOT)
    view.headline("training a tokenizer and writing token shards to object storage")
    install.make_bucket(storage)
    install.prepare_data(storage, corpus)
    view.headline("installing the operator with Helm")
    install.make_namespace(kube, RUN_NAMESPACE, storage, hostpath=environment.overlay.command_prefix != "")
    install.install_chart(kube, environment.overlay)
    with Prometheus(pods_to_scrape(kube), output / "prometheus") as prometheus:
        started = time.time()
        view.headline("kubectl apply -f manifests/demo.yaml")
        kube.run("delete", "skyworkrun", "-n", RUN_NAMESPACE, RUN, "--ignore-not-found", "--cascade=foreground")
        if install.forget_run(storage, f"runs/{RUN}/"):
            view.headline("removed the checkpoints of an earlier demo, whose end this one would have gone on from")
        kube.apply(yaml.safe_load((ROOT / "manifests/demo.yaml").read_text()))
        done = _disturb(environment, view)
        run = _wait_finished(environment, view)
        losses, scraped = _losses_in_prometheus(prometheus), _scraped_from_trainers(prometheus)
        view.headline("asking Prometheus for every panel, variable, annotation and rule")
        span = Shown(
            namespace=RUN_NAMESPACE, run=RUN, start=started, end=time.time(), rate_interval=f"{8 * SCRAPE_SECONDS:.0f}s"
        )
        walked = walk(prometheus.address, span)
        pictures = draw(prometheus.address, span, output / "dashboards")
    _skywork(environment, "report", run["spec"]["checkpoints"]["uri"], "-o", str(output / "curves.html"))
    audit = _audit(environment, run)
    report = build_report(run, done, audit, losses, view.curves, view.elapsed_seconds())
    report["domainsScrapedFromTrainers"] = scraped
    report["expressions"] = walked.summary()
    if walked.empty:
        view.headline(f"expressions without data: {'; '.join(walked.empty)}")
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print_report(report)
    view.headline(f"figures: {output / 'report.json'}")
    view.headline(f"curves: {output / 'curves.html'}; dashboards as pictures: {pictures[0].parent}")
    whole = report["samplesLost"] == report["samplesRepeated"] == 0
    return 0 if run["status"]["state"] == "Succeeded" and whole else 1


def _disturb(environment: Environment, view: View) -> list[Fault]:
    """Kill a worker at about a third of stage 1, delete a pod at about two thirds."""
    done = []
    for kind, fraction in (("worker killed with SIGKILL", 0.35), ("pod deleted", 0.65)):
        run = _wait_progress(environment, view, fraction)
        status = run["status"]
        pods = faults.run_pods(environment.kube, RUN_NAMESPACE, RUN, status["stage"])
        victim = pods[-1]
        name = victim["metadata"]["name"]
        view.headline(f"fault: {kind} ({name}) at step {status['step']}")
        started = time.time()
        act = faults.kill_worker if "killed" in kind else faults.delete_pod
        act(environment.kube, RUN_NAMESPACE, victim)
        again = faults.first_step_after(
            environment.kube,
            RUN_NAMESPACE,
            RUN,
            generation=status["generation"],
            timeout_seconds=RECOVERY_SECONDS,
            tick=lambda: view.show(environment.kube.get("skyworkrun", "-n", RUN_NAMESPACE, RUN)),
        )
        view.headline(f"trains again {again - started:.1f} s after the fault")
        step = status["step"]
        done.append(
            Fault(kind=kind, stage=status["stage"], pod=name, step=step, secondsToNextStep=round(again - started, 2))
        )
    return done


def _wait_progress(environment: Environment, view: View, fraction: float) -> dict[str, Any]:
    """Wait until `fraction` of the first stage's steps are done."""
    deadline = time.monotonic() + RUN_LIMIT_SECONDS
    while time.monotonic() < deadline:
        run = environment.kube.get("skyworkrun", "-n", RUN_NAMESPACE, RUN)
        view.show(run)
        status = run.get("status", {})
        if status.get("state") in ("Failed", "Invalid"):
            raise RuntimeError(_conditions(run))
        if status.get("state") == "Succeeded":
            raise RuntimeError("the run finished before its faults: it is too short to be disturbed")
        wanted = fraction * int(run["spec"]["stages"][0]["tokens"]) / int(run["spec"]["batch"]["globalTokens"])
        if status.get("state") == "Training" and status.get("step", 0) >= wanted:
            return run
        time.sleep(0.5)
    raise RuntimeError(f"the run did not reach {fraction:.0%} of its first stage in {RUN_LIMIT_SECONDS:.0f} s")


def _wait_finished(environment: Environment, view: View) -> dict[str, Any]:
    deadline = time.monotonic() + RUN_LIMIT_SECONDS
    while time.monotonic() < deadline:
        run = environment.kube.get("skyworkrun", "-n", RUN_NAMESPACE, RUN)
        view.show(run)
        if run.get("status", {}).get("state") in ("Failed", "Invalid"):
            raise RuntimeError(_conditions(run))
        if run.get("status", {}).get("state") == "Succeeded":
            view.headline("the run succeeded")
            return run
        time.sleep(0.5)
    raise RuntimeError(f"the run did not finish in {RUN_LIMIT_SECONDS:.0f} s")


def _losses_in_prometheus(prometheus: Prometheus) -> dict[str, float]:
    """Final validation loss of each domain as Prometheus holds it, from the operator."""
    query = f'skywork_run_validation_loss{{run="{RUN}",namespace="{RUN_NAMESPACE}"}}'
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = prometheus.query(query)
        if found:
            return {r["metric"]["domain"]: float(r["value"][1]) for r in found}
        time.sleep(0.5)
    raise RuntimeError(f"Prometheus has no series for {query}")


def _scraped_from_trainers(prometheus: Prometheus) -> dict[str, list[str]]:
    """Domains whose loss Prometheus scraped from the trainers themselves, by stage; their pods are gone by now."""
    query = f'last_over_time(skywork_validation_loss{{run="{RUN}",namespace="{RUN_NAMESPACE}"}}[1h])'
    domains: dict[str, set[str]] = {}
    for series in prometheus.query(query):
        domains.setdefault(series["metric"]["stage"], set()).add(series["metric"]["domain"])
    return {stage: sorted(found) for stage, found in sorted(domains.items())}


def _audit(environment: Environment, run: dict[str, Any]) -> dict[str, Any]:
    """Count lost and repeated sequences from what the ranks recorded."""
    counted: dict[str, Any] = json.loads(
        _skywork(environment, "checkpoints", "audit", run["spec"]["checkpoints"]["uri"], "--json")
    )
    return counted


def _skywork(environment: Environment, *arguments: str) -> str:
    """What a command of ours prints about the demo's storage."""
    command = [str(Path(sys.executable).parent / "skywork"), *arguments]
    variables = {**os.environ, **environment.storage.environment()}
    ended = subprocess.run(command, env=variables, text=True, capture_output=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"skywork {' '.join(arguments[:2])}: {ended.stderr.strip()}")
    return ended.stdout


def _conditions(run: dict[str, Any]) -> str:
    said = run.get("status", {}).get("conditions", [])
    return "; ".join(f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in said)


def _explain(environment: Environment) -> None:
    """What a person would look at next, printed for them."""
    commands: tuple[list[str], ...] = (
        ["get", "pods", "-A", "-o", "wide"],
        ["get", "events", "-n", RUN_NAMESPACE, "--sort-by=.lastTimestamp"],
        ["logs", "-n", install.OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/name=skywork-operator", "--tail=30"],
        ["logs", "-n", RUN_NAMESPACE, "-l", "app.kubernetes.io/name=skywork-trainer", "--tail=30", "--prefix"],
    )
    for arguments in commands:
        print(f"--- kubectl {' '.join(arguments)}")
        try:
            print(environment.kube.run(*arguments))
        except (CommandError, subprocess.TimeoutExpired) as error:
            print(error)


if __name__ == "__main__":
    sys.exit(main())
