"""A change of the code that moves numbers: an older run is refused in one line, a new one has its own directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


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
