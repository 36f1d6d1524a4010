"""What torch offers around a module, with our layers in it: one test for each row of docs/WORKS_WITH.md."""

import copy
import importlib.util
import pickle
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap
from torch.utils.checkpoint import checkpoint

import dropblock
from dropblock import DropBlock2d, drop_block2d, installed_layers

SEED = torch.tensor(5)
X = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), DropBlock2d(block_size=3, keep_prob=0.8), nn.ReLU())


def seeded(x: Tensor) -> Tensor:
    return drop_block2d(x, block_size=3, keep_prob=0.7, seed=SEED)


def resnet() -> nn.Module:
    torchvision = pytest.importorskip("torchvision")
    model: nn.Module = torchvision.models.resnet18(num_classes=4)
    dropblock.install_into(model, lambda _: DropBlock2d(block_size=3), sites=lambda site: site.group in (3, 4))
    return model


def test_every_row_of_the_page_has_its_test() -> None:
    page = (Path(__file__).parents[2] / "docs" / "WORKS_WITH.md").read_text()
    rows = re.findall(r"`(test_\w+)`", page)
    assert rows
    assert set(rows) <= globals().keys()


# torch.fx


def test_fx_keeps_the_layer_as_a_leaf_in_training_and_evaluation() -> None:
    for training in (True, False):
        net = small().train(training)
        traced = fx.symbolic_trace(net)
        assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1", "2"]
        assert installed_layers(traced) == [net[1]]
        traced(X)
        assert (int(net[1].seen_units) > 0) == training


def test_feature_extraction_of_torchvision() -> None:
    model = resnet()
    extraction = pytest.importorskip("torchvision.models.feature_extraction")
    in_training, in_evaluation = extraction.get_graph_node_names(model)
    assert in_training == in_evaluation
    extractor = extraction.create_feature_extractor(model, {"layer3": "c4", "layer4": "c5"})
    layers = installed_layers(extractor)
    assert len(layers) == 12
    maps = extractor.train()(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape) for m in maps.values()] == [(1, 256, 4, 4), (1, 512, 2, 2)]
    assert all(int(layer.seen_units) > 0 for layer in layers)


def test_backbone_with_fpn() -> None:
    utilities = pytest.importorskip("torchvision.models.detection.backbone_utils")
    model = resnet()
    backbone = utilities.BackboneWithFPN(model, {"layer3": "0", "layer4": "1"}, [256, 512], 8)
    layers = installed_layers(backbone)
    for training in (True, False):
        maps = backbone.train(training)(torch.randn(2, 3, 64, 64))
        assert maps["0"].shape == (2, 8, 4, 4)
    assert len(layers) == 12
    assert all(int(layer.seen_units) > 0 for layer in layers)


# activation checkpointing


@pytest.mark.parametrize("seed", [None, 4])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_has_equal_masks_and_gradients_and_counts_once(use_reentrant: bool, seed: int | None) -> None:
    net = small()
    if seed is not None:
        net[1].set_mask_seed(seed)
    results = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=use_reentrant)):
        torch.manual_seed(3)
        x = X.clone().requires_grad_()
        run(x).square().sum().backward()
        results.append((x.grad, int(net[1].kept_units), int(net[1].seen_units)))
        net[1].kept_units.zero_()
        net[1].seen_units.zero_()
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    assert results[0][2] == 2 * 4 * 7 * 7


# torch.func


def test_grad_and_vjp() -> None:
    x = X.clone().requires_grad_()
    seeded(x).square().sum().backward()
    assert torch.equal(grad(lambda t: seeded(t).square().sum())(X), x.grad)
    y, pull = vjp(seeded, X)
    assert torch.equal(pull(torch.ones_like(y))[0] != 0, y != 0)
    twice = grad(lambda t: grad(lambda u: seeded(u).square().sum())(t).sum())(X)
    torch.testing.assert_close(twice, torch.where(seeded(X) != 0, 2 * (seeded(X) / X) ** 2, 0.0))


def test_forward_mode() -> None:
    tangent = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
    y, moved = jvp(seeded, (X,), (tangent,))
    assert torch.equal(y, seeded(X))
    assert torch.equal(moved, seeded(tangent))  # linear in x
    few = X[:1, :1]
    assert torch.equal(jacfwd(seeded)(few), jacrev(seeded)(few))
    twice = hessian(lambda t: seeded(t).square().sum())(few)
    assert torch.equal(twice.view(81, 81).diag() != 0, seeded(few).flatten() != 0)
    net = small()
    jvp(net, (X,), (tangent,))
    assert int(net[1].seen_units) == 2 * 4 * 7 * 7


def test_vmap_with_one_mask_or_with_many() -> None:
    layer = DropBlock2d(block_size=3, keep_prob=0.8)
    x = torch.ones(5, 2, 3, 9, 9)
    different = vmap(layer, randomness="different")(x)
    assert not torch.equal(different[0], different[1])
    assert int(layer.kept_units) == int((different != 0).sum())
    same = vmap(layer, randomness="same")(x)
    assert torch.equal(same[0], same[4])
    assert int(layer.seen_units) == 2 * x.numel()
    assert torch.equal(vmap(seeded, in_dims=1)(x)[1], seeded(x[:, 1]))
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(layer)(x)


