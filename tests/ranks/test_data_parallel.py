"""One process or two: the same global batch gives the same learning rates and, without batch statistics, weights."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from configs.schema import RecipeConfig, RunOptions
from dropblock import DropBlock2d, install_into
from engine.distributed import Ranks, join, synchronized, with_hooks, wrap
from engine.loop import Fit
from engine.run_directory import RunDirectory
from engine.signals import StopRequest
from engine.state import TrainState
from engine.tasks import Classification
from tests.opening import build_data
from tests.trainer import free_port

CPU = torch.device("cpu")
BATCH, EPOCHS = 32, 2


class NoLayers:
    """A network without layers, as the loop sees it."""

    def set_progress(self, progress: float) -> float:
        return 1.0

    def set_seeds(self, seed_of: Any) -> None: ...

    def take_counts(self) -> dict[str, tuple[int, int]]:
        return {}

    def __getattr__(self, name: str) -> Any:  # whatever else it asks about layers: there are none
        return lambda *_: {}


class Draws(nn.Module):
    """Stands for dropout inside a network: draws from torch's generator in training."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[float] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(float(torch.rand(())))
        return x


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(8 * 7 * 7, 10), Draws(),
    )  # fmt: skip


def fit(
    place: Path, ranks: Ranks, accumulate: int, steps: list[dict[str, Any]]
) -> tuple[dict[str, Tensor], list[float]]:
    """Train for two epochs; what each optimizer step saw is appended to `steps`."""
    data = build_data(
        "fake",
        batch_size=BATCH,
        augment={"crop_padding": 2, "flip": True},
        seed=3,
        rank=ranks.rank,
        world_size=ranks.world_size,
    )
    model = network()
    recipe = RecipeConfig("test", epochs=EPOCHS, lr=0.05, warmup_epochs=0.5, accumulate=accumulate)
    state = TrainState(model, recipe)
    optimizer = state.optimizer
    wrapped = wrap(model, ranks, CPU, compiled=False)
    reductions = [0]
    if isinstance(wrapped, nn.parallel.DistributedDataParallel):
        wrapped.register_comm_hook(reductions, counted)
    optimizer.register_step_post_hook(
        lambda *_: steps.append({"lr": optimizer.param_groups[0]["lr"], "reductions": reductions[0]})
    )
    Fit(
        task=Classification("0123456789"),
        state=state,
        network=wrapped,
        data=data,
        layers=NoLayers(),
        recipe=recipe,
        options=RunOptions(log_every=3, progress=False),
        seed=3,
        directory=RunDirectory(place),
        identity={},
        ranks=ranks,
        device=CPU,
        stop=StopRequest(),
    ).run()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, model[-1].seen


def counted(reductions: list[int], bucket: Any) -> Any:
    reductions[0] += 1
    return allreduce_hook(None, bucket)


counted.__annotations__ |= {"bucket": dist.GradBucket, "return": torch.futures.Future[Tensor]}  # as torch asks, no text


def rank_process(rank: int, world_size: int, port: int, accumulate: int, place: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    steps: list[dict[str, Any]] = []
    weights, draws = fit(place, join(CPU, 60.0), accumulate, steps)
    torch.save({"weights": weights, "steps": steps, "draws": draws}, place / f"rank{rank}.pt")


def train(place: Path, world_size: int, accumulate: int = 1) -> list[SimpleNamespace]:
    """What each rank ends with."""
    (place / "checkpoints").mkdir(parents=True)
    port, context = free_port(), multiprocessing.get_context("fork")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        processes = [
            context.Process(target=rank_process, args=(rank, world_size, port, accumulate, place))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [SimpleNamespace(**torch.load(place / f"rank{rank}.pt")) for rank in range(world_size)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One rank with the whole batch."""
    (rank,) = train(tmp_path_factory.mktemp("runs") / "alone", 1)
    return rank


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[SimpleNamespace]:
    """Two ranks with half of it each."""
    return train(tmp_path_factory.mktemp("runs") / "two", 2)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest difference of two sets of weights, as a share of the largest weight of its tensor."""
    return max(float((one[name] - other[name]).abs().max() / other[name].abs().max()) for name in other)


def test_one_rank_with_the_whole_batch_is_two_with_halves(alone: SimpleNamespace, two: list[SimpleNamespace]) -> None:
    first, second = two
    assert apart(first.weights, second.weights) == 0
    # 18 steps of float32 sums in another order; a gradient summed and not averaged ends ten thousand times as far away.
    assert apart(first.weights, alone.weights) < 1e-4
    assert apart(first.weights, network().state_dict()) > 0.05
    rates = [[step["lr"] for step in rank.steps] for rank in (alone, first, second)]
    assert len(rates[0]) == EPOCHS * (288 // BATCH)
    assert rates[0] == rates[1] == rates[2]


def test_gradients_travel_once_for_an_accumulated_batch(
    tmp_path: Path, alone: SimpleNamespace, two: list[SimpleNamespace]
) -> None:
    accumulated, _ = train(tmp_path / "parts", 2, accumulate=2)
    plain = two[0]
    assert [step["reductions"] for step in accumulated.steps] == [step["reductions"] for step in plain.steps]
    assert plain.steps[-1]["reductions"] >= len(plain.steps)
    assert apart(accumulated.weights, alone.weights) < 1e-4


def test_synchronized_batch_norm_is_for_gpus() -> None:
    with pytest.raises(ValueError, match="sync_batchnorm=true"):
        synchronized(nn.BatchNorm2d(3), CPU)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    keys = list(model.state_dict())
    converted = synchronized(model, torch.device("cuda"))
    assert isinstance(converted[1], nn.SyncBatchNorm)  # type: ignore[index]
    assert list(converted.state_dict()) == keys


@pytest.mark.parametrize("name", ["resnet50", "densenet121"])
def test_synchronized_batch_norm_keeps_the_sites_of_a_foreign_network(name: str) -> None:
    import torchvision

    model = torchvision.models.get_model(name, weights=None, num_classes=4)
    sites = install_into(model, lambda site: DropBlock2d(block_size=3), sites=lambda site: site.group >= 3)
    model = with_hooks(nn.SyncBatchNorm.convert_sync_batchnorm, model).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    calls = dict.fromkeys(sites.values(), 0)
    for site in calls:
        site.register_forward_pre_hook(lambda module, _: calls.__setitem__(module, calls[module] + 1))
    model(torch.randn(1, 3, 64, 64))
    assert set(calls.values()) == {1}


def test_random_layers_of_a_network_draw_apart_on_every_rank_and_again_the_same(
    tmp_path: Path, two: list[SimpleNamespace]
) -> None:
    first, second = two
    again, _ = train(tmp_path / "again", 2)
    assert len(first.draws) == len(set(first.draws)) == EPOCHS * (288 // BATCH)
    assert not set(first.draws) & set(second.draws)
    assert first.draws == again.draws
