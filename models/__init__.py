"""Network families, one a file. Each declares its sites and knows nothing of what may be installed there."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from models.amoebanet import AmoebaNet
from models.fractalnet import FORMS, FractalNet
from models.outside import build_timm, build_torchvision
from models.pretrained import load_pretrained
from models.pyramidnet import FORMS as PYRAMIDS
from models.pyramidnet import PyramidNet
from models.resnet import UNITS, ResNet
from models.resnet12 import ResNet12
from models.resnet_cifar import DEPTHS, CifarResNet
from models.retinanet import RetinaNet
from models.segmentation_fpn import SegmentationFPN
from models.strided import pick_pixels_first
from models.wide_resnet import WideResNet

__all__ = ["MODELS", "build_model", "load_pretrained"]

MODELS: dict[str, Callable[..., nn.Module]] = {
    **{name: partial(ResNet, *units) for name, units in UNITS.items()},
    "amoebanet_b": AmoebaNet,
    **{name: partial(FractalNet, form) for name, form in FORMS.items()},
    **{name: partial(CifarResNet, depth) for name, depth in DEPTHS.items()},
    "wide_resnet28_10": WideResNet,
    **{name: partial(PyramidNet, **form) for name, form in PYRAMIDS.items()},
    "resnet12": ResNet12,
    "segmentation_fpn": SegmentationFPN,
    "retinanet": RetinaNet,
    "torchvision": build_torchvision,
    "timm": build_timm,
}
TYPES: dict[str, Any] = {"int": int, "float": int | float, "bool": bool, "str": str}  # of an option, as annotated
ON_A_BODY = ("segmentation_fpn", "retinanet")  # weights from a file go into their ResNet


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    width: int = 64,
    stem: str = "imagenet",
    zero_gamma: bool = False,
    pretrained: str | Path | None = None,
    **options: object,
) -> nn.Module:
    """Build a network by name.

    Every network has the attributes `num_classes` and `last_group` (the number of its last group of sites). The
    classifiers written here also have the method `features(x)`, the maps that `fc` sees after pooling.

    Args:
        name: a key of MODELS.
        num_classes: outputs of the classifier, >= 1.
        in_channels: channels of the images, >= 1.
        width: channels of the first group, >= 1; not for `torchvision` and `timm`, whose architectures fix it.
        stem: `imagenet`, or `small` for images of 32 pixels or so; what is made of a ResNet also takes `stride2`, in
            between. Not for `torchvision` and `timm` either.
        zero_gamma: the last BN of every residual unit starts at weight 0.
        pretrained: a file of weights of this very network (.pt, .pth, .safetensors); for `segmentation_fpn` and
            `retinanet` a classifier's, for their body.
        options: what else the named family takes.

    Raises:
        ValueError: for an unknown name, stem or option, an option of another type, a size below 1, or a file that does
            not fit.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}', choose one of {', '.join(MODELS)}")
    for key, value in (("num_classes", num_classes), ("in_channels", in_channels), ("width", width)):
        if value < 1:
            raise ValueError(f"model {name}: {key} must be at least 1, not {value}")

    # A family is given what its signature has, so that one without stem or width needs no such argument.
    taken = inspect.signature(MODELS[name]).parameters
    shape = {"num_classes": num_classes, "in_channels": in_channels, "width": width, "stem": stem}
    if zero_gamma:
        options["zero_gamma"] = True
    for key, given in options.items():
        if key not in taken:
            known = ", ".join(sorted(set(taken) - set(shape))) or "none"
            raise ValueError(f"model {name} takes no option '{key}', only {known}")
        # A value of another type would fail somewhere inside, in words that name no option.
        wanted, _, or_none = str(taken[key].annotation).partition(" | ")
        if not isinstance(given, TYPES.get(wanted, object)) and not (or_none and given is None):
            raise ValueError(f"model.options.{key}={given}: must be of type {wanted}")
    # The seed of the run decides the weights; a file replaces them afterwards.
    model = MODELS[name](**{key: value for key, value in shape.items() if key in taken}, **options)
    if pretrained is not None:
        load_pretrained(model, pretrained, into="body" if name in ON_A_BODY else "")
    return pick_pixels_first(model)