def test_gradients_of_single_samples() -> None:
    net = small()
    parameters, buffers = dict(net.named_parameters()), dict(net.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, (parameters, buffers), (x[None],)).square().sum()

    net[1].set_mask_seed(1)
    gradients = vmap(grad(loss), in_dims=(None, 0))(parameters, X)
    for i, x in enumerate(X):
        torch.testing.assert_close(gradients["0.weight"][i], grad(loss)(parameters, x)["0.weight"])


def test_an_ensemble_counts_for_each_member() -> None:
    nets = [small() for _ in range(3)]
    parameters, buffers = stack_module_state(nets)
    skeleton = copy.deepcopy(nets[0]).to("meta")
    run = vmap(lambda p, b, x: functional_call(skeleton, (p, b), (x,)), in_dims=(0, 0, None), randomness="different")
    assert run(parameters, buffers, X).shape == (3, 2, 4, 7, 7)
    assert buffers["1.seen_units"].tolist() == [2 * 4 * 7 * 7] * 3


# graphs


def test_compile_with_dynamic_shapes() -> None:
    net, backend = small(), CompileCounterWithBackend("eager")
    net[1].set_mask_seed(3)
    compiled = torch.compile(net, backend=backend, dynamic=True, fullgraph=True)
    for size in ((2, 3, 9, 10), (3, 3, 12, 14), (5, 3, 4, 5)):  # the last smaller than the block
        x = torch.randn(size)
        y = compiled(x)
        assert torch.equal(y, net(x))
        y.sum().backward()
    assert backend.frame_count == 1


def test_export_for_training_with_dynamic_shapes() -> None:
    net, free = small(), torch.export.Dim.DYNAMIC
    net[1].set_mask_seed(3)
    exported = torch.export.export(net, (X,), dynamic_shapes=({0: free, 2: free, 3: free},)).module()
    x = torch.randn(5, 3, 12, 14)
    y = exported(x)
    assert torch.equal(y, net(x))
    y.square().sum().backward()
    assert all(p.grad is not None for p in exported.parameters())
    exported.get_buffer("1.keep_prob").fill_(1.0)  # what a schedule does
    assert torch.equal(exported(x), net.eval()(x))
    assert int(exported.get_buffer("1.seen_units")) == int(net[1].seen_units) == 3 * y.numel()


def test_export() -> None:
    for training in (True, False):
        exported = torch.export.export(small().train(training), (X,))
        nodes = [node for node in exported.graph.nodes if "dropblock" in str(node.target)]
        assert len(nodes) == training  # in evaluation nothing is left of the layer
        assert exported.module()(X).shape == (2, 4, 7, 7)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")
