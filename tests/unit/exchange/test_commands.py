"""`skywork checkpoints` tells a person what is there, what is wrong with it and what differs, in documented codes."""

import json
from pathlib import Path

import pytest
import torch
from skywork_trainer import cli
from skywork_trainer.checkpoint.compare import compare
from skywork_trainer.checkpoint.manifest import Manifest, manifest_key, prefix
from skywork_trainer.checkpoint.notes import being_read, verified
from skywork_trainer.checkpoint.verify import verify
from skywork_trainer.cli.telling import Progress
from skywork_trainer.config import EXIT_CONFIG, RunConfig
from skywork_trainer.engine.reference import ReferenceEngine
from skywork_trainer.storage import Store, open_store
from skywork_trainer.tokenizer import LoadedTokenizer

from tests.unit.exchange.building import GQA, configured, llama, relaid, saved, trained

Run = tuple[RunConfig, ReferenceEngine, Manifest]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, tokenizer: LoadedTokenizer) -> Run:
    """A checkpoint of three ranks' files in small blocks."""
    config = configured(tmp_path, GQA, tokenizer)
    engine = trained(config)
    return config, engine, relaid(config, saved(config, engine, tokenizer), engine, ranks=3, block_bytes=1 << 12)


def store_of(run: Run) -> Store:
    return open_store(run[0].checkpoints.uri)


def command(run: Run, name: str, *more: str) -> int:
    return cli.main(["checkpoints", name, run[0].checkpoints.uri, *more])


def rewrite(run: Run, **changes: object) -> None:
    changed = run[2].model_copy(update=changes)
    store_of(run).put(manifest_key(changed.id), changed.model_dump_json().encode())


