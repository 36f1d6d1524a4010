"""Batches, fingerprints and notes are those committed in `batches.json`, whatever the number of workers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.golden import batches

COMMITTED: dict[str, Any] = json.loads((batches.HERE / "batches.json").read_text())
EXACT = COMMITTED["made with"] == batches.made_with()


def long(names: tuple[str, ...], which: tuple[str, ...]) -> list[Any]:
    """The names, some of them for the long form of the tests alone."""
    return [pytest.param(name, marks=[pytest.mark.slow] if name in which else []) for name in names]


@pytest.mark.parametrize("name", long(tuple(batches.CASES), batches.LONG))
def test_batches(name: str) -> None:
    assert_as_committed(name, workers=0)


@pytest.mark.parametrize("name", long(batches.IN_FILES, batches.IN_FILES[3:]))
def test_batches_of_worker_processes(name: str) -> None:
    assert_as_committed(name, workers=2)


def assert_as_committed(name: str, workers: int) -> None:
    with batches.files_of(name) as root:
        found = batches.measured(name, root, workers)
    expected = json.loads(json.dumps(COMMITTED[name]))
    for key, entry in found["batches"].items():
        ours, theirs = (e.pop("projections").split() for e in (entry, expected["batches"][key]))
        assert [float(number) for number in ours] == pytest.approx([float(number) for number in theirs], abs=0.02), key
    if not EXACT:  # another processor may round the resizing of an image in another way
        for facts in (found, expected):
            del facts["fingerprint"]
            for entry in facts["batches"].values():
                del entry["images"]
    assert found == expected
