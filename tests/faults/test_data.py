"""Data that are not there, not whole or no images, met by the entry script: one line, soon, and the run can go on."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.loader import BatchReader, Made
from data.splits import Indices
from engine.loop import Fit
from engine.run_directory import RunDirectory
from experiment import run as run_module
from experiment.evaluation import evaluate
from experiment.source import NetworkSource

Train = Callable[..., int]
PHOTOS = ("data=imagenet", "data.image_size=32", "batch_size=8", "recipe.warmup_epochs=0", "regularizer=none")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 24 photographs each to train and 6 to evaluate."""
    root = tmp_path_factory.mktemp("photos")
    numbers = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 6)):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = numbers.integers(0, 256, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i:02d}.JPEG")
    return root


@pytest.fixture
def photos(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "photos"))


@pytest.fixture
def _nothing_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*_: object) -> None:
        pytest.fail("a network was built before the data were looked at")

    monkeypatch.setattr(run_module, "build_fit", build)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


@pytest.mark.usefixtures("_nothing_is_built")
@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("imagenet", None),
        ("imagenet", "absent"),
        ("imagenet", "empty"),
        ("imagenette", "empty"),
        ("cifar10", "absent"),
        ("cifar100", "empty"),
        ("fashion_mnist", "empty"),
        ("cifar10", "text"),
        ("fashion_mnist", "text"),
    ],
)
def test_missing_data_are_reported_before_anything_is_built(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, place: str | None
) -> None:
    words = [f"data={name}", "data.download=false", "recipe.augment.crop_padding=0"]
    if place:
        words.append(f"data.root={tmp_path / place}")
    if place in ("empty", "text"):
        (tmp_path / place).mkdir()
    if place == "text":
        official = {"cifar10": "cifar-10-batches-py/data_batch_1", "fashion_mnist": "train-images-idx3-ubyte"}[name]
        (tmp_path / place / official).parent.mkdir(exist_ok=True)
        (tmp_path / place / official).write_text("not data")
    assert train(*words) == 2
    line = one_line(capsys)
    assert line.startswith("error: ")
    assert str(tmp_path / place) in line if place else "data.root" in line


