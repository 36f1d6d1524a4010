"""Files that are damaged, hostile or of another run: reported in one line, never loaded, never executed."""

from __future__ import annotations

import ast
import io
import os
import pickle
import subprocess
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
from configs.checking import load_yaml
from configs.plan import Plan, plan_from
from engine.checkpoint import CheckpointError, load, load_latest, save
from engine.run_directory import RunDirectory
from experiment import run_plan
from tests.comparison import assert_identical
from tests.trainer import ROOT, WORDS, Starter, only_run

Train = Callable[..., int]
Reference = Callable[..., RunDirectory]


def small(step: int) -> dict[str, Any]:
    return {"model": {"weight": torch.full((30, 30), float(step))}, "step": step}


def test_twenty_cuts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (1, 2):
        save(small(step), tmp_path / "last.pt", keep_previous=True)
    whole = (tmp_path / "last.pt").read_bytes()
    n = len(whole)
    for cut in (0, 1, n // 2, n - 1, *(n * i // 17 for i in range(1, 17))):
        (tmp_path / "last.pt").write_bytes(whole[:cut])
        with pytest.warns(UserWarning, match=r"last\.pt.*the checkpoint before it is used"):
            found = load_latest(tmp_path)
        assert found is not None
        assert found[0]["step"] == 1
        assert evaluate.main([f"checkpoint={tmp_path / 'last.pt'}"]) == 2
        assert "last.pt: truncated" in capsys.readouterr().err


def test_a_damaged_checkpoint_does_not_push_out_the_whole_one(
    starter: Starter, tmp_path: Path, uninterrupted: Reference
) -> None:
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path}")
    assert starter.run(*words, stop_after=5)[0] == 143
    run = only_run(tmp_path)
    last = run.checkpoints / "last.pt"
    last.write_bytes(last.read_bytes()[:-50])
    code, output = starter.run(*words, die_after_write_of="last.pt")
    assert code == 86
    assert "last.pt: truncated" in output
    assert "resuming after step 4" in output
    # The kill came after the first write of the second attempt: what it resumed from is still the one before.
    assert load(last)["step"] == 6
    assert load(run.checkpoints / "previous.pt")["step"] == 4
    assert (run.checkpoints / "damaged.pt").exists()
    assert starter.run(*words)[0] == 0
    assert_identical(run, uninterrupted())


def test_work_is_not_thrown_away_when_nothing_can_be_read(starter: Starter, tmp_path: Path) -> None:
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path}")
    assert starter.run(*words, stop_after=5)[0] == 143
    for name in ("last.pt", "previous.pt"):
        (only_run(tmp_path).checkpoints / name).write_bytes(b"nonsense")
    code, output = starter.run(*words)
    assert code == 2
    assert "and there is no whole one before it; fresh=true starts over" in output
    assert starter.run(*words, "fresh=true")[0] == 0


