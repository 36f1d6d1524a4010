"""Preemption: a signal at any moment ends the run soon, with everything written, and it goes on from there."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.checkpoint import load
from engine.run_directory import RunDirectory
from engine.signals import ASKING, Stopped, StopRequest, interrupt_held
from tests.comparison import assert_identical
from tests.trainer import (
    STEPS_PER_EPOCH,
    WORDS,
    Process,
    Starter,
    entry_script,
    only_run,
    torchrun,
    until,
    workers_of,
    written,
)

Reference = Callable[..., RunDirectory]
SOON = 10.0  # seconds


def ends_soon(processes: list[Process], code: int) -> None:
    begin = time.monotonic()
    for process in processes:
        assert process.wait(60) == code, process.output()
    assert time.monotonic() - begin < SOON


def pending(process: Process, number: int) -> bool:
    """Whether a signal has been sent and not yet met the process: a second one of the same number would be lost."""
    lines = [line.split() for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()]
    return any(int(line[1], 16) >> (number - 1) & 1 for line in lines if line[0] in ("SigPnd:", "ShdPnd:"))


@pytest.mark.parametrize("number", ASKING, ids=str)
def test_every_signal_that_asks_to_stop_is_noted_and_has_its_exit_code(number: signal.Signals) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores
    try:
        with StopRequest() as stop:
            stop.defer()
            os.kill(os.getpid(), number)
            assert stop.received == number
        assert Stopped(number, "").exit_code == (130 if number == signal.SIGINT else 143)
        with StopRequest(), pytest.raises(Stopped):  # nothing has begun: there is nothing to wait for
            signal.raise_signal(number)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_waits_for_the_end_of_an_import() -> None:
    done, before = False, signal.getsignal(signal.SIGINT)

    def imported() -> None:
        nonlocal done
        with interrupt_held():
            signal.raise_signal(signal.SIGINT)
            done = True

    with pytest.raises(KeyboardInterrupt):
        imported()
    assert done
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("number", "code"),
    [
        *((signal.SIGTERM, 143), (signal.SIGINT, 130)),
        *(pytest.param(number, 143, marks=pytest.mark.slow) for number in (signal.SIGUSR1, signal.SIGHUP)),
    ],
    ids=str,
)
def test_one_signal_finishes_the_step_and_writes(
    starter: Starter, tmp_path: Path, uninterrupted: Reference, number: int, code: int
) -> None:
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path}")
    process = starter.start(*words)
    until(lambda: written(tmp_path), 60, process.output)
    process.signal(number)
    ends_soon([process], code)
    run = only_run(tmp_path)
    assert run.status()["status"] == "STOPPED"
    step = load(run.checkpoints / "last.pt")["step"]
    assert f"stopped by {signal.Signals(number).name} after step {step}" in process.output()
    assert "Traceback" not in process.output()
    assert starter.run(*words)[0] == 0
    assert_identical(run, uninterrupted())


def test_a_signal_to_one_rank_stops_all_at_the_same_step(
    starter: Starter, tmp_path: Path, uninterrupted: Reference
) -> None:
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path}")
    processes = starter.ranks(*words)
    until(lambda: written(tmp_path), 60, processes[0].output)
    processes[1].signal(signal.SIGTERM)
    ends_soon(processes, 143)
    step = load(only_run(tmp_path).checkpoints / "last.pt")["step"]
    for process in processes:
        assert f"stopped by SIGTERM after step {step}" in process.output()
    for process in starter.ranks(*words):
        assert process.wait() == 0
    assert_identical(only_run(tmp_path), uninterrupted(world_size=2))


@pytest.mark.parametrize("where", ["compose", "data", "evaluation", pytest.param("save", marks=pytest.mark.slow)])
def test_a_signal_meets_the_program_anywhere(
    starter: Starter, tmp_path: Path, uninterrupted: Reference, where: str
) -> None:
    mark, words = tmp_path / "mark", (*WORDS, f"output_root={tmp_path}")
    process = starter.start(*words, environment={"MARK": str(mark)}, pause_in=where)
    until(mark.exists, 60, process.output)
    process.signal(signal.SIGTERM)
    begin = time.monotonic()
    # While words are composed nothing stands in the way of what the system does with the signal.
    assert process.wait(60) == (-signal.SIGTERM if where == "compose" else 143), process.output()
    assert time.monotonic() - begin < SOON
    if where != "compose":
        assert only_run(tmp_path).status()["status"] == "STOPPED"
    if where == "evaluation":  # it was left to the next start
        state = load(only_run(tmp_path).checkpoints / "last.pt")
        assert (state["step"], state["epochs_done"]) == (STEPS_PER_EPOCH, 0)
    assert starter.run(*words)[0] == 0
    assert_identical(only_run(tmp_path), uninterrupted())


def test_a_second_interrupt_ends_at_once(
    starter: Starter, tmp_path: Path, uninterrupted: Reference, stopped_at_step_4: Callable[[Path], None]
) -> None:
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path}")
    stopped_at_step_4(tmp_path)
    before = written(tmp_path)
    process = starter.start(*words, slow=30.0)  # the next write takes longer than anybody waits
    folder = only_run(tmp_path).checkpoints
    until(lambda: any(f".tmp.{process.pid}" in path.name for path in folder.iterdir()), 60, process.output)
    process.signal(signal.SIGINT)
    until(lambda: not pending(process, signal.SIGINT), 60, process.output)
    time.sleep(0.3)
    assert not process.ended()
    process.signal(signal.SIGINT)
    begin = time.monotonic()
    assert process.wait(10) == 130
    assert time.monotonic() - begin < 2
    assert written(tmp_path) == before
    assert load(folder / "last.pt")["step"] == 4
    assert starter.run(*words)[0] == 0
    assert_identical(only_run(tmp_path), uninterrupted())


def test_a_write_that_outlasts_the_grace_costs_the_work_since_the_last_one(
    starter: Starter, tmp_path: Path, uninterrupted: Reference, stopped_at_step_4: Callable[[Path], None]
) -> None:
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path}")
    stopped_at_step_4(tmp_path)
    process = starter.start(*words, slow=30.0)
    folder = only_run(tmp_path).checkpoints
    until(lambda: any(f".tmp.{process.pid}" in path.name for path in folder.iterdir()), 60, process.output)
    process.signal(signal.SIGTERM)
    time.sleep(0.5)  # the grace
    process.signal(signal.SIGKILL)
    assert process.wait(10) == -signal.SIGKILL
    assert load(folder / "last.pt")["step"] == 4
    assert starter.run(*words)[0] == 0
    assert_identical(only_run(tmp_path), uninterrupted())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_signals_to_the_program(
    tmp_path: Path, uninterrupted: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, waits, runs = random.Random(5), list[float](), 0
    words = (*WORDS, "epochs=16")
    while len(waits) < 20:
        root, log, code = tmp_path / str(runs), tmp_path / f"{runs}.log", 143
        while code:
            process = entry_script(*words, f"output_root={root}", log=log)
            time.sleep(draw.uniform(1, 10))  # from the first imports to the end of the run
            begin, number = time.monotonic(), draw.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
            if len(waits) < 20 and not process.ended():
                process.signal(number)
                code = process.wait(60)
                waits.append(time.monotonic() - begin)
                assert code in (130, 143, 0, -number), process.output()
            else:
                code = process.wait(60)
        assert_identical(only_run(root), uninterrupted("epochs=16"))
        runs += 1
    assert max(waits) < SOON
    with capsys.disabled():
        print(f"\n{len(waits)} signals, ended after {max(waits):.1f} s at most, {runs} runs, all identical")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_signals_to_one_of_two_ranks_or_the_launcher(
    tmp_path: Path, uninterrupted: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    draw, waits, runs = random.Random(6), list[float](), 0
    words = (*WORDS, "epochs=16", "checkpoint_every=2")
    while len(waits) < 20:
        root, log, done = tmp_path / str(runs), tmp_path / f"{runs}.log", False
        while not done:
            before = written(root)
            job = torchrun(*words, f"output_root={root}", log=log)
            until(lambda root=root, before=before, job=job: written(root) != before or job.ended(), 120, job.output)
            time.sleep(draw.uniform(0, 0.4))
            ranks = workers_of(job)
            if len(waits) < 20 and len(ranks) == 2:
                begin = time.monotonic()
                os.kill(job.pid if draw.random() < 0.5 else draw.choice(ranks), signal.SIGTERM)
                until(lambda ranks=ranks: not any(Path(f"/proc/{pid}/cmdline").exists() for pid in ranks), 60)
                waits.append(time.monotonic() - begin)
            job.wait(120)
            done = only_run(root).status()["status"] == "DONE"
        assert_identical(only_run(root), uninterrupted("epochs=16", world_size=2))
        runs += 1
    assert max(waits) < SOON
    with capsys.disabled():
        print(
            f"\n{len(waits)} signals to a rank or the launcher, ranks ended after {max(waits):.1f} s at most, ", end=""
        )
        print(f"{runs} runs, all identical")
