"""The library keeps its signatures, the files of its wheel, its masks and outputs to the last bit, and its networks."""

from __future__ import annotations

import json
from typing import Any

import pytest

import dropblock
import experiment
from tests.dropblock.dropblock_backends import BACKENDS
from tests.golden import library

KEPT: dict[str, dict[str, Any]] = json.loads(library.FILE.read_text())


def test_public_signatures() -> None:
    now, kept = {**library.public(dropblock), **library.public(experiment)}, KEPT["signatures"]
    moved = {name: (kept.get(name), now.get(name)) for name in kept | now if kept.get(name) != now.get(name)}
    assert moved == {}, "meant? TRITON_INTERPRET=1 python -m tests.golden.library"


def test_packages_of_the_wheel() -> None:
    """`tests/dropblock/test_wheel.py` builds it and compares its files with the same list."""
    files = library.wheel_files()
    assert files == list(KEPT["wheel"])
    assert {file for file in files if file.endswith(".py")} == {
        str(path.relative_to(library.ROOT)) for path in (library.ROOT / "dropblock").rglob("*.py")
    }


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "reference"])
def test_masks_of_every_backend(backend: str) -> None:
    """Triton's are compared in its interpreter: see `tests/dropblock/test_triton_interpreter.py`."""
    assert library.of_backend(backend) == KEPT[backend]


def test_masks_of_every_layer_and_function() -> None:
    assert library.of_layers() == KEPT["layers"]


@pytest.mark.parametrize("name", library.NETWORKS)
def test_networks_from_a_seed(name: str) -> None:
    found, kept = library.network(name), KEPT["networks"][name]
    assert (found["keys"], found["trained"]) == (kept["keys"], kept["trained"])
    assert [found["weights"], *found["output"]] == pytest.approx([kept["weights"], *kept["output"]], rel=1e-4)
