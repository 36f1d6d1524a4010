"""Runs sent to stand-ins of the trackers: every step once, whatever was sent before; nothing leaves the machine."""

from __future__ import annotations

import json
import os
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts.to_tracker import TRACKERS, main, send

PLAN = "model: {name: resnet18, width: 4}\nregularizer: [dropblock]\nseed: 1\n"
LOG = [
    {"step": 10, "epoch": 0.5, "train/loss": 2.0, "time/images_per_s": 71.25},
    {"step": 20, "epoch": 1.0, "train/loss": 1.5, "time/images_per_s": 70.5},
    {"step": 20, "epoch": 1, "val/top1": 40.0, "test/top1": 39.0},
    {"step": 30, "epoch": 1.5, "train/loss": 1.0, "time/images_per_s": 70.0},
    {"step": 40, "epoch": 2, "val/top1": 38.0, "test/top1": 41.0},
]
BEST = {"epoch": 1, "val/top1": 40.0, "test/top1": 39.0}
SUMMARY = {"best": BEST, "peak": None, "parameters": 7, "environment": {"commit": "c0ffee"}}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What the stand-ins keep: by name of the run its `config` and its `steps`, a list of (step, numbers)."""
    runs: dict[str, dict[str, Any]] = {}
    monkeypatch.chdir(tmp_path)

    class Live:
        def __init__(self, name: str, config: dict[str, Any]) -> None:
            self.run = runs.setdefault(name, {"steps": []})
            self.run["config"] = config
            self.dir = str(
                tmp_path / "wandb" / f"offline-run-{len(list(tmp_path.glob('wandb/*')))}-{config['id']}/files"
            )

        def log(self, values: dict[str, float], step: int) -> None:
            self.run["steps"].append((step, values))

        def finish(self) -> None:
            pass

    class Api:
        def runs(self, project: str) -> list[Any]:
            if not runs:
                raise ValueError("no such project")
            return [SimpleNamespace(name=name, config=run["config"]) for name, run in runs.items()]

    def trackio_init(project: str, name: str, *, config: dict[str, Any], resume: str, **_: Any) -> Live:
        assert resume == "allow"
        return Live(name, config)

    def wandb_init(*, id: str, name: str, config: dict[str, Any], mode: str, resume: str, **_: Any) -> Live:
        assert (mode, resume, id) == ("offline", "allow", config["id"])
        live = Live(name, config)
        Path(live.dir).mkdir(parents=True)
        return live

    class Client:
        def __init__(self, uri: str | None) -> None:
            assert uri == "sqlite:///mlflow.db"

        def get_experiment_by_name(self, project: str) -> None:
            return None

        def create_experiment(self, project: str) -> str:
            return project

        def search_runs(self, experiments: list[str], asked: str) -> list[Any]:
            own = [name for name, run in runs.items() if f"'{run['tags']['dropblock_id']}'" in asked]
            return [self._run(name) for name in own]

        def _run(self, name: str) -> Any:
            return SimpleNamespace(data=SimpleNamespace(tags=runs[name]["tags"]), info=SimpleNamespace(run_id=name))

        def create_run(self, experiment: str, tags: dict[str, str], run_name: str) -> Any:
            runs[run_name] = {"tags": tags, "config": {}, "steps": []}
            return self._run(run_name)

        def log_batch(self, run: str, metrics: Any = (), params: Any = ()) -> None:
            runs[run]["config"] |= dict(params)
            if metrics:
                runs[run]["steps"].append((metrics[0][3], {name: value for name, value, *_ in metrics}))

        def set_tag(self, run: str, key: str, value: str) -> None:
            runs[run]["tags"][key] = value

        def set_terminated(self, run: str, status: str) -> None:
            runs[run]["ended"] = status

    def pair(*values: Any) -> tuple[Any, ...]:
        return values

    modules = {
        "trackio": SimpleNamespace(init=trackio_init, Api=Api),
        "wandb": SimpleNamespace(init=wandb_init, Settings=dict),
        "mlflow": SimpleNamespace(MlflowClient=Client, entities=SimpleNamespace(Param=pair, Metric=pair)),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)  # type: ignore[arg-type]
    return runs


def run_directory(root: Path, entries: int, status: str, seed: int = 1) -> Path:
    run = root / "digits-resnet18" / "dropblock-e2-abcdef" / f"seed-{seed}"
    run.mkdir(parents=True, exist_ok=True)
    (run / "plan.yaml").write_text(PLAN)
    log = [{**entry, "time/images_per_s": seed} if entry is LOG[0] else entry for entry in LOG]
    (run / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log[:entries]))
    (run / "status.json").write_text(json.dumps({"status": status}))
    if status == "DONE":
        (run / "summary.json").write_text(json.dumps(SUMMARY))
    return run


@pytest.mark.parametrize("to", TRACKERS)
def test_every_step_is_sent_once(to: str, kept: dict[str, dict[str, Any]], tmp_path: Path) -> None:
    # Stopped after step 20 with the evaluation of that step still to come: it is left for later.
    run_directory(tmp_path / "out", 2, "STOPPED")
    assert [new for _, new in send([tmp_path / "out"], to, "p")] == [1]
    assert [new for _, new in send([tmp_path / "out"], to, "p")] == [0]

    # Gone on to the end, and packed: what is new is added, with the numbers of the summary at the last step.
    run_directory(tmp_path / "out", 5, "DONE")
    with tarfile.open(tmp_path / "packed.tar.xz", "w:xz") as archive:
        archive.add(tmp_path / "out", "elsewhere")
    assert [new for _, new in send([tmp_path / "packed.tar.xz"], to, "p")] == [3]
    assert [new for _, new in send([tmp_path / "packed.tar.xz", tmp_path / "out"], to, "p")] == [0, 0]

    (run,) = kept.values()
    assert [step for step, _ in run["steps"]] == [10, 20, 30, 40]
    assert {key: run["steps"][1][1][key] for key in ("train/loss", "val/top1")} == {"train/loss": 1.5, "val/top1": 40.0}
    assert {key: run["steps"][3][1][key] for key in ("best/epoch", "best/test/top1", "parameters")} == {
        "best/epoch": 1,
        "best/test/top1": 39.0,
        "parameters": 7,
    }
    assert (run["config"]["model.name"], run["config"]["regularizer"]) == ("resnet18", "['dropblock']")


@pytest.mark.parametrize("to", TRACKERS)
def test_seeds_and_fresh_starts_are_runs_of_their_own(to: str, kept: dict[str, Any], tmp_path: Path) -> None:
    for seed in (1, 2):
        run = run_directory(tmp_path, 5, "DONE", seed)
    send([tmp_path], to, "p")
    assert len(kept) == 2

    # fresh=true: the earlier run is moved aside, another one takes its place.
    run.rename(run.with_name("seed-2-old-1"))
    run_directory(tmp_path, 5, "DONE", 2)
    log = run / "metrics.jsonl"
    log.write_text(log.read_text().replace('"time/images_per_s": 2', '"time/images_per_s": 3'))
    assert [new for _, new in send([tmp_path], to, "p")] == [0, 4]
    assert len(kept) == 3


def test_nothing_leaves_the_machine_unless_asked(
    kept: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_directory(tmp_path, 5, "DONE")
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somewhere")
    send([run], "trackio", "p", online=True)
    assert "TRACKIO_SPACE_ID" in os.environ
    send([run], "trackio", "p")
    assert "TRACKIO_SPACE_ID" not in os.environ


def test_mistakes_are_one_line(kept: Any, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / "notes.txt").write_text("no archive")
    for place in (tmp_path, tmp_path / "notes.txt", tmp_path / "nowhere"):
        assert main([str(place), "--to", "wandb"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert all(name in line for name, line in zip(("", "notes.txt", "nowhere"), lines, strict=True))
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert main([str(run_directory(tmp_path, 5, "DONE")), "--to", "wandb"]) == 2
    assert "pip install wandb" in capsys.readouterr().err
