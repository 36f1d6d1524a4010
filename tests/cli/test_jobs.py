"""`jobs=N`: runs at a time on one machine, killed and stopped, end as they would have one after the other."""

from __future__ import annotations

import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from configs.checking import UserError
from configs.command_line import read_arguments
from configs.compose import plan_of
from engine import cpu
from engine.run_directory import RunDirectory
from experiment import shares
from experiment.job import run_job
from experiment.outcome import Job
from experiment.pool import Pool
from experiment.progress import SweepProgress, headline, last_entries
from experiment.shares import at_a_time, count_of, environment_of
from experiment.sweep import read_notes, summary_text
from tests.comparison import assert_identical
from tests.conftest import ROOT, SMALL_RUN
from tests.last_of_each import last_of_each

# Two runs that end well and one that does not.
WORDS = last_of_each("-m", *SMALL_RUN, "epochs=6", "lr=0.1,1e30,0.05")


def start(root: Path, *more: str, words: Sequence[str] = WORDS) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "train.py", *last_of_each(*words, f"output_root={root}", *more)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def runs(root: Path) -> list[RunDirectory]:
    return [RunDirectory(path.parent) for path in sorted(root.glob("fake-resnet18/*/seed-*/plan.yaml"))]


def workers(parent: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(parent.pid).children()


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def assert_as_one_by_one(root: Path, one_by_one: list[RunDirectory]) -> None:
    """Every run has ended as the same run of the other sweep, those that are done with the same numbers."""
    for ours, theirs in zip(runs(root), one_by_one, strict=True):
        status = ours.status()["status"]
        assert status == theirs.status()["status"]
        if status == "DONE":
            assert_identical(ours, theirs)


def written(root: Path) -> int:
    """Lines in the records of all runs."""
    return sum(len(run.metrics()) for run in runs(root))


def test_a_signal_stops_all_and_a_killed_worker_costs_its_run_a_resume(tmp_path: Path) -> None:
    from train import main

    root = tmp_path / "many"
    parent = start(root, "jobs=2")
    until(lambda: written(root))
    parent.send_signal(signal.SIGTERM)
    shown, _ = parent.communicate(timeout=120)
    assert parent.returncode == 143, shown
    assert "RUNNING" not in {run.status()["status"] for run in runs(root)}

    before = written(root)
    parent = start(root, "jobs=2")  # the same command goes on
    until(lambda: written(root) > before)
    workers(parent)[0].kill()
    shown, _ = parent.communicate(timeout=240)
    assert parent.returncode == 1, shown
    assert "resumed by a new one" in shown
    assert "2 runs done, 1 not" in shown
    for run in runs(root):  # what a run prints is beside it
        assert "parameters" in (run.path / "log.txt").read_text()
    assert main([*WORDS, f"output_root={tmp_path / 'one'}"]) == 1
    assert_as_one_by_one(root, runs(tmp_path / "one"))


@pytest.mark.slow
def test_eight_runs_survive_kills_of_workers_and_of_the_tree(tmp_path: Path) -> None:
    from train import main

    more, draw = ("epochs=12", "lr=0.1", "regularizer=dropblock,none", "seed=1,2,3,4"), random.Random(1)
    assert main(last_of_each(*WORDS[:-1], *more, f"output_root={tmp_path / 'one'}")) == 0
    for turn in range(12):
        parent = start(tmp_path / "many", *more, "jobs=2", words=WORDS[:-1])
        time.sleep(draw.uniform(3, 12))
        victims = [*workers(parent), psutil.Process(parent.pid)] if parent.poll() is None else []
        if victims and turn % 3 == 2:  # everything at once
            for victim in victims:
                victim.kill()
        elif victims:
            draw.choice(victims).kill()
            time.sleep(draw.uniform(0, 6))
            if parent.poll() is None:
                parent.kill()
        parent.communicate()
        psutil.wait_procs(victims, timeout=60)
    parent = start(tmp_path / "many", *more, "jobs=2", words=WORDS[:-1])
    shown, _ = parent.communicate(timeout=280)
    assert parent.returncode == 0, shown
    assert_as_one_by_one(tmp_path / "many", runs(tmp_path / "one"))


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (("jobs=2",), "jobs=2: a single run"),
        (("-m", "seed=1,2", "jobs=0"), "jobs=0"),
        (("-m", "seed=1,2", "jobs=many"), "jobs=many"),
        (("-m", "seed=1,2", "jobs=2", "hydra/launcher=slurm"), "jobs=2"),
        (("-m", "seed=1,2", "jobs=2", "device=cuda:1"), "device=cuda,"),
    ],
)
def test_jobs_that_cannot_be_are_refused(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], words: tuple[str, ...], culprit: str
) -> None:
    assert train(*words) == 2
    assert culprit in capsys.readouterr().err


def job_of(number: int, *overrides: str) -> Job:
    return Job(number, list(overrides), plan_of("data=fake", "model=resnet18", *overrides))


