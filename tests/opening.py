"""`build_data` with its configuration flat, so that a test names only what it is about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch

from configs.schema import AugmentConfig, DataConfig
from data import Data, Loading
from data import build_data as build_from_configuration
from data.image_regularizers import AutoAugment, Cutout


def build_data(name: str, *, augment: Mapping[str, Any] | None = None, **options: Any) -> Data:
    """Options are keys of `DataConfig` and `Loading`; augment: of `AugmentConfig`, and `autoaugment` and `cutout`."""
    options = {**options, "name": name, "root": None if options.get("root") is None else str(options["root"])}
    if "device" in options:
        options["device"] = torch.device(options["device"])
    changes, regularizers = dict(augment or {}), list[Any]()
    if policy := changes.pop("autoaugment", None):
        regularizers.append(AutoAugment(policy))
    if side := changes.pop("cutout", None):  # in pixels
        regularizers.append(Cutout(side / options.get("image_size", DataConfig.image_size)))
    data, loading = (
        {f.name: options.pop(f.name) for f in fields(part) if f.name in options} for part in (DataConfig, Loading)
    )
    assert not options, options
    return build_from_configuration(
        DataConfig(**data), AugmentConfig(**changes), Loading(**loading, regularizers=regularizers)
    )
