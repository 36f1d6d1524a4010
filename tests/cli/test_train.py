"""The main job through the entry script, in the smallest size."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from configs.resolve import check_run_dir
from engine import checkpoint
from engine.checkpoint import load
from engine.loop import Fit
from engine.run_directory import RunDirectory

ROOT = Path(__file__).resolve().parents[2]
Train = Callable[..., int]
METRICS = ("loss", "top1", "top5", "macro_accuracy", "brier", "ece")


def only_run(root: Path, pattern: str = "fake-resnet18/*/seed-*") -> RunDirectory:
    (path,) = root.glob(pattern)
    return RunDirectory(path)


def test_a_run_leaves_a_complete_record(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("regularizer=dropblock", "block_size=3") == 0
    printed = capsys.readouterr().out
    run = only_run(tmp_path)
    assert run.status()["status"] == "DONE"
    names = {path.name for path in run.path.iterdir()}
    assert {"plan.yaml", "config_min.yaml", "metrics.jsonl", "summary.json", "sites.json", "checkpoints"} <= names
    assert {path.name for path in run.checkpoints.iterdir()} == {"last.pt", "previous.pt", "best.pt"}

    summary = run.summary()
    assert summary["last"]["epoch"] == 2
    assert set(summary["last"]) == {"epoch", *(f"{s}/{m}" for s in ("val", "test") for m in METRICS)}
    assert summary["best"]["val/top1"] >= summary["last"]["val/top1"]
    assert summary["parameters"] == sum(
        v.numel()
        for k, v in load(run.checkpoints / "last.pt")["model"].items()
        if "running" not in k and "num_batches" not in k
    )
    for group, nominal in (("group3", 0.025 * 0.75), ("group4", 0.1 * 0.75)):
        drop = summary["drop_last_epoch"][group]
        assert drop["measured"] == pytest.approx(drop["expected"], rel=0.2)  # seeded; measured once
        assert drop["expected"] == pytest.approx(nominal, rel=0.15)
    environment = summary["environment"]
    assert re.fullmatch(r"[0-9a-f]{40}", environment["commit"])
    assert environment["torch"] == torch.__version__

    tags = {tag for line in run.metrics() for tag in line}
    assert tags == {
        *("step", "epoch", "train/loss", "train/top1", "lr", "keep_prob/target", "time/images_per_s"),
        *(f"{split}/{metric}" for split in ("val", "test") for metric in METRICS),
        *(f"drop/{kind}/group{g}" for kind in ("measured", "expected") for g in (3, 4)),
    }
    for word in ("expected drop", "3x3", "last test/top1", "dropped in group4", str(run.path), "tensorboard --logdir"):
        assert word in printed
    assert OmegaConf.load(run.path / "config_min.yaml").overrides[-1] == "block_size=3"


def test_the_metric_that_chooses_may_be_one_of_which_less_is_better(train: Train, tmp_path: Path) -> None:
    assert train("regularizer=none", "headline=loss", "epochs=3", "lr=0.5") == 0
    run = only_run(tmp_path)
    summary, losses = run.summary(), {line["epoch"]: line for line in run.metrics() if "val/loss" in line}
    assert summary["headline"] == "loss"
    for which, split in (("best", "val"), ("peak", "test")):
        name = f"{split}/loss"
        assert summary[which]["epoch"] == min(losses, key=lambda epoch: losses[epoch][name])
        assert summary[which][name] == min(line[name] for line in losses.values())


def test_keep_prob_falls_linearly_from_one(train: Train, tmp_path: Path) -> None:
    assert train("regularizer=dropblock", "keep_prob=0.8", "log_every=1") == 0
    seen = [line["keep_prob/target"] for line in only_run(tmp_path).metrics() if "keep_prob/target" in line]
    total = 2 * (288 // 32)
    assert seen == pytest.approx([1 - 0.2 * t / total for t in range(total)])


def test_a_finished_run_is_skipped_and_fresh_starts_over(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("regularizer=none") == 0
    first = only_run(tmp_path).summary()
    written = (only_run(tmp_path).path / "metrics.jsonl").stat().st_mtime_ns
    assert train("regularizer=none", "log_every=5") == 0
    assert "already done" in capsys.readouterr().out
    assert (only_run(tmp_path).path / "metrics.jsonl").stat().st_mtime_ns == written
    assert train("regularizer=none", "fresh=true") == 0
    again = only_run(tmp_path, "fake-resnet18/none-*/seed-1")
    assert again.summary()["last"] == first["last"]  # the same plan gives the same numbers, to the last digit
    assert (again.path.parent / "seed-1-old-1" / "summary.json").exists()


def test_a_grid_runs_what_differs_once(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("-m", "regularizer=none,dropblock", "block_size=3,7", "seed=1,2", "epochs=1") == 0
    runs = sorted(path.parent.name + "/" + path.name for path in tmp_path.glob("fake-resnet18/*/seed-*"))
    assert [re.sub(r"-[0-9a-f]{6}/", "/", run) for run in runs] == [
        *(f"dropblock-b{b}-kp0.9-e1/seed-{s}" for b in (3, 7) for s in (1, 2)),
        *("none-e1/seed-1", "none-e1/seed-2"),
    ]
    printed = capsys.readouterr().out
    assert printed.count("already done") == 2
    assert "block_size=3 does not apply to regularizer=none" in printed
    assert "\n=== run 2 of 8: " in printed
    assert "6 runs done, 0 not" in printed
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert len(list((sweep / "runs").iterdir())) == 6


def test_one_failing_job_does_not_end_the_grid(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("-m", "groups=[9],[4]", "lr=1e30,0.1", "epochs=1") == 1
    captured = capsys.readouterr()
    assert "groups=[9]" in captured.err
    assert "not finite" in captured.err
    assert "1 run done, 3 not" in captured.out
    statuses = [json.loads(path.read_text())["status"] for path in tmp_path.glob("fake-resnet18/*/*/status.json")]
    assert sorted(statuses) == ["DONE", "FAILED", "FAILED", "FAILED"]


def test_accumulation_draws_the_same_samples_and_learns_alike(train: Train, tmp_path: Path) -> None:
    assert train("regularizer=none") == 0
    assert train("regularizer=none", "recipe.accumulate=2") == 0
    losses = [RunDirectory(p).summary()["last"]["test/loss"] for p in tmp_path.glob("fake-resnet18/none-*/seed-1")]
    assert losses[0] != losses[1]  # BatchNorm sees smaller batches
    assert losses[0] == pytest.approx(losses[1], rel=0.2)


@pytest.mark.parametrize(
    "word",
    ["recipe.precision=bfloat16", "recipe.ema_decay=0.9", "lr_schedule=step recipe.milestones=[1]", "compile=false"],
)
def test_switches_of_the_recipe_train(train: Train, tmp_path: Path, word: str) -> None:
    assert train("regularizer=[dropblock,label_smoothing]", *word.split()) == 0
    run = only_run(tmp_path)
    losses = [line["train/loss"] for line in run.metrics() if "train/loss" in line]
    assert losses[-1] < losses[0]
    assert (load(run.checkpoints / "last.pt")["ema"] is not None) == ("ema" in word)


def test_run_dir_that_holds_another_run_is_refused(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("regularizer=none", f"run_dir={tmp_path}/mine", "epochs=1") == 0
    assert train("regularizer=none", f"run_dir={tmp_path}/mine", "epochs=1", "lr=0.05") == 2
    assert "recipe.lr=0.05 (there: 0.1)" in capsys.readouterr().err


def test_run_dir_that_is_no_run_is_refused(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before torch: the root, the home directory, a folder of the user's own; nothing is written there."""
    home, own = tmp_path / "home", tmp_path / "own"
    home.mkdir()
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    monkeypatch.setenv("HOME", str(home))
    for place, culprit in (("/", "run_dir=/:"), ("'~'", "run_dir=~:"), (home, "run_dir="), (own, "thesis.txt")):
        assert train("plan=true", f"run_dir={place}") == 2
        assert culprit in capsys.readouterr().err
    assert [path.name for path in own.iterdir()] == ["thesis.txt"]
    check_run_dir(str(tmp_path / "new"))
    (own / "thesis.txt").rename(own / ".lock")  # left by a process that was killed
    check_run_dir(str(own))


