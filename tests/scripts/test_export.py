"""Exported weights are the network's own, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.compose import plan_of
from engine import checkpoint
from engine.run_directory import RunDirectory
from evaluate import main as evaluate
from scripts.export import main
from scripts.model_card import card_text

safetensors = pytest.importorskip("safetensors")


@pytest.fixture
def run(train: Callable[..., int], tmp_path: Path) -> RunDirectory:
    assert train("regularizer=dropblock", "recipe.ema_decay=0.5") == 0
    (path,) = tmp_path.glob("fake-resnet18/*/seed-1")
    return RunDirectory(path)


def test_the_file_holds_what_training_evaluated(run: RunDirectory, tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    assert main([f"run={run.path}", str(file)]) == 0
    averaged = checkpoint.load(run.checkpoints / "last.pt")["ema"]["module"]
    with safetensors.safe_open(file, "pt") as exported:
        assert set(exported.keys()) == set(averaged)
        assert all(torch.equal(exported.get_tensor(key), averaged[key]) for key in averaged)
        text = exported.metadata()
    assert json.loads(text["plan"])["layer"]["name"] == "dropblock"
    assert text["step"] == str(run.summary()["steps"])
    assert text["commit"] == run.summary()["environment"]["commit"]


def test_it_is_a_network_to_start_from(run: RunDirectory, train: Callable[..., int], tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    assert main([f"checkpoint={run.checkpoints / 'best.pt'}", str(file)]) == 0
    assert train("regularizer=none", f"model.pretrained={file}", "seed=2", "lr=1e-20") == 0
    (again,) = tmp_path.glob("fake-resnet18/*/seed-2")
    ours = checkpoint.load(RunDirectory(again).checkpoints / "last.pt")["model"]
    best = checkpoint.load(run.checkpoints / "best.pt")["model"]
    assert all(torch.allclose(ours[name], best[name], atol=1e-15) for name in ours if name.endswith("weight"))
    file.unlink()  # whoever has the run needs it no more
    assert evaluate([f"run={again}", "device=cpu"]) == 0
    RunDirectory(again).set_status("STOPPED")
    assert train("regularizer=none", f"model.pretrained={file}", "seed=2", "lr=1e-20") == 0


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["run=/nowhere"], "ending in .safetensors"),
        (["run=/nowhere", "a.safetensors"], "/nowhere/plan.yaml"),
        (["a.safetensors"], "either run=FOLDER"),
        (["run=/nowhere", "a.pt"], "ending in .safetensors"),
    ],
)
def test_mistakes_take_one_line(words: list[str], culprit: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert culprit in printed
    assert printed.count("\n") == 1


def test_a_place_that_cannot_be_written(run: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"run={run.path}", "/nowhere/weights.safetensors"]) == 2
    assert "/nowhere/weights.safetensors" in capsys.readouterr().err


def test_a_model_card_has_the_index_of_its_numbers(run: RunDirectory, tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    assert main([str(run.path), str(tmp_path / "weights.safetensors"), "--card"]) == 0
    _, head, body = (tmp_path / "weights.md").read_text().split("---\n", 2)
    card = OmegaConf.to_container(OmegaConf.create(head))
    assert isinstance(card, dict)
    (result,) = card["model-index"][0]["results"]
    found = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert found["top1"] == pytest.approx(run.summary()["last"]["test/top1"], abs=1e-4)
    assert result["dataset"]["split"] == "test"
    assert card["pipeline_tag"] == "image-classification"
    assert "DropBlock" in body
    assert "ghiasi2018dropblock" in body


def test_a_card_names_the_knobs_of_every_layer() -> None:
    plan = plan_of("data=digits", "regularizer=[dropblock,drop_path]", "regularizer.drop_path.layer.keep_prob=0.8")
    body = card_text(plan, {}, Path("weights.safetensors"), "last")
    assert "DropBlock keep_prob 0.9, schedule linear, groups 3, 4; DropPath keep_prob 0.8, schedule linear" in body
