"""Parts shared by the programs of scripts/."""

from __future__ import annotations

import os

import pytest

from configs.checking import UserError
from scripts.entry import guarded


def test_a_reader_that_goes_away_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in `python scripts/report.py SWEEP | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done: list[str] = []

    @guarded
    def main(arguments: list[str]) -> int:
        for word in arguments:
            print(word, flush=True)
            done.append(word)
        return 0

    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr("sys.stdout", pipe)
        assert main(["one", "two"]) == 0
    assert done == ["one", "two"]
    assert capsys.readouterr().err == ""


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def main(arguments: list[str]) -> int:
        raise UserError("no such\nsweep")

    assert main([]) == 2
    assert capsys.readouterr() == ("", "error: no such sweep\n")
