"""torch.compile: one graph, never recompiled by the schedule, the masks of eager mode."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dropblock import DropBlock2d
from dropblock.operator import DENSE, SPARSE_CPU, drop

# aot_eager traces forward and backward as the default backend does, without the C++ compiler's half minute.
BACKENDS = ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_one_graph_and_the_same_masks_whatever_keep_prob_and_seed(backend: str, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), DropBlock2d(block_size=3), nn.Tanh(), DropBlock2d())
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    layers = [network[1], network[3]]
    x = torch.randn(4, 3, 7, 7).contiguous(memory_format=layout)
    for step, keep_prob in enumerate((1.0, 0.9, 0.75, 0.0)):
        results = []
        for run in (network, compiled):
            for site, layer in enumerate(layers):
                layer.keep_prob.fill_(keep_prob)
                layer.set_mask_seed(1000 * step + site)
            image = x.clone().requires_grad_()
            y = run(image)
            y.square().sum().backward()
            results.append((y.detach(), image.grad, [int(layer.kept_units) for layer in layers]))
            for layer in layers:
                layer.kept_units.zero_()
        (eager, eager_grad, eager_kept), (traced, traced_grad, traced_kept) = results
        assert torch.equal(eager == 0, traced == 0)
        torch.testing.assert_close(traced, eager)
        torch.testing.assert_close(traced_grad, eager_grad)
        assert traced_kept == eager_kept
        assert traced.stride() == eager.stride()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_without_a_seed_it_compiles_too() -> None:
    layer = DropBlock2d(block_size=3, keep_prob=0.7)
    y = torch.compile(layer, fullgraph=True, backend="aot_eager")(torch.ones(4, 8, 9, 9))
    assert 0 < int((y == 0).sum()) == y.numel() - int(layer.kept_units)


@pytest.mark.parametrize("backend", BACKENDS)
def test_filling_keep_prob_and_seed_before_backward_changes_nothing(backend: str) -> None:
    layer = DropBlock2d(block_size=3, keep_prob=0.7)
    x = torch.randn(4, 8, 9, 9, requires_grad=True)
    layer.set_mask_seed(3)
    y = torch.compile(layer, fullgraph=True, backend=backend)(x)
    layer.set_mask_seed(4)
    layer.keep_prob.fill_(0.1)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0)


def test_the_graph_nodes_keep_their_contract() -> None:
    """Shapes, layouts, aliasing and gradients of the two registered operators, as torch itself checks them."""
    from dropblock.graph_node import again_node, drop_node

    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
        last = layout == torch.channels_last
        keep_prob, seed, kept = torch.tensor(0.8), torch.tensor(3), torch.tensor(100)
        tests = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
        torch.library.opcheck(drop_node, (x, keep_prob, 2, seed, last), test_utils=tests)
        torch.library.opcheck(again_node, (x, keep_prob, 2, seed, kept, last), test_utils=tests)


def test_the_dense_backend_never_waits_for_the_device() -> None:
    """A fake tensor has no value to read: reading one on the host, as the CPU backend may, raises."""
    with FakeTensorMode():
        x, keep_prob, seed = torch.ones(2, 3, 8, 8), torch.ones(()), torch.ones((), dtype=torch.int64)
        assert drop(DENSE, x, keep_prob, 3, seed)[0].shape == x.shape
        with pytest.raises(DataDependentOutputException):
            drop(SPARSE_CPU, x, keep_prob, 3, seed)
