"""Places that are full or cannot be written: reported with what is needed, nothing lost, and the run goes on later."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.run_directory import RunDirectory
from tests.comparison import assert_identical
from tests.trainer import WORDS, Starter, being_written, only_run

Train = Callable[..., int]
Reference = Callable[..., RunDirectory]


def test_a_full_disk_keeps_the_old_checkpoint(
    starter: Starter, tmp_path: Path, uninterrupted: Reference, stopped_at_step_4: Callable[[Path], None]
) -> None:
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path}")
    stopped_at_step_4(tmp_path)
    run = only_run(tmp_path)
    before = {path.name: path.read_bytes() for path in run.checkpoints.iterdir()}
    code, output = starter.run(*words, file_limit=100_000)
    assert code == 1
    (line,) = [line for line in output.splitlines() if line.startswith("error:")]
    assert f"{run.checkpoints}/" in line
    assert "MB needed" in line
    assert "MB free" in line
    assert "Traceback" not in output
    assert {path.name: path.read_bytes() for path in run.checkpoints.iterdir()} == before
    assert run.status()["status"] == "FAILED"
    assert starter.run(*words)[0] == 0
    assert_identical(run, uninterrupted())


@pytest.mark.parametrize("size", [500, pytest.param(2500, marks=pytest.mark.slow)])
def test_a_disk_too_full_for_the_smallest_files_is_reported_in_one_line(
    starter: Starter,
    tmp_path: Path,
    uninterrupted: Reference,
    stopped_at_step_4: Callable[[Path], None],
    size: int,
) -> None:
    words = (*WORDS, "checkpoint_every=2", f"output_root={tmp_path}")
    stopped_at_step_4(tmp_path)
    code, output = starter.run(*words, "log_every=1", file_limit=size)
    assert code == 1
    assert [line for line in output.splitlines() if line.startswith("error: ") and str(tmp_path) in line], output
    assert "Traceback" not in output
    assert starter.run(*words)[0] == 0
    assert_identical(only_run(tmp_path), uninterrupted())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system of a given size; only root can make one."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: str, *options: str) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(place)]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            pytest.skip("a file system cannot be mounted here")
        return place

    yield mount
    subprocess.run(["umount", str(place)], capture_output=True, check=False)


def test_a_small_disk_fills_up(starter: Starter, uninterrupted: Reference, small_disk: Callable[..., Path]) -> None:
    place = small_disk("1200k")
    words = (*WORDS, "checkpoint_every=2", f"output_root={place}")
    code, output = starter.run(*words)
    assert code == 1
    assert "No space left on device" in output
    assert "Traceback" not in output
    run = only_run(place)
    assert not being_written(run.checkpoints)
    small_disk("64m", "remount")
    assert starter.run(*words)[0] == 0
    assert_identical(run, uninterrupted())


@pytest.mark.parametrize("place", ["/proc/nowhere", "/dev/null/runs"])
def test_a_place_that_cannot_be_written_is_reported_before_anything_is_built(
    train: Train, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("experiment.run.prepare", lambda *_: pytest.fail("something was built"))
    assert train(f"output_root={place}") == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: {place}/")


@pytest.mark.parametrize("words", [("-m", "seed=1,2"), ("-m", "seed=1,2", "jobs=2")])
def test_a_grid_whose_outputs_lie_below_a_file_is_one_line(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    (tmp_path / "file").touch()
    assert train(*words, f"output_root={tmp_path / 'file' / 'outputs'}") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: {tmp_path / 'file' / 'outputs'}")
    assert "Errno" not in line
