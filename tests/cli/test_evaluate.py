"""evaluate.py gives the numbers of the run's own summary, to the last digit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from scipy.optimize import minimize_scalar

from configs.checking import UserError
from engine.distributed import Ranks
from engine.run_directory import RunDirectory
from evaluate import main, read_request, result_text
from experiment.evaluation import Tempered, fitted_temperature, trained
from experiment.sampling import SCORES
from tests.conftest import ROOT
from tests.last_of_each import last_of_each
from train import main as train_main


@pytest.fixture(scope="module")
def run(small_run: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    root = tmp_path_factory.mktemp("evaluated")
    words = (f"output_root={root}", "regularizer=[dropblock,trivialaugment]", "recipe.ema_decay=0.5")
    assert train_main(last_of_each(*small_run, *words)) == 0
    (path,) = root.glob("fake-resnet18/*/seed-1")
    return RunDirectory(path)


def test_equal_to_the_summary(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary, out = run.summary(), tmp_path / "result.json"
    for words, which, split in (
        ([f"run={run.path}"], "last", "test"),
        ([str(run.path), "split=val"], "last", "val"),  # a directory alone is the run
        ([f"run={run.path}", "which=best"], "best", "test"),
        ([f"checkpoint={run.checkpoints / 'best.pt'}", "split=val"], "best", "val"),
    ):
        assert main([*words, f"json={out}", "device=cpu"]) == 0
        result = json.loads(out.read_text())
        for metric in ("loss", "top1", "top5", "macro_accuracy", "brier", "ece"):
            assert result[metric] == summary[which][f"{split}/{metric}"]
    assert main([str(run.path), "split=train", "device=cpu", f"json={tmp_path / 'train.json'}"]) == 0
    fitted = json.loads((tmp_path / "train.json").read_text())
    assert (fitted["split"], fitted["samples"]) == ("train", 288)
    assert fitted["loss"] < result["loss"]  # it has learnt these
    classes, calibration = result["tables"]
    assert summary["tables"][0]["header"] == classes["header"] == ["class", "top1 (%)", "images"]
    seen = sum(images for _, _, images in classes["rows"])
    weighted = sum(top1 * images for _, top1, images in classes["rows"] if images)
    assert weighted / seen == pytest.approx(result["top1"])
    # The table of the reliability diagram holds every image, and gives the calibration error.
    assert sum(images for *_, images in calibration["rows"]) == seen
    gaps = [abs(top1 - confidence) * images for _, confidence, top1, images in calibration["rows"]]
    assert sum(gaps) / seen == pytest.approx(result["ece"])
    assert "class 3" in capsys.readouterr().out


def test_drop_at_inference(run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert main([f"run={run.path}", "keep_prob=[1,0.1]", "block_size=[1,7]", f"json={out}", "device=cpu"]) == 0
    result = json.loads(out.read_text())
    by = {(row["block_size"], row["keep_prob"]): row for row in result["under_drop"]}
    assert set(by) == {(1, 1.0), (1, 0.1), (7, 1.0), (7, 0.1)}
    assert by[1, 1.0]["loss"] == by[7, 1.0]["loss"] == result["loss"]  # keep_prob 1 drops nothing
    assert by[7, 0.1]["loss"] != result["loss"]


def test_a_temperature_is_fitted_on_val(run: RunDirectory, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    assert main([str(run.path), "temperature=val", f"json={out}", "device=cpu"]) == 0
    result = json.loads(out.read_text())
    found = result["temperature"]
    assert (found["fitted_on"], found["images"], found["top1"]) == ("val", 32, result["top1"])
    assert 0.01 < found["value"] < 101
    assert found["loss"] != result["loss"]
    assert found["ece"] != result["ece"]


def test_masks_are_averaged_over(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "result.json"
    words = ["samples=2", "keep_prob=[0.9,0.5]", "block_size=3", f"json={out}", "device=cpu"]
    assert main([str(run.path), *words]) == 0
    result = json.loads(out.read_text())
    assert [(row["layers"], row["keep_prob"], row["block_size"]) for row in result["sampled"]] == [
        ("dropblock", 0.9, 3),
        ("dropblock", 0.5, 3),
    ]
    printed = capsys.readouterr().out
    assert "4 passes over 80 images" in printed
    assert "mutual_information" in printed
    assert result["under_drop"] == []


def test_corrupted_and_other_images(run: RunDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, strangers = tmp_path / "result.json", tmp_path / "strangers"
    strangers.mkdir()
    for i in range(5):
        Image.new("RGB", (20 + i, 30), (50 * i, 200, 0)).save(strangers / f"{i}.png")
    words = ["corruption=jpeg,contrast", "severity=5,1", f"ood={strangers}", "samples=2", f"json={out}", "device=cpu"]
    assert main([str(run.path), *words]) == 0
    result = json.loads(out.read_text())
    at = [(row["corruption"], row["severity"], row["trained_on"]) for row in result["corrupted"]]
    assert at == [("jpeg", 5, False), ("jpeg", 1, False), ("contrast", 5, True), ("contrast", 1, True)]
    assert all(row["loss"] != result["loss"] for row in result["corrupted"])
    scores = [(row["score"], row["samples"]) for row in result["outside"]]
    assert scores == [("max_softmax", 1), ("entropy", 1), *((name, 2) for name in SCORES)]
    assert all(row["base_rate"] == pytest.approx(100 * 5 / 85) for row in result["outside"])
    printed = capsys.readouterr().out
    assert "contrast (trained on)" in printed
    assert "jpeg (trained on)" not in printed


def test_training_and_evaluation_import_what_they_need_when_they_do() -> None:
    """Importing torchvision imports torch.compile as well, and takes as long as importing torch."""
    late = "{'torchvision', 'torch._dynamo', 'hydra', 'tensorboard', 'matplotlib', 'sklearn'} & {*sys.modules}"
    code = f"import sys, experiment.evaluation, experiment.run; print(*{late})"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("\n", "")


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        ("column=1", "only a FractalNet has columns"),
        ("ood={empty}", "holds no image"),
        ("cifar10c={empty}", "for networks of CIFAR-10"),
    ],
)
def test_what_the_run_cannot_be_asked_for_is_refused_before_the_first_pass(
    run: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: str,
    culprit: str,
) -> None:
    monkeypatch.setattr("experiment.evaluation.pass_over", lambda *_: pytest.fail("a pass was made"))
    assert main([str(run.path), words.format(empty=tmp_path), "device=cpu"]) == 2
    assert culprit in capsys.readouterr().err


def test_the_temperature_minimises_the_loss() -> None:
    """As scipy finds it; labels that follow the logits at temperature 2.5, so that the minimum is near it."""
    torch.manual_seed(0)
    logits = 5 * torch.randn(2000, 4)
    labels = torch.multinomial((logits / 2.5).softmax(1), 1)[:, 0]
    batches = [SimpleNamespace(images=x, labels=y) for x, y in zip(logits.split(300), labels.split(300), strict=True)]
    split = SimpleNamespace(epoch=lambda _: iter(batches))
    recipe = SimpleNamespace(precision="float32")
    place: Any = SimpleNamespace(device=torch.device("cpu"), ranks=Ranks(), plan=SimpleNamespace(recipe=recipe))
    found = fitted_temperature(torch.nn.Identity(), split, place)

    def loss(temperature: float) -> float:
        return torch.nn.functional.cross_entropy(logits.double() / temperature, labels).item()

    best = minimize_scalar(loss, bounds=(0.1, 10.0), method="bounded", options={"xatol": 1e-9})
    assert found == pytest.approx(best.x, rel=1e-5)
    assert found == pytest.approx(2.5, rel=0.1)
    tempered = Tempered(torch.nn.Identity(), found)
    assert fitted_temperature(tempered, split, place) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        ([], None),
        (["run=/nowhere"], "/nowhere/plan.yaml"),
        (["checkpoint=/nowhere.pt"], "/nowhere.pt"),
        (["run=a", "checkpoint=b"], "either"),
        (["runn=a"], "'run'"),
        (["run=a", "split=tset"], "did you mean 'test'"),
        (["run=a", "keep_prob=2"], "keep_prob=2"),
        (["run=a", "temperature=test"], "temperature=test"),
        (["run=a", "samples=0"], "samples=0"),
        (["run=a", "corruption=jpg"], "did you mean 'jpeg'"),
        (["run=a", "severity=2"], "severity=2"),
        (["run=a", "corruption=all", "severity=1,6"], "severity=6"),
        (["run=a", "ood=/nowhere"], "ood=/nowhere"),
        (["run=a", "cifar10c=/nowhere"], "cifar10c=/nowhere"),
        (["run=a", "split=val", "temperature=val"], "temperature=val"),
        (["run=a", "run=b"], "run: given twice"),
        (["run=a", "json=/nowhere/x.json"], "json=/nowhere/x.json: there is no directory /nowhere"),
    ],
)
def test_mistakes(words: list[str], culprit: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == (0 if culprit is None else 2)
    captured = capsys.readouterr()
    assert (culprit or "checkpoint=FILE") in captured.err + captured.out


def test_a_task_that_is_evaluated_without_a_loss_has_a_text() -> None:
    """Detection."""
    result = {
        "checkpoint": "last.pt",
        "split": "test",
        "samples": 4,
        "tables": [],
        "columns": [],
        "temperature": None,
        "sampled": [],
        "corrupted": [],
        "outside": [],
    }
    result |= {"headline": "ap", "metric_labels": {"ap": "AP (%)"}, "metric_units": {"ap": "%"}, "ap": 12.5}
    text = result_text({**result, "under_drop": [{"keep_prob": 0.9, "block_size": 7, "ap": 10.0}]})
    assert text.splitlines()[-1].split() == ["7", "0.9", "10.00%", "-"]


def test_drop_at_inference_is_placed_as_in_the_paper(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = []

    def spied(*arguments: Any) -> Any:
        tables.append((found := trained(*arguments))[1].table)
        return found

    assert train("regularizer=none", "epochs=1") == 0
    (path,) = tmp_path.glob("fake-resnet18/*/seed-1")
    monkeypatch.setattr("experiment.evaluation.trained", spied)
    assert main([f"run={path}", "keep_prob=[0.9]", "block_size=[7]", "device=cpu"]) == 0
    (dropping,) = filter(None, tables)
    assert {row.group: round(row.keep_prob, 6) for row in dropping} == {3: 0.975, 4: 0.9}
    assert {row.branch for row in dropping} == {"conv", "skip"}


def test_the_place_of_the_data_is_given_as_in_training(tmp_path: Path) -> None:
    for key in ("data.root", "data_root"):
        assert read_request([f"run={tmp_path}", f"{key}=/my data # 1"]).data_root == "/my data # 1"
    with pytest.raises(UserError, match="data_root: given twice"):
        read_request([f"run={tmp_path}", "data.root=a", "data_root=b"])


def test_a_file_is_one_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which=best"):
        read_request([f"checkpoint={tmp_path / 'last.pt'}", "which=best"])
