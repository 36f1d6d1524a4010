"""docs/MIGRATE.md, followed word by word: every change it shows is made to code that has the old lines, and trained."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from dropblock import expected_drop, installed_layers

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "MIGRATE.md").read_text()


def changes(name: str) -> list[tuple[str, str]]:
    """(old lines, new lines) of every paragraph in the page's diffs of this name."""
    found = []
    for diff in re.findall(rf"```diff {name}\n(.*?)```", PAGE, re.DOTALL):
        for paragraph in diff.strip("\n").split("\n\n"):
            lines = paragraph.split("\n")
            old, new = ([line[1:] for line in lines if line[0] in f" {sign}"] for sign in "-+")
            found.append(("\n".join(old), "\n".join(new)))
    assert found, name
    return found


def before_and_after(name: str, source: str | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The names that the code defines with the old lines, and with the new ones in their place."""
    old, new = ("\n".join(part) for part in zip(*changes(name), strict=True))
    if source is not None:
        old = new = source
        for before, after in changes(name):
            assert new.count(before) == 1, before
            new = new.replace(before, after)
    spaces: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for text, space in zip((old, new), spaces, strict=True):
        exec(compile(text, name, "exec"), space)
    return spaces


def test_torchvisions_layer() -> None:
    pytest.importorskip("torchvision")
    torch.manual_seed(0)
    before, after = before_and_after("torchvision")
    x = torch.ones(64, 256, 14, 14)
    # The share dropped of one of the 16,384 feature maps varies by less than 0.15: 4.5 standard errors of a difference,
    # false alarm 7e-6.
    shares = [(space["layer"].train()(x) == 0).float().mean().item() for space in (before, after)]
    assert abs(shares[0] - shares[1]) < 4.5 * 0.15 * (2 / 16_384) ** 0.5
    assert abs(shares[1] - expected_drop(0.9, 7, 14, 14)) < 4.5 * 0.15 / 16_384**0.5
    assert after["layer"](torch.ones(8, 16, 6, 6)).shape == (8, 16, 6, 6)
    with pytest.raises(ValueError, match="odd"):
        before["layer"](torch.ones(8, 16, 6, 6))


@pytest.mark.parametrize(("name", "number"), [("timm", 4), ("timm-paper", 16)])
def test_timms_networks(name: str, number: int) -> None:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    before, after = before_and_after(name)
    old, new = before["model"], after["model"]
    assert list(old.state_dict()) == list(new.state_dict())
    new.load_state_dict(old.state_dict())
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(old.eval()(x), new.eval()(x))
    if "schedule" in after:
        after["schedule"].set(1.0)
    layers = installed_layers(new.train())
    assert len(layers) == number
    assert {round(layer.keep_prob.item(), 6) for layer in layers} == {0.9, 0.975}
    new(x).sum().backward()
    assert all(layer.seen_units > 0 for layer in layers)
    if name == "timm":
        places = [path for path, module in old.named_modules() if type(module).__name__ == "DropBlock2d"]
        blocks = {path: layer.block_size for path, layer in new.named_modules() if layer in layers}
        assert [path.split(".site_after")[0] for path in blocks] == places
        assert [old.get_submodule(path).block_size for path in places] == list(blocks.values())


@pytest.mark.parametrize(
    ("name", "pattern"), [("mmdet", r"counts in.*?`(KeepProb[^`]*)`"), ("pypi", r"`schedule = ([^`]*)`")]
)
def test_layers_that_counted_their_own_steps(name: str, pattern: str) -> None:
    """The lines of the page after the change; the libraries themselves are not installed."""
    space: dict[str, Any] = {}
    exec("\n".join(new for _, new in changes(name)), space)
    (schedule,) = re.findall(pattern, PAGE, re.DOTALL)
    schedule = eval(schedule, {**space, "model": torch.nn.Sequential(space["layer"])})
    for step, share in ((0, 0.1 / 2000 if name == "mmdet" else 0.0), (1_000_000, 0.1)):
        schedule.set(step)
        assert space["layer"].keep_prob.item() == pytest.approx(1 - share, abs=1e-6)


def test_a_few_shot_resnet12() -> None:
    torch.manual_seed(0)
    before, after = before_and_after("resnet12", (ROOT / "tests/dropblock/resnet12.py").read_text())
    old, new = (space["ResNet12"](5, width=4) for space in (before, after))
    assert list(old.state_dict()) == list(new.state_dict())
    new.load_state_dict(old.state_dict())
    x = torch.randn(2, 3, 84, 84)
    assert torch.equal(old.eval()(x), new.eval()(x))

    batches = [(torch.randn(4, 3, 84, 84), torch.arange(4)) for _ in range(3)]
    assert [block.steps for block in before["train"](batches, 5, width=4).children() if hasattr(block, "steps")] == [
        3
    ] * 4
    trained = after["train"](batches, 5, width=4)
    layers = installed_layers(trained)
    assert [layer.keep_prob.item() for layer in layers] == pytest.approx([1 - 0.1 * 2 / 40_000] * 4, abs=1e-7)
    assert [layer.block_size for layer in layers] == [1, 1, 5, 5]
    assert all(layer.seen_units > 0 for layer in layers)

    schedule = after["KeepProbSchedule"](new, 0.9, lambda step: max(1 - 0.1 * step / 40_000, 0.9))
    schedule.set(60_000)
    new.train()
    with torch.no_grad():
        for _ in range(4):
            new(torch.randn(16, 3, 84, 84))
    last = installed_layers(new)[-1]  # feature maps of 5x5 with block 5: a whole channel at a time
    dropped = 1 - last.kept_units.item() / last.seen_units.item()
    assert abs(dropped - 0.1) < 4.5 * (0.09 / (4 * 16 * 40)) ** 0.5  # false alarm 7e-6


def test_the_old_drop_blocks_of_the_test_is_the_papers() -> None:
    space: dict[str, Any] = {}
    exec((ROOT / "tests/dropblock/resnet12.py").read_text(), space)
    torch.manual_seed(0)
    y = space["drop_blocks"](torch.ones(64, 64, 10, 10), 0.9, 5)
    # 4,096 feature maps, each varies by less than 0.2: 4.5 standard errors, false alarm 7e-6.
    assert abs((y == 0).float().mean().item() - expected_drop(0.9, 5, 10, 10)) < 4.5 * 0.2 / 64


def test_every_diff_of_the_page_is_followed_here() -> None:
    assert set(re.findall(r"```(\S+ ?\S*)\n", PAGE)) == {
        "diff torchvision",
        "diff timm",
        "diff timm-paper",
        "diff resnet12",
        "diff mmdet",
        "diff pypi",
    }
