"""keep_prob over training: the shape of every schedule, and that replicas, ranks and a resume have that of the step."""

from __future__ import annotations

import copy
import math
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dropblock import SCHEDULES, DropBlock2d, KeepProbSchedule, LayerControl, LayerSpec, Site, keep_prob_at

# (schedule, start, end) -> keep_prob for target 0.8 at progress 0, 1/4, 1/2, 3/4, 1
EXPECTED: dict[tuple[str, float | None, float | None], list[float]] = {
    ("linear", None, None): [1.0, 0.95, 0.9, 0.85, 0.8],
    ("constant", None, None): [0.8] * 5,
    ("cosine", None, None): [1.0, 1 - 0.1 * (1 - math.sqrt(0.5)), 0.9, 1 - 0.1 * (1 + math.sqrt(0.5)), 0.8],
    ("early", None, 0.5): [0.8, 0.9, 1.0, 1.0, 1.0],
    ("late", 0.5, None): [1.0, 1.0, 0.8, 0.8, 0.8],
    ("ramp", None, 0.5): [1.0, 0.9, 0.8, 0.8, 0.8],
    ("curriculum", None, None): [1 - 0.2 * (1 - math.exp(-10 * p)) for p in (0, 0.25, 0.5, 0.75, 1)],
}


class Body(nn.Module):
    """A layer at one site, and nothing else."""

    last_group = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.site = Site(4, "conv", "input")

    def forward(self, x: Tensor) -> Tensor:
        return self.site(x * self.weight)


def layer_in(model: nn.Module) -> DropBlock2d:
    (layer,) = (module for module in model.modules() if isinstance(module, DropBlock2d))
    return layer


def test_every_schedule_is_among_the_expected_ones() -> None:
    assert {name for name, _, _ in EXPECTED} == set(SCHEDULES)


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: case[0])
def test_a_schedule_by_share_and_by_steps(case: tuple[str, float | None, float | None]) -> None:
    name, start, end = case
    by_share = [keep_prob_at(0.8, p, name, start, end) for p in (0, 0.25, 0.5, 0.75, 1)]
    assert by_share == pytest.approx(EXPECTED[case], abs=1e-12)
    model = nn.Sequential(DropBlock2d(block_size=3, keep_prob=0.8))
    limits = {"schedule_start": start and start * 400, "schedule_end": end and end * 400}
    schedule = KeepProbSchedule(model, 0.8, name, total_steps=400, **limits)
    assert [schedule.set(step) for step in (0, 100, 200, 300, 400)] == pytest.approx(by_share, abs=1e-12)
    with pytest.raises(ValueError, match=r"the step must lie in \[0, 400\]"):
        schedule.set(401)


@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: case[0])
def test_what_a_schedule_drops_is_what_it_expects(case: tuple[str, float | None, float | None]) -> None:
    name, start, end = case
    model = Body()
    options = {"schedule_start": start, "schedule_end": end, "options": {"block_size": 3}}
    layers = LayerControl.install(
        model, [LayerSpec("dropblock", 0.7, [4], schedule=name, **options)], torch.ones(1, 1, 9, 9)
    )  # type: ignore[arg-type]
    steps = [t / 16 for t in range(16)]
    for t, progress in enumerate(steps):
        layers.set_progress(progress)
        layers.set_seeds(lambda i, t=t: 1000 + 10 * t + i)  # type: ignore[misc]
        model.train()(torch.ones(16, 64, 9, 9))
    kept, seen = layers.take_counts()["group4"]
    # 16,384 feature maps; the share dropped of one varies by less than 0.25: 4.5 standard errors, false alarm 7e-6.
    assert abs(1 - kept / seen - layers.expected_drop(steps)["group4"]) < 4.5 * 0.25 / 16_384**0.5


