"""A regularizer with a knob of its own is a class, an entry in LAYERS and a YAML: nothing else knows the knob."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs import plan, regularizers
from configs.compose import plan_of
from dropblock import kinds
from dropblock.baselines import SpatialDropout
from experiment.build import build_network


class Scaled(SpatialDropout):
    """SpatialDropout whose output is multiplied by `factor`."""

    def __init__(self, keep_prob: float, factor: float) -> None:
        super().__init__(keep_prob=keep_prob)
        self.factor = factor

    def drop(self, x: Tensor, seed: Tensor) -> tuple[Tensor, Tensor]:
        y, kept = super().drop(x, seed)
        return y * self.factor, kept


YAML = """# @package regularizer.scaled
layer:
  name: scaled
  keep_prob: 0.9
  groups: [4]
  schedule: linear
  options:
    factor: 0.5
"""


class Shape:
    num_classes, image_shape = 10, (3, 32, 32)


def test_a_regularizer_with_its_own_knob(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(plan.CONFIGS, configs, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (configs / "regularizer" / "scaled.yaml").write_text(YAML)
    for module in ("configs.plan", "configs.compose", "configs.regularizers", "configs.resolve"):
        monkeypatch.setattr(f"{module}.CONFIGS", configs)
    regularizers.as_written.cache_clear()
    make = kinds.Kind(lambda site, keep_prob, *, factor: Scaled(keep_prob, factor), kinds.on_maps)
    monkeypatch.setitem(kinds.LAYERS, "scaled", make)

    plain = plan_of("data=fake", "model=resnet18", "model.width=4", "regularizer=scaled")
    knob = plan_of(
        *("data=fake", "model=resnet18", "model.width=4", "regularizer=scaled"),
        "regularizer.scaled.layer.options.factor=0.25",
    )
    assert plain.hash() != knob.hash()
    model, _ = build_network(knob, Shape, torch.device("cpu"))  # type: ignore[arg-type]
    found = [module for module in model.modules() if isinstance(module, Scaled)]
    assert found
    assert {module.factor for module in found} == {0.25}
    regularizers.as_written.cache_clear()
