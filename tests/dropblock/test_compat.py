"""Other libraries' names: the signature of the original, its meaning, and the rate that was asked for."""

import importlib.metadata
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dropblock
from dropblock import expected_drop, installed_layers
from dropblock.compat import timm, torchvision

ORIGINALS = {"torchvision": "torchvision.ops", "timm": "timm.layers"}
NAMES = {
    "torchvision": ["drop_block2d", "drop_block3d", "DropBlock2d", "DropBlock3d"],
    "timm": ["drop_block_2d", "DropBlock2d"],
}
CASES = [(library, name) for library, names in NAMES.items() for name in names]
X = torch.rand(64, 16, 14, 14, generator=torch.Generator().manual_seed(0)) + 0.5


@pytest.mark.parametrize(("library", "name"), CASES)
def test_the_signature_is_that_of_the_original(library: str, name: str) -> None:
    original = getattr(pytest.importorskip(ORIGINALS[library]), name)
    ours = getattr({"torchvision": torchvision, "timm": timm}[library], name)

    def parameters(of: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
        found = inspect.signature(of).parameters.values()
        return [(p.name, p.kind, p.default) for p in found if p.kind is not p.VAR_KEYWORD]

    assert parameters(ours) == parameters(original)


def drop(y: Tensor) -> float:
    return float((y == 0).float().mean())


# name, ours, the share of 1,024 maps it drops, whether channels share a mask
CALLS: dict[str, tuple[Callable[[Tensor], Tensor], bool]] = {
    "torchvision": (lambda x: torchvision.drop_block2d(x, 0.1, 7), False),
    "torchvision module": (torchvision.DropBlock2d(0.1, 7), False),
    "timm": (lambda x: timm.drop_block_2d(x, 0.1, 7), True),
    "timm module": (timm.DropBlock2d(0.1, 7), True),
    "timm, a mask for each channel": (timm.DropBlock2d(0.1, 7, couple_channels=False), False),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_drops_what_was_asked_scales_by_one_number_and_shares_masks_as_the_original(name: str) -> None:
    layer, shared = CALLS[name]
    torch.manual_seed(3)
    x = X.clone().requires_grad_()
    ys = [layer(x) for _ in range(4)]
    # The dropped share of a map has a standard deviation below .2 at this rate; with a shared mask 4 x 64 maps are
    # independent, else 4,096: 5 standard deviations, a false alarm below 6e-7 for each call.
    maps = 4 * 64 * (1 if shared else 16)
    wanted = expected_drop(0.9, 7, 14, 14)
    assert sum(map(drop, ys)) / 4 == pytest.approx(wanted, abs=5 * 0.2 / maps**0.5)
    masks = ys[0] != 0
    assert bool((masks == masks[:, :1]).all()) == shared
    torch.testing.assert_close(ys[0], torch.where(masks, x * (masks.numel() / masks.sum()), 0.0))
    (gradient,) = torch.autograd.grad(ys[0].sum(), x)
    assert torch.equal(gradient != 0, masks)
    if isinstance(layer, nn.Module):
        assert installed_layers(layer) == [layer]
        assert int(layer.kept_units) == sum(int((y != 0).sum()) for y in ys)
        assert layer.eval()(x) is x
        layer.train()


def test_three_axes() -> None:
    x = torch.rand(8, 8, 6, 7, 8) + 0.5
    for layer in (torchvision.DropBlock3d(0.2, 3), lambda x: torchvision.drop_block3d(x, 0.2, 3)):
        assert 0 < drop(layer(x)) < 0.5


def test_torchvision_in_place_at_rate_zero_and_in_evaluation() -> None:
    original = pytest.importorskip("torchvision.ops")
    for library in (original, torchvision):
        x = X.clone()
        assert library.drop_block2d(x, 0.3, 3, inplace=True) is x
        assert drop(x) > 0.1
        assert library.drop_block2d(X, 0.0, 3) is X
        assert library.drop_block2d(X, 0.3, 3, training=False) is X
        leaf = X.clone().requires_grad_()  # nothing is dropped, so nothing is written
        assert library.drop_block2d(leaf, 0.3, 3, inplace=True, training=False) is leaf
        layer, x = library.DropBlock2d(0.3, 3, inplace=True), X.clone()
        assert layer(x) is x
        assert repr(layer) == "DropBlock2d(p=0.3, block_size=3, inplace=True)"
        layer.p = 0.0
        assert torch.equal(layer(X.clone()), X)
        with pytest.raises(ValueError, match=r"p must lie in|between 0 and 1"):
            library.drop_block2d(X, 1.2, 3)


def test_timm_noise_gamma_scale_and_scale_by_keep() -> None:
    original = pytest.importorskip("timm.layers")
    for library in (original, timm):
        torch.manual_seed(0)
        assert library.DropBlock2d(drop_prob=0.25).drop_prob == 0.25
        plain = library.drop_block_2d(X, 0.3, 3, scale_by_keep=False)
        assert torch.equal(plain[plain != 0], X[plain != 0])
        noisy = library.drop_block_2d(X, 0.3, 3, with_noise=True)
        assert 0.05 < float((noisy != X).float().mean()) < 0.6
        more = library.drop_block_2d(X, 0.1, 3, gamma_scale=3.0)
        assert drop(more) > 1.8 * drop(library.drop_block_2d(X, 0.1, 3))
        x = X.clone()
        assert library.drop_block_2d(x, 0.3, 3, inplace=True) is x
    assert timm.DropBlock2d(0.1, 7, gamma_scale=2.0).expected_drop(0.9, 7, 7) == pytest.approx(0.2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        timm.DropBlock2d(fast=True, batchwise=True)
        with pytest.raises(UserWarning, match="'speed'"):
            timm.DropBlock2d(speed=1)


def test_a_warning_where_both_distributions_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dropblock._warn_of_namesake()
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.3.0" if name == "dropblock" else "1")
    with pytest.warns(UserWarning, match=r"dropblock 0\.3\.0"):
        dropblock._warn_of_namesake()