class Call:
    """A pickle of this calls the function when it is loaded."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.arguments


def payloads(mark: Path) -> dict[str, Any]:
    """What a file may hold to harm who loads it; the first five would leave the mark."""
    sparse = torch.eye(2).to_sparse()
    storage = torch.ones(4)._typed_storage()
    beyond = Call(torch._utils._rebuild_tensor_v2, storage, 2, (9, 9), (9, 1), False, OrderedDict())
    return {
        "os.system": Call(os.system, f"touch {mark}"),
        "eval": Call(eval, f"open({str(mark)!r}, 'w')"),
        "exec": Call(exec, f"open({str(mark)!r}, 'w')"),
        "popen": Call(subprocess.Popen, ["touch", str(mark)]),
        "open": Call(open, str(mark), "w"),
        "hub": Call(torch.hub.load, "somebody/something", "anything"),
        "sparse": sparse,
        "beyond": beyond,
    }


NAMES = list(payloads(Path("mark")))


def as_bytes(value: Any, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_checkpoint_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    mark, path = tmp_path / "mark", tmp_path / "hostile.pt"
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *_, **__: mark.touch())
    hostile = {"model": {"weight": payloads(mark)[name]}, "plan": {}, "fingerprint": "x"}
    forms: list[Callable[[], object]] = [
        lambda: save(hostile, path),  # with a valid checksum
        lambda: path.write_bytes(as_bytes(hostile)),
        lambda: path.write_bytes(as_bytes(hostile, legacy=True)),
    ]
    for form in forms:
        form()
        capsys.readouterr()
        assert evaluate.main([f"checkpoint={path}"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "hostile.pt" in line
    assert not mark.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_hostile_weights_run_nothing(
    train: Train,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    legacy: bool,
) -> None:
    from models import load_pretrained

    mark, path = tmp_path / "mark", tmp_path / "hostile.pth"
    for name, payload in payloads(mark).items():
        path.write_bytes(as_bytes({"weight": payload}, legacy))
        with pytest.raises(ValueError, match=r"hostile\.pth") as caught:
            load_pretrained(torch.nn.Linear(3, 3), path)
        assert "\n" not in str(caught.value), name
    path.write_bytes(pickle.dumps(payloads(mark)["os.system"]))
    assert train(f"model.pretrained={path}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "hostile.pth" in line
    assert not recwarn.list
    assert not mark.exists()


def test_hostile_files_in_a_run_folder_run_nothing(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("regularizer=none", "epochs=1", f"run_dir={tmp_path / 'run'}") == 0
    run, mark = RunDirectory(tmp_path / "run"), tmp_path / "mark"
    hostile = payloads(mark)["os.system"]
    save({**load(run.checkpoints / "last.pt"), "extra": hostile}, run.checkpoints / "last.pt")
    run.set_status("STOPPED")
    assert train("regularizer=none", "epochs=1", f"run_dir={run.path}") == 2
    assert "last.pt: refused" in capsys.readouterr().err
    assert evaluate.main([f"run={run.path}"]) == 2
    with open(run.path / "plan.yaml", "a") as file:
        file.write(f"extra: !!python/object/apply:os.system ['touch {mark}']\n")
    assert evaluate.main([f"run={run.path}"]) == 2
    assert "plan.yaml: not a readable YAML file" in capsys.readouterr().err
    for name in ("status.json", "summary.json", "metrics.jsonl"):
        (run.path / name).write_bytes(pickle.dumps(hostile))
    assert run.status() == {}
    assert run.metrics() == []
    assert not mark.exists()


def test_an_archive_unpacks_inside_its_folder_only(tmp_path: Path) -> None:
    from torchvision.datasets.utils import extract_archive  # what unpacks the downloads

    for member in ("../outside", "/tmp/outside-of-the-archive", "link/outside"):
        archive, inside = tmp_path / "data.tar.gz", tmp_path / "inside"
        with tarfile.open(archive, "w:gz") as tar:
            if member.startswith("link"):
                link = tarfile.TarInfo("link")
                link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
                tar.addfile(link)
            info = tarfile.TarInfo(member)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"evil"))
        with suppress(tarfile.TarError):  # refused; a leading slash is taken off instead
            extract_archive(str(archive), str(inside))
        assert not (tmp_path / "outside").exists()
        assert not Path("/tmp/outside-of-the-archive").exists()


PLACES = ("configs", "dropblock", "models", "data", "engine", "experiment", "scripts", "train.py", "evaluate.py")
SOURCES = [
    path for place in PLACES for path in ([ROOT / place] if (ROOT / place).is_file() else (ROOT / place).rglob("*.py"))
]


def test_no_source_loads_or_runs_what_a_file_says() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            given = {k.arg: k.value for k in node.keywords}
            where = f"{path}:{node.lineno}: {name}"
            if name == "torch.load":
                assert isinstance(given.get("weights_only"), ast.Constant), where
                assert given["weights_only"].value is True, where  # type: ignore[attr-defined]
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "torch.hub.load", "yaml.load"), where
            assert name.split(".")[-1] not in ("instantiate", "get_class", "get_method", "dcp_to_torch_save"), where
            assert "distributed.checkpoint" not in name, where
            allowed = given.get("allow_pickle")
            assert allowed is None or (isinstance(allowed, ast.Constant) and allowed.value is False), where
            assert not (isinstance(given.get("shell"), ast.Constant) and given["shell"].value), where  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def stopped(starter: Starter, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run to go on from. Several tests share it, so none of them does."""
    root = tmp_path_factory.mktemp("stopped")
    assert starter.run(*WORDS, f"run_dir={root}", stop_after=3)[0] == 143
    return RunDirectory(root)


