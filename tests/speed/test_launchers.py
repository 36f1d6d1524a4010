"""Many jobs and many nodes: the launchers of sweeps, and the script that starts one training on several nodes."""

from __future__ import annotations

import importlib.util
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
INSTALLED = importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher") if importlib.util.find_spec(
    "hydra_plugins"
) else None  # fmt: skip
WORDS = ("data=fake", "model=resnet18", "model.width=4", "epochs=1", "progress=false")
Shell = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.skipif(INSTALLED is not None, reason="submitit is installed")
@pytest.mark.parametrize("launcher", ["slurm", "local"])
def test_without_submitit_the_user_is_told_what_to_install(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], launcher: str
) -> None:
    assert train("-m", f"hydra/launcher={launcher}", "seed=1,2") == 2
    assert "pip install '.[train,slurm]'" in capsys.readouterr().err


@pytest.mark.skipif(INSTALLED is None, reason="needs submitit")
def test_the_slurm_launcher_is_composed() -> None:
    from hydra import compose, initialize_config_dir

    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        words = ["hydra/launcher=slurm", "hydra.launcher.timeout_min=60", "hydra.sweep.dir=there"]
        launcher = compose("config", words, return_hydra_config=True).hydra.launcher
        assert launcher._target_.endswith("SlurmLauncher")
        assert (launcher.timeout_min, launcher.gpus_per_node, launcher.submitit_folder) == (60, 1, "there/slurm")


@pytest.mark.skipif(INSTALLED is None, reason="needs submitit")
def test_jobs_of_their_own_come_to_the_same_sweep(shell: Shell, tmp_path: Path) -> None:
    words = ("train.py", "-m", "hydra/launcher=local", *WORDS, f"output_root={tmp_path}", "regularizer=none")
    result = shell(*words, "lr=0.1,1e30")
    assert result.returncode == 1, result.stderr
    assert "1 runs done, 1 not" in result.stdout
    assert "not finite" in result.stdout


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
    program(tmp_path / "bin", "python", f'echo "$@" > {tmp_path}/started; exit 3')
    script = str(ROOT / "scripts" / "slurm" / "train.sbatch")
    result = subprocess.run([script, "seed=1", "lr=0.1"], cwd=ROOT, env={**cluster, "PYTHON": "python"}, check=False)
    assert result.returncode == 3
    started = (tmp_path / "started").read_text()
    assert started.startswith("-m torch.distributed.run --nnodes=1 --nproc-per-node=2 --rdzv-backend=c10d ")
    assert started.endswith("train.py seed=1 lr=0.1\n")
    assert not (tmp_path / "asked").exists()  # a failure is not queued again


def test_a_job_whose_time_is_over_is_queued_again(cluster: dict[str, str], tmp_path: Path) -> None:
    program(tmp_path / "bin", "python", 'kill -USR1 "$PPID"; sleep 1; exit 143')
    script = str(ROOT / "scripts" / "slurm" / "train.sbatch")
    result = subprocess.run([script], cwd=ROOT, env={**cluster, "PYTHON": "python"}, check=False)
    assert result.returncode == 143
    assert (tmp_path / "asked").read_text().splitlines() == ["--signal=TERM 77", "requeue 77"]


@pytest.mark.slow
def test_the_script_trains(cluster: dict[str, str], tmp_path: Path) -> None:
    import sys

    script = str(ROOT / "scripts" / "slurm" / "train.sbatch")
    words = [script, *WORDS, f"output_root={tmp_path}", "device=cpu"]
    environment = {**cluster, "PYTHON": sys.executable, "PORT": "29511", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr
    (summary,) = tmp_path.glob("fake-resnet18/*/seed-1/summary.json")
    assert '"world_size": 2' in summary.read_text()
