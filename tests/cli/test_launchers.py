"""Many jobs and many nodes: the launchers of sweeps, and the script that starts one training on several nodes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from configs.checking import UserError
from configs.compose import config_of, nodes, plan_of
from configs.groups import choices
from engine.run_directory import RunDirectory
from experiment.launchers import PLUGINS, installed, run_launched
from experiment.outcome import Job
from experiment.precheck import precheck
from experiment.sweep import read_notes
from tests.comparison import assert_identical
from train import main

ROOT = Path(__file__).resolve().parents[2]
SUBMITIT, RAY = (installed(plugin) for plugin, _ in PLUGINS.values())
WORDS = ("data=fake", "model=resnet18", "model.width=4", "epochs=1", "progress=false")
CHECKED = '[ "$2" = experiment.precheck ] && exit 0'  # what stands in the place of python has no objection


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (("hydra/launcher=slurm",), "hydra/launcher=slurm"),
        (("hydra/launcher=ray",), "num_gpus=1"),
        (("num_cpus=2",), "num_cpus"),
        (("hydra/launcher=ray", "num_gpus=1", "jobs=2"), "jobs=2"),
    ],
)
def test_a_launcher_that_could_start_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], culprit: str
) -> None:
    monkeypatch.setattr("experiment.launchers.shutil.which", lambda _: None)
    monkeypatch.setattr("experiment.launchers.gpus", lambda: ["0"])
    monkeypatch.setattr("experiment.launchers.installed", lambda _: True)
    assert main(["-m", "data=fake", "seed=1,2", *words]) == 2
    shown = capsys.readouterr().err
    assert culprit in shown
    assert shown.count("\n") == 1


def test_without_the_plugin_the_user_is_reported_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("experiment.launchers.installed", lambda _: False)
    for launcher in ("slurm", "ray"):
        assert main(["-m", "data=fake", "seed=1,2", f"hydra/launcher={launcher}"]) == 2
        assert f"pip install '.[train,{launcher}]'" in capsys.readouterr().err


@pytest.mark.skipif(not SUBMITIT, reason="needs submitit")
def test_the_slurm_launcher_is_composed() -> None:
    from hydra import compose, initialize_config_dir

    nodes([])
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        words = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=60", "hydra.sweep.dir=there"]
        launcher = compose("config", words, return_hydra_config=True).hydra.launcher
        assert launcher._target_.endswith("SlurmLauncher")
        assert (launcher.timeout_min, launcher.gpus_per_node, launcher.submitit_folder) == (60, 1, "there/slurm")


def test_a_job_that_composes_to_another_hash_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the launcher's side, where another version of the code may lie."""
    monkeypatch.setattr("experiment.run.run_plan", lambda *_: {"last": {}, "headline": "top1"})
    overrides = ["data=fake", f"output_root={tmp_path}"]
    asked, sweep = Job(0, overrides, plan_of(*overrides)), tmp_path / "sweeps" / "x"
    for lr, status in (("0.1", "DONE"), ("0.07", "FAILED")):
        run_launched([asked], sweep, time.time(), False, 0, config_of(*overrides, f"lr={lr}"))
        (noted,) = read_notes(sweep)
        assert (noted["run"], noted["status"]) == (str(asked.run), status)