EDITS: dict[str, Callable[[Plan], Plan]] = {
    "model.name=resnet34": lambda p: replace(p, model=replace(p.model, name="resnet34")),
    "model.width=8": lambda p: replace(p, model=replace(p.model, width=8)),
    "model.zero_gamma=False": lambda p: replace(p, model=replace(p.model, zero_gamma=False)),
    "data.val_fraction=0.2": lambda p: replace(p, data=replace(p.data, val_fraction=0.2)),
    "data.train_subset=96": lambda p: replace(p, data=replace(p.data, train_subset=96)),
    "recipe.optimizer=rmsprop": lambda p: replace(p, recipe=replace(p.recipe, optimizer="rmsprop")),
    "recipe.batch_size=24": lambda p: replace(p, recipe=replace(p.recipe, batch_size=24)),
    "recipe.lr=0.2": lambda p: replace(p, recipe=replace(p.recipe, lr=0.2)),
    "layer.keep_prob=0.8": lambda p: replace(p, layer=replace(p.layer, keep_prob=0.8)),  # type: ignore[type-var]
    "seed=2": lambda p: replace(p, seed=2),
}


@pytest.mark.parametrize("edit", EDITS)
def test_another_plan_does_not_resume_a_run(stopped: RunDirectory, edit: str) -> None:
    plan = plan_from(load_yaml(stopped.path / "plan.yaml"))
    with pytest.raises(ValueError, match="holds another run") as caught:
        run_plan(EDITS[edit](plan))
    assert edit in str(caught.value)
    assert stopped.status()["status"] == "STOPPED"


def test_how_it_is_run_may_change_on_resume(starter: Starter, tmp_path: Path, uninterrupted: Reference) -> None:
    words = (*WORDS, f"run_dir={tmp_path}")
    assert starter.run(*words, stop_after=3)[0] == 143
    assert starter.run(*words, "workers=1", "checkpoint_every=1", "compile=false", "rank_timeout=60")[0] == 0
    assert_identical(RunDirectory(tmp_path), uninterrupted())


def test_a_checkpoint_of_another_run_or_other_data_is_refused(starter: Starter, tmp_path: Path) -> None:
    for width in (4, 8):
        words = (*WORDS, f"model.width={width}", f"run_dir={tmp_path / str(width)}")
        assert starter.run(*words, stop_after=3)[0] == 143
    (tmp_path / "4/checkpoints/last.pt").write_bytes((tmp_path / "8/checkpoints/last.pt").read_bytes())
    code, output = starter.run(*WORDS, f"run_dir={tmp_path / '4'}")
    assert code == 2
    assert "model.width=4 (there: 8)" in output
    payload = load(tmp_path / "8/checkpoints/last.pt")
    save({**payload, "fingerprint": "other"}, tmp_path / "8/checkpoints/last.pt")
    code, output = starter.run(*WORDS, "model.width=8", f"run_dir={tmp_path / '8'}")
    assert code == 2
    assert "written with other data" in output
    save({**payload, "model": {}}, tmp_path / "8/checkpoints/last.pt")
    code, output = starter.run(*WORDS, "model.width=8", f"run_dir={tmp_path / '8'}")
    assert code == 2
    assert "does not fit this network" in output
    assert "Traceback" not in output


def test_a_file_that_is_no_checkpoint_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content in ({"step": 3}, [1, 2], {"model": {}, "plan": 5}, {"model": {}}):
        save(content, tmp_path / "x.pt")  # type: ignore[arg-type]
        assert evaluate.main([f"checkpoint={tmp_path / 'x.pt'}"]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "x.pt" in line
    with pytest.raises(CheckpointError, match="Is a directory"):
        load(tmp_path)
