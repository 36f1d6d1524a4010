"""ShakeDrop: its formula forward and backward, its distribution, evaluation, and what a loop does around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from configs.schema import LayerConfig
from dropblock import LayerControl, LayerSpec, ShakeDrop, declared_sites, install_into, install_layers, random_mask
from dropblock.draws import random_uniform
from dropblock.shakedrop import branch_end, folded
from engine import checkpoint as checkpoint_file
from engine.run_directory import RunDirectory
from evaluate import main as evaluate
from experiment.source import NetworkSource
from experiment.trained import opened, weights_of
from experiment.trained import trained as trained_network
from models import build_model
from scripts.export import main as export

SEED = 7
SPEC = LayerSpec("shakedrop", 0.5, groups=(1, 2, 3, 4), schedule="constant", depth_rule="linear")


def shaken(x: Tensor, seed: int = SEED, **options: Any) -> tuple[Tensor, ShakeDrop]:
    layer = ShakeDrop(**{"keep_prob": 0.5, **options})
    layer.group = 4  # as at a site: the seed is used as it is
    layer.set_mask_seed(seed)
    return layer(x), layer


def network(name: str = "pyramidnet110", **options: Any) -> Any:
    torch.manual_seed(0)
    return build_model(name, num_classes=5, **{"width": 4, "depth": 14, "stem": "small", **options})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("together", ["image", "batch"])
def test_forward_and_backward_are_the_formula(together: str, dtype: torch.dtype) -> None:
    x = torch.randn(40, 3, 4, 5).to(dtype).requires_grad_()
    y, layer = shaken(x, together=together)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    seed, image = torch.tensor(SEED), (40, 1, 1, 1)
    b = random_mask(image if together == "image" else (1, 1, 1, 1), torch.tensor(0.5), seed).float()
    alpha, beta = 2 * random_uniform(image, seed + 1) - 1, random_uniform(image, seed + 2)
    exact = torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(y, (x.to(exact) * (b + alpha - b * alpha)).to(dtype))
    torch.testing.assert_close(gradient, (b + beta - b * beta).to(dtype).expand_as(x))
    assert layer.kept_units == int(b.expand(image).sum()) * 60
    assert layer.seen_units == x.numel()
    if together == "image":
        assert 0 < b.sum() < 40


def test_distribution_of_its_factors() -> None:
    """20,000 images: p_l, and mean and variance of alpha and beta, each within 4.5 standard errors (7e-6 a case)."""
    x = torch.ones(20_000, 1, 1, 1, requires_grad=True)
    y, _ = shaken(x, keep_prob=0.3)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    kept = (y == 1).flatten()
    assert abs(kept.double().mean().item() - 0.3) < 4.5 * (0.21 / 20_000) ** 0.5
    assert (gradient.flatten()[kept] == 1).all()
    alpha, beta = y.detach().flatten()[~kept].double(), gradient.flatten()[~kept].double()
    n = len(alpha)
    for values, low, high in ((alpha, -1, 1), (beta, 0, 1)):
        width = high - low
        assert low <= values.min() < values.max() <= high
        assert abs(values.mean().item() - (low + high) / 2) < 4.5 * width * (1 / 12 / n) ** 0.5
        assert abs(values.var().item() / (width**2 / 12) - 1) < 4.5 * (0.8 / n) ** 0.5
    correlation = torch.corrcoef(torch.stack((alpha, beta)))[0, 1].item()
    assert abs(correlation) < 4.5 / n**0.5
    # The branch in evaluation is the mean of what it is in training: p_l + (1 - p_l) E[alpha].
    layer = ShakeDrop(keep_prob=0.3, alpha=(-0.5, 1.0)).eval()
    assert layer(torch.ones(1, 1, 1, 1)).item() == pytest.approx(0.3 + 0.7 * 0.25)
    mean = shaken(torch.ones(20_000, 1, 1, 1), keep_prob=0.3, alpha=(-0.5, 1.0))[0].double()
    assert abs(mean.mean().item() - 0.475) < 4.5 * mean.std().item() / 20_000**0.5


def test_evaluation_follows_keep_prob() -> None:
    layer, x = ShakeDrop(keep_prob=0.8).eval(), torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(layer(x), 0.8 * x)
    layer.keep_prob.fill_(1.0)
    assert torch.equal(layer(x), x)
    assert int(layer.seen_units) == 0


def test_numerical_derivative_where_both_factors_are_one_number() -> None:
    x = torch.randn(6, 2, 3, 3, dtype=torch.float64, requires_grad=True)

    def same(x: Tensor) -> Tensor:
        return shaken(x, alpha=(0.25, 0.25), beta=(0.25, 0.25))[0]

    assert torch.autograd.gradcheck(same, x)
    assert torch.autograd.gradgradcheck(same, x)


def test_a_seed_fixes_the_draws_and_without_one_the_generator_does() -> None:
    x = torch.randn(16, 3, 4, 4)
    assert torch.equal(shaken(x)[0], shaken(x)[0])
    assert not torch.equal(shaken(x)[0], shaken(x, seed=8)[0])
    layer = ShakeDrop(keep_prob=0.5)
    torch.manual_seed(3)
    first = layer(x)
    assert not torch.equal(layer(x), first)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize("seeded", [True, False])
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_draws_the_same_and_counts_once(use_reentrant: bool, seeded: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), ShakeDrop(keep_prob=0.5))
    if seeded:
        net[1].set_mask_seed(SEED)  # type: ignore[operator]
    results = []
    for run in (net, lambda x: checkpoint(net, x, use_reentrant=use_reentrant)):
        torch.manual_seed(1)
        x = torch.ones(8, 3, 6, 6, requires_grad=True)
        net.zero_grad()
        run(x).square().sum().backward()
        results.append((x.grad, net[0].weight.grad.clone()))  # type: ignore[union-attr]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert int(net[1].seen_units) == 2 * 8 * 4 * 16  # type: ignore[call-overload, arg-type]


def test_compiles_into_one_graph_whatever_keep_prob_is() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    model = nn.Sequential(ShakeDrop(), nn.ReLU())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    layers = [module for module in model if isinstance(module, ShakeDrop)]
    for step, keep_prob in enumerate((1.0, 0.3)):
        results = []
        for run in (model, compiled):
            for i, layer in enumerate(layers):
                layer.keep_prob.fill_(keep_prob)
                layer.set_mask_seed(100 * step + i)
            x = torch.ones(6, 3, 5, 5, requires_grad=True)
            y = run(x)
            results.append((y.detach(), torch.autograd.grad(y.sum(), x)[0]))
        torch.testing.assert_close(results[0], results[1])
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


def test_transforms_of_torch_func() -> None:
    x = torch.randn(4, 2, 3, 3)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(shaken(leaf)[0].sum(), leaf)
    assert torch.equal(torch.func.grad(lambda x: shaken(x)[0].sum())(x), expected)
    batch = torch.stack((x, 2 * x))
    assert torch.equal(torch.func.vmap(lambda x: shaken(x)[0], randomness="same")(batch)[1], 2 * shaken(x)[0])


@pytest.mark.parametrize(
    ("name", "end", "options"),
    [
        ("pyramidnet110", "bn3", {}),
        ("pyramidnet200", "bn4", {"depth": 20}),
        ("wide_resnet28_10", "conv2", {"depth": 16, "widen_factor": 1}),
    ],
)
def test_it_ends_every_branch_and_survival_falls_with_depth(name: str, end: str, options: dict[str, Any]) -> None:
    model = network(name, **options)
    plain = list(network(name, **options).state_dict())
    control = LayerControl.install(model, [SPEC], torch.zeros(1, 3, 32, 32))
    sites = [site for site in declared_sites(model).values() if site.layer is not None]
    blocks = len([module for module in model.modules() if hasattr(module, "site_skip")])
    assert [site.after for site in sites] == [end] * blocks
    kept = [float(site.layer.keep_prob) for site in sites if site.layer is not None]
    assert kept == pytest.approx([1 - 0.5 * l / blocks for l in range(1, blocks + 1)])  # noqa: E741
    assert [row.keep_prob for row in control.table] == pytest.approx(kept)
    assert list(model.state_dict()) == plain
    noted = ["ShakeDrop: this branch ends in conv2, not in BatchNorm" in row.note for row in control.table]
    assert noted == [end == "conv2"] * blocks


def test_a_network_learns_and_measures_what_it_expects() -> None:
    model = network()
    control = LayerControl.install(model, [SPEC], torch.zeros(1, 3, 16, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    x, labels = torch.randn(20, 3, 16, 16), torch.arange(20) % 5
    losses = []
    for step in range(16):
        control.set_seeds(lambda layer, step=step: 1000 * step + layer)  # type: ignore[misc]
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < sum(losses[:5])
    # A group has two branches: 16 steps of 20 images each. 4.5 standard errors, false alarm 7e-6 a group.
    for row in control.drops([1.0]):
        assert row.measured is not None
        assert abs(row.measured - row.expected) < 4.5 * (0.25 / (2 * 16 * 20)) ** 0.5


@pytest.mark.parametrize("name", ["pyramidnet110", "wide_resnet28_10", "torchvision"])
def test_a_plain_network_computes_the_same_on_folded_weights(name: str) -> None:
    options: dict[str, Any] = {"depth": 16, "widen_factor": 1} if name == "wide_resnet28_10" else {}
    if name == "torchvision":
        torch.manual_seed(0)
        model, plain = (build_model(name, num_classes=5, architecture="resnet18") for _ in range(2))
        path = next(path for path, site in declared_sites(model).items() if site.ends_branch and site.branch == "conv")
        assert branch_end(model, path) == "layer1.0.bn2"
    else:
        model, plain = network(name, **options), network(name, **options)
    LayerControl.install(model, [SPEC], torch.zeros(1, 3, 32, 32))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    x = torch.randn(2, 3, 32, 32)
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model.eval()(x)
        assert not torch.allclose(plain.eval()(x), expected, rtol=1e-3)
        plain.load_state_dict(folded(model, model.state_dict()))
        torch.testing.assert_close(plain(x), expected, rtol=1e-4, atol=1e-4)


def test_what_it_cannot_do_is_named() -> None:
    with pytest.raises(ValueError, match="schedule=linear"):
        LayerControl.install(network(), [LayerSpec("shakedrop", 0.5, (2, 3, 4))], torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="alpha"):
        ShakeDrop(alpha=(1.0, -1.0))
    with pytest.raises(ValueError, match="together 'channel'"):
        ShakeDrop(together="channel")
    with pytest.raises(TypeError, match="by name"):
        ShakeDrop(0.5)
    amoebanet = build_model("amoebanet_b", num_classes=2, width=4, cells=1, stem="small")
    with pytest.raises(ValueError, match="shakedrop needs residual branches"):
        install_layers(amoebanet, "shakedrop", keep_prob=0.5)


def test_in_a_network_of_somebody_else() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(num_classes=4)
    filled = install_into(model, lambda _: ShakeDrop(), sites=lambda site: site.ends_branch and site.branch == "conv")
    assert len(filled) == 8
    assert model.train()(torch.randn(2, 3, 32, 32)).shape == (2, 4)


def test_through_the_entry_scripts(train: Callable[..., int], tmp_path: Path) -> None:
    """A run with averaged weights is evaluated to the numbers it recorded; its export is the plain network's."""
    safetensors = pytest.importorskip("safetensors.torch")
    words = ("model=pyramidnet110_small", "model.width=4", "+model.options.depth=11", "recipe.ema_decay=0.5")
    assert train(*words, "regularizer=shakedrop") == 0
    (run,) = tmp_path.glob("fake-*/shakedrop-*/seed-1")
    summary = RunDirectory(run).summary()
    for group, expected in (("group2", 1 / 6), ("group3", 2 / 6), ("group4", 3 / 6)):
        assert summary["drop_last_epoch"][group]["expected"] == pytest.approx(expected)
    out = tmp_path / "evaluated.json"
    assert evaluate([f"run={run}", f"json={out}", "device=cpu"]) == 0
    assert json.loads(out.read_text())["loss"] == pytest.approx(summary["last"]["test/loss"], rel=1e-4)

    assert export([str(run), str(tmp_path / "weights.safetensors")]) == 0
    exported = safetensors.load_file(tmp_path / "weights.safetensors")
    trained = checkpoint_file.load_latest(run / "checkpoints")[0]["ema"]["module"]  # type: ignore[index]
    moved = {key: (exported[key] / trained[key]).nanmedian().item() for key in trained if "bn4" in key}
    for stage, scale in (("layer1", 5 / 6), ("layer2", 4 / 6), ("layer3", 3 / 6)):
        assert moved[f"{stage}.0.bn4.weight"] == pytest.approx(scale)
        assert moved[f"{stage}.0.bn4.bias"] == pytest.approx(scale)
    assert all(torch.equal(exported[key], trained[key]) for key in trained if "bn4" not in key)
    # Where its own layers are drawn again, the weights are the unscaled ones.
    plan, payload, data = opened(NetworkSource(run=str(run)), torch.device("cpu"))
    drawn = trained_network(plan, payload, data, torch.device("cpu"), plan.layers)[0].state_dict()
    assert all(torch.equal(drawn[key], trained[key]) for key in trained)
    assert train(*words, "regularizer=shakedrop", "schedule=linear") == 2
    assert train(*words, "regularizer=shakedrop", "regularizer.shakedrop.layer.options.alpha=[1,-1]") == 2


def test_a_layer_that_this_process_does_not_know_needs_no_folding() -> None:
    plan: Any = SimpleNamespace(layers=[LayerConfig(name="of_a_script")])
    weights = {"fc.bias": torch.ones(2)}
    assert weights_of(plan, {"model": weights}) is weights
