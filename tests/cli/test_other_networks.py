"""AmoebaNet, FractalNet and foreign networks through the entry script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.run_directory import RunDirectory
from evaluate import main as evaluate

Train = Callable[..., int]


def summary_of(root: Path) -> dict[str, dict[str, float]]:
    (path,) = root.glob("fake-*/*/seed-1")
    drops: dict[str, dict[str, float]] = RunDirectory(path).summary()["drop_last_epoch"]
    return drops


def test_fractalnet_with_both_of_its_regularizers(train: Train, tmp_path: Path) -> None:
    words = ("model=fractalnet20", "model.width=4", "data.image_size=32", "epochs=3", "batch_size=48")
    assert train(*words, "regularizer=[fractal_drop_path,fractal_dropout]") == 0
    drops = summary_of(tmp_path)
    for group, share in enumerate((0.0, 0.1, 0.2, 0.3, 0.4), start=1):
        assert drops[f"dropout/group{group}"]["expected"] == pytest.approx(share)
        assert drops[f"dropout/group{group}"]["measured"] == pytest.approx(share, abs=0.02)
    assert 0 < drops["fractal_drop_path/group0"]["measured"] < 0.7  # six mini-batches, seeded
    (run,) = tmp_path.glob("fake-*/*/seed-1")
    out = tmp_path / "columns.json"
    assert evaluate([f"run={run}", "column=[1,2,3]", f"json={out}", "device=cpu"]) == 0
    result = json.loads(out.read_text())
    losses = [row["loss"] for row in result["columns"]]
    assert len({*losses, result["loss"]}) == 4
    assert evaluate([f"run={run}", "column=4"]) == 2


def test_amoebanet_with_its_auxiliary_head_dropblock_and_drop_path(train: Train, tmp_path: Path) -> None:
    words = (
        "model=amoebanet_b",
        "experiment=amoebanet/dropblock",
        "model.width=4",
        "model.options.cells=1",
        "block_size=3",
    )
    assert train(*words, "regularizer=[dropblock,drop_path]", "epochs=1", "recipe.ema_decay=0.5") == 0
    drops = summary_of(tmp_path)
    assert set(drops) == {"dropblock/group3", "dropblock/group4", "drop_path/group4"}
    for drop in drops.values():
        assert drop["measured"] == pytest.approx(drop["expected"], rel=0.2)  # seeded; measured once
    (run,) = tmp_path.glob("fake-*/*/seed-1")
    assert evaluate([f"run={run}", "column=1"]) == 2  # no fractal


@pytest.mark.parametrize(("library", "name"), [("torchvision", "resnet18"), ("timm", "resnet10t")])
def test_a_network_of_another_library(train: Train, tmp_path: Path, library: str, name: str) -> None:
    pytest.importorskip(library)
    words = (f"model={library}", f"model.name={name}", "model.width=null", "batch_size=96", "data.image_size=64")
    assert train(*words, "epochs=1") == 0
    assert set(summary_of(tmp_path)) == {"group3", "group4"}
    assert (tmp_path / f"fake-{library}-{name}").is_dir()


@pytest.mark.slow
def test_a_small_amoebanet_learns_the_digits(train: Train, tmp_path: Path) -> None:
    small = ("model.width=8", "model.options.cells=1", "block_size=3", "lr=0.05", "recipe.warmup_epochs=0.15")
    words = ("data=digits", "model=amoebanet_b", "experiment=amoebanet/dropblock", "recipe=quick", *small)
    assert train(*words, "epochs=3", "log_every=10") == 0
    (run,) = tmp_path.glob("digits-amoebanet_b/*/seed-1")
    # 79 and 86 % as two processors round; a network that learns nothing stays at 10 %.
    assert (RunDirectory(run).summary() or {})["last"]["test/top1"] > 60


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["model=torchvision", "model.name=resnet51", "model.width=null"], "resnet50"),
        (["model=torchvision", "model.name=resnet18"], "model.width"),
        (["regularizer=fractal_drop_path"], "regularizer=fractal_drop_path needs model=fractalnet20"),
        (["regularizer=[dropblock,drop_path]"], "both want the site"),
        (["model=fractalnet20", "model.zero_gamma=true"], "zero_gamma"),
    ],
)
def test_what_does_not_fit_is_reported(
    train: Train, capsys: pytest.CaptureFixture[str], words: list[str], culprit: str
) -> None:
    assert train(*words) == 2
    assert culprit in capsys.readouterr().err
