"""The numbers of `measure.py` are those committed: a reshaped code computes what it computed before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest

from tests.golden import measure

# The record holds float32, and another processor sums in another order. A mask that differs, or a number drawn in
# another order, moves the losses by more than this.
TOLERANCE = {
    "resnet18-dropblock-bfloat16": 5e-4,
    "segmentation_fpn_tiny-dropblock": 1e-4,
    "retinanet_small-dropblock": 1e-4,
}


# Of these `test_library.py` has the masks and the networks: whole runs are the long form.
LONG = {
    *("resnet18-dropblock-constant", "resnet18-spatial_dropout", "resnet18-drop_connect", "resnet50-drop_path"),
    *("resnet50-stochastic_depth", "amoebanet-dropblock"),
    *("resnet34", "resnet101", "resnet152", "fractalnet34", "fractalnet40"),
}


def forms(names: Iterable[str]) -> list[Any]:
    """Parameters of a test, those of the long form marked slow."""
    return [pytest.param(name, marks=pytest.mark.slow if name in LONG else ()) for name in names]


def committed(name: str) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((measure.HERE / f"{name}.json").read_text())
    return values


@pytest.mark.parametrize("name", forms(measure.RUNS))
def test_first_losses(name: str) -> None:
    assert measure.losses(measure.RUNS[name]) == pytest.approx(committed("losses")[name], rel=TOLERANCE.get(name, 1e-5))


@pytest.mark.parametrize("name", forms(measure.NETWORKS))
def test_parameters_and_sites(name: str) -> None:
    found = json.loads(json.dumps(measure.network(measure.NETWORKS[name])))
    assert found["parameters"] == committed("networks")[name]["parameters"]
    for ours, theirs in zip(found["sites"], committed("networks")[name]["sites"], strict=True):
        assert ours[:-1] == theirs[:-1]
        assert ours[-1] == pytest.approx(theirs[-1], rel=1e-12)


@pytest.mark.parametrize("words", measure.PLANS, ids=" ".join)
def test_a_plan_keeps_its_run_directory(words: tuple[str, ...]) -> None:
    assert str(measure.plan_of(words).run_dir()) == committed("plans")[" ".join(words)]