MISTAKES = [
    (["regulrizer=none"], "regularizer"),
    (["regularizer=none", "block_size=5"], "block_size=5 does not apply"),
    (["lr=abc"], "lr=abc"),
    (["seed=1,2,3"], "-m"),
    (["keep_prob=2"], "keep_prob=2.0"),
    (["groups=[5]"], "groups=[5]"),
    (["data=fashion_mnist", "data.root=/nowhere", "data.download=false", "epochs=3"], "/nowhere"),
    (["model.pretrained=/nowhere.pt"], "/nowhere.pt"),
    (["regularizer=[none,dropblock]"], "stands alone"),
    (["regularizer="], "regularizer"),
    (["hydra.callbacks.x._target_=os.system"], "hydra.callbacks"),
]


@pytest.mark.parametrize(("words", "culprit"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_gets_one_line_and_status_2(
    train: Train, capsys: pytest.CaptureFixture[str], words: list[str], culprit: str
) -> None:
    assert train(*words) == 2
    captured = capsys.readouterr()
    printed = captured.err.strip().splitlines()
    assert (len(printed), captured.out) == (1, "")  # no note about what does not run
    assert printed[0].startswith("error: ")
    assert culprit in printed[0]


@pytest.mark.parametrize("word", ["regularizer=dropblok", "lr=abc", "+typo=1", "keep_prob=7"])
def test_a_typo_is_answered_without_importing_torch(word: str) -> None:
    code = f"import sys, train; code = train.main([{word!r}]); sys.exit(99 if 'torch' in sys.modules else code)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_entry_script_as_a_process(shell: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    words = ["data=fake", "model=resnet18", "model.width=4", "epochs=1", "-m", f"output_root={tmp_path}"]
    result = shell("train.py", *words, "seed=1,2")
    assert result.returncode == 0, result.stderr
    assert "2 runs done, 0 not" in result.stdout
    assert shell("train.py", "--help").returncode == 0


def test_a_fresh_grid_does_its_work_once(train: Callable[..., int], tmp_path: Path) -> None:
    """Both jobs are the same run: the baseline has no keep_prob."""
    words = ("-m", "regularizer=none", "keep_prob=0.8,0.9", "epochs=1")
    assert train(*words) == 0
    assert train(*words, "fresh=true") == 0
    assert sorted(path.name for path in tmp_path.glob("fake-resnet18/none-*/*")) == ["seed-1", "seed-1-old-1"]


def test_a_signal_after_the_last_step_ends_the_grid(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = RunDirectory.write

    def signalled(folder: RunDirectory, name: str, value: object) -> None:
        if name == "summary.json":
            os.kill(os.getpid(), signal.SIGTERM)
        write(folder, name, value)

    monkeypatch.setattr(RunDirectory, "write", signalled)
    assert train("-m", "regularizer=none,dropblock", "epochs=1") == 143
    (run,) = tmp_path.glob("fake-resnet18/*/seed-1")
    assert RunDirectory(run).status()["status"] == "DONE"
    assert RunDirectory(run).summary()


def test_images_per_second_is_that_of_the_whole_window(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a made-up clock, which a step moves by 1 s and a checkpoint, which is no training, by 100."""
    now, step, save = [0.0], Fit.step, checkpoint.save
    monkeypatch.setattr("engine.loop.time", SimpleNamespace(perf_counter=lambda: now[0]))

    def stepped(fit: Fit, *arguments: Any) -> None:
        step(fit, *arguments)
        now[0] += 1.0

    def saved(*arguments: Any) -> None:
        save(*arguments)
        now[0] += 100.0

    monkeypatch.setattr(Fit, "step", stepped)
    monkeypatch.setattr(checkpoint, "save", saved)
    assert train("regularizer=none", "epochs=2", "log_every=4", "checkpoint_every=3") == 0
    folder = only_run(tmp_path)
    points = [line for line in folder.metrics() if "time/images_per_s" in line]
    assert [point["step"] for point in points] == [4, 8, 9, 12, 16, 18]
    assert [point["time/images_per_s"] for point in points] == pytest.approx([32.0] * 6)
    assert folder.summary()["train_seconds"] == pytest.approx(18.0)
