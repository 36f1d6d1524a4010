"""Shared by the tests of examples and documentation: registrations are undone after each test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import dropblock
import models
from configs import groups
from data.batch_regularizers import BATCH_REGULARIZERS
from data.image_regularizers import IMAGE_REGULARIZERS
from engine.tasks.losses import LOSSES


@pytest.fixture(autouse=True)
def _forgotten_afterwards() -> Iterator[None]:
    """Remove after a test what it registered."""
    registries = [dropblock.LAYERS, dropblock.SCHEDULES, models.MODELS, IMAGE_REGULARIZERS, BATCH_REGULARIZERS, LOSSES]
    kept: list[Any] = [*registries, *groups.NODES.values()]
    before = [dict(names) for names in kept]
    yield
    for names, old in zip(kept, before, strict=True):
        names.clear()
        names.update(old)
    groups.SCHEDULES.clear()
    groups.declared.cache_clear()
