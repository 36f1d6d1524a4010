"""The layers DropBlock is compared with: distribution, scaling, sites, and masks that a seed fixes."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dropblock import (
    LAYERS,
    DropConnect,
    DropLayer,
    Dropout,
    DropPath,
    KeepProbSchedule,
    LayerControl,
    SpatialDropout,
    StochasticDepth,
    declared_sites,
    drop_together,
    install_layers,
)
from dropblock.baselines import SiteConv2d
from models import build_model

ON_MAPS: dict[str, type[DropLayer]] = {
    "unit": Dropout,
    "channel": SpatialDropout,
    "sample": DropPath,
    "batch": StochasticDepth,
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return build_model("resnet50", num_classes=5, in_channels=1, width=4, stem="small")


def after_seeds(layer: DropLayer, x: Tensor, number: int) -> Tensor:
    """(number, *x.shape) outputs under as many seeds."""
    outputs = []
    for seed in range(number):
        layer.set_mask_seed(seed * 7919)
        outputs.append(layer(x))
    return torch.stack(outputs)


@pytest.mark.parametrize("together", ON_MAPS)
def test_what_goes_together_goes_together(together: str) -> None:
    kept = after_seeds(ON_MAPS[together](keep_prob=0.5), torch.ones(6, 5, 4, 3), 20) > 0
    shared = {"unit": (), "channel": (3, 4), "sample": (2, 3, 4), "batch": (1, 2, 3, 4)}[together]
    for dims in itertools.chain.from_iterable(itertools.combinations((1, 2, 3, 4), n) for n in (1, 2, 3, 4)):
        constant = bool((kept.float().amax(dims) == kept.float().amin(dims)).all())
        assert constant == (set(dims) <= set(shared)), dims


@pytest.mark.parametrize(("together", "keep_prob"), [("unit", 0.9), ("channel", 0.5), ("sample", 0.9), ("batch", 0.5)])
def test_the_share_kept_is_keep_prob(together: str, keep_prob: float) -> None:
    """1000 independent draws or more: 4.5 standard errors have a false alarm rate of 7e-6 a case."""
    layer = ON_MAPS[together](keep_prob=keep_prob)
    x = {"unit": torch.ones(20, 20, 5, 2), "channel": torch.ones(80, 50, 1, 2)}.get(together, torch.ones(2000, 1, 1, 1))
    draws = 1000 if together == "batch" else 2
    kept = after_seeds(layer, x[:1] if together == "batch" else x, draws) > 0
    independent = {"unit": 8000, "channel": 8000, "sample": 4000, "batch": 1000}[together]
    error = (keep_prob * (1 - keep_prob) / independent) ** 0.5
    assert abs(kept.double().mean().item() - keep_prob) < 4.5 * error
    assert layer.expected_drop(keep_prob, 5, 2) == pytest.approx(1 - keep_prob)
    assert int(layer.kept_units) == int(kept.sum())
    assert int(layer.seen_units) == kept.numel()


def test_neighbouring_units_and_seeds_are_drawn_independently() -> None:
    """Correlation of 200,000 pairs against 4.5 standard errors: false alarm 7e-6 a pair, 3e-5 in all."""
    kept = (after_seeds(Dropout(keep_prob=0.7), torch.ones(1, 1000, 20, 10), 2) > 0).double() - 0.7
    pairs = (
        (kept[0], kept[1]),
        (kept[..., 1:], kept[..., :-1]),
        (kept[..., 1:, :], kept[..., :-1, :]),
        (kept[:, :, 1:], kept[:, :, :-1]),
    )
    for a, b in pairs:
        assert abs((a * b).mean().item() / 0.21) < 4.5 / 200_000**0.5


@pytest.mark.parametrize(
    ("together", "dtype"),
    [
        ("unit", torch.bfloat16),
        ("unit", torch.float64),
        ("channel", torch.float32),
        ("sample", torch.float16),
        ("batch", torch.bfloat16),
    ],
)
def test_kept_units_are_divided_by_keep_prob_and_rounded_once(together: str, dtype: torch.dtype) -> None:
    x = torch.randn(64, 8, 4, 4).to(dtype)
    x[::2] = float("nan")
    seed = torch.tensor(3)
    ones = drop_together(torch.ones(x.shape), keep_prob=0.7, together=together, seed=seed)
    y = drop_together(x, keep_prob=torch.tensor(0.7), together=together, seed=seed)
    exact = torch.promote_types(dtype, torch.float32)
    expected = (x.to(exact) * (1 / torch.tensor(0.7).to(exact))).to(dtype)
    assert y.dtype == dtype
    torch.testing.assert_close(y[ones > 0], expected[ones > 0], rtol=0, atol=0, equal_nan=True)
    assert (y[ones == 0] == 0).all()  # a NaN in a dropped unit is gone


@pytest.mark.parametrize("together", ON_MAPS)
def test_the_ends_of_keep_prob(together: str) -> None:
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    assert torch.equal(drop_together(x, keep_prob=1.0, together=together), x)
    nothing = drop_together(x, keep_prob=0.0, together=together)
    assert not nothing.any()
    (gradient,) = torch.autograd.grad(nothing.sum(), x)
    assert not gradient.any()  # 0 * inf would be NaN
    assert drop_together(x, keep_prob=0.5, together=together, training=False) is x
    assert torch.equal(drop_together(x, keep_prob=torch.tensor(1.5), together=together), x)  # clamped, not scaled


@pytest.mark.parametrize("together", ON_MAPS)
def test_a_seed_fixes_the_mask_whatever_the_layout_and_the_gradient_has_it_too(together: str) -> None:
    x = torch.rand(8, 6, 4, 4) + 1
    x.requires_grad_()
    seed = torch.tensor(11)
    y = drop_together(x, keep_prob=0.5, together=together, seed=seed)
    torch.rand(3)
    last = drop_together(x.contiguous(memory_format=torch.channels_last), p=0.5, together=together, seed=seed)
    assert torch.equal(y, last)
    others = [drop_together(x, keep_prob=0.5, together=together, seed=torch.tensor(s)) for s in range(20)]
    assert any(not torch.equal(y, other) for other in others)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(gradient, (y > 0) * 2.0)


def test_dropout_agrees_with_torchs() -> None:
    """Where torch is right, in float32, it agrees: the values, and over 100,000 units the share (6e-6 false alarms)."""
    torch.manual_seed(0)
    x = torch.ones(100, 10, 10, 10)
    ours, theirs = drop_together(x, keep_prob=0.8, together="unit"), nn.functional.dropout(x, 0.2)
    assert ours.unique().tolist() == theirs.unique().tolist()
    difference = (ours > 0).double().mean() - (theirs > 0).double().mean()
    assert abs(difference.item()) < 4.5 * (2 * 0.16 / 100_000) ** 0.5


@pytest.mark.parametrize(
    ("shape", "together", "axes"),
    [
        ((64, 32, 9), "unit", 9),
        ((64, 32, 9), "batch", 0),
        ((64, 32, 3, 5), "channel", 2),
        ((64, 32, 2, 3, 4), "sample", 1),
        ((64, 32, 2, 3, 4), "channel", 2),
    ],
)
def test_what_shares_a_draw_on_maps_of_one_to_three_axes(shape: tuple[int, ...], together: str, axes: int) -> None:
    kept = drop_together(torch.ones(shape), keep_prob=0.5, together=together, seed=torch.tensor(5)) > 0
    draws = kept.flatten(axes).all(-1) if axes < len(shape) else kept
    assert torch.equal(draws, kept.flatten(axes).any(-1) if axes < len(shape) else kept)
    if draws.numel() > 1:  # 4.5 standard errors: false alarm 7e-6 a case
        assert abs(draws.double().mean().item() - 0.5) < 4.5 * (0.25 / draws.numel()) ** 0.5


@pytest.mark.parametrize(
    ("call", "error", "named"),
    [
        (lambda: drop_together(torch.ones(2, 3), keep_prob=0.5, together="unit"), ValueError, "(2, 3)"),
        (lambda: drop_together(torch.ones(1, 1, 2, 2).long(), together="unit"), TypeError, "torch.int64"),
        (lambda: drop_together(torch.ones(1, 1, 2, 2), keep_prob=1.5, together="unit"), ValueError, "keep_prob"),
        (lambda: drop_together(torch.ones(1, 1, 2, 2), together="row"), ValueError, "'row'"),
        (lambda: Dropout(keep_prob=-0.1), ValueError, "keep_prob"),
        (lambda: Dropout(0.1), TypeError, "0.1"),
        (lambda: StochasticDepth(0.5, 0.5), TypeError, "StochasticDepth"),
        (lambda: drop_together(torch.ones(1, 1, 2, 2), 0.1, together="unit"), TypeError, "drop_together"),
        (lambda: DropPath(p=0.1, keep_prob=0.1), TypeError, "keep_prob and p"),
    ],
)
def test_mistakes_are_named(call: Callable[[], object], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=re.escape(named)):
        call()


def options(name: str) -> dict[str, int]:
    return {"block_size": 2} if name == "dropblock" else {}


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("fractal_drop_path", "shakedrop")])
def test_in_a_network_keys_stay_and_evaluation_is_the_plain_network(name: str) -> None:
    plain, model = (build_model("resnet18", num_classes=5, in_channels=1, width=4, stem="small") for _ in range(2))
    install_layers(model, name, keep_prob=0.5, **options(name))
    assert list(model.state_dict()) == list(plain.state_dict())
    model.load_state_dict(plain.state_dict())
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    twin = copy.deepcopy(model).train()  # as an averaged model is made
    assert not torch.equal(twin(x), plain.train()(x))


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("dropout", {"relu(bn1)", "relu(bn2)", "bn3"}),
        ("spatial_dropout", {"relu(bn1)", "relu(bn2)", "bn3"}),
        ("drop_path", {"bn3"}),
        ("stochastic_depth", {"bn3"}),
        ("drop_connect", {"weight of conv1", "weight of conv2", "weight of conv3"}),
    ],
)
def test_each_sits_on_the_conv_branch_where_it_belongs(name: str, places: set[str]) -> None:
    filled = install_layers(network(), name, keep_prob=0.5, groups=[3, 4])
    assert {site.after for site in filled.values()} == places
    assert {site.group for site in filled.values()} == {3, 4}
    assert {site.branch for site in filled.values()} == {"conv"}
    assert len(filled) == (6 + 3) * len(places)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "fractal_drop_path"])
def test_it_measures_what_it_expects_and_resumes_on_the_same_draws(name: str) -> None:
    torch.manual_seed(0)
    model = build_model("resnet18", num_classes=5, in_channels=1, width=16, stem="small")
    install_layers(model, name, keep_prob=0.6, **options(name))
    control = LayerControl(model, torch.zeros(1, 1, 32, 32), {"drop_connect": KeepProbSchedule(model, 0.6, "constant")})
    control.set_progress(1.0)
    model.train()
    torch.manual_seed(1)
    x = torch.randn(8, 1, 32, 32)
    counts, outputs = [], []
    with torch.no_grad():
        for step in [*range(12), 0]:
            control.set_seeds(lambda layer, step=step: 1000 * step + layer)  # type: ignore[misc]
            outputs.append(model(x))
            counts.append(control.take_counts())
    assert torch.equal(outputs[0], outputs[-1])
    assert counts[0] == counts[-1]
    assert not torch.equal(outputs[0], outputs[1])
    # Draws in group 4, which has 2 residual units: 12 steps, 8 samples, 128 channels. DropBlock's 2x2 blocks are
    # fewer than a map has units. 4.5 standard errors: false alarm 7e-6 a case.
    draws = {"stochastic_depth": 2 * 12, "drop_path": 2 * 12 * 8, "shakedrop": 2 * 12 * 8}.get(name, 2 * 12 * 8 * 16)
    for group, expected in control.expected_drop([0.6]).items():
        kept, seen = (sum(count[group][i] for count in counts[:-1]) for i in (0, 1))
        assert abs(1 - kept / seen - expected) < 4.5 * (0.25 / draws) ** 0.5


def test_stochastic_depth_falls_linearly_over_all_residual_units() -> None:
    model = network()
    filled = install_layers(model, "stochastic_depth", keep_prob=0.5, groups=[1, 2, 3, 4])
    expected = [site.layer.expected_drop(0.5, 4, 4) for site in filled.values() if site.layer is not None]
    assert expected == pytest.approx([0.5 * l / 16 for l in range(1, 17)])  # noqa: E741
    last = install_layers(network(), "stochastic_depth", keep_prob=0.5, groups=[4])
    depths = [site.layer.expected_drop(0.5, 4, 4) for site in last.values() if site.layer is not None]
    assert depths == pytest.approx(expected[-3:])


def test_drop_connect_drops_weights() -> None:
    model = network()
    install_layers(model, "drop_connect", keep_prob=0.5, groups=[4])
    conv = model.layer4[0].conv2
    assert isinstance(conv, SiteConv2d)
    assert isinstance(conv.weight_site.layer, DropConnect)
    assert type(model.layer4[0].downsample[0]) is nn.Conv2d  # the shortcut is left alone
    conv.train()
    conv.weight_site.layer.set_mask_seed(4)
    x = torch.randn(3, conv.in_channels, 9, 9)
    y = conv(x)
    (gradient,) = torch.autograd.grad(y.sum(), conv.weight)
    conv.weight_site.layer.set_mask_seed(4)
    weight = conv.weight_site(conv.weight)
    dropped = weight == 0
    # Half of the weights, for every sample the same ones: 4.5 standard errors, false alarm 7e-6.
    assert abs(dropped.double().mean().item() - 0.5) < 4.5 * (0.25 / dropped.numel()) ** 0.5
    assert torch.equal(weight[~dropped], 2 * conv.weight[~dropped])
    torch.testing.assert_close(y, nn.functional.conv2d(x, weight, None, conv.stride, conv.padding))
    assert not gradient[dropped].any()
    assert gradient[~dropped].all()


def test_other_layers_do_not_take_the_sites_of_weights() -> None:
    model = network()
    install_layers(model, "drop_connect", keep_prob=0.5)
    number = len(declared_sites(model))
    assert len(install_layers(model, "dropblock", keep_prob=0.5, block_size=3)) == 27
    install_layers(model, "drop_connect", keep_prob=0.5)
    assert len(declared_sites(model)) == number


def test_compiles_into_one_graph_that_the_schedule_does_not_recompile() -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    conv = nn.Conv2d(3, 8, 3, padding=1)
    conv.__class__ = SiteConv2d
    from dropblock.baselines import WeightSite

    conv.weight_site = WeightSite(4, "conv", "weight")
    conv.weight_site.layer = DropConnect(keep_prob=0.5)
    model = nn.Sequential(
        conv,
        Dropout(keep_prob=0.5),
        SpatialDropout(keep_prob=0.5),
        DropPath(keep_prob=0.5),
        StochasticDepth(keep_prob=0.5, depth=0.5),
    )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    layers = [module for module in model.modules() if isinstance(module, DropLayer)]
    x = torch.randn(4, 3, 6, 6)
    for step, keep_prob in enumerate((1.0, 0.8, 0.5)):
        outputs = []
        for run in (model, compiled):
            for i, layer in enumerate(layers):
                layer.keep_prob.fill_(keep_prob)
                layer.set_mask_seed(100 * step + i)
            with torch.no_grad():
                outputs.append(run(x))
        torch.testing.assert_close(outputs[0], outputs[1])
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("layer", [*ON_MAPS.values()])
def test_an_error_names_the_layer_that_was_called(layer: type[DropLayer]) -> None:
    with pytest.raises(ValueError, match=f"{layer.__name__} takes"):
        layer(keep_prob=0.9)(torch.ones(4, 10))


def test_the_function_checks_its_input_in_evaluation_too() -> None:
    with pytest.raises(ValueError, match="drop_together takes"):
        drop_together(torch.ones(3), together="unit", keep_prob=0.9, training=False)


def test_a_rate_that_is_a_tensor_is_checked_once_it_is_known() -> None:
    for word, rate in (("keep_prob", 1.5), ("p", -0.5)):
        with pytest.raises(ValueError, match=rf"{word} must lie in \[0, 1\], not {rate}"):
            Dropout(**{word: torch.tensor(rate)})
