"""`build_data` with its option groups flat, so that a test names only what it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from data import Augment, Cut, Data, Loading, Reading, Source
from data import build_data as build_from_groups


def build_data(name: str, *, augment: Augment | Mapping[str, Any] = Augment(), **options: Any) -> Data:  # noqa: B008
    """Options that no group has go to `Source.options`."""
    given = dict(options)

    def group(cls: type) -> Any:
        return cls(**{field.name: given.pop(field.name) for field in fields(cls) if field.name in given})

    if "device" in given:
        given["device"] = torch.device(given["device"])
    cut, reading, loading = group(Cut), group(Reading), group(Loading)
    place = {key: given.pop(key) for key in ("root", "download") if key in given}
    augment = augment if isinstance(augment, Augment) else Augment(**augment)
    return build_from_groups(name, Source(**place, options=given), cut, augment, reading, loading)
