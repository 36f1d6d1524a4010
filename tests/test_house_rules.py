"""Rules of the house that no linter knows: who imports whom, and what never stands in the code."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("configs", "dropblock", "models", "data", "engine", "scripts")
DOORS = ("train.py", "evaluate.py")

MAY_IMPORT = {
    "configs": set[str](),
    "dropblock": set[str](),
    "models": {"dropblock"},
    "data": set[str](),
    "engine": set[str](),
    "scripts": {"engine", "models", "data", "dropblock", "configs", "train", "evaluate"},
    "train.py": {"configs", "engine", "models", "data", "dropblock"},
    "evaluate.py": {"configs", "engine", "models", "data", "dropblock", "train"},
}
OURS = {*ROOMS, "train", "evaluate"}


def sources(place: str) -> list[Path]:
    path = ROOT / place
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


@pytest.mark.parametrize("place", [*ROOMS, *DOORS])
def test_imports_go_one_way(place: str) -> None:
    for path in sources(place):
        rooms = {name.split(".")[0] for name in imported(path)} & OURS - {place}
        assert rooms <= MAY_IMPORT[place], f"{path.relative_to(ROOT)} imports {rooms - MAY_IMPORT[place]}"


def test_models_know_of_the_layers_only_their_sites() -> None:
    for path in sources("models"):
        for name in imported(path):
            assert not name.startswith("dropblock") or name in (
                "dropblock.sites",
                "dropblock.foreign",
                "dropblock.fractal",
            ), path


def test_the_library_imports_torch_and_nothing_else() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "dropblock", "triton"}
    for path in sources("dropblock"):
        foreign = {name.split(".")[0] for name in imported(path)} - allowed
        assert not foreign, f"{path.name} imports {foreign}"


def test_only_the_doors_import_hydra() -> None:
    for room in ROOMS:
        for path in sources(room):
            assert "hydra" not in {name.split(".")[0] for name in imported(path)}, path


FORBIDDEN = {
    r"weights_only\s*=\s*False": "unsafe loading",
    r"\bpickle\.loads?\(": "unsafe loading",
    r"\bdrop_prob\b": "the word is keep_prob",
    r"\b(TODO|FIXME|XXX)\b": "unfinished work",
}

# Calls that other libraries taught people are accepted there: p= and drop_prob= beside keep_prob=.
MAY_SAY_DROP_PROB = ("dropblock/arguments.py", "dropblock/functional.py", "dropblock/layers.py", "dropblock/compat/")


@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_what_never_stands_in_the_code(pattern: str) -> None:
    for place in (*ROOMS, *DOORS):
        for path in sources(place):
            if "drop_prob" in pattern and str(path.relative_to(ROOT)).startswith(MAY_SAY_DROP_PROB):
                continue
            for number, line in enumerate(path.read_text().splitlines(), start=1):
                assert not re.search(pattern, line), f"{path}:{number}: {FORBIDDEN[pattern]}"


def test_files_are_named_after_what_is_inside() -> None:
    for place in ROOMS:
        for path in sources(place):
            assert path.stem not in ("util", "utils", "misc", "common", "helpers", "helper"), path
