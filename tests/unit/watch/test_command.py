"""`skywork watch`, and `skywork report` by name, as processes; kubectl is a program that answers from files."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from skywork_trainer import cli
from skywork_trainer.config import EXIT_CONFIG
from skywork_trainer.kubectl import ClusterError, Kubectl

from tests.unit.report.test_report import trained
from tests.unit.watch.objects import EVENTS, PROGRESS, run
from tests.waiting import until

Captured = pytest.CaptureFixture[str]
_ANSWERS = """#!{python}
import json, sys
from pathlib import Path
here = Path({folder!r})
with (here / "calls").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
words = [word for word in sys.argv[1:] if not word.startswith("--")]
name = "raw" if "--raw" in sys.argv else words[1].partition(".")[0]
refusal = here / (name + ".refusal")
if refusal.exists():
    sys.exit(refusal.read_text())
print((here / (name + ".json")).read_text())
"""
_COMMAND = "import sys; from skywork_trainer import cli; sys.exit(cli.main())"
_POD = {
    "metadata": {
        "name": "p-0",
        "namespace": "research",
        "annotations": {"skywork.dev/membership": '{"generation": 3, "role": "train", "rank": 0}'},
    }
}


class Cluster:
    """What kubectl answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "answers"
        self.folder.mkdir()
        self.bin = folder / "bin"
        self.bin.mkdir()
        program = self.bin / "kubectl"
        program.write_text(_ANSWERS.format(python=sys.executable, folder=str(self.folder)))
        program.chmod(0o755)
        self.says("skyworkruns", run())
        self.says("events", {"items": list(EVENTS)})
        self.says("pods", {"items": [_POD]})
        self.says("raw", {"progress": PROGRESS})
        self.processes: list[subprocess.Popen[str]] = []

    def says(self, kind: str, answer: Any) -> None:
        path = self.folder / f"{kind}.json"
        path.with_suffix(".new").write_text(json.dumps(answer))
        path.with_suffix(".new").replace(path)

    def refuses(self, kind: str, words: str) -> None:
        (self.folder / f"{kind}.refusal").write_text(words)

    def calls(self) -> list[list[str]]:
        path = self.folder / "calls"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        environment = {**os.environ, "PATH": str(self.bin), "TERM": "xterm", "COLUMNS": "120"}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        command = [sys.executable, "-c", _COMMAND, *arguments]
        process = subprocess.Popen(command, env=environment, text=True, **streams)
        self.processes.append(process)
        return process

    def ran(self, *arguments: str) -> tuple[int, str, str]:
        process = self.start(*arguments)
        out, err = process.communicate(timeout=60)
        assert "Traceback" not in err
        return process.returncode, out, err


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    made = Cluster(tmp_path)
    yield made
    for process in made.processes:
        process.kill()
        process.wait()


@pytest.fixture
def here(cluster: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> Captured:
    """For commands that run inside the test: that kubectl is the one they find."""
    monkeypatch.setenv("PATH", str(cluster.bin))
    return capsys


def test_one_frame_tells_what_the_cluster_knows(cluster: Cluster) -> None:
    code, out, err = cluster.ran("watch", "skywork-13b", "--once", "-n", "research", "--context", "prod")
    assert (code, err) == (0, "")
    for word in (
        "research/skywork-13b",
        "Training",
        "stage stem",
        "97.4%",
        "+0.0291",
        "Forgetting",
        "▁",
        "gpu-40 is gone",
    ):
        assert word in out, word
    assert "\x1b" not in out, "a pipe gets no colours"
    assert all("--context=prod" in call and "--namespace=research" in call for call in cluster.calls())
    assert any("/api/v1/namespaces/research/pods/p-0:9400/proxy/status" in call for call in cluster.calls())


def test_what_may_not_be_asked_is_left_out_and_not_asked_again(cluster: Cluster) -> None:
    for kind in ("events", "pods"):
        cluster.refuses(kind, f'Error from server (Forbidden): {kind} is forbidden: User "eve" cannot list')
    process = cluster.start("watch", "skywork-13b", "--interval", "0.5")
    until(lambda: sum("skyworkruns.skywork.dev" in call for call in cluster.calls()) > 7, 60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, "")
    assert "Training" in out
    assert [sum(kind in call for call in cluster.calls()) for kind in ("events", "pods")] == [1, 1]


@pytest.mark.parametrize(("word", "code"), [("Succeeded", 0), ("Failed", 1)])
def test_lines_follow_the_run_to_its_end(cluster: Cluster, word: str, code: int) -> None:
    process = cluster.start("watch", "skywork-13b", "--interval", "0.5")
    assert process.stdout is not None
    assert "research/skywork-13b: Training" in process.stdout.readline()
    cluster.says("skyworkruns", run(state="Recovering", conditions=[]))
    until(lambda: "Recovering" in process.stdout.readline(), 60)  # type: ignore[union-attr]
    over = {"type": word, "status": "True", "reason": "Because", "message": "it is over"}
    cluster.says("skyworkruns", run(state=word, conditions=[over]))
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, "")
    assert f"research/skywork-13b: {word}: Because: it is over" in out


