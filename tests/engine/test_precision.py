"""bfloat16 on a CPU without instructions for it gives the numbers that torch's own kernels give."""

from __future__ import annotations

import copy
import platform
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from configs.compose import plan_of
from engine import precision
from engine.distributed import Ranks
from engine.evaluation import evaluate
from engine.precision import RoundedProducts, autocast
from experiment.build import build_network
from experiment.preview import built
from tests.named import refused

CPU = torch.device("cpu")
with torch.random.fork_rng():
    torch.manual_seed(0)
    LAYERS = {
        "conv": (nn.Conv2d(8, 6, 3, stride=2, padding=1), (4, 8, 9, 9)),
        "grouped": (nn.Conv2d(8, 8, 3, groups=4, bias=False), (4, 8, 9, 9)),
        "transposed": (nn.ConvTranspose2d(8, 6, 2, stride=2), (4, 8, 5, 5)),
        "linear": (nn.Linear(8, 6), (16, 8)),
    }


def computed(layer: nn.Module, x: Tensor, rounded: bool) -> list[Tensor]:
    """Result and gradients in bfloat16 autocast."""
    x = x.clone().requires_grad_()
    layer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        if rounded:
            with RoundedProducts():
                y = layer(x)
        else:
            y = layer(x)
    y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape))
    return [y, x.grad, *(parameter.grad for parameter in layer.parameters())]  # type: ignore[list-item]


@pytest.mark.parametrize("name", LAYERS)
def test_the_numbers_are_near_those_of_torch(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for ours, torchs in zip(computed(layer, x, True), computed(layer, x, False), strict=True):
        assert ours.dtype == torchs.dtype
        # Some of torch's kernels round the terms of a sum as well: over 300 draws of the weights up to 1.4 * 2**-7.
        torch.testing.assert_close(ours, torchs, rtol=2**-7, atol=2**-6 * float(torchs.detach().abs().max()))


@pytest.mark.parametrize("name", LAYERS)
def test_operands_and_results_are_rounded_and_nothing_between(name: str) -> None:
    layer, shape = LAYERS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    y, gradient, *_ = computed(layer, x, True)
    exact = copy.deepcopy(layer).to(torch.bfloat16).double()
    inputs = x.to(torch.bfloat16).double().requires_grad_()
    result = exact(inputs)
    result.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).double().reshape(y.shape))
    # A float32 sum at the edge between two bfloat16 numbers may fall on the other side.
    for ours, sums in ((y, result), (gradient, inputs.grad)):
        assert sums is not None
        assert (ours.float() == sums.to(torch.bfloat16).float()).float().mean() > 0.98


def test_float32_would_give_other_numbers() -> None:
    layer, shape = LAYERS["conv"]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert (layer(x) != computed(layer, x, True)[0].float()).float().mean() > 0.9


def test_float64_and_regions_without_autocast_stay_as_they_are() -> None:
    layer, shape = LAYERS["linear"]
    x = torch.randn(shape)
    with torch.autocast("cpu", torch.bfloat16), RoundedProducts():
        assert nn.functional.linear(x.double(), layer.weight.double()).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize(
    ("machine", "capability", "slow"),
    [("x86_64", "AVX2", True), ("AMD64", "DEFAULT", True), ("x86_64", "AVX512", False), ("aarch64", "DEFAULT", False)],
)
def test_it_is_done_on_x86_without_avx512(
    machine: str, capability: str, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    precision.slow_in_bfloat16.cache_clear()
    try:
        assert precision.slow_in_bfloat16() is slow
    finally:
        precision.slow_in_bfloat16.cache_clear()


def test_autocast_uses_it_for_bfloat16_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, shape = LAYERS["conv"]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(precision, "slow_in_bfloat16", lambda: True)
    with autocast(CPU, "bfloat16"):
        assert torch.equal(layer(x), computed(layer, x, True)[0])
    with autocast(CPU, "float32"):
        assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias, stride=2, padding=1))


@pytest.fixture
def numerics_put_back() -> Iterator[None]:
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


@pytest.mark.usefixtures("numerics_put_back")
def test_tf32_is_set_on_gpus_and_refused_for_training_elsewhere() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    for name, wanted in (("tf32", True), ("float32", False)):
        precision.set_numerics(gpu, name, cudnn_benchmark=wanted)
        assert precision.numerics(gpu) == {"tf32": wanted, "cudnn_benchmark": wanted}
        assert torch.backends.cuda.matmul.allow_tf32 is wanted
        precision.refuse_precision(gpu, name)
    precision.refuse_precision(cpu, "float32")
    assert precision.numerics(cpu) == {}
    with refused("tf32", "cpu"):
        precision.refuse_precision(cpu, "tf32")


def test_a_network_trained_in_tf32_is_previewed_and_built_on_any_device() -> None:
    plan, shape = plan_of("data=fake", "model=resnet18", "model.width=4", "recipe.precision=tf32"), SimpleNamespace()
    shape.image_shape, shape.num_classes, shape.classes = (3, 32, 32), 10, [*"abcdefghij"]
    for device in ("cpu", "meta"):
        build_network(plan, shape, torch.device(device))  # type: ignore[arg-type]
    with refused("tf32"):
        built(plan)


def test_images_are_made_in_full_precision_where_the_network_has_less() -> None:
    """A corruption is a function of the image, not of the network's precision."""
    seen = []

    class Made:
        def __len__(self) -> int:
            return 2

        def epoch(self, epoch: int) -> Iterator[SimpleNamespace]:
            for _ in range(2):
                seen.append(("images", torch.is_autocast_enabled("cpu")))
                yield SimpleNamespace(size=1)

    def update(network: nn.Module, batch: SimpleNamespace) -> None:
        seen.append(("network", torch.is_autocast_enabled("cpu")))

    parts = {"update": update, "state": lambda: None, "merge": lambda _: None, "metrics": dict, "tables": list}
    task: Any = SimpleNamespace(evaluator=lambda _: SimpleNamespace(**parts))
    evaluate(task, nn.Identity(), Made(), Ranks(), CPU, "bfloat16")  # type: ignore[arg-type]
    assert seen == [("images", False), ("network", True)] * 2
