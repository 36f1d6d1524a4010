"""Shared by the tests of examples and documentation: registrations are undone after each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import dropblock
import models
from configs import registered
from configs.regularizers import as_written


@pytest.fixture(autouse=True)
def _forgotten_afterwards() -> Iterator[None]:
    """Remove after a test what it registered."""
    kept: list[Any] = [dropblock.LAYERS, dropblock.SCHEDULES, models.MODELS, *registered.NODES.values()]
    before = [dict(names) for names in kept]
    yield
    for names, old in zip(kept, before, strict=True):
        names.clear()
        names.update(old)
    registered.SCHEDULES.clear()
    as_written.cache_clear()
