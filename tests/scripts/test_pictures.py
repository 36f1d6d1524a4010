"""The pictures of masks and of class-activation maps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageColor
from torch import nn

from dropblock import DropPath, SpatialDropout
from experiment.source import NetworkSource
from scripts import cam, masks


def test_masks_show_every_layer(tmp_path: Path) -> None:
    torch.manual_seed(0)
    maps, image = torch.rand(1, 16, 14, 14), torch.rand(1, 3, 32, 32)
    masks.draw(image, maps, 0.75, tmp_path / "new" / "masks.png")
    with Image.open(tmp_path / "new" / "masks.png") as picture:
        pixels = {colour: number for number, colour in picture.convert("RGB").getcolors(1 << 24)}
    kept, dropped = (pixels[ImageColor.getrgb(colour)] for colour in (masks.KEPT, masks.DROPPED))
    # Five masks in the colour of kept units; grey in them and in the maps below. An axes has some 200 x 200 pixels.
    assert 2 * 40_000 < kept < 5 * 40_000
    assert 40_000 < dropped < 15 * 40_000


def test_the_regularizers_of_images_are_all_shown(tmp_path: Path) -> None:
    """On photographs of one's own, here noise; each leaves something of the image, and changes it."""
    numbers = torch.Generator().manual_seed(0)
    files = []
    for name, size in (("one.png", (40, 60)), ("other.jpg", (70, 50))):
        noise = torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=numbers)
        Image.fromarray(noise.numpy()).save(tmp_path / name)
        files.append(str(tmp_path / name))
    assert masks.main(["--images", "--photographs", *files, "--out", str(tmp_path / "images.png")]) == 0
    with Image.open(tmp_path / "images.png") as picture:
        assert picture.width > 900
    pair = torch.rand(2, 3, 24, 24, generator=numbers)
    for name in ("cutout", "trivialaugment", "mixup"):
        shown = masks.changed_images(name, pair)
        assert len(shown) == masks.DRAWS
        assert all((image - pair[:1]).abs().mean() > masks.LEAST for image in shown)
    assert masks.main(["--images", "--photographs", files[0], "--out", str(tmp_path / "x.png")]) == 2


def test_masks_drop_something_that_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for layer in (SpatialDropout(keep_prob=0.9), DropPath(keep_prob=0.9)):
        kept = masks.drop_visibly(layer, torch.Size((1, 8, 5, 5)), [2, 5])
        gone = ~kept[0, [2, 5]].flatten(1)
        assert gone.all(1).any()
        assert gone.all() == isinstance(layer, DropPath)
    monkeypatch.setattr(masks, "SEEDS", 20)
    with pytest.raises(ValueError, match="lower keep_prob"):
        masks.drop_visibly(SpatialDropout(keep_prob=1.0), torch.Size((1, 8, 5, 5)), [2, 5])


def test_channels_shown_are_unlike_each_other() -> None:
    edge, bump = torch.eye(6), torch.zeros(6, 6)
    bump[2:4, 2:4] = 1.0
    maps = torch.stack([3 * edge, 2.9 * edge, bump])[None]
    assert masks.distinct_channels(maps, 2) == [0, 2]


def test_activation_maps_are_the_classifiers_weights_on_the_last_maps() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def features(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = Net()
    with torch.no_grad():
        model.fc.weight.copy_(torch.tensor([[1.0, 0.0], [2.0, -1.0]]))
    images = torch.tensor([[[[1.0, 4.0]], [[6.0, 0.0]]]]).repeat(2, 1, 1, 1)
    maps = cam.activation_maps(model, images, torch.tensor([0, 1]))
    torch.testing.assert_close(maps, torch.tensor([[[0.25, 1.0]], [[0.0, 1.0]]]))


def test_cam_of_two_runs(
    train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for regularizer in ("none", "dropblock"):
        assert train(f"regularizer={regularizer}", "epochs=1", f"run_dir={tmp_path}/{regularizer}-x/seed-1") == 0
    runs = [str(tmp_path / f"{name}-x" / "seed-1") for name in ("none", "dropblock")]
    assert cam.main([*runs, "--images", "3", "--out", str(tmp_path / "cam.png")]) == 0
    with Image.open(tmp_path / "cam.png") as picture:
        assert min(picture.size) > 200
    capsys.readouterr()
    assert cam.main([str(tmp_path / "nothing")]) == 2
    assert cam.main([runs[0], "--images", "0"]) == 2
    # Runs of other data, of another task, and of a network whose classifier is not known.
    plan, payload, data = cam.opened(NetworkSource(run=runs[0], workers=0), torch.device("cpu"))
    foreign = replace(plan, model=replace(plan.model, library="torchvision"))
    for other in (
        (plan, payload, replace(data, fingerprint="other")),
        (plan, payload, replace(data, task="detection")),
        (foreign, payload, data),
    ):
        found = iter([(plan, payload, data), other])
        monkeypatch.setattr(cam, "opened", lambda source, device, found=found: next(found))
        assert cam.main(runs) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    for line, culprit in zip(printed, ("nothing", "--images 0", "data", "detection", "torchvision"), strict=True):
        assert culprit in line
