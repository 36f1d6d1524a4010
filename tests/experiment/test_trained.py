"""Which checkpoint is evaluated: named always, and never silently another than the run ended with."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import evaluate
from configs.checking import UserError
from configs.command_line import check_arguments
from configs.compose import plan_of
from engine import checkpoint
from engine.distributed import Ranks
from engine.run_directory import RunDirectory
from engine.signals import StopRequest
from experiment.build import build_fit
from experiment.command import run_command


def test_the_checkpoint_is_named_and_a_lost_last_one_is_refused(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"run_dir={tmp_path / 'run'}") == 0
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    capsys.readouterr()
    assert evaluate.main([f"run={tmp_path / 'run'}", "device=cpu"]) == 0
    assert f"checkpoint {last}, step 18, epoch 2" in capsys.readouterr().out
    assert train(f"run_dir={tmp_path / 'run'}") == 0
    assert "already done (" in capsys.readouterr().out
    last.unlink()
    assert evaluate.main([f"run={tmp_path / 'run'}", "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert "the run ended at step 18" in error
    assert "previous.pt" in error


def test_a_checkpoint_of_another_run_or_other_files_is_refused(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"run_dir={tmp_path / 'run'}", "epochs=1") == 0
    last = tmp_path / "run" / "checkpoints" / "last.pt"
    payload = checkpoint.load(last)
    lr = payload["plan"]["recipe"]["lr"]
    for change, says in (
        ({"fingerprint": "0" * 64}, "the files in their default place are not, or no longer, those that"),
        (
            {"plan": {**payload["plan"], "recipe": {**payload["plan"]["recipe"], "lr": 7.5}}},
            f"recipe.lr=7.5 (there: {lr}",
        ),
    ):
        checkpoint.save({**payload, **change}, last)
        capsys.readouterr()
        assert evaluate.main([f"run={tmp_path / 'run'}", "device=cpu"]) == 2
        assert says in capsys.readouterr().err


def test_moved_data_are_asked_for_by_the_key_that_every_program_has(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    colours = {"red": (200, 20, 20), "blue": (20, 20, 200)}
    for split, name in itertools.product(("train", "test"), colours):
        (tmp_path / "photos" / split / name).mkdir(parents=True)
        for i in range(10):
            shade = tuple(channel + i + 5 * (split == "test") for channel in colours[name])
            Image.new("RGB", (32, 32), shade).save(tmp_path / "photos" / split / name / f"{i}.png")
    words = ("data=folder", "data.image_size=32", f"data.root={tmp_path / 'photos'}", "batch_size=8", "epochs=1")
    assert train(*words, f"run_dir={tmp_path / 'run'}") == 0
    (tmp_path / "photos").rename(tmp_path / "moved")
    capsys.readouterr()
    assert evaluate.main([f"run={tmp_path / 'run'}", "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert f"no folder {tmp_path / 'photos'}; data.root needs" in error
    assert evaluate.main([f"run={tmp_path / 'run'}", "device=cpu", f"data.root={tmp_path / 'moved'}"]) == 0


def test_the_runs_in_a_directory_that_is_none_are_named(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"run_dir={tmp_path / 'runs' / 'seed-1'}", "epochs=1") == 0
    capsys.readouterr()
    assert evaluate.main([f"run={tmp_path / 'runs'}"]) == 2
    assert (
        f"not a run directory, there is no {tmp_path / 'runs/plan.yaml'}; runs in it: seed-1" in capsys.readouterr().err
    )
    (tmp_path / "runs" / "seed-1" / "checkpoints" / "best.pt").unlink()
    assert evaluate.main([f"run={tmp_path / 'runs' / 'seed-1'}", "which=best"]) == 2
    assert "the run had no val to choose it on, or lost it" in capsys.readouterr().err


def test_a_plan_is_shown_and_nothing_is_trained(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("plan=true") == 0
    shown = capsys.readouterr().out
    assert "group_divisor: 4.0" in shown
    assert "expected drop" in shown
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.task=detection"], "data.task=detection: fake is for classification"),
        (["model.pretrained=/nowhere/weights.pt"], "no weights file /nowhere/weights.pt"),
        (["recipe.sync_batchnorm=true"], "recipe.sync_batchnorm=true"),
    ],
)
def test_a_plan_that_cannot_run_is_not_shown(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert train("regularizer=none", *words, "plan=true") == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert "run directory" not in printed.out


def test_a_grid_that_cannot_run_is_not_shown(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "regularizer=none,dropblock", "data.task=detection", "plan=true") == 2
    assert "fake is for classification" in capsys.readouterr().err


def test_micro_batches_without_an_image_are_refused() -> None:
    plan = plan_of("data=fake", "batch_size=4", "recipe.accumulate=4")
    two = Ranks(0, 2)
    with pytest.raises(UserError, match=r"recipe\.accumulate"):
        build_fit(plan, None, RunDirectory(Path()), torch.device("cpu"), two, StopRequest())  # type: ignore[arg-type]


def test_a_refused_run_is_not_priced(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"^block_size=0"):
        run_command(check_arguments(["data=fake", "block_size=0", "estimate=true"]))
    assert "timing" not in capsys.readouterr().out


def test_a_keep_prob_that_no_layer_has_is_noted(train: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert train("plan=true", "groups=[2,3]") == 0
    assert "no layer in group 4" in capsys.readouterr().out
    assert train("plan=true") == 0
    assert "no layer in group" not in capsys.readouterr().out