def test_onnx_in_evaluation_is_the_plain_network() -> None:
    program = torch.onnx.export(small().eval(), (X,), dynamo=True)
    assert program is not None
    assert [node.op_type for node in program.model.graph] == ["Conv", "Relu"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
def test_jit_trace_draws_anew_at_every_call_and_counts() -> None:
    layer = DropBlock2d(block_size=3, keep_prob=0.7)
    traced = torch.jit.trace(layer, torch.ones(2, 3, 9, 9), check_trace=False)
    layer.kept_units.zero_()
    ys = [traced(torch.ones(4, 3, 12, 12)) for _ in range(2)]
    assert not torch.equal(ys[0], ys[1])
    assert sum(int((y != 0).sum()) for y in ys) == int(layer.kept_units)
    assert torch.equal(torch.jit.trace(layer.eval(), X)(X), X)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_jit_script_is_refused_in_one_line() -> None:
    with pytest.raises(TypeError, match=r"torch.jit.script cannot compile DropBlock2d: use torch.compile") as caught:
        torch.jit.script(small())
    assert "\n" not in str(caught.value)


# types and subclasses


def test_autocast_and_float8() -> None:
    net = small()
    with torch.autocast("cpu", torch.bfloat16):
        y = net(X)
    y.float().sum().backward()
    assert (y.dtype, net[0].weight.grad.dtype, net[1].keep_prob.dtype) == (torch.bfloat16, torch.float32, torch.float32)
    for layer in (net[1], dropblock.Dropout()):
        with pytest.raises(TypeError, match=r"takes no torch.float8_e4m3fn, .*: give it bfloat16"):
            layer(X.to(torch.float8_e4m3fn))


def test_subclasses_of_tensor() -> None:
    class Marked(Tensor):
        pass

    x = X.as_subclass(Marked)
    y = seeded(x)
    assert type(y) is Marked
    assert torch.equal(y.as_subclass(Tensor), seeded(X))
    nested = torch.nested.nested_tensor([X[0], X[0, :, :5]], layout=torch.jagged)
    with pytest.raises(TypeError, match=r"DropBlock2d takes a tensor of .* maps, not NestedTensor"):
        small()[1](nested)


# copies and conversions


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_deepcopy_and_pickle(copied: Callable[[nn.Module], nn.Module]) -> None:
    net = small()
    net[1].set_mask_seed(7)
    twin = copied(net)
    assert torch.equal(twin(X), net(X))
    twin[1].keep_prob.fill_(0.0)
    assert float(net[1].keep_prob) == pytest.approx(0.8)


@pytest.mark.parametrize("convert", [lambda m: m.to(torch.bfloat16), nn.Module.half, nn.Module.double])
def test_another_type_leaves_keep_prob_and_counters_alone(convert: Callable[[nn.Module], nn.Module]) -> None:
    layer = DropBlock2d(block_size=7, keep_prob=0.998)
    layer.set_mask_seed(3)
    x = torch.ones(64, 64, 14, 14)
    before = layer(x) != 0
    convert(layer)
    assert layer.keep_prob.dtype == torch.float32
    assert layer.keep_prob == torch.tensor(0.998)
    assert layer.kept_units.dtype == torch.int64
    assert torch.equal(layer(x.to(torch.bfloat16)) != 0, before)


@pytest.fixture
def default_type() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("default_type")
def test_another_default_type() -> None:
    layer = DropBlock2d(block_size=3, keep_prob=0.998)
    assert layer.keep_prob.dtype == torch.float32
    assert layer(torch.ones(2, 3, 9, 9)).dtype == torch.bfloat16


def test_meta_device_and_to_empty() -> None:
    with torch.device("meta"):
        net = small()
    assert "keep_prob=0.8" in repr(net)
    assert net(X.to("meta")).shape == (2, 4, 7, 7)
    net.to_empty(device="cpu")
    assert float(net[1].keep_prob) == pytest.approx(0.8)
    assert int(net[1].seen_units) == int(net[1].mask_seed) == 0
    net[1].keep_prob.fill_(0.5)
    net.to_empty(device="cpu")
    assert float(net[1].keep_prob) == 0.5
    joins = dropblock.FractalDropPath([[1, 2], [1, 2, 3]])
    there_and_back = copy.deepcopy(joins).to("meta").to_empty(device="cpu")
    for name, value in joins.named_buffers():
        assert torch.equal(there_and_back.get_buffer(name), value)


def test_a_buffer_that_a_subclass_adds_goes_through_to_empty() -> None:
    class Counting(DropBlock2d):
        def __init__(self) -> None:
            super().__init__(block_size=3, keep_prob=0.8)
            self.register_buffer("calls", torch.zeros(2))

    with torch.device("meta"):
        layer = Counting()
    layer.to_empty(device="cpu")
    assert layer.get_buffer("calls").shape == (2,)
    assert float(layer.keep_prob) == pytest.approx(0.8)


def test_a_layer_of_another_type_with_its_own_buffers() -> None:
    layer = dropblock.FractalDropPath([[1, 2], [1, 2, 3]], keep_prob=0.5).to(torch.bfloat16)
    layer.set_mask_seed(1)
    assert layer(torch.ones(1, 5, 1, 1, dtype=torch.bfloat16)).dtype == torch.bfloat16


# many processes, one test each on gloo with a world of one


@pytest.fixture
def world_of_one(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def trains(net: nn.Module, layer: DropBlock2d) -> None:
    net(X).square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())
    assert int(layer.seen_units) == 2 * 4 * 7 * 7
    layer.keep_prob.fill_(0.0)
    layer.block_size = 7
    assert int((net(X) != 0).sum()) == 0  # what a schedule writes reaches the pass


@pytest.mark.usefixtures("world_of_one")
def test_ddp() -> None:
    net = small()
    trains(nn.parallel.DistributedDataParallel(net), net[1])


@pytest.mark.usefixtures("world_of_one")
def test_fully_shard() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = small()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trains(fully_shard(net, mesh=init_device_mesh("cpu", (1,))), net[1])


@pytest.mark.usefixtures("world_of_one")
def test_fully_shard_with_mixed_precision() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    net, policy = small(), MixedPrecisionPolicy(param_dtype=torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trains(fully_shard(net, mesh=init_device_mesh("cpu", (1,)), mp_policy=policy), net[1])
    assert net[1].keep_prob.dtype == torch.float32


@pytest.mark.usefixtures("world_of_one")
def test_a_dtensor_is_refused_in_one_line_and_its_local_part_taken() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    for placement in (Shard(1), Replicate()):
        x = distribute_tensor(X, init_device_mesh("cpu", (1,)), [placement])
        for layer in (small()[1], dropblock.Dropout()):
            with pytest.raises(TypeError, match=r"takes no DTensor: .*x\.to_local\(\)"):
                layer(x)
            assert layer(x.to_local()).shape == X.shape


def test_data_parallel_without_a_gpu() -> None:
    net = small()
    trains(nn.DataParallel(net), net[1])
