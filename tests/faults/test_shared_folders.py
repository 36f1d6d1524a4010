"""Two at once: a run directory belongs to one process, and processes that are given the same grid share its work."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.compose import plan_of
from engine.run_directory import RunDirectory, RunLocked
from experiment.job import run_job
from experiment.outcome import Job
from experiment.sweep import read_notes
from tests.comparison import assert_identical
from tests.trainer import WORDS, Starter, kill_tree, only_run, until

Reference = Callable[..., RunDirectory]
SHORT = (*WORDS, "epochs=1")


def race(starter: Starter, root: Path) -> None:
    """Two processes at the same moment: one has the folder, the other says who, or comes when all is done."""
    pair = [starter.start(*SHORT, f"output_root={root}") for _ in range(2)]
    codes = [process.wait() for process in pair]
    assert sorted(codes) in ([0, 2], [0, 0]), pair[0].output() + pair[1].output()
    texts = [process.output() for process in pair]
    if 2 in codes:
        loser = codes.index(2)
        assert f"in use by process {pair[1 - loser].pid} on " in texts[loser]
    else:
        assert sum("already done" in text for text in texts) == 1
    assert only_run(root).status()["status"] == "DONE"


def test_racing_pairs(starter: Starter, tmp_path: Path, uninterrupted: Reference) -> None:
    for number in range(3):
        race(starter, tmp_path / str(number))
    assert_identical(only_run(tmp_path / "0"), uninterrupted("epochs=1"))


def test_who_asks_whether_a_folder_is_in_use_does_not_keep_others_out(tmp_path: Path) -> None:
    folder, over = RunDirectory(tmp_path), threading.Event()
    folder.lock().close()

    def ask() -> None:
        while not over.is_set():
            folder.in_use()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(300):
            folder.lock().close()
    finally:
        over.set()
        asking.join()
    with folder.lock(), pytest.raises(RunLocked, match="in use by process"):
        folder.lock()


def test_a_job_of_a_launcher_says_that_another_process_has_its_run(tmp_path: Path) -> None:
    job = Job(0, [], plan_of("data=fake", f"output_root={tmp_path}"))
    with RunDirectory(job.run).lock():
        outcome = run_job(job, time.time(), tmp_path / "sweeps" / "x")
    assert (outcome.status, outcome.in_use) == ("FAILED", False)
    (noted,) = read_notes(tmp_path / "sweeps" / "x")
    assert "in use by process" in noted["reason"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_racing_pairs(starter: Starter, tmp_path: Path) -> None:
    for number in range(20):
        race(starter, tmp_path / str(number))


def test_two_fresh_starts_lose_nothing(starter: Starter, tmp_path: Path) -> None:
    words = (*SHORT, f"run_dir={tmp_path / 'run'}")
    assert starter.run(*words)[0] == 0
    pair = [starter.start(*words, "fresh=true") for _ in range(2)]
    codes = sorted(process.wait() for process in pair)
    assert codes in ([0, 2], [0, 0])
    folders = sorted(tmp_path.iterdir())
    assert len(folders) == 1 + codes.count(0)
    for folder in folders:
        assert RunDirectory(folder).status()["status"] == "DONE"
        assert RunDirectory(folder).summary()["steps"] == 6


def test_a_killed_run_is_known_as_such_and_taken_over(
    starter: Starter, tmp_path: Path, uninterrupted: Reference
) -> None:
    words = (*WORDS, f"output_root={tmp_path}")
    assert starter.run(*words, die_after_write_of="last.pt")[0] == 86
    assert only_run(tmp_path).status()["status"] == "KILLED"
    process = starter.start(*words, slow=60.0)  # as long as that in its next write: it does not end by itself
    until(lambda: only_run(tmp_path).status()["pid"] == process.pid, 60, process.output)
    assert only_run(tmp_path).status()["status"] == "RUNNING"
    process.signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    status = only_run(tmp_path).status()
    assert (status["status"], status["pid"]) == ("KILLED", process.pid)
    (only_run(tmp_path).checkpoints / "last.pt.tmp.1").write_bytes(b"left over by a kill inside a write")
    assert starter.run(*words)[0] == 0
    assert_identical(only_run(tmp_path), uninterrupted())
    assert not list(only_run(tmp_path).path.glob("**/*.tmp.*"))


def runs_of(root: Path) -> dict[str, RunDirectory]:
    return {path.name: RunDirectory(path) for path in sorted(root.glob("fake-resnet18/*/seed-*"))}


def test_two_processes_share_a_grid(starter: Starter, tmp_path: Path) -> None:
    words = (*SHORT, "-m", "seed=1,2", f"output_root={tmp_path}")
    pair = [starter.start(*words) for _ in range(2)]
    for process in pair:
        assert process.wait() == 0, process.output()
        assert "2 runs done, 0 not" in process.output()
    texts = pair[0].output() + pair[1].output()
    assert texts.count("epoch   1/1 ") == 2  # each run was trained once
    assert texts.count("already done") == 2
    assert "left for the end" in texts
    for run in runs_of(tmp_path).values():
        assert run.status()["status"] == "DONE"


def test_a_grid_goes_on_past_what_fails(starter: Starter, tmp_path: Path) -> None:
    words = (*SHORT, "-m", "lr=1e30,0.1", "keep_prob=0.9,7", f"output_root={tmp_path}")
    code, output = starter.run(*words)
    assert code == 1
    # A job that cannot run is named at once, and the others go on.
    assert output.count("error: keep_prob=7.0: must lie between 0 and 1") == 1
    assert output.index("error: keep_prob=7.0") < output.index("=== run ")
    assert "error: the loss is not finite" in output
    table = output[output.index("status  ") :].splitlines()
    assert sorted(line.split()[0] for line in table[2:6]) == ["DONE", "FAILED", "FAILED", "FAILED"]
    assert "1 run done, 3 not" in output
    (failed,) = [
        run for path in tmp_path.glob("fake-*/*/*") if (run := RunDirectory(path)).status()["status"] == "FAILED"
    ]
    assert "NonFinite" in (failed.path / "error.txt").read_text()
    code, output = starter.run(*words)  # skips what is done, tries the failed one again
    assert code == 1
    assert "already done" in output
    assert "error: the loss is not finite" in output


def test_a_killed_grid_goes_on_where_it_was(starter: Starter, tmp_path: Path, uninterrupted: Reference) -> None:
    words = (*WORDS, "-m", "seed=1,2,3", "checkpoint_every=2", f"output_root={tmp_path}")
    process = starter.start(*words)
    until(lambda: (tmp_path / "sweeps").exists() and len(runs_of(tmp_path)) == 2, 60, process.output)
    second = runs_of(tmp_path)["seed-2"]
    until(lambda: (second.checkpoints / "last.pt").exists(), 60, process.output)
    kill_tree(process.pid)
    assert process.wait() == -signal.SIGKILL
    assert second.status()["status"] == "KILLED"
    code, output = starter.run(*words)
    assert code == 0
    assert output.count("already done") == 1
    assert output.count("resuming after step") == 1
    assert "3 runs done, 0 not" in output
    assert_identical(runs_of(tmp_path)["seed-1"], uninterrupted())
    assert_identical(runs_of(tmp_path)["seed-2"], uninterrupted("seed=2"))
    entries = [json.loads(path.read_text()) for path in tmp_path.glob("sweeps/*/runs/*.json")]
    assert [entry["status"] for entry in entries] == ["DONE"] * 3


def test_an_interrupt_ends_the_whole_grid(starter: Starter, tmp_path: Path) -> None:
    words = (*SHORT, "-m", "seed=1,2,3", f"output_root={tmp_path}")
    code, output = starter.run(*words, stop_after=3)
    assert code == 143
    assert len(runs_of(tmp_path)) == 1
    assert "0 runs done, 3 not" in output
