"""A checkpoint is whole or not there, and damage is reported, not loaded."""

from __future__ import annotations

import errno
import os
import pickle
import random
import resource
from pathlib import Path

import pytest
import torch

from engine.checkpoint import CheckpointError, load, load_latest, save


def payload(number: int = 0) -> dict[str, object]:
    return {"model": {"weight": torch.full((50, 50), float(number))}, "step": number, "fingerprint": "x"}


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save(payload(3), tmp_path / "last.pt")
    loaded = load(tmp_path / "last.pt")
    assert loaded["step"] == 3
    assert torch.equal(loaded["model"]["weight"], torch.full((50, 50), 3.0))
    # Plain torch reads it as well, past the checksum at the end.
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    save(payload(), tmp_path / "last.pt")
    whole = (tmp_path / "last.pt").read_bytes()
    draw = random.Random(0)
    for _ in range(100):
        bit = draw.randrange(8 * len(whole))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (tmp_path / "bad.pt").write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"bad\.pt"):
            load(tmp_path / "bad.pt")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_one_is_reported_and_the_one_before_is_used(tmp_path: Path, share: float) -> None:
    save(payload(1), tmp_path / "last.pt")
    save(payload(2), tmp_path / "last.pt", keep_previous=True)
    whole = (tmp_path / "last.pt").read_bytes()
    (tmp_path / "last.pt").write_bytes(whole[: int(share * len(whole))])
    with pytest.warns(UserWarning, match=r"last\.pt"):
        found = load_latest(tmp_path)
    assert found is not None
    assert found[0]["step"] == 1


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch hostile-code-ran",)


def test_nothing_in_a_checkpoint_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save({"model": {}, "extra": Hostile()}, tmp_path / "hostile.pt")  # with a valid checksum
    with pytest.raises(CheckpointError, match=r"hostile\.pt"):
        load(tmp_path / "hostile.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError, match=r"raw\.pt"):
        load(tmp_path / "raw.pt")
    assert not (tmp_path / "hostile-code-ran").exists()


def test_a_full_disk_leaves_the_old_one_and_says_how_much_is_needed(tmp_path: Path) -> None:
    save(payload(1), tmp_path / "last.pt")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    big = {**payload(2), "model": {"weight": torch.zeros(500_000)}}
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=r"last\.pt.*2\.0 MB needed") as caught:
            save(big, tmp_path / "last.pt", keep_previous=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno == errno.EFBIG
    assert load(tmp_path / "last.pt")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


STEPS = ["open", "fsync", "link", "replace"]


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_point_of_the_write_leaves_the_old_or_the_new(tmp_path: Path, step: str) -> None:
    save(payload(1), tmp_path / "last.pt")
    child = os.fork()
    if child == 0:  # dies inside the write, as a kill would
        import engine.files as module

        if step == "open":
            module.open = lambda *a: os._exit(0)  # type: ignore[attr-defined]
        else:
            setattr(module.os, step, lambda *a: os._exit(0))
        save(payload(2), tmp_path / "last.pt", keep_previous=True)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0  # it did reach the point
    found = load_latest(tmp_path)
    assert found is not None
    assert found[0]["step"] == 1