@pytest.mark.slow
@pytest.mark.skipif(not SUBMITIT, reason="needs submitit")
def test_jobs_of_their_own_come_to_the_same_sweep(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As SLURM would run them, by submitit's executor for one machine."""
    from hydra.core.config_store import ConfigStore
    from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf

    local = LocalQueueConf(submitit_folder=str(tmp_path / "submitit"))
    ConfigStore.instance().store("here", local, group="hydra/launcher")
    monkeypatch.setattr("configs.command_line.choices", lambda group: ["here"] if "hydra" in group else choices(group))
    monkeypatch.setattr("experiment.command.check_launcher", lambda _: None)
    words = ("-m", "hydra/launcher=here", *WORDS, f"output_root={tmp_path}", "regularizer=none", "lr=0.1,1e30")
    assert main([*words]) == 1
    shown = capsys.readouterr().out
    assert "=== run 2 of 2: " in shown
    assert "1 run done, 1 not" in shown
    assert "not finite" in shown


@pytest.mark.slow
@pytest.mark.skipif(not RAY, reason="needs Ray: pip install '.[train,ray]'")
def test_ray_runs_a_grid_and_takes_up_the_run_of_a_killed_worker(tmp_path: Path) -> None:
    """A Ray of this machine, two runs at a time; the numbers are those of runs one after the other."""
    words = ("-m", *WORDS[:3], "epochs=8", "progress=false", "device=cpu", "lr=0.1,1e30,0.05", "seed=1,2")
    assert main([*words, f"output_root={tmp_path / 'one'}"]) == 1
    command = [sys.executable, "train.py", *words, f"output_root={tmp_path / 'ray'}", "hydra/launcher=ray"]
    parent = subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    while not (begun := [*(tmp_path / "ray").glob("fake-*/*/seed-*/metrics.jsonl")]):
        assert parent.poll() is None
        time.sleep(0.05)
    psutil.Process(RunDirectory(begun[0].parent).status()["pid"]).kill()
    shown = parent.communicate(timeout=280)[0].decode()
    assert parent.returncode == 1, shown
    assert "4 runs done, 2 not" in shown
    assert shown.count("\n") < 20, shown  # quiet
    ours, theirs = (sorted((tmp_path / name).glob("fake-*/*/seed-*")) for name in ("ray", "one"))
    assert len(ours) == len(theirs) == 6
    for a, b in zip(map(RunDirectory, ours), map(RunDirectory, theirs), strict=True):
        assert a.status()["status"] == b.status()["status"]
        if b.status()["status"] == "DONE":
            assert_identical(a, b)


@pytest.mark.parametrize(
    ("processes", "words", "culprit"),
    [
        (3, ["data=fake"], "batch_size=32"),
        (32, ["data=fake", "recipe.accumulate=2"], "recipe.accumulate=2"),
        (2, ["data=folder", "data.root=/nowhere/at/all"], "data.root=/nowhere/at/all"),
        (2, ["data=fake", "epchs=1"], "'epochs'"),
        (2, ["-m", "seed=1,2", "jobs=2"], "jobs=2"),
    ],
)
def test_what_restarts_would_not_help_is_refused_before_them(processes: int, words: list[str], culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        precheck(words, processes)


def test_what_ranks_can_do_passes_the_check() -> None:
    for words in (["data=fake"], ["-m", "data=fake", "seed=1,2"], ["--help"], ["--cfg", "job", "jobs=1"]):
        precheck(words, 2)


def test_a_mistake_is_not_tried_again() -> None:
    result = subprocess.run(
        ["scripts/launch", "3", "data=fake"],
        cwd=ROOT,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1), result.stderr


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """The environment of a job on a cluster of this machine alone; what was asked of it stands in `asked`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "srun", 'exec "$@"')
    program(folder, "scontrol", f'[ "$1" = show ] && echo localhost || echo "$@" >> {tmp_path}/asked')
    program(folder, "scancel", f'echo "$@" >> {tmp_path}/asked')
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "localhost", "SLURM_NNODES": "1"}
    return {**os.environ, **slurm, "PATH": f"{folder}:{os.environ['PATH']}", "PORT": "0", "PROCESSES": "2"}


def test_the_script_starts_every_node_the_same_way(cluster: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "bin", "python", f'{CHECKED}; echo "$@" > {tmp_path}/started; exit 3')
    script = str(ROOT / "scripts" / "slurm" / "train.sbatch")
    result = subprocess.run([script, "seed=1", "lr=0.1"], cwd=ROOT, env={**cluster, "PYTHON": "python"}, check=False)
    assert result.returncode == 3
    started = (tmp_path / "started").read_text()
    assert started.startswith("-m torch.distributed.run --nnodes=1 --nproc-per-node=2 --rdzv-backend=c10d ")
    assert started.endswith("train.py seed=1 lr=0.1\n")
    assert not (tmp_path / "asked").exists()  # a failure is not queued again


def test_a_job_whose_time_is_over_is_queued_again(cluster: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "bin", "python", f'{CHECKED}; kill -USR1 "$PPID"; sleep 1; exit 143')
    script = str(ROOT / "scripts" / "slurm" / "train.sbatch")
    result = subprocess.run([script], cwd=ROOT, env={**cluster, "PYTHON": "python"}, check=False)
    assert result.returncode == 143
    assert (tmp_path / "asked").read_text().splitlines() == ["--signal=TERM 77", "requeue 77"]


@pytest.mark.slow
def test_the_script_trains(cluster: dict[str, str], tmp_path: Path) -> None:
    script = str(ROOT / "scripts" / "slurm" / "train.sbatch")
    words = [script, *WORDS, f"output_root={tmp_path}", "device=cpu"]
    environment = {**cluster, "PYTHON": sys.executable, "PORT": "29511", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    (summary,) = tmp_path.glob("fake-resnet18/*/seed-1/summary.json")
    assert '"world_size": 2' in summary.read_text()
