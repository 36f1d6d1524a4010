"""A regularizer of any kind is a class, an entry in a registry and a YAML file: nothing else knows its options."""

from __future__ import annotations

import inspect
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from configs import groups
from configs.checking import UserError
from configs.compose import plan_of
from configs.plan import Plan, plan_from
from data.batch_regularizers import BATCH_REGULARIZERS
from data.image_regularizers import IMAGE_REGULARIZERS
from dropblock import kinds
from dropblock.baselines import SpatialDropout
from engine.distributed import Ranks
from engine.run_directory import RunDirectory
from engine.signals import StopRequest
from engine.tasks.losses import LOSSES
from experiment import run_plan
from experiment.build import build_fit, build_network, open_data


class Scaled(SpatialDropout):
    """SpatialDropout whose output is multiplied by `factor`."""

    def __init__(self, keep_prob: float, factor: float) -> None:
        super().__init__(keep_prob=keep_prob)
        self.factor = factor

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        y, kept = super().drop(x, seed)
        return y * self.factor, kept


class Inverted:
    """Images whose bytes are inverted down to `least`."""

    def __init__(self, least: int) -> None:
        self.least = least

    def on_image(self, pixels: Any, draws: Any) -> Any:
        return (255 - pixels).clip(self.least)


class Shifted:
    """Images plus a draw of the step; the maps of a stage times `gain`."""

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def install(self, network: nn.Module) -> None:
        network.get_submodule("layer3").register_forward_hook(lambda _, inputs, output: output * self.gain)

    def __call__(self, batch: Any, seed_of: Any) -> Any:
        return replace(batch, images=batch.images + seed_of(0) % 5)


class Tempered:
    """Cross-entropy at another temperature."""

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits / self.temperature, labels)


OF_LAYER = "layer: {name: scaled, keep_prob: 0.9, groups: [4], schedule: linear}\n"
OWN: dict[str, tuple[dict[str, Any], Any, str, str]] = {  # registry, entry, option, the rest of the YAML
    "scaled": (kinds.LAYERS, kinds.Kind(lambda site, keep_prob, *, factor: Scaled(keep_prob, factor), kinds.on_maps),
               "factor: {default: 0.5, least: 0, meaning: of the output}", "kind: layer\n" + OF_LAYER),
    "inverted": (IMAGE_REGULARIZERS, Inverted, "least: {default: 3, least: 0, meaning: darkest byte}", "kind: image\n"),
    "shifted": (BATCH_REGULARIZERS, Shifted, "gain: {default: 2.0, above: 0, meaning: of the maps}", "kind: batch\n"),
    "tempered": (LOSSES, Tempered, "temperature: {default: 4.0, above: 0, meaning: of the softmax}", "kind: loss\n"),
}  # fmt: skip
SMALL = ("data=fake", "model=resnet18", "model.width=4", "batch_size=8", "progress=false", "device=cpu")


