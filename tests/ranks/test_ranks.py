"""Several processes train one network: they hold one state, stop together, and none waits for a dead one."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.checkpoint import load
from engine.guard import all_finite
from engine.run_directory import RunDirectory
from tests.comparison import assert_identical, assert_same
from tests.opening import build_data
from tests.trainer import (
    STEPS_PER_EPOCH,
    WORDS,
    Process,
    Starter,
    free_port,
    only_run,
    torchrun,
    until,
    workers_of,
    written,
)

Reference = Callable[..., RunDirectory]


def codes(processes: list[Process], timeout: float = 120) -> list[int]:
    return [process.wait(timeout) for process in processes]


def outputs(processes: list[Process]) -> str:
    return "\n".join(process.output() for process in processes)


@pytest.mark.parametrize("steps", [7, pytest.param(5, marks=pytest.mark.slow)])
def test_two_ranks_stopped_again_and_again(
    starter: Starter, tmp_path: Path, uninterrupted: Reference, steps: int
) -> None:
    words, stops = (*WORDS, f"output_root={tmp_path}"), 0
    faults = {rank: {"stop_after": steps} for rank in range(2)}
    while (ended := codes(processes := starter.ranks(*words, faults=faults))) == [143, 143]:
        stops += 1
    assert ended == [0, 0], outputs(processes)
    assert stops == 2 * STEPS_PER_EPOCH // steps
    assert_identical(only_run(tmp_path), uninterrupted(world_size=2))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("world_size", [1, 2])
def test_stopped_after_each_step_of_two_epochs(
    starter: Starter, tmp_path: Path, uninterrupted: Reference, world_size: int, precision: str
) -> None:
    kind = f"recipe.precision={precision}"
    reference = uninterrupted(kind, world_size=world_size)
    for k in range(1, 2 * STEPS_PER_EPOCH + 1):
        words = (*WORDS, kind, f"output_root={tmp_path / str(k)}")
        stop = {"stop_after": k}
        if world_size == 1:
            assert starter.run(*words, **stop)[0] == 143
            assert starter.run(*words)[0] == 0
        else:
            assert codes(starter.ranks(*words, faults={1: stop})) == [143, 143]  # the signal met one rank
            assert codes(starter.ranks(*words)) == [0, 0]
        assert_identical(only_run(tmp_path / str(k)), reference)


def test_all_ranks_hold_the_same_and_count_everything(
    starter: Starter, tmp_path: Path, uninterrupted: Reference
) -> None:
    faults = {r: {"keep_state": str(tmp_path / f"{r}.pt"), "ledger": str(tmp_path / f"{r}")} for r in range(2)}
    assert codes(starter.ranks(*WORDS, f"output_root={tmp_path / 'out'}", faults=faults)) == [0, 0]
    states = [load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert_same(states[0], states[1])
    run = only_run(tmp_path / "out")
    assert_identical(run, uninterrupted(world_size=2))
    single = load(uninterrupted().checkpoints / "last.pt")
    # The running variances of two ranks are averaged: about those of one rank. Summed, they would double every step.
    for key in (key for key in single["model"] if key.endswith("running_var")):
        assert 0.5 < states[0]["model"][key].mean() / single["model"][key].mean() < 2.0, key
    for group, (_, seen) in states[0]["last_drops"].items():
        assert seen == single["last_drops"][group][1]  # units of all ranks
    ledgers = [[json.loads(line) for line in (tmp_path / f"{r}").read_text().splitlines()] for r in range(2)]
    for ours, theirs in zip(*ledgers, strict=True):
        if "step" in ours:
            assert ours["mask"] != theirs["mask"]  # each rank drops other units
            assert not set(ours["samples"]) & set(theirs["samples"])
        else:
            assert ours == theirs


@pytest.mark.slow
def test_a_foreign_network_drops_as_it_should_on_every_rank(starter: Starter, tmp_path: Path) -> None:
    """A site of group 4 makes 590,000 draws, one of group 3 twice that: 2 % of the share are 8 standard deviations."""
    faults = {r: {"keep_state": str(tmp_path / f"{r}.pt"), "ledger": str(tmp_path / f"{r}")} for r in range(2)}
    words = ("data=fake", "model=torchvision", "model.name=resnet18", "data.image_size=64", "epochs=1", "batch_size=96")
    more = (
        "regularizer=[dropblock,feature_cutmix]",
        "block_size=1",
        "schedule=constant",
        "keep_prob=0.5",
        "progress=false",
        "device=cpu",
    )
    assert codes(starter.ranks(*words, *more, f"output_root={tmp_path / 'out'}", faults=faults)) == [0, 0]
    states = [load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert_same(*states)
    drops = (only_run(tmp_path / "out").summary() or {})["drop_last_epoch"]
    for group, expected in (("group3", 0.125), ("group4", 0.5)):
        assert drops[group]["expected"] == pytest.approx(expected)
        assert drops[group]["measured"] == pytest.approx(expected, rel=0.02)
    ledgers = [[json.loads(line) for line in (tmp_path / f"{r}").read_text().splitlines()] for r in range(2)]
    for ours, theirs in zip(*ledgers, strict=True):
        assert "step" not in ours or ours["mask"] != theirs["mask"]


def test_statistics_are_the_mean_of_what_the_ranks_saw() -> None:
    """Both ranks in one process: after each has seen a half, the mean of the one is that of a norm that saw both."""
    from torch import Tensor, nn

    from engine.distributed import Ranks, running_statistics, share_statistics

    whole, one, other = (nn.BatchNorm2d(3) for _ in range(3))
    assert [tuple(b.shape) for b in running_statistics(whole)] == [(3,), (3,)]
    images = torch.randn(8, 3, 4, 4)
    for norm, seen in ((whole, images), (one, images[:4]), (other, images[4:])):
        norm(seen)
    theirs = [buffer.clone() for buffer in running_statistics(other)]
    variances = (one.running_var + theirs[1]) / 2

    class Both(Ranks):
        def sum(self, tensor: Tensor) -> Tensor:
            return tensor + torch.cat([buffer.flatten() for buffer in theirs])

    share_statistics(running_statistics(one), Both(0, 2))
    torch.testing.assert_close(one.running_mean, whole.running_mean)
    torch.testing.assert_close(one.running_var, variances)


def test_another_number_of_ranks_goes_on_with_the_same_batches(starter: Starter, tmp_path: Path) -> None:
    words = (*WORDS, f"output_root={tmp_path / 'out'}")
    faults = {r: {"ledger": str(tmp_path / f"{r}"), "stop_after": 5} for r in range(2)}
    assert codes(starter.ranks(*words, faults=faults)) == [143, 143]
    code, output = starter.run(*words, ledger=str(tmp_path / "0"))
    assert code == 0, output
    samples: dict[int, list[int]] = {}
    for rank in range(2):
        for line in map(json.loads, (tmp_path / f"{rank}").read_text().splitlines()):
            if "step" in line:
                samples.setdefault(line["step"], []).extend(line["samples"])
    data = build_data("fake", image_size=32, batch_size=48, seed=1)
    expected = [b.indices.tolist() for epoch in range(2) for b in data.train.epoch(epoch)]
    assert [sorted(samples[step]) for step in range(2 * STEPS_PER_EPOCH)] == [sorted(batch) for batch in expected]
    assert only_run(tmp_path / "out").summary()["steps"] == 2 * STEPS_PER_EPOCH


def test_a_batch_that_cannot_be_shared_is_refused_by_all(starter: Starter, tmp_path: Path) -> None:
    processes = starter.ranks(*WORDS, "batch_size=33", "recipe.accumulate=1", f"output_root={tmp_path}")
    assert codes(processes) == [2, 2]
    assert "batch_size 33" in outputs(processes)


@pytest.mark.parametrize("step", [pytest.param(0, marks=pytest.mark.slow), 11])
def test_a_loss_that_goes_wrong_on_one_rank_stops_all(starter: Starter, tmp_path: Path, step: int) -> None:
    words = (*WORDS, "recipe.accumulate=1", "checkpoint_every=2", f"output_root={tmp_path}")
    processes = starter.ranks(*words, faults={1: {"bad_loss": {"step": step, "rank": 1}}})
    assert codes(processes) == [1, 1]
    run = only_run(tmp_path)
    reason = run.status()["reason"]
    assert f"step {step} on rank 1 (lr 0" in reason
    assert "Traceback" not in outputs(processes)
    kept = load(run.path / "nonfinite.pt")
    assert kept["rank"] == 1
    assert kept["step"] == step
    assert ", ".join(map(str, kept["batch"]["indices"][:8].tolist())) in reason
    if step:
        last = load(run.checkpoints / "last.pt")
        assert last["step"] == 10
        assert all_finite(last["model"].values())


def test_ranks_started_differently_all_say_so(starter: Starter, tmp_path: Path) -> None:
    """In what is computed, and in an interval at which they communicate."""
    port = str(free_port())
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    processes = [
        starter.start(
            *(*WORDS, f"lr={0.1 + 0.1 * r}", f"log_every={3 + r}", f"output_root={tmp_path}"),
            environment={**common, "RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in range(2)
    ]
    assert codes(processes, 30) == [2, 2]
    for process in processes:
        assert "recipe.lr=0.2 (there: 0.1), log_every=4 (there: 3)" in process.output()
    assert not list(tmp_path.glob("*/*/*"))


def test_a_dead_rank_ends_the_others_in_seconds(starter: Starter, tmp_path: Path) -> None:
    words = (*WORDS, "epochs=50", "checkpoint_every=2", f"output_root={tmp_path}")
    processes = starter.ranks(*words, faults={1: {"killed_before_step": 7}})
    assert processes[1].wait() == -signal.SIGKILL
    begin = time.monotonic()
    assert processes[0].wait(15) == 1
    assert time.monotonic() - begin < 10
    last_line = processes[0].output().splitlines()[-1]
    assert last_line.startswith("error: another rank has ended or does not answer")
    assert ".cc:" not in last_line  # a place in gloo's code helps nobody
    run = only_run(tmp_path)
    assert run.status()["status"] == "FAILED"
    assert load(run.checkpoints / "last.pt")["step"] == 6


@pytest.mark.parametrize("number", [signal.SIGSTOP, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_a_silent_rank_is_given_up(starter: Starter, tmp_path: Path, number: signal.Signals) -> None:
    """Whatever it was doing: gloo tells nobody of a message to a rank that dies as it is sent; only the time does."""
    words = (*WORDS, "epochs=50", "checkpoint_every=2", "rank_timeout=3", f"output_root={tmp_path}")
    processes = starter.ranks(*words)
    until(lambda: written(tmp_path), 60, lambda: outputs(processes))
    processes[1].signal(number)
    begin = time.monotonic()
    assert processes[0].wait(30) == 1
    assert time.monotonic() - begin < 3 + 10
    assert "error: another rank has ended or does not answer" in processes[0].output()
    if number == signal.SIGKILL:
        assert processes[1].wait() == -signal.SIGKILL
    else:
        processes[1].signal(signal.SIGCONT)
        assert processes[1].wait(30) == 1  # it finds the other one gone
        assert (only_run(tmp_path).path / "error-rank1.txt").exists()


def test_a_rank_that_leaves_out_a_step_of_all_does_not_go_on(starter: Starter, tmp_path: Path) -> None:
    words = (*WORDS, "epochs=50", "rank_timeout=3", f"output_root={tmp_path}")
    processes = starter.ranks(*words, faults={1: {"skip_a_collective": 4}})
    assert all(code in (1, -signal.SIGABRT) for code in codes(processes, 60))  # gloo aborts where the sizes differ


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up_within_its_timeout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (*WORDS, "epochs=200", "checkpoint_every=2", "rank_timeout=8", f"output_root={tmp_path}")
    job = torchrun(*words, log=tmp_path / "log")
    until(lambda: written(tmp_path), 120, job.output)
    victim = workers_of(job)[1]
    os.kill(victim, signal.SIGSTOP)
    begin = time.monotonic()
    assert job.wait(8 + 40 + 120) != 0
    seconds = time.monotonic() - begin
    assert "another rank has ended or does not answer" in job.output()
    with capsys.disabled():
        print(f"\na stopped rank ends the job after {seconds:.0f} s (rank_timeout 8 s)")
    assert seconds < 48


def rank_zero(port: int) -> dict[str, str]:
    return {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def test_a_port_in_use_is_reported_in_one_line(starter: Starter, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = starter.start(*WORDS, "rank_timeout=3", f"output_root={tmp_path}", environment=rank_zero(port))
        assert process.wait(30) == 2
    (line,) = [line for line in process.output().splitlines() if line.startswith("error:")]
    assert f"MASTER_ADDR:MASTER_PORT=127.0.0.1:{port}" in line
    assert "in use" in line
    assert "Traceback" not in process.output()


def test_peers_that_never_come_are_reported_in_one_line(starter: Starter, tmp_path: Path) -> None:
    environment = rank_zero(free_port())
    process = starter.start(*WORDS, "rank_timeout=2", f"output_root={tmp_path}", environment=environment)
    assert process.wait(30) == 2
    assert "the ranks cannot meet" in process.output()
    code, output = starter.run(*WORDS, environment={**environment, "RANK": "zero"})
    assert code == 2, output


def test_a_folder_in_use_is_refused_by_all_ranks(starter: Starter, tmp_path: Path) -> None:
    first = starter.start(*WORDS, "epochs=50", f"run_dir={tmp_path}")
    until(lambda: (tmp_path / "status.json").exists(), 60, first.output)
    processes = starter.ranks(*WORDS, "epochs=50", f"run_dir={tmp_path}")
    assert codes(processes, 30) == [2, 2]
    for process in processes:
        assert f"in use by process {first.pid}" in process.output()
    first.signal(signal.SIGKILL)
    first.wait()


def test_a_fresh_start_is_not_repeated_by_the_launcher(starter: Starter, tmp_path: Path) -> None:
    words = (*WORDS, "fresh=true", f"output_root={tmp_path}")
    assert starter.run(*words, stop_after=3)[0] == 143
    code, output = starter.run(*words, environment={"TORCHELASTIC_RESTART_COUNT": "1"})
    assert code == 0
    assert "resuming after step 3" in output
    assert len(list(tmp_path.glob("*/*/*"))) == 1
