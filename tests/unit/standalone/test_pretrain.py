"""Whole runs in real processes: node 0, its peers, agents, workers, preparations."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.standalone.runs import CONTINUED_STEPS, STEPS, log, start, write_manifest
from tests.waiting import until

TOTAL_STEPS = STEPS + CONTINUED_STEPS


def ended(process: "subprocess.Popen[str]", folder: Path, node: int = 0, seconds: float = 120) -> int:
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(log(folder, node)) from None


def assert_every_sample_trained_once(folder: Path) -> None:
    command = [sys.executable, "-m", "skywork_trainer", "checkpoints", "audit", (folder / "checkpoints").as_uri()]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert (found["samplesLost"], found["samplesRepeated"]) == (0, 0)
    assert found["steps"] == TOTAL_STEPS


def test_an_interrupted_run_saves_the_step_it_is_at_and_goes_on_from_there(folder: Path) -> None:
    # No checkpoint is due inside a stage: the only one is that of the interruption.
    path = write_manifest(folder, checkpoints={"uri": (folder / "checkpoints").as_uri(), "everySteps": 1000})
    first = start(folder, "--run", str(path))
    progress = folder / "state/node-0/workers/1/progress.json"
    until(lambda: progress.exists() and json.loads(progress.read_text())["step"] > 0, 90)
    first.send_signal(signal.SIGINT)
    assert ended(first, folder) == 75, log(folder)
    assert "goes on from the newest checkpoint" in log(folder)
    (saved,) = (folder / "checkpoints").glob("checkpoints/*/manifest.json")
    second = start(folder, "--run", str(path))
    assert ended(second, folder) == 0, log(folder)
    assert "nothing to do" in log(folder), "what was prepared is not prepared again"
    assert saved.parent.name in parents(folder)
    assert_every_sample_trained_once(folder)


def test_a_run_that_still_compiles_is_left_at_once_for_there_is_nothing_to_save(folder: Path) -> None:
    path = write_manifest(folder, engine={"zeroStage": 1, "microBatchSequences": 4, "compile": True})
    process = start(folder, "--run", str(path))
    progress = folder / "state/node-0/workers/1/progress.json"
    until(lambda: progress.exists() and json.loads(progress.read_text())["section"] == "first-step", 90)
    process.send_signal(signal.SIGTERM)
    assert ended(process, folder) == 75, log(folder)
    assert json.loads(progress.read_text())["step"] == 0, "the first step was not waited for"
    assert not list((folder / "checkpoints").glob("checkpoints/*"))


def parents(folder: Path) -> set[str]:
    """Checkpoints that others were trained on from."""
    return {json.loads(path.read_text())["parent"] for path in (folder / "checkpoints/history").glob("*.json")}


def test_a_node_that_leaves_saves_and_the_others_go_on_without_it(folder: Path) -> None:
    path = write_manifest(folder)
    options = ["--run", str(path), "--nodes", "2", "--job", str(folder)]
    nodes = [start(folder, *options, "--node", str(number)) for number in (0, 1)]
    until(lambda: list((folder / "checkpoints").glob("checkpoints/*/manifest.json")), 90)
    nodes[1].send_signal(signal.SIGTERM)
    assert ended(nodes[1], folder, 1) == 75, log(folder, 1)
    until(lambda: "generation 2 trains on 1 nodes" in log(folder), 30)
    # Its Job still waits for the second node, as it would in a cluster.
    again = start(folder, *options, "--node", "1")
    assert ended(nodes[0], folder) == 0, log(folder)
    assert ended(again, folder, 1) == 0, log(folder, 1)
    assert_every_sample_trained_once(folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--nodes", "2", "--node", "2"], "--node 2 is not among --nodes 2", id="a node too many"),
        pytest.param(["--nodes", "0"], "0 is less than 1", id="no nodes"),
        pytest.param(["--leader-env", "NOWHERE"], "--leader-env NOWHERE", id="no leader"),
        pytest.param([], "--run FILE", id="no manifest"),
        pytest.param(["--run", "/nonexistent.yaml"], "/nonexistent.yaml", id="no such file"),
    ],
)
def test_wrong_options_end_with_64_and_a_sentence_that_names_them(
    options: list[str], said: str, tmp_path: Path
) -> None:
    assert ended(start(tmp_path, *options), tmp_path, 2 if "2" in options[3:] else 0, 30) == 64
    assert any(said in path.read_text() for path in tmp_path.glob("node-*.log"))


def test_a_tokenizer_that_does_not_fit_ends_the_run_with_64_and_its_reason(folder: Path) -> None:
    path = write_manifest(folder, model={"layers": 1, "hidden": 32, "heads": 2, "ffn": 64, "vocabSize": 256})
    assert ended(start(folder, "--run", str(path)), folder) == 64
    assert "given up: " in log(folder) and "256" in log(folder)


def test_the_real_torchx_prepares_and_trains_two_stages_on_two_nodes_and_no_sample_is_lost(
    folder: Path, torchx: Path
) -> None:
    path = write_manifest(folder, trainer={"nodes": {"min": 1, "max": 4}})
    entrypoint = Path(sys.executable).parent / "skywork-pretrain"
    options = ["--run", path, "--nodes", "2", "--entrypoint", entrypoint, "--state_dir", folder / "state"]
    command = [torchx, "run", "-s", "local_cwd", "skywork.pretrain", *options, "--cache_dir", folder / "cache"]
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=180, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    for event in (
        "SourcePrepared: source stem",
        "GenerationStarted: generation 1 trains on 2 nodes",
        "StageCompleted: stage general",
        f"all stages are trained: {TOTAL_STEPS} steps",
        "Job finished: SUCCEEDED",
    ):
        assert event in said
    assert_every_sample_trained_once(folder)


def test_torchx_says_what_is_wrong_with_a_manifest_before_it_submits_anything(folder: Path, torchx: Path) -> None:
    path = write_manifest(folder, batch={"sequenceLength": 4, "globalTokens": "8"})
    command = [str(torchx), "run", "-s", "local_cwd", "skywork.pretrain", "--run", str(path)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "batch.sequenceLength" in done.stderr
    assert not (folder / "checkpoints").exists()