def test_a_run_that_is_deleted_ends_it_with_a_word(cluster: Cluster) -> None:
    process = cluster.start("watch", "skywork-13b", "--interval", "0.5")
    assert process.stdout is not None
    process.stdout.readline()
    cluster.refuses("skyworkruns", 'Error from server (NotFound): skyworkruns.skywork.dev "skywork-13b" not found')
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "the run was deleted" in err


def test_a_terminal_gets_a_frame_that_is_drawn_anew_and_ctrl_c_ends_it(cluster: Cluster) -> None:
    ours, theirs = pty.openpty()
    process = cluster.start("watch", "skywork-13b", "--interval", "0.5", stdout=theirs, stdin=theirs)
    os.close(theirs)
    seen = bytearray()
    until(lambda: seen.extend(os.read(ours, 1 << 16)) or seen.count(b"research/skywork-13b") >= 3, 60, 0.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    os.close(ours)
    assert (process.returncode, err) == (130, "")
    assert b"\x1b[" in seen


REFUSALS = [
    ('Error from server (NotFound): skyworkruns.skywork.dev "x" not found', EXIT_CONFIG, "NotFound"),
    ('Error from server (Forbidden): skyworkruns.skywork.dev "x" is forbidden', EXIT_CONFIG, "Forbidden"),
    ('error: the server doesn\'t have a resource type "skyworkruns"', EXIT_CONFIG, "operator is not installed"),
    ("The connection to the server 10.0.0.1:6443 was refused - did you specify the right host or port?", 1, "Unreach"),
    ("Unable to connect to the server: dial tcp: lookup api: no such host", 1, "Unreachable"),
    ("error: something else", 1, "KubectlFailed: kubectl get skyworkruns.skywork.dev x: error: something else"),
]


@pytest.mark.parametrize(("said", "code", "told"), REFUSALS)
@pytest.mark.parametrize("command", [["watch", "x"], ["report", "x", "--json"]])
def test_what_kubectl_refuses_is_told_in_its_words(
    cluster: Cluster, here: Captured, command: list[str], said: str, code: int, told: str
) -> None:
    cluster.refuses("skyworkruns", said)
    assert cli.main(command) == code
    out, err = here.readouterr()
    assert out == "" and told in err and said[-20:] in err


@pytest.mark.parametrize("command", [["watch", "x"], ["report", "x", "--json"]])
def test_without_kubectl_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, command: list[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli.main(command) == EXIT_CONFIG
    assert "kubectl is not on the PATH" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "UPPER", "a b", "a;b", ""])
def test_a_name_that_cannot_be_one_asks_nobody(cluster: Cluster, here: Captured, name: str) -> None:
    assert cli.main(["report", name, "--json"]) == EXIT_CONFIG
    assert "InvalidName" in here.readouterr().err and cluster.calls() == []


def test_a_missing_rich_is_named_with_its_extra(cluster: Cluster) -> None:
    code = "import sys; sys.modules['rich'] = None; " + _COMMAND
    done = subprocess.run([sys.executable, "-c", code, "watch", "x"], capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_CONFIG
    assert "pip install 'skywork[cli]'" in done.stderr and "Traceback" not in done.stderr


def test_kubectl_finds_the_command_as_its_plugin(cluster: Cluster, tmp_path: Path) -> None:
    plugin = Path(sys.executable).with_name("kubectl-skywork")
    environment = {**os.environ, "PATH": str(cluster.bin)}
    done = subprocess.run(
        [plugin, "watch", "skywork-13b", "--once"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "research/skywork-13b" in done.stdout
    done = subprocess.run([plugin, "watch"], capture_output=True, text=True, timeout=60)
    assert done.returncode == EXIT_CONFIG
    assert done.stderr.startswith("usage: kubectl skywork watch")


def test_a_report_by_name_adds_what_only_the_cluster_knows(cluster: Cluster, tmp_path: Path) -> None:
    made = trained(tmp_path)
    told = run(step=made.step + 7)
    told["spec"]["checkpoints"]["uri"] = made.store.uri
    cluster.says("skyworkruns", told)
    code, out, _ = cluster.ran("report", "skywork-13b", "-n", "research", "--json", "-o", str(tmp_path / "r.html"))
    assert code == 0
    (found,) = json.loads(out)["runs"]
    assert found["status"]["restarts"]["total"] == 34
    html = (tmp_path / "r.html").read_text()
    assert "NodeLost 8, Hang 3" in html
    assert f"7 steps, {7 * found['globalBatchTokens'] / 1000:.2f} k tokens" in html


def test_a_run_that_has_saved_nothing_is_told_of(cluster: Cluster, tmp_path: Path) -> None:
    told = run()
    told["spec"]["checkpoints"]["uri"] = (tmp_path / "nothing").as_uri()
    cluster.says("skyworkruns", told)
    code, _, err = cluster.ran("report", "skywork-13b", "--json")
    assert code == EXIT_CONFIG
    assert "the run has not saved yet" in err


def test_an_answer_that_does_not_come_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "kubectl"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setattr("skywork_trainer.kubectl._SECONDS", 0.1)
    with pytest.raises(ClusterError, match="no answer"):
        Kubectl(program=str(program)).run("x")