@pytest.fixture
def _own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The four regularizers above, added by exactly these steps."""
    configs = tmp_path / "configs"
    shutil.copytree(groups.CONFIGS, configs, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for name, (registry, entry, option, rest) in OWN.items():
        monkeypatch.setitem(registry, name, entry)
        text = f"# @package regularizer.{name}\n{rest}tasks: [classification]\noptions:\n  {option}\n"
        (configs / "regularizer" / f"{name}.yaml").write_text(text)
    for module in ("configs.groups", "configs.compose"):
        monkeypatch.setattr(f"{module}.CONFIGS", configs)
    groups.declared.cache_clear()
    yield
    groups.declared.cache_clear()


def losses_of(plan: Plan, place: Path) -> tuple[Tensor, Tensor, Tensor]:
    """The first training batch as the loader gives it, and as the task sees it; the loss of the first step."""
    device, seen = torch.device("cpu"), []
    data = open_data(plan, device, Ranks())
    fit, _ = build_fit(plan, data, RunDirectory(place), device, Ranks(), StopRequest())
    batch, compute = next(data.train.epoch(0)), fit.task.loss
    fit.task.loss = lambda network, batch: seen.append((batch, loss := compute(network, batch))) or loss  # type: ignore
    fit.step(batch, 0.0)
    return batch.images, seen[0][0].images, seen[0][1][0].detach()


@pytest.mark.usefixtures("_own")
def test_one_of_each_kind(tmp_path: Path) -> None:
    plain = losses_of(plan_of(*SMALL, "regularizer=none"), tmp_path)
    plans = {name: plan_of(*SMALL, f"regularizer={name}") for name in OWN}
    found = {name: losses_of(plan, tmp_path) for name, plan in plans.items()}
    assert not torch.equal(found["inverted"][0], plain[0])
    assert torch.equal(found["shifted"][0], plain[0])
    assert not torch.equal(found["shifted"][1], plain[0])
    for name, (_, _, loss) in found.items():
        assert name == "scaled" or loss != plain[2], name  # keep_prob is 1 in the first step
    # Options: in the identity, on the command line, out of range, misspelt, of another task.
    for name, option, other in (
        ("scaled", "factor", 0.25),
        ("inverted", "least", 9),
        ("shifted", "gain", 3.0),
        ("tempered", "temperature", 2.0),
    ):
        own = plan_of(*SMALL, f"regularizer={name}", f"regularizer.{name}.{option}={other}")
        assert own.hash() != plans[name].hash()
        assert plan_from(own.values()) == own
        for wrong in (f"{option}=-1", f"{option}=wide", f"{option}s=1"):
            with pytest.raises(UserError, match=f"regularizer.{name}.{option}"):
                plan_of(*SMALL, f"regularizer={name}", f"regularizer.{name}.{wrong}")
        with pytest.raises(UserError, match=f"regularizer={name} is for classification"):
            plan_of("data=digit_masks", f"regularizer={name}")
    # Together, in any order.
    every = plan_of(*SMALL, "regularizer=[tempered,shifted,scaled,inverted]")
    assert every.regularizer == ["scaled", "inverted", "shifted", "tempered"]
    assert every.hash() == plan_of(*SMALL, "regularizer=[inverted,scaled,tempered,shifted]").hash()
    losses_of(every, tmp_path)
    for pair in ("mixup,shifted", "label_smoothing,tempered"):
        with pytest.raises(UserError, match="exclude each other"):
            plan_of(*SMALL, f"regularizer=[{pair}]")


@pytest.mark.usefixtures("_own")
def test_an_option_of_a_layer_reaches_it() -> None:
    class Shape:
        num_classes, image_shape = 10, (3, 32, 32)

    knob = plan_of(*SMALL, "regularizer=scaled", "regularizer.scaled.layer.options.factor=0.25")
    model, _ = build_network(knob, Shape, torch.device("cpu"))  # type: ignore[arg-type]
    assert {module.factor for module in model.modules() if isinstance(module, Scaled)} == {0.25}


def test_a_class_takes_the_options_that_its_yaml_declares() -> None:
    registries = {"image": IMAGE_REGULARIZERS, "batch": BATCH_REGULARIZERS, "loss": LOSSES}
    known = {name: groups.declared(name) for name in groups.choices("regularizer")}
    assert {kind: {*entries} for kind, entries in registries.items()} == {
        kind: {name for name, of in known.items() if of.kind == kind} for kind in registries
    }
    for name, of in known.items():
        if of.layer is not None:
            parameters = inspect.signature(kinds.LAYERS[of.layer.name].make).parameters.values()
            taken = {parameter.name for parameter in parameters if parameter.kind == inspect.Parameter.KEYWORD_ONLY}
            knobs = {"block_size"} if of.layer.block_size is not None else set()
            assert taken == {*of.options} | knobs, name
        elif of.kind != "none":
            taken = {*inspect.signature(registries[of.kind][name]).parameters}
            assert taken == {*of.options}, name
            defaults = {option: declared["default"] for option, declared in of.options.items()}
            registries[of.kind][name](**{option: value for option, value in defaults.items() if value is not None})


def test_one_that_changes_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`on_images` for `on_image`: the baseline would be trained under its name."""
    misnamed = type("Misnamed", (), {"on_images": lambda self, pixels, draws: pixels})
    monkeypatch.setitem(IMAGE_REGULARIZERS, "cutout", lambda **_: misnamed())
    with pytest.raises(UserError, match="regularizer=cutout: Misnamed defines neither on_image nor on_batch"):
        open_data(plan_of("data=fake", "regularizer=cutout"), torch.device("cpu"), Ranks())


def test_a_layer_that_drops_another_share_than_it_declares_is_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data=fake", "model=resnet18", "model.width=8", "epochs=1", "schedule=constant", f"output_root={tmp_path}")
    right = run_plan(plan_of(*words, "regularizer=spatial_dropout", "keep_prob=0.9"))
    assert not any("off" in drop for drop in right["drop_last_epoch"].values())
    monkeypatch.setattr(SpatialDropout, "expected_drop", lambda self, keep_prob, *size: 0.5 * (1 - keep_prob) ** 2)
    wrong = run_plan(plan_of(*words, "regularizer=spatial_dropout", "keep_prob=0.5"))
    assert all(drop["off"] for drop in wrong["drop_last_epoch"].values())
    assert "NOT what the layer declares" in capsys.readouterr().out
