"""Installed layers have their buffers in one tensor each: a step sets them in one launch, and copies are on their own.

The launches of a step are counted on a made-up GPU, the kernels of Triton standing for one launch each.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from dropblock import DropBlock2d, DropPath, KeepProbSchedule, LayerControl, Site, install, installed_layers
from scripts.bench import launches
from tests.pretended_cuda import CUDA, PretendedCuda

EXAMPLE = torch.ones(1, 4, 6, 6)


def network(sites: int = 3, layer: Callable[[Site], Any] = lambda _: DropBlock2d(block_size=3)) -> nn.Sequential:
    model = nn.Sequential(*(Site(4, "conv", f"conv{i}") for i in range(sites)))
    install(model, layer)
    return model


def control(model: nn.Module, **options: Any) -> LayerControl:
    return LayerControl(model, EXAMPLE, {"dropblock": KeepProbSchedule(model, 0.5, **options)})


def together(model: nn.Module, *names: str) -> bool:
    """True where the buffers of all layers lie one behind the other in one tensor that a step sets."""
    layers = installed_layers(model)
    shared = {layer._shared[0] if layer._shared else None for layer in layers}
    return all(one is not None and one.whole(name, layers) is not None for one in shared for name in names)


NAMES = ("keep_prob", "mask_seed", "kept_units", "seen_units")
TIED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as installed": lambda model: model,
    "in another type": lambda model: model.to(torch.bfloat16),
    "in another layout": lambda model: model.to(memory_format=torch.channels_last),
    "in evaluation and back": lambda model: model.eval().train(),
    "without memory and back": lambda model: model.to("meta").to_empty(device="cpu"),
}
ALONE: dict[str, Callable[[nn.Module], nn.Module]] = {
    "a deep copy": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "saved": lambda model: loaded(model),
    "averaged weights": lambda model: AveragedModel(model).module,
    "another buffer": lambda model: with_another_buffer(model),
}


def loaded(model: nn.Module) -> Any:
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return torch.load(file, weights_only=False)


def with_another_buffer(model: nn.Module) -> nn.Module:
    for layer in installed_layers(model)[:1]:
        layer.keep_prob, layer.mask_seed = torch.tensor(0.9), torch.tensor(7)
        layer.kept_units, layer.seen_units = torch.tensor(0), torch.tensor(0)
    return model


@pytest.mark.parametrize("made", [*TIED, *ALONE])
def test_every_layer_gets_its_value_and_counts_its_units(made: str) -> None:
    original = network()
    model = {**TIED, **ALONE}[made](original).train()
    assert together(model, *NAMES) == (made in TIED)
    if made in ALONE:
        assert installed_layers(model)[0].kept_units.untyped_storage().nbytes() == 8, "not that of all layers"

    # What a step sets arrives in every layer of this network, and in no other.
    layers, others = control(model), [layer for layer in installed_layers(original) if model is not original]
    layers.set_progress(0.5)
    layers.set_seeds(lambda i: 100 + i)
    model(torch.ones(2, 4, 6, 6))
    assert [float(layer.keep_prob) for layer in layers.layers] == [0.75] * 3
    assert [int(layer.mask_seed) for layer in layers.layers] == [100, 101, 102]
    assert [int(layer.seen_units) for layer in layers.layers] == [288] * 3
    for layer in others:
        assert (float(layer.keep_prob), int(layer.mask_seed)) == (pytest.approx(0.9), 0)
    kept, seen = layers.take_counts()["group4"]
    assert 0 < kept < seen == 3 * 288

    # The masks are those of layers that never shared anything.
    single = DropBlock2d(block_size=3, keep_prob=0.75)
    single.group = 4
    single.set_mask_seed(101)
    assert torch.equal(layers.layers[1](torch.ones(2, 4, 6, 6)), single(torch.ones(2, 4, 6, 6)))


def test_layers_stay_together_on_another_device_and_fall_apart_on_several() -> None:
    with PretendedCuda() as gpu:
        model = network().to(CUDA)
        assert together(model, *NAMES)
        layers = LayerControl(model, EXAMPLE.to(CUDA), {"dropblock": KeepProbSchedule(model, 0.5)})
        gpu.forget()
        layers.set_progress(0.5)
        layers.set_seeds(lambda i: i)
        assert (gpu.launches, gpu.waits) == (["aten.copy_", "aten.copy_"], [])
        model[1].cpu()
        assert not together(model, "keep_prob")
        layers.set_progress(1.0)
        layers.set_seeds(lambda i: 5 + i)
        assert [float(layer.keep_prob) for layer in layers.layers] == [0.5] * 3
        assert [int(layer.mask_seed) for layer in layers.layers] == [5, 6, 7]
        model[1].to(CUDA)
        assert together(model, *NAMES), "back where the others are"


def test_a_part_of_an_installation_and_two_kinds_at_once() -> None:
    model = network(4)
    first = KeepProbSchedule(model, 0.5, layers=installed_layers(model)[:2])
    KeepProbSchedule(model, 0.8, layers=installed_layers(model)[2:]).set(1.0)
    first.set(1.0)
    assert [round(float(layer.keep_prob), 6) for layer in installed_layers(model)] == [0.5, 0.5, 0.8, 0.8]

    install(model, lambda _: DropPath(), lambda site: site is model[0])
    assert together(model[0], *NAMES)
    layers = LayerControl(
        model,
        EXAMPLE,
        {
            name: KeepProbSchedule(
                model, 0.5, layers=[layer for layer in installed_layers(model) if type(layer) is kind]
            )
            for name, kind in {"path": DropPath, "block": DropBlock2d}.items()
        },
    )
    layers.set_seeds(lambda i: 10 + i)
    assert [int(layer.mask_seed) for layer in layers.layers] == [10, 11, 12, 13]


def test_a_layer_alone_has_buffers_of_its_own() -> None:
    layer = DropBlock2d(block_size=3)
    model = nn.Sequential(layer)
    KeepProbSchedule(model, 0.5).set(1.0)
    assert layer._shared is None
    assert float(layer.keep_prob) == 0.5


def test_a_state_dict_has_none_of_them() -> None:
    assert network().state_dict() == {}


def test_launches_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """ResNet-50's 36 sites: two launches a site forward, one backward, and two for keep_prob and seeds of all."""
    kernels = launches.stubbed(monkeypatch.setattr)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with PretendedCuda() as gpu:
        model, layers = launches.sites_alone(CUDA)
        assert len(layers.layers) == 36
        x = torch.ones(launches.MAPS, device=CUDA, requires_grad=True)
        model(x)  # tries the kernels
        kernels.clear()
        gpu.forget()
        launches.set_step(layers, 1)
        assert len(gpu.launches) == 2
        y = model(x)
        assert (len(gpu.launches), len(kernels)) == (2, 2 * 36)
        y.backward(torch.ones_like(x))
        ours = [name for name in gpu.launches if name != "aten.ones_like"]
        assert len(ours) + len(kernels) == 2 + 3 * 36 <= 130
        assert gpu.waits == []
