"""Parameters of every configs/model/*.yaml as a command line would build it, against published counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models import build_model
from tests.golden.measure import plan_of

MODELS = Path(__file__).resolve().parents[2] / "configs" / "model"

# file: (data, classes, further overrides, parameters, the published count)
EXPECTED: dict[str, tuple[str, int, tuple[str, ...], int, str]] = {
    "resnet18": ("imagenet", 1000, (), 11_689_512, "11.7 M, torchvision"),
    "resnet34": ("imagenet", 1000, (), 21_797_672, "21.8 M, torchvision"),
    "resnet50": ("imagenet", 1000, (), 25_557_032, "25.6 M, torchvision"),
    "resnet101": ("imagenet", 1000, (), 44_549_160, "44.5 M, torchvision"),
    "resnet152": ("imagenet", 1000, (), 60_192_808, "60.2 M, torchvision"),
    "amoebanet_b": ("imagenet", 1000, ("data.image_size=331",), 142_724_184, "141.8 M without the auxiliary head"),
    "fractalnet20": (
        "cifar100",
        100,
        ("recipe=fractalnet",),
        33_770_788,
        "38.6 M, unexplained: see models/fractalnet.py",
    ),
    "fractalnet34": ("imagenet", 1000, (), 164_031_016, "163 M in convolutions by the paper's rule"),
    "fractalnet40": ("cifar100", 100, ("recipe=fractalnet",), 22_924_212, "22.9 M, Larsson et al."),
    "resnet20": ("cifar10", 10, (), 269_722, "0.27 M, He et al. table 6"),
    "resnet56": ("cifar10", 10, (), 853_018, "0.85 M, He et al. table 6"),
    "resnet110": ("cifar10", 10, (), 1_727_962, "1.7 M, He et al. table 6"),
    "wide_resnet28_10": ("cifar10", 10, (), 36_479_194, "36.5 M, Zagoruyko and Komodakis"),
    "pyramidnet200": ("cifar100", 100, (), 26_844_952, "26.8 M, Yun et al. table 5"),
    "pyramidnet110": ("cifar10", 10, (), 28_485_477, "28.3 M, Han et al.: 0.2 M fewer, unexplained"),
    "pyramidnet110_small": ("cifar100", 100, (), 1_725_300, "1.7 M, Yun et al. table 6"),
    "resnet12": ("cifar100", 100, (), 12_488_420, "12.4 M and the classifier's 0.06 M, MetaOptNet"),
    "segmentation_fpn": ("voc_segmentation", 21, (), 47_604_053, "sum of its layers in tests/models/test_dense.py"),
    "retinanet": ("coco", 90, (), 34_070_414, "34.0 M, tensorflow/tpu detection/MODEL_ZOO.md"),
    "torchvision": ("imagenet", 1000, ("model.name=resnet50",), 25_557_032, "25.6 M, torchvision"),
    "timm": ("imagenet", 1000, ("model.name=resnet50",), 25_557_032, "25.6 M, timm"),
}
# Sizes of our own for a CPU, of which nothing is published.
OWN = {"retinanet_small", "segmentation_fpn_small", "segmentation_fpn_tiny"}


def test_no_model_is_left_out() -> None:
    assert {path.stem for path in MODELS.glob("*.yaml")} == {*EXPECTED, *OWN}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_configuration_builds_the_published_size(name: str) -> None:
    data, classes, more, parameters, source = EXPECTED[name]
    asked = plan_of((f"model={name}", f"data={data}", *more)).model
    if asked.library == "timm":
        pytest.importorskip("timm")
    shape = {} if asked.library else {"width": asked.width, "stem": asked.stem, "zero_gamma": asked.zero_gamma}
    library = {"architecture": asked.name} if asked.library else {}
    with torch.device("meta"):
        model = build_model(asked.library or asked.name, num_classes=classes, **shape, **library, **asked.options)
    assert sum(p.numel() for p in model.parameters()) == parameters, source
