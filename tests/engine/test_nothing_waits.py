"""Between a batch and the next step the host waits for the device nowhere: it would stand still while the host goes on.

On a GPU torch itself refuses to wait; without one a made-up GPU notes every operation that would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from configs.compose import plan_of
from data.batch_regularizers import BATCH_REGULARIZERS
from data.image_regularizers import IMAGE_REGULARIZERS
from dropblock import Site, operator
from engine.distributed import Ranks
from engine.loop import Fit
from engine.run_directory import RunDirectory
from engine.signals import StopRequest
from experiment.build import build_fit, open_data
from tests.pretended_cuda import CUDA, PretendedCuda

STEP = ("recipe.ema_decay=0.9", "epochs=1", "log_every=1000")
SMALL = ("data=digits", "data.train_subset=40", "batch_size=8", "model=resnet18", "groups=[4]", "block_size=1")
FILES = (
    "data=imagenet",
    "recipe=imagenette",
    "data.image_size=32",
    "batch_size=4",
    "model=resnet18",
    "groups=[4]",
    "block_size=1",
)
LOADERS = {
    "in memory": (*SMALL, "regularizer=dropblock"),
    "files": (*FILES, "regularizer=dropblock"),
    "masks": ("data=digit_masks", "data.train_subset=8", "batch_size=4", "groups=[4]"),
    # torch's clipping asks for the device where the made-up GPU cannot answer.
    "boxes": ("data=digit_boxes", "data.train_subset=8", "batch_size=4", "groups=[4]", "recipe.grad_clip=null"),
}
STEPS = {
    **LOADERS,
    **{
        f"{name}, files": (*FILES, f"regularizer=[dropblock,{name}]")
        for name, of in IMAGE_REGULARIZERS.items()
        if hasattr(of, "on_batch")  # the others change an image in the process that reads it
    },
    **{name: (*SMALL, f"regularizer=[dropblock,{name}]") for name in (*IMAGE_REGULARIZERS, *BATCH_REGULARIZERS)},
    **{
        f"{name}, each": (*SMALL, f"regularizer=[dropblock,{name}]", f"regularizer.{name}.together=image")
        for name in BATCH_REGULARIZERS
    },
    "random_erasing, random": (
        *SMALL,
        "regularizer=[dropblock,random_erasing]",
        "regularizer.random_erasing.value=random",
    ),
}


class Small(nn.Module):
    """A network with a stage and a site, so that a step is as short as it can be."""

    last_group = 4

    def __init__(self, *_: object, in_channels: int, num_classes: int, **__: object) -> None:
        super().__init__()
        self.layer1 = nn.Sequential(nn.Conv2d(in_channels, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4))
        self.layer2 = nn.Conv2d(4, 4, 1)
        self.site = Site(4, "conv", "bn1")
        self.head = nn.Linear(4, num_classes)

    def maps(self, x: Tensor) -> Tensor:
        return self.site(self.layer2(self.layer1(x))).relu()

    def forward(self, x: Tensor) -> Any:
        return self.head(self.maps(x).mean((2, 3)))


class SmallSegmenter(Small):
    def forward(self, x: Tensor) -> Any:
        return self.head(self.maps(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class SmallDetector(Small):
    """Class logits, box deltas and anchors; the same at each of four anchors."""

    def __init__(self, *arguments: object, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.register_buffer("anchors", torch.tensor([[8.0 * i, 0.0, 8.0 * i + 16.0, 16.0] for i in range(4)]))
        self.box = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        pooled = self.maps(x).mean((2, 3))[:, None].expand(-1, 4, -1)
        return self.head(pooled), self.box(pooled), self.anchors


NETWORKS = {"masks": SmallSegmenter, "boxes": SmallDetector}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photographs")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)
    for split, label, number in itertools.product(("train", "val"), ("a", "b"), range(8)):
        path = root / split / label / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return root


def stepped(
    words: tuple[str, ...], photographs: Path, device: torch.device, before_each: Callable[[], None], steps: int
) -> Fit:
    """Some batches and steps of a new run."""
    folder = (f"data.root={photographs}",) if "data=imagenet" in words else ()
    plan = plan_of(*words, *STEP, *folder, "workers=0", "progress=false")
    data = open_data(plan, device, Ranks())
    fit, _ = build_fit(plan, data, RunDirectory(Path()), device, Ranks(), StopRequest())
    batches = data.train.epoch(0)
    for _ in range(steps):
        before_each()
        fit.step(next(batches), 0.5)
    return fit


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=pytest.mark.slow if step == "boxes" else ()) for step in STEPS
    ],  # its scenes take seconds
)
def test_a_batch_and_its_step(step: str, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiment.build.build_model", NETWORKS.get(step, Small))
    monkeypatch.setattr(operator, "gpu_backend", lambda _: operator.DENSE)
    with PretendedCuda() as gpu:
        fit = stepped(STEPS[step], photographs, CUDA, gpu.forget, steps=1)
    assert gpu.waits == []
    assert type(fit.data.train).__name__ == ("TensorLoader" if "data=digits" in STEPS[step] else "FileLoader")


@pytest.mark.gpu
@pytest.mark.parametrize("step", STEPS)
def test_a_batch_and_its_step_on_a_gpu(step: str, photographs: Path) -> None:
    def refuse_from_the_second_on() -> None:
        nonlocal begun
        torch.cuda.set_sync_debug_mode("error" if begun else "default")
        begun = True

    begun = False
    try:
        stepped(STEPS[step], photographs, torch.device("cuda", 0), refuse_from_the_second_on, steps=2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.sum() > 0),
        lambda x: x.cpu(),
        lambda x: x.to("cpu", non_blocking=False),
        lambda x: x.tolist(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.copy_(torch.ones(3)),
        lambda x: torch.ones(3).to(CUDA) + x,
        lambda x: x[torch.tensor([0, 1])],
    ],
)  # fmt: skip
def test_the_made_up_gpu_notes_what_waits(wait: Callable[[Tensor], object]) -> None:
    with PretendedCuda() as gpu:
        x = torch.ones(3, device=CUDA)
        torch.ones(3).to(CUDA, non_blocking=True).mul_(2.0).add_(x).clone().sum()
        assert gpu.waits == []
        wait(x)
        assert len(gpu.waits) == 1