class TestVerify:
    def test_a_checkpoint_as_it_was_written_is_read_to_its_last_byte(self, run: Run, capsys: Captured) -> None:
        assert command(run, "verify", "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["bytesRead"] == sum(file.size for file in run[2].files)
        assert (told["checkpoint"], told["problems"]) == (run[2].id, [])
        assert verified(store_of(run)) == [run[2].id], "from now on retention keeps it, if it is the only such one"

    @pytest.mark.parametrize("position", [0, 3000, -1])
    def test_one_bit_anywhere_is_found_and_its_bytes_are_named(self, run: Run, capsys: Captured, position: int) -> None:
        key = prefix(run[2].id) + run[2].files[1].name
        content = bytearray(store_of(run).get(key))
        content[position] ^= 4
        store_of(run).put(key, bytes(content))
        assert command(run, "verify") == 1
        assert verified(store_of(run)) == []
        out = capsys.readouterr().out
        start = position % len(content) // 4096 * 4096
        assert f"{key} differs from what was written, in bytes {start} to" in out
        assert "1 problems" in out

    def test_files_that_are_gone_cut_or_longer_are_named(self, run: Run) -> None:
        store, (first, second, third) = store_of(run), [prefix(run[2].id) + file.name for file in run[2].files]
        store.delete(first)
        store.put(second, store.get(second)[:-9])
        store.put(third, store.get(third) + b"more")
        problems = " ".join(verify(store, run[2]).problems)
        assert f"{first} is gone" in problems
        assert f"{second} ends" in problems
        assert f"{third} has" in problems

    def test_a_number_that_is_not_finite_is_found_though_every_hash_is_right(
        self, tmp_path: Path, run: Run, tokenizer: LoadedTokenizer, capsys: Captured
    ) -> None:
        config, engine, _ = run
        with torch.no_grad():
            engine.module.get_parameter("blocks.1.ffn.up.weight")[3, 4] = float("inf")
        saved(config, engine, tokenizer, step=4)
        assert command(run, "verify", "4") == 1
        assert "blocks.1.ffn.up.weight master: 1 of elements" in capsys.readouterr().out
        assert command(run, "verify", "2") == 0

    @pytest.mark.parametrize(
        ("change", "says"),
        [
            ({}, "norm.weight exp_avg has 0 elements, the model has 32"),
            ({"length": 28}, "norm.weight exp_avg has 28 elements, the model has 32"),
            ({"start": 4, "length": 28}, "elements 0 to 4"),
            ({"name": "extra"}, "extra exp_avg is none of the model's arrays"),
            ({"file": 7}, "there are 3 files"),
            ({"offset": 1 << 40}, "offset"),
        ],
    )
    def test_an_array_that_is_not_all_there_is_named(
        self, run: Run, capsys: Captured, change: dict[str, object], says: str
    ) -> None:
        norm = next(p for p in run[2].pieces if p.name == "norm.weight" and p.kind == "exp_avg")
        others = [piece for piece in run[2].pieces if piece is not norm]
        rewrite(run, pieces=(*others, *([norm.model_copy(update=change)] if change else [])))
        assert command(run, "verify") == 1
        told = capsys.readouterr()
        assert says in told.out + told.err

    def test_progress_ends_with_everything(self, run: Run) -> None:
        told: list[tuple[int, int]] = []
        verify(store_of(run), run[2], lambda done, total: told.append((done, total)))
        assert told == sorted(told)
        assert told[-1] == (sum(file.size for file in run[2].files),) * 2


class TestShow:
    def test_it_says_how_a_checkpoint_came_about(self, run: Run, tokenizer: LoadedTokenizer, capsys: Captured) -> None:
        config, engine, first = run
        second = saved(config, engine, tokenizer, step=4, parent=first)
        store_of(run).delete(manifest_key(first.id))
        assert command(run, "show") == 0
        out = capsys.readouterr().out
        for said in (second.id, "step 4", "generation 1, 1 ranks, ZeRO stage 1", "kv_heads 2", f"{first.id} (removed)"):
            assert said in out
        assert command(run, "show", second.id, "--json") == 0
        told = json.loads(capsys.readouterr().out)
        assert told["ancestors"] == [{"id": first.id, "present": False}]
        assert told["parameters"] == sum(parameter.numel() for parameter in engine.module.parameters())
        assert "pieces" not in told

    def test_a_step_means_its_newest_generation(self, run: Run, tokenizer: LoadedTokenizer, capsys: Captured) -> None:
        saved(run[0], run[1], tokenizer, step=12, generation=2)
        saved(run[0], run[1], tokenizer, step=2, generation=3)
        assert command(run, "show", "2", "--json") == 0
        assert json.loads(capsys.readouterr().out)["generation"] == 3
        assert command(run, "show", "newest", "--json") == 0
        assert json.loads(capsys.readouterr().out)["step"] == 2


class TestDiff:
    def test_it_measures_every_array_over_layouts_of_different_worlds(
        self, run: Run, tokenizer: LoadedTokenizer, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("skywork_trainer.checkpoint.compare._CHUNK_ELEMENTS", 90)
        config, engine, first = run
        norm = float(engine.module.get_parameter("head.weight").detach().norm())
        with torch.no_grad():
            engine.module.get_parameter("head.weight").view(-1)[100] += 0.5
        changed = config.model_copy(update={"seed": 7})
        second = saved(changed, engine, tokenizer, step=4)
        found = {(d.parameter, d.kind): d for d in compare(store_of(run), first, second)}
        assert len(found) == 3 * len(list(engine.module.parameters()))
        apart = found.pop(("head.weight", "master"))
        assert apart.max_abs == pytest.approx(0.5, rel=1e-5)
        assert apart.relative == pytest.approx(0.5 / norm, rel=1e-3)
        assert not any(d.max_abs or d.relative for d in found.values())
        assert command(run, "diff", "2", "newest") == 0
        out = capsys.readouterr().out
        for said in ("seed", "0 -> 7", "world", "3 -> 1", "step", "2 -> 4"):
            assert said in out
        assert "all arrays are equal" not in out

    def test_equal_checkpoints_are_said_to_be_equal(self, run: Run, capsys: Captured) -> None:
        assert command(run, "diff", "2", run[2].id) == 0
        assert "all arrays are equal" in capsys.readouterr().out

    def test_what_is_not_a_number_is_not_swallowed(self, run: Run, tokenizer: LoadedTokenizer) -> None:
        config, engine, first = run
        with torch.no_grad():
            engine.module.get_parameter("norm.weight")[0] = float("nan")
        second = saved(config, engine, tokenizer, step=4)
        (found,) = [d for d in compare(store_of(run), first, second) if d.max_abs != 0]
        assert found.parameter == "norm.weight"
        assert found.max_abs != found.max_abs

    def test_moments_that_were_zero_are_infinitely_far(
        self, run: Run, tokenizer: LoadedTokenizer, capsys: Captured
    ) -> None:
        config = run[0]
        saved(config, trained(config, steps=0), tokenizer, step=4)
        assert command(run, "diff", "4", "2", "--json") == 0
        told = json.loads(capsys.readouterr().out)["arrays"]
        assert {array["relative"] for array in told if array["array"] == "exp_avg"} == {"inf"}

    def test_arrays_of_another_size_are_left_to_the_settings(
        self, run: Run, tmp_path: Path, tokenizer: LoadedTokenizer, capsys: Captured
    ) -> None:
        larger = run[0].model_copy(update={"model": GQA.model_copy(update={"vocab_size": 352})})
        saved(larger, trained(larger), tokenizer, step=4)
        assert command(run, "diff", "2", "4") == 0
        out = capsys.readouterr().out
        assert "model.vocab_size" in out
        assert "not compared, since their sizes differ: embedding.weight, head.weight" in out
        assert "blocks.0.ffn.up.weight" in out


@pytest.mark.parametrize("name", ["verify", "diff", "export"])
def test_a_checkpoint_is_kept_while_it_is_read(
    run: Run, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: set[str] = set()
    monkeypatch.setattr(Progress, "__call__", lambda *_: held.update(being_read(store_of(run), now=0.0)))
    output = ["--tokenizer", run[0].tokenizer_uri, "--output", str(tmp_path / "out")]
    more = {"verify": [], "diff": ["2", "2"], "export": output}[name]
    assert command(run, name, *more) == 0
    assert held == {run[2].id}
    assert not being_read(store_of(run), now=0.0)


@pytest.mark.parametrize("name", ["verify", "show", "export"])
def test_a_checkpoint_that_is_not_there_is_a_mistake_of_the_caller(run: Run, name: str, capsys: Captured) -> None:
    more = ["--tokenizer", run[0].tokenizer_uri, "--output", "/nonexistent/out"] if name == "export" else []
    assert command(run, name, "77", *more) == EXIT_CONFIG
    assert f"there is no checkpoint '77' at {run[0].checkpoints.uri}: {run[2].id}" in capsys.readouterr().err
    assert cli.main(["checkpoints", "verify", "nowhere"]) == EXIT_CONFIG


def test_a_manifest_that_cannot_be_read_is_damage(run: Run, capsys: Captured) -> None:
    store_of(run).put(manifest_key(run[2].id), b"{")
    assert command(run, "verify") == 1
    assert "cannot be read" in capsys.readouterr().err


def test_geometry_prints_the_fields_that_start_a_run(tmp_path: Path, capsys: Captured) -> None:
    llama(GQA, tied=True).save_pretrained(tmp_path / "llama")
    assert cli.main(["checkpoints", "geometry", str(tmp_path / "llama")]) == 0
    out = capsys.readouterr().out
    assert "  kvHeads: 2\n" in out
    assert '  ropeTheta: "500000.0"\n  normEps: "1e-05"\n' in out
    assert f"initialWeights:\n  uri: {(tmp_path / 'llama').as_uri()}\n" in out
    assert "tokenizer:" not in out
    (tmp_path / "llama" / "tokenizer.json").write_bytes(b"{}")
    assert cli.main(["checkpoints", "geometry", str(tmp_path / "llama")]) == 0
    assert f"tokenizer:\n  uri: {(tmp_path / 'llama').as_uri()}\n" in capsys.readouterr().out
    (tmp_path / "llama" / "config.json").unlink()
    assert cli.main(["checkpoints", "geometry", str(tmp_path / "llama")]) == EXIT_CONFIG


@pytest.mark.parametrize("name", ["", "verify", "show", "diff", "export", "geometry"])
def test_help_says_what_the_exit_codes_mean(name: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit) as left:
        cli.main(["checkpoints", *([name] if name else []), "--help"])
    assert left.value.code == 0
    assert "64 what was asked for cannot be" in " ".join(capsys.readouterr().out.split())
