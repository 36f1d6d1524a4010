"""Reports that several tests read: written once a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.report import main
from tests.scripts.made_up_sweep import grid, made_up

FOUR_SEEDS = {
    "none": (80.0, 80.4, 80.2, 79.9),
    "dropblock": (81.1, 81.3, 81.3, 80.8),
    "dropout": (79.0, 81.5, 80.3, 80.1),
}


@pytest.fixture(scope="session")
def table1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The paper's Table 1, nine rows of three seeds, with its report."""
    folder = made_up(tmp_path_factory.mktemp("table1"), "table1")
    assert main([str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def four_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A grid of three regularizers in four seeds, with its report."""
    rows = {(f"regularizer={name}", "data=digits"): values for name, values in FOUR_SEEDS.items()}
    folder = grid(tmp_path_factory.mktemp("grid"), rows)
    assert main([f"sweep={folder}"]) == 0
    return folder
