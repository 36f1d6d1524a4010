"""The layer in use on a device: on the CPU always, on CUDA where there is one (marked `gpu`, run by `make gpu`).

The distribution of the masks and the exact values are tested for each backend in test_joint_distribution.py and
test_operator_values.py; with a CUDA device the Triton kernels take part there.
"""

import itertools
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dropblock import DropBlock1d, DropBlock2d, DropBlock3d, DropLayer, KeepProbSchedule

MAPS = {DropBlock1d: (64, 64, 40), DropBlock2d: (64, 64, 14, 14), DropBlock3d: (32, 32, 5, 6, 7)}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def network(device: torch.device) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), DropBlock2d(block_size=3, keep_prob=0.7), nn.Conv2d(8, 8, 3), nn.ReLU()
    return nn.Sequential(*layers).to(device)


def images(device: torch.device) -> Tensor:
    return torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1)).to(device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", MAPS, ids=lambda kind: kind.__name__)
def test_counters_agree_with_the_output_and_the_closed_form(
    device: torch.device, kind: type[DropLayer], dtype: torch.dtype
) -> None:
    layer = kind(keep_prob=0.9).to(device)
    x = torch.ones(MAPS[kind], device=device, dtype=dtype)
    kept = sum(int((layer(x) != 0).sum()) for _ in range(2))
    assert int(layer.kept_units) == kept
    assert int(layer.seen_units) == 2 * x.numel()
    # 2,048 maps or more; the share dropped of one has a standard deviation below .3: 5 sigma, false alarm 6e-7 a case.
    expected = layer.expected_drop(0.9, *x.shape[2:])
    assert 1 - kept / (2 * x.numel()) == pytest.approx(expected, abs=5 * 0.3 / (2 * x.shape[0] * x.shape[1]) ** 0.5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(device: torch.device, use_reentrant: bool) -> None:
    gradients = []
    for run in (lambda net, x: net(x), lambda net, x: checkpoint(net, x, use_reentrant=use_reentrant)):
        net, x = network(device), images(device).requires_grad_()
        net[1].set_mask_seed(3)
        run(net, x).square().sum().backward()
        gradients.append(x.grad)
        assert int(net[1].seen_units) == 4 * 8 * 12 * 12
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_and_eager_have_the_same_masks(device: torch.device, backend: str) -> None:
    torch._dynamo.reset()
    layer = DropBlock2d(block_size=3).to(device)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    x = torch.ones(4, 8, 12, 12, device=device)
    for seed, keep_prob in enumerate((0.9, 0.5, 0.0)):
        layer.keep_prob.fill_(keep_prob)
        layer.set_mask_seed(seed)
        torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.gpu
def test_a_cuda_graph_is_replayed_with_another_rate_and_seed() -> None:
    layer = DropBlock2d(block_size=3, keep_prob=0.9).cuda()
    layer.set_mask_seed(1)
    x = torch.ones(8, 16, 14, 14, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        layer(x)  # compiles the kernels
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = layer(x)
    for seed, keep_prob in ((5, 0.9), (6, 0.5), (7, 1.0)):
        layer.keep_prob.fill_(keep_prob)
        layer.set_mask_seed(seed)
        layer.kept_units.zero_()
        graph.replay()
        replayed, kept = y.clone(), int(layer.kept_units)
        assert torch.equal(replayed, layer(x))
        assert kept == int((replayed != 0).sum())


def test_nothing_waits_for_the_host_between_a_schedule_and_a_step(device: torch.device) -> None:
    net = network(device)
    schedule, x = KeepProbSchedule(net, 0.5), images(device)
    net(x).sum().backward()  # compiles the kernels
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        schedule.set(0.5)
        net[1].set_mask_seed(9)
        net(x).sum().backward()
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert int(net[1].seen_units) == 2 * 4 * 8 * 12 * 12


@pytest.fixture
def world_of_one(device: torch.device, tmp_path: Path) -> Iterator[None]:
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("world_of_one")
def test_ddp_with_one_rank(device: torch.device) -> None:
    gradients = []
    for wrap in (lambda net: net, nn.parallel.DistributedDataParallel):
        net = network(device)
        net[1].set_mask_seed(3)
        wrap(net)(images(device)).square().sum().backward()
        gradients.append(net[0].weight.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.gpu
def test_a_resumed_run_ends_as_one_that_was_not_stopped(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from engine.loop import Fit

    step, calls = Fit.step, itertools.count(1)

    def stopped_in_the_second_epoch(self: Fit, *arguments: object) -> None:
        step(self, *arguments)  # type: ignore[arg-type]
        if next(calls) == 11:
            self.stop.received = signal.SIGTERM

    words = ("device=cuda", "regularizer=dropblock", "block_size=3")
    assert train(*words, f"run_dir={tmp_path}/whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Fit, "step", stopped_in_the_second_epoch)
        assert train(*words, f"run_dir={tmp_path}/stopped") == 143
    assert train(*words, f"run_dir={tmp_path}/stopped") == 0
    last = [tmp_path / run / "checkpoints" / "last.pt" for run in ("whole", "stopped")]
    whole, stopped = (torch.load(path, weights_only=True)["model"] for path in last)
    for name, value in whole.items():  # kernels of cuDNN may sum in another order, a mask that differs moves far more
        torch.testing.assert_close(stopped[name], value, rtol=1e-3, atol=1e-3)
