"""SIGKILL at any moment: the run that goes on ends in exactly the state of the run that was never killed."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from engine.checkpoint import load
from engine.run_directory import RunDirectory
from tests.comparison import assert_identical
from tests.trainer import (
    ROOT,
    STEPS_PER_EPOCH,
    WORDS,
    Process,
    Starter,
    assert_no_scars,
    being_written,
    entry_script,
    kill_tree,
    only_run,
    torchrun,
    until,
    workers_of,
    written,
)

MANY = ("epochs=4", "checkpoint_every=2")
Reference = Callable[..., RunDirectory]


def kill_somewhere(processes: list[Process], root: Path, before: int, draw: random.Random, in_write: bool) -> bool:
    """SIGKILL all, some time after they have written; with `in_write` as soon as a checkpoint is seen half written.

    Args:
        before: what `written` said before they were started.

    Returns:
        whether a write was cut short.
    """

    def over() -> bool:
        return any(process.ended() for process in processes)

    until(lambda: written(root) != before or over(), 120, processes[0].output)
    folder = only_run(root).checkpoints
    if in_write:
        until(lambda: being_written(folder) or over(), pause=0.0005)
    else:
        time.sleep(draw.uniform(0.0, 0.3))
    for process in processes:
        kill_tree(process.pid)
    for process in processes:
        assert process.wait() in (-signal.SIGKILL, 0, 1), process.output()  # 1: a rank that saw the other one die
    return bool(being_written(folder))


def kill_often(
    start: Callable[[], list[Process]], root: Path, kills: int, draw: random.Random
) -> tuple[RunDirectory, int, int]:
    """Start, kill, start again; after that many kills (or when it was faster) let it end.

    Returns:
        the run, kills that met it alive, kills that cut a write of a checkpoint short.
    """
    met = in_write = 0
    for number in range(kills):
        before = written(root)
        cut = kill_somewhere(start(), root, before, draw, in_write=number % 2 == 1)
        run = only_run(root)
        if run.status()["status"] == "DONE":
            break
        met, in_write = met + 1, in_write + cut
        assert run.status()["status"] == "KILLED"
        for path in run.checkpoints.glob("*.pt"):
            load(path)  # whatever stands under its final name is whole
    for process in start():
        assert process.wait() == 0, process.output()
    run = only_run(root)
    assert not being_written(run.checkpoints)
    return run, met, in_write


def test_killed_at_random(starter: Starter, tmp_path: Path, uninterrupted: Reference) -> None:
    words = (*WORDS, *MANY, f"output_root={tmp_path}")
    run, kills, _ = kill_often(lambda: [starter.start(*words)], tmp_path, 3, random.Random(0))
    assert kills >= 2
    assert_identical(run, uninterrupted("epochs=4"))  # which wrote at other moments
    assert_no_scars(run)


def test_both_ranks_killed_at_random(starter: Starter, tmp_path: Path, uninterrupted: Reference) -> None:
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path}")
    run, kills, _ = kill_often(lambda: starter.ranks(*words), tmp_path, 2, random.Random(1))
    assert kills >= 1
    assert_identical(run, uninterrupted(world_size=2))
    assert_no_scars(run)


def test_killed_between_the_best_and_the_last_checkpoint(
    starter: Starter, tmp_path: Path, uninterrupted: Reference
) -> None:
    words = (*WORDS, f"output_root={tmp_path}")
    assert starter.run(*words, die_after_write_of="best.pt")[0] == 86
    run = only_run(tmp_path)
    assert [path.name for path in run.checkpoints.iterdir()] == ["best.pt"]
    assert starter.run(*words)[0] == 0
    assert_identical(run, uninterrupted())


def test_every_sample_once_per_epoch_whatever_happens(starter: Starter, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path / 'out'}")
    codes = [starter.run(*words, ledger=str(ledger), die_after_write_of="last.pt")[0]]
    while codes[-1] not in (0, 1, 2):
        codes.append(starter.run(*words, ledger=str(ledger), stop_after=5)[0])
    assert codes == [86, 143, 143, 0]
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    steps = {line["step"]: line["samples"] for line in lines if "step" in line}  # of a step done twice, the later one
    assert len([line for line in lines if "step" in line]) >= len(steps) == 2 * STEPS_PER_EPOCH
    for epoch in range(2):
        seen = [i for step in range(STEPS_PER_EPOCH) for i in steps[epoch * STEPS_PER_EPOCH + step]]
        assert len(seen) == len(set(seen)) == 288
    assert steps[0] != steps[STEPS_PER_EPOCH]
    assert [line["evaluated"] for line in lines if "evaluated" in line] == [32, 80, 32, 80]  # val, test


def kill_many(
    tmp_path: Path,
    start: Callable[[Path, Path], list[Process]],
    reference: RunDirectory,
    *,
    kills: int,
    in_write: int = 0,
    draw: random.Random,
) -> str:
    """Runs one after the other, each killed some times, until so many kills (and kills inside a write) are reached.

    Args:
        start: starts the run, from an output root and a log.
        reference: the run that was not killed.

    Returns:
        what was met, in words.
    """
    met = cut = runs = 0
    begin = time.monotonic()
    while met < kills or cut < in_write:
        root, log = tmp_path / str(runs), tmp_path / f"{runs}.log"
        run, more, more_cut = kill_often(partial(start, root, log), root, 6, draw)
        met, cut, runs = met + more, cut + more_cut, runs + 1
        assert_identical(run, reference)
        assert_no_scars(run)
    return f"{met} SIGKILLs, {cut} inside a write, {runs} runs, all identical, {time.monotonic() - begin:.0f} s"


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_of_the_program(
    tmp_path: Path, uninterrupted: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("epochs=16", "checkpoint_every=2")

    def start(root: Path, log: Path) -> list[Process]:
        return [entry_script(*WORDS, *words, f"output_root={root}", log=log)]

    met = kill_many(tmp_path, start, uninterrupted(*words), kills=50, in_write=5, draw=random.Random(2))
    with capsys.disabled():
        print(f"\n{met}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_kills_of_a_tree(tmp_path: Path, uninterrupted: Reference, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("epochs=16", "checkpoint_every=2")

    def start(root: Path, log: Path) -> list[Process]:
        return [torchrun(*WORDS, *words, f"output_root={root}", log=log)]

    met = kill_many(tmp_path, start, uninterrupted(*words, world_size=2), kills=20, draw=random.Random(3))
    with capsys.disabled():
        print(f"\na launcher and its two ranks: {met}")


def kill_one_rank_again_and_again(
    tmp_path: Path, kills: int, words: tuple[str, ...]
) -> tuple[RunDirectory, list[float]]:
    draw = random.Random(4)
    job = torchrun(*WORDS, *words, f"output_root={tmp_path}", log=tmp_path / "log", restarts=kills)
    waits = []
    for _ in range(kills):
        before = written(tmp_path)
        until(lambda before=before: written(tmp_path) != before or job.ended(), 120, job.output)
        time.sleep(draw.uniform(0, 0.3))
        victims = workers_of(job)
        assert len(victims) == 2, job.output()
        kill_tree(draw.choice(victims))
        begin = time.monotonic()
        until(lambda old=set(victims): len(set(workers_of(job)) - old) == 2 or job.ended(), 60, job.output)
        waits.append(time.monotonic() - begin)
    assert job.wait(180) == 0, job.output()
    return only_run(tmp_path), waits


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_ten_kills_of_one_rank_in_one_job(
    tmp_path: Path, uninterrupted: Reference, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("epochs=30", "checkpoint_every=2")
    begin = time.monotonic()
    run, waits = kill_one_rank_again_and_again(tmp_path, 10, words)
    assert_identical(run, uninterrupted(*words, world_size=2))
    assert_no_scars(run)
    assert max(waits) <= 10
    with capsys.disabled():
        print(f"\n10 kills of one rank, new ranks after {min(waits):.1f} to {max(waits):.1f} s, identical, ", end="")
        print(f"{time.monotonic() - begin:.0f} s")


def test_the_launcher_sets_what_restarts_need() -> None:
    text = (ROOT / "scripts" / "launch").read_text()
    assert "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in text
    assert re.search(r"--shutdown-timeout", text)
    assert re.search(r"--max-restarts", text)