def test_any_function_of_steps_is_a_schedule() -> None:
    def few_shot(step: float) -> float:
        return max(1 - 0.1 * step / 40_000, 0.9)

    model = nn.Sequential(DropBlock2d(block_size=5, keep_prob=0.9))
    by_function = KeepProbSchedule(model, 0.9, few_shot)
    by_name = KeepProbSchedule(model, 0.9, "ramp", schedule_end=40_000, total_steps=60_000)
    for step in (0, 1, 20_000, 40_000, 59_999):
        assert by_function.set(step) == pytest.approx(by_name.at(step), abs=1e-12)
        assert layer_in(model).keep_prob.item() == pytest.approx(few_shot(step), abs=1e-7)
    with pytest.raises(ValueError, match=r"must return a keep_prob in \[0, 1\], not -1"):
        KeepProbSchedule(model, 0.9, lambda step: -1.0)
    with pytest.raises(ValueError, match="a function as schedule has no"):
        KeepProbSchedule(model, 0.9, few_shot, schedule_end=0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: keep_prob_at(0.9, 0.5, "quadratic"), "choose one of linear, constant"),
        (lambda: keep_prob_at(0.9, 0.5, "linear", end=0.5), "schedule 'linear' has no schedule_end"),
        (lambda: keep_prob_at(0.9, 0.5, "early", start=0.5), "schedule 'early' has no schedule_start"),
        (lambda: keep_prob_at(0.9, 0.5, "early"), "schedule 'early' needs schedule_end"),
        (lambda: keep_prob_at(0.9, 0.5, "late"), "schedule 'late' needs schedule_start"),
        (
            lambda: KeepProbSchedule(DropBlock2d(block_size=3, keep_prob=0.9), 0.9, "ramp"),
            "schedule 'ramp' needs schedule_end",
        ),
        (lambda: keep_prob_at(0.9, 0.5, "early", end=0.0), "schedule_end must lie within the run"),
        (lambda: keep_prob_at(0.9, 0.5, "late", start=1.2), "schedule_start must lie within the run, not at 1.2"),
        (lambda: KeepProbSchedule(Body(), 0.9, total_steps=0), "total_steps must be at least 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


class CountsItself(nn.Module):
    """The schedule of much few-shot code: a Python counter that forward advances."""

    def __init__(self) -> None:
        super().__init__()
        self.steps, self.keep_prob = 0, 1.0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.keep_prob = max(1 - 0.1 * self.steps / 10, 0.9)
        return x


def replicas(model: nn.Module) -> list[nn.Module]:
    """Two of what `nn.DataParallel` makes of a model for every step: torch's own shallow copies, buffers copied."""
    made = []
    for _ in range(2):
        shallow = {module: module._replicate_for_data_parallel() for module in model.modules()}  # type: ignore[operator]
        for module, replica in shallow.items():
            replica._modules = {name: child and shallow[child] for name, child in module._modules.items()}
            replica._buffers = {name: buffer.clone() for name, buffer in module._buffers.items() if buffer is not None}
        made.append(shallow[model])
    return made


def test_replicas_of_data_parallel_get_the_keep_prob_of_the_step() -> None:
    counting, ours = nn.Sequential(CountsItself()), nn.Sequential(DropBlock2d(block_size=3, keep_prob=0.9))
    schedule = KeepProbSchedule(ours, 0.9)
    x = torch.ones(4, 8, 9, 9)
    for step in range(10):
        schedule.set(step / 10)
        for replica in replicas(counting):
            replica(x)
        assert counting[0].steps == 0  # what forward counts on a replica is gone with it
        for replica in replicas(ours):
            replica(x)
            assert layer_in(replica).keep_prob.item() == pytest.approx(1 - 0.1 * step / 10)
    assert counting[0].keep_prob == 1.0
    assert layer_in(ours).keep_prob.item() == pytest.approx(0.91)


def rank_process(rank: int, place: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=2)
    model = Body()
    layers = LayerControl.install(
        model, [LayerSpec("dropblock", 0.5, [4], options={"block_size": 3})], torch.ones(1, 8, 9, 9)
    )
    # By default DDP copies rank 0's buffers to all: its mask seeds and counters as well.
    network = nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)
    seen = []
    for step in range(4):
        layers.set_progress(step / 4)
        layers.set_seeds(lambda i, step=step: 100 * rank + 10 * step + i)  # type: ignore[misc]
        network(torch.ones(2, 8, 9, 9)).sum().backward()
        seen.append(layer_in(model).keep_prob.item())
    torch.save({"keep_prob": seen, "counts": layers.take_counts()}, Path(place, f"rank{rank}.pt"))
    dist.destroy_process_group()


def test_ranks_of_ddp_have_the_keep_prob_of_the_step() -> None:
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as place:
        processes = [context.Process(target=rank_process, args=(rank, place)) for rank in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        ranks = [torch.load(Path(place, f"rank{rank}.pt")) for rank in range(2)]
    assert ranks[0]["keep_prob"] == ranks[1]["keep_prob"] == [1.0, 0.875, 0.75, 0.625]
    assert ranks[0]["counts"] != ranks[1]["counts"]  # masks of their own
    assert all(rank["counts"]["group4"][1] == 4 * 2 * 8 * 81 for rank in ranks)


def test_a_resumed_run_stands_at_the_keep_prob_of_its_step() -> None:
    def until(first: int, last: int) -> tuple[nn.Module, list[float]]:
        model = nn.Sequential(nn.Conv2d(1, 1, 1), DropBlock2d(block_size=3, keep_prob=0.8))
        schedule = KeepProbSchedule(model, 0.8, total_steps=10)
        return model, [schedule.set(step) for step in range(first, last)]

    whole, straight = until(0, 10)
    stopped, before = until(0, 6)
    resumed, after = until(6, 10)
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))  # which has nothing of the schedule
    assert list(stopped.state_dict()) == ["0.weight", "0.bias"]
    assert before + after == straight
    assert layer_in(resumed).keep_prob == layer_in(whole).keep_prob == pytest.approx(0.82)
