"""Networks of torchvision and timm, with sites declared from the outside (see `dropblock.foreign`)."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from torch import nn

from dropblock.foreign import Place, declare_sites
from dropblock.sites import declared_sites

# Of the loss of each auxiliary classifier, in training: GoogLeNet's as in its paper (Szegedy et al. 2015, section 5),
# Inception-v3's as in Google's release (TF-Slim).
AUX_WEIGHTS = {"googlenet": 0.3, "inception_v3": 0.4}


def build_torchvision(
    num_classes: int,
    in_channels: int = 3,
    architecture: str = "resnet50",
    places: Sequence[Mapping[str, Any]] | None = None,
) -> nn.Module:
    """A classification network of torchvision, without weights.

    Args:
        num_classes: outputs of the classifier.
        in_channels: 3; torchvision's networks take no other images.
        architecture: its name there, such as `resnet50` or `efficientnet_b0`.
        places: places to declare sites at, with the fields of `dropblock.Place`. None takes the places that are known
            for the family; a family without any gets no sites.

    Raises:
        ValueError: for an unknown name, another number of channels, or a pattern that names nothing.
    """
    from torchvision import models

    if in_channels != 3:
        raise ValueError(f"torchvision's {architecture} takes images of 3 channels, not {in_channels}")
    names = models.list_models(module=models)
    if architecture not in names:
        raise ValueError(unknown("torchvision", architecture, names))
    model = with_sites(models.get_model(architecture, weights=None, num_classes=num_classes), num_classes, places)
    if architecture in AUX_WEIGHTS:
        model.aux_weight = AUX_WEIGHTS[architecture]  # type: ignore[assignment]
    return model


def build_timm(
    num_classes: int,
    in_channels: int = 3,
    architecture: str = "resnet50",
    places: Sequence[Mapping[str, Any]] | None = None,
) -> nn.Module:
    """A network of timm, without weights; arguments as for `build_torchvision`, with any number of channels.

    Raises:
        ValueError: see there; or timm is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise ValueError("model timm needs the package timm: pip install timm") from error
    names = timm.list_models()
    if architecture not in names:
        raise ValueError(unknown("timm", architecture, names))
    model = timm.create_model(architecture, num_classes=num_classes, in_chans=in_channels)
    return with_sites(model, num_classes, places)


def with_sites(model: nn.Module, num_classes: int, places: Sequence[Mapping[str, Any]] | None) -> nn.Module:
    """`declared`, with places as a YAML file has them.

    Raises:
        ValueError: see `declared`; or a field that `dropblock.Place` does not have, or a value that it refuses.
    """
    try:
        own = None if places is None else [Place(**place) for place in places]
    except (TypeError, ValueError) as error:
        known = ", ".join(field.name for field in fields(Place)[1:])
        text = f"model.options.places: {places}: a place has modules, and may have {known} ({error})"
        raise ValueError(text) from error
    return declared(model, num_classes, own)


def declared(model: nn.Module, num_classes: int, places: Sequence[Place] | None = None) -> nn.Module:
    """A network with its sites, and with what every network here has: `num_classes` and `last_group`.

    Args:
        model: changed in place; what it has already stays.
        num_classes: outputs of the classifier.
        places: places to declare sites at; None takes those that the network has, or else the known ones of its family.
    """
    if places is not None:
        declare_sites(model, places)
    elif not declared_sites(model):
        with contextlib.suppress(ValueError):  # an unknown family: a baseline needs no sites
            declare_sites(model)
    groups = [site.group for site in declared_sites(model).values() if isinstance(site.group, int)]
    for name, value in (("num_classes", num_classes), ("last_group", max([4, *groups]))):
        if not hasattr(model, name):
            setattr(model, name, value)
    return model


def unknown(library: str, architecture: str, names: Sequence[str]) -> str:
    near = ", ".join(difflib.get_close_matches(architecture, names, n=3)) or "list them with its list_models()"
    return f"{library} has no network '{architecture}'; nearest: {near}"