def test_a_job_that_no_worker_survives_is_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr("experiment.pool.sys", SimpleNamespace(executable="/bin/false", platform=sys.platform))
    job = job_of(0, "experiment=table1/baseline", f"output_root={tmp_path}")
    Pool([job], 1, tmp_path, 0.0, []).run(lines.append)
    assert job.outcome is not None
    assert job.outcome.status == "FAILED"
    assert "3 workers ended with it" in lines[-1]
    (noted,) = read_notes(tmp_path)
    assert (noted["status"], noted["experiment"]) == ("FAILED", "table1/baseline")
    assert "3 workers ended with it" in summary_text([noted], tmp_path)


def test_the_plans_of_a_grid_are_shown_and_nothing_is_written(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("-m", "seed=1,2", "plan=true", "jobs=2") == 0
    shown = capsys.readouterr().out
    assert (shown.count("/seed-"), shown.count("gamma")) == (2, 1)  # two seeds have one sites table
    assert train("-m", "regularizer=none,dropblock", "keep_prob=0.8,0.9", "plan=true") == 0
    shown = capsys.readouterr().out
    lines = [line.split("  ") for line in shown.splitlines() if "/seed-1" in line]
    drops = ["".join(cell for cell in line if "%" in cell).strip() for line in lines]
    assert drops == ["", "3: 5.00%, 4: 20.00%", "3: 2.50%, 4: 10.00%"]  # runs without a layer are one
    assert "gamma" not in shown
    assert "note: keep_prob=0.8,0.9 does not apply to regularizer=none (2 jobs)" in shown
    assert shown.count("train + ") == 1  # the data once
    assert train("-m", "seed=1,2", f"run_dir={tmp_path / 'one'}", "plan=true") == 2
    assert "would share this directory" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_workers_share_cores_and_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("engine.cpu.cores_of_a_rank", lambda: 8)
    assert environment_of(0, 4, [])["OMP_NUM_THREADS"] == "2"
    assert environment_of(0, 4, [])[cpu.RUNS_HERE] == "4"  # by which a worker shares out its loaders, too
    assert [environment_of(place, 3, ["0", "2"])["CUDA_VISIBLE_DEVICES"] for place in range(3)] == ["0", "2", "0"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert count_of("auto") == 2
    assert at_a_time(read_arguments(["-m", "seed=1,2", "jobs=auto"])) == 2
    assert at_a_time(read_arguments(["-m", "jobs=auto", "device=cpu"])) == 8  # a core each, whatever GPUs there are
    for value, seen in (("0,-1,1", 1), ("-1", 0), ("1, 2", 2), ("0,0", 0), ("GPU-8932f937,GPU-1", 2), ("0,nvidia", 1)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
        assert len(shares.gpus()) == seen
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert count_of("auto") == 8
    with pytest.raises(UserError, match="auto"):
        count_of("1.5")


def test_gpus_of_amd_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no nvidia-smi
    monkeypatch.setattr(shares, "KFD", tmp_path)
    for number, units in enumerate((0, 304, 304)):  # the processor comes first
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "properties").write_text(f"cpu_cores_count 8\nsimd_count {units}\n")
    assert shares.gpus() == ["0", "1"]
    monkeypatch.setenv("ROCR_VISIBLE_DEVICES", "1")
    assert shares.gpus() == ["0"]
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "1,2,3")  # AMD's runtime takes it before the other
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert shares.gpus() == ["1", "2", "3"]
    assert {environment_of(1, 2, shares.gpus())[name] for name in shares.VISIBLE} == {"2"}


def test_progress_counts_and_foresees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("experiment.progress.time.monotonic", lambda: clock[0])
    jobs = [job_of(i, f"seed={i}", "epochs=10", f"output_root={tmp_path}") for i in range(5)]
    for job in jobs:
        job.run.mkdir(parents=True)
    lines: list[str] = []
    with SweepProgress(jobs, lines.append) as progress:
        progress.show(jobs[:2])
        for job in jobs[:2]:
            (job.run / "metrics.jsonl").write_text('{"step": 9, "epoch": 5.0, "train/loss": 1}\n{"step": 10, "ep')
        clock[0] = 100.0
        progress.show(jobs[:2])  # 10 epochs in 100 s; of 50 there are 40 to come
        assert lines[-1].endswith("0 done, 2 running, 3 waiting of 5; about 6 min 40 s left")
        progress.event(jobs[0], "DONE")
        assert lines[-1].split("  ")[:2] == ["[1/5]", "seed=0"]
        assert "DONE in 1 min 40 s" in lines[-1]
        progress.event(jobs[1], "FAILED", "the loss is not finite")
        assert lines[-1].endswith("the loss is not finite")
        clock[0] = 200.0
        progress.show(jobs[2:4])
        assert lines[-1].startswith("1 done, 1 failed, 2 running, 1 waiting of 5")
        (jobs[2].run / "summary.json").touch()
        progress.event(jobs[2], "DONE")
        assert "DONE in 0 s" in lines[-1]
        (jobs[3].run / "summary.json").touch()
        os.utime(jobs[3].run / "summary.json", (0, 0))
        progress.event(jobs[3], "DONE")
        assert "DONE before" in lines[-1]
    assert last_entries(tmp_path / "nowhere") == {}


def test_progress_shows_the_metric_that_is_asked_for() -> None:
    values = {"train/loss": 2.0, "test/loss": 1.0, "test/top1": 72.8152, "test/brier": 0.30213}
    assert headline(job_of(0), values) == "test/top1 72.82"
    assert headline(job_of(0, "headline=brier"), values) == "test/brier 0.3021"
    assert headline(job_of(0), {"train/loss": 2.0}) == headline(job_of(0, "headline=brier"), {}) == ""


def test_progress_shows_a_bar_for_each_running_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", shown)
    monkeypatch.setattr("sys.stderr", shown)
    jobs = [job_of(i, f"seed={i}", "epochs=10", f"output_root={tmp_path}") for i in range(3)]
    jobs[0].run.mkdir(parents=True)
    (jobs[0].run / "metrics.jsonl").write_text('{"step": 9, "epoch": 5.0, "train/loss": 1.5}\n')
    with SweepProgress(jobs) as progress:
        progress.show(jobs[:2])
        assert {*progress.bars} == {0, 1}
        assert re.search(r"epoch 5.0/10, \S+ left, loss 1.500", shown.getvalue())
        progress.event(jobs[0], "DONE")
        progress.show(jobs[1:])
        assert sorted(abs(bar.pos) for bar in progress.bars.values()) == [0, 1]  # the place of the first is used again


def test_a_single_run_needs_no_worker(train: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiment.command.run_pool", lambda *_: pytest.fail("a worker was started"))
    assert train("-m", "seed=1", "epochs=1", "jobs=2") == 0


def test_only_a_second_interrupt_ends_the_workers_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    pool = Pool([job_of(0)], 1, tmp_path, 0.0, [])
    monkeypatch.setattr(pool, "workers", [SimpleNamespace(process=SimpleNamespace(send_signal=sent.append))])
    with pool._signals():
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)  # as a scheduler does, some time after its warning
        assert (sent, pool.stopped) == ([signal.SIGUSR1], signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert sent == [signal.SIGUSR1, signal.SIGKILL]


def test_a_sweep_under_nohup_outlives_its_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool([job_of(0)], 1, tmp_path, 0.0, [])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pool._signals():
            signal.raise_signal(signal.SIGHUP)
        assert pool.stopped == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_grid_that_is_refused_starts_no_worker(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "keep_prob=2,3", "jobs=2") == 1
    printed = capsys.readouterr()
    assert "at a time" not in printed.out
    assert "keep_prob=2" in printed.err


def test_an_interrupted_grid_lists_every_run_in_the_order_asked(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Done before, interrupted, and not come to; of what is done nothing is started, or imported."""
    grid = ("-m", "epochs=1", "regularizer=none")
    assert train(*grid, "seed=3,1") == 0

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiment.run.run_plan", interrupted)
    capsys.readouterr()
    assert train(*grid, "seed=3,4,2,1") == 130
    printed = capsys.readouterr().out
    assert printed.startswith("2 of 4 runs already done")
    assert re.findall(r"^([A-Z ]+?)  .*seed-(\d)", printed, re.MULTILINE) == [
        ("DONE", "3"),
        ("STOPPED", "4"),
        ("NOT RUN", "2"),
        ("DONE", "1"),
    ]
    assert "2 runs done, 2 not" in printed


def test_a_grid_that_is_done_starts_nothing(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ("-m", "epochs=1", "seed=1,2")
    assert train(*grid) == 0
    first = capsys.readouterr().out.splitlines()
    for nothing in ("experiment.command.run_pool", "experiment.command.run_job"):
        monkeypatch.setattr(nothing, lambda *_, **__: pytest.fail("a run was started"))
    for more in ([], ["jobs=2"]):
        assert train(*grid, *more) == 0
        again = capsys.readouterr().out.splitlines()
        assert "started" not in " ".join(again)
        assert again[-5:-1] == first[-5:-1]  # the same table, its accuracies included


def test_a_signal_leaves_a_done_run_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the run is opened, which another process has finished meanwhile."""
    job = job_of(0, f"output_root={tmp_path}")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiment.run.run_plan", interrupted)
    for status in ("STOPPED", "DONE"):
        job.run.mkdir(parents=True, exist_ok=True)
        RunDirectory(job.run).set_status(status)
        outcome = run_job(job, 0.0, tmp_path)
        (noted,) = read_notes(tmp_path)
        assert (outcome.status, noted["status"], outcome.code, outcome.ends_all) == (status, status, 130, True)


def test_showing_the_configuration_starts_nothing(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for more in ([], ["jobs=2"]):
        assert train("+sweep=table1", "--cfg=job", *more) == 0
        printed = capsys.readouterr().out
        assert "regularizer:" in printed
        assert "runs done" not in printed
    assert list(tmp_path.iterdir()) == []