def test_data_that_cannot_be_opened_leave_nothing_behind(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("data=folder", f"data.root={tmp_path / 'absent'}")
    assert train(*words) == 2
    for jobs in ("1", "2"):
        capsys.readouterr()
        assert train("-m", *words, "regularizer=none,dropblock", f"jobs={jobs}") == 1
        shown, errors = capsys.readouterr()
        assert shown.count("test/ of the same form (.jpeg, ") == 1 + (jobs == "2") * 2
        if jobs == "1":
            assert errors.count("test/ of the same form") == errors.count("error: the same as before") == 1
        assert "0 runs done, 2 not; nothing was written" in shown
    assert list(tmp_path.iterdir()) == []
    assert train("-m", "regularizer=none", "seed=1,2", "data=fake,folder", f"data.root={tmp_path}", "epochs=1") == 1
    assert len(list(tmp_path.glob("*/*/seed-*"))) == 2  # what could run stays, and what could not is listed
    assert len(list(tmp_path.glob("sweeps/*/runs/*.json"))) == 4


@pytest.mark.usefixtures("_nothing_is_built")
@pytest.mark.parametrize("fault", ["missing in val", "missing in train", "renamed", "hidden", "no image", "nested"])
def test_class_folders_that_do_not_fit_are_named(
    train: Train, photos: Path, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    if fault == "missing in val":
        shutil.rmtree(photos / "val" / "dog")
    elif fault == "missing in train":
        shutil.rmtree(photos / "train" / "dog")
    elif fault == "renamed":
        (photos / "val" / "dog").rename(photos / "val" / "dogs")
    elif fault == "hidden":
        (photos / "train" / ".ipynb_checkpoints").mkdir()
    elif fault == "no image":
        for file in (photos / "val" / "dog").iterdir():
            file.unlink()
    else:
        (photos / "train" / "dog" / "more").mkdir()
    assert train(*PHOTOS, f"data.root={photos}", "workers=0") == 2
    line = one_line(capsys)
    assert str(photos) in line
    assert {"hidden": ".ipynb_checkpoints", "nested": "more"}.get(fault, "dog") in line


def test_another_set_of_classes_does_not_resume_a_run(
    train: Train, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*PHOTOS, f"data.root={photos}", "workers=0")
    assert train(*words) == 0
    (run,) = tmp_path.glob("imagenet-resnet18/*/seed-1")
    RunDirectory(run).set_status("STOPPED")
    for split in ("train", "val"):
        (photos / split / "cat").rename(photos / split / "lynx")
    capsys.readouterr()
    assert train(*words) == 2
    assert "written with other data" in one_line(capsys)


@pytest.mark.parametrize("content", [b"", b"no image", "cut"])
def test_a_bad_image_ends_the_run_or_is_left_out_and_listed(
    train: Train, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | str
) -> None:
    bad = photos / "train" / "cat" / "03.JPEG"
    bad.write_bytes(bad.read_bytes()[:400] if isinstance(content, str) else content)
    words = (*PHOTOS, f"data.root={photos}", "data.val_fraction=0", "workers=1")
    assert train(*words) == 2
    line = one_line(capsys)
    assert str(bad) in line
    assert "data.on_bad_image=skip" in line
    assert train(*words, "data.on_bad_image=skip") == 0
    (summary,) = tmp_path.glob("imagenet-resnet18/*/seed-1/summary.json")
    assert list((RunDirectory(summary.parent).summary() or {})["bad_images"]) == [str(bad)]


def test_evaluation_counts_the_images_that_were_evaluated(train: Train, photos: Path, tmp_path: Path) -> None:
    (photos / "val" / "cat" / "03.JPEG").write_bytes(b"no image")
    words = (*PHOTOS, f"data.root={photos}", "data.val_fraction=0", "workers=0", "data.on_bad_image=skip", "epochs=1")
    assert train(*words) == 0
    (run,) = tmp_path.glob("imagenet-resnet18/*/seed-1")
    result = evaluate(NetworkSource(run=str(run)), device="cpu")
    assert result["samples"] == 11  # of 12


def test_images_left_out_before_a_stop_stay_listed(
    train: Train, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = photos / "train" / "cat" / "03.JPEG"
    bad.write_bytes(b"no image")
    words = (*PHOTOS, f"data.root={photos}", "data.val_fraction=0", "workers=0", "data.on_bad_image=skip", "epochs=1")
    evaluate_all = Fit._evaluate

    def signalled(self: Fit) -> dict[str, float]:
        self.stop.received = signal.SIGTERM
        return evaluate_all(self)

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "_evaluate", signalled)
        assert train(*words) == 143
    assert train(*words) == 0  # which only evaluates: it reads no training image
    (summary,) = tmp_path.glob("imagenet-resnet18/*/seed-1/summary.json")
    assert list(RunDirectory(summary.parent).summary()["bad_images"]) == [str(bad)]


def test_a_run_whose_loader_was_killed_goes_on(
    train: Train, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*PHOTOS, f"data.root={photos}", "workers=1", "epochs=3")
    decoded = BatchReader.__getitem__

    def killed(self: BatchReader, key: tuple[int, Indices]) -> Made:
        if self.training and key[0] == 1:  # the second epoch, so that there is something to go on from
            os.kill(os.getpid(), signal.SIGKILL)
        return decoded(self, key)

    with monkeypatch.context() as patch:
        patch.setattr(BatchReader, "__getitem__", killed)
        assert train(*words) == 1
    assert "worker" in capsys.readouterr().err
    assert train(*words) == 0
    assert "resuming after step" in capsys.readouterr().out
