"""A change of the code that moves numbers: an older run is refused in one line, a new one has its own directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.compose import plan_of


def test_a_run_of_older_code_is_not_continued(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    here = f"run_dir={tmp_path / 'here'}"
    assert train("epochs=1") == train("epochs=1", here) == 0
    (first,) = tmp_path.glob("fake-resnet18/*/seed-1/plan.yaml")
    monkeypatch.setattr("configs.plan.REVISIONS", [(2, "another mask", lambda plan: plan.layer is not None)])
    capsys.readouterr()
    assert train("epochs=1", here) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert str(tmp_path / "here") in line
    assert "another mask" in line
    assert train("epochs=1") == train("epochs=1", here, "fresh=true") == 0
    second = {*tmp_path.glob("fake-resnet18/*/seed-1/plan.yaml")} - {first}
    assert ["revision: 2" in plan.read_text() for plan in (first, *second)] == [False, True]
    assert train("epochs=1", "regularizer=none") == 0
    assert "revision" not in next(tmp_path.glob("fake-resnet18/none-*/seed-1/plan.yaml")).read_text()


def test_branches_moved_where_units_lack_a_shortcut() -> None:
    def revision(name: str, *words: str) -> int:
        return plan_of("data=fake", "model=torchvision", f"model.name={name}", *words).revision

    assert revision("efficientnet_b0", "regularizer=drop_path") == 5
    assert revision("mobilenet_v2", "regularizer=dropblock", "depth_rule=linear") == 5
    assert revision("efficientnet_b0", "regularizer=dropblock") == revision("resnet18", "regularizer=drop_path") == 1


def test_the_pyramid_moved_at_some_sizes_of_segmentation_alone(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"data=digit_masks": {65: 1, 33: 1, 64: 3, 60: 3}, "data=camvid": {480: 3, 481: 1, 241: 1, 240: 3}}
    for data, revisions in sizes.items():
        for size, revision in revisions.items():
            assert plan_of(data, f"data.image_size={size}").revision == revision
    assert plan_of("data=camvid", "data.root=/data", "data.image_size=241", "model.stem=imagenet").revision == 3
    assert plan_of("data=voc_segmentation", "data.root=/data").revision == 1
    assert plan_of("data=digit_boxes").revision == 1
    for data in ("data=digit_boxes", "data=digit_masks"):
        assert [plan_of(data, f"groups={groups}").revision for groups in ("[3,4]", "[head]")] == [
            plan_of(data).revision, 4,
        ]  # fmt: skip

    # Weights of the older network are not evaluated in today's.
    small = ("data=digit_masks", "data.image_size=40", "data.train_subset=8", "model=segmentation_fpn_tiny")
    assert train(*small, "model.width=4", "epochs=1", "batch_size=8") == 0
    (plan,) = tmp_path.glob("digit_masks-*/*/seed-1/plan.yaml")
    from engine import checkpoint

    last = plan.parent / "checkpoints" / "last.pt"
    payload = checkpoint.load(last)
    assert payload["plan"].pop("revision") == 3
    checkpoint.save(payload, plan.parent / "checkpoints" / "old.pt")
    from evaluate import main

    capsys.readouterr()
    assert main([f"checkpoint={plan.parent / 'checkpoints' / 'old.pt'}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "old.pt" in line
    assert "by position" in line
