"""Weights from a file: what fits loads, everything else is refused in one line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from models import build_model


def tiny(**options: object) -> nn.Module:
    return build_model("resnet18", num_classes=3, width=4, **options)


@pytest.mark.parametrize("form", ["bare", "model", "state_dict", "module.", "module._orig_mod.", "_orig_mod.module."])
def test_a_checkpoint_loads_bare_or_wrapped(form: str, tmp_path: Path) -> None:
    weights = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in tiny().state_dict().items()}
    saved: dict = {f"{form}{k}": v for k, v in weights.items()} if form.endswith(".") else weights
    torch.save({form: saved, "epoch": 3} if form in ("model", "state_dict") else saved, tmp_path / "w.pth")
    loaded = tiny(pretrained=tmp_path / "w.pth").state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in weights.items())


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    weights = {k: torch.full_like(v, 2) for k, v in tiny().state_dict().items()}
    safetensors.save_file(weights, tmp_path / "w.safetensors")
    assert all(v.eq(2).all() for v in tiny(pretrained=tmp_path / "w.safetensors").state_dict().values())


def test_torchvision_weights_load(tmp_path: Path) -> None:
    theirs = torchvision.models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "resnet18.pth")
    ours = build_model("resnet18", num_classes=1000, pretrained=tmp_path / "resnet18.pth")
    assert torch.equal(ours.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_weights_older_than_the_batch_counter_load(tmp_path: Path) -> None:
    weights = {k: v for k, v in tiny().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(weights, tmp_path / "w.pth")
    tiny(pretrained=tmp_path / "w.pth")


def one_line(path: Path) -> str:
    with pytest.raises(ValueError, match=r"\S") as caught:
        tiny(pretrained=path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_another_networks_weights_are_refused_by_name(tmp_path: Path) -> None:
    torch.save(build_model("resnet50", num_classes=3, width=4).state_dict(), tmp_path / "r50.pth")
    message = one_line(tmp_path / "r50.pth")
    assert "unexpected layer1.0.conv3.weight" in message
    assert "wrong shape layer1.0.conv1.weight (4, 4, 1, 1) for (4, 4, 3, 3)" in message
    torch.save(build_model("resnet18", num_classes=7, width=4).state_dict(), tmp_path / "classes.pth")
    assert one_line(tmp_path / "classes.pth").endswith(
        "wrong shape fc.weight (7, 32) for (3, 32), fc.bias (7,) for (3,)"
    )
    weights = tiny().state_dict()
    del weights["layer4.1.bn2.weight"]
    torch.save(weights, tmp_path / "less.pth")
    assert one_line(tmp_path / "less.pth").endswith("missing layer4.1.bn2.weight")


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def test_a_file_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Payload(tmp_path / "ran")}, tmp_path / "bad.pth")
    assert "refused" in one_line(tmp_path / "bad.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_what_is_no_weights_file_is_refused(tmp_path: Path) -> None:
    assert "no weights file" in one_line(tmp_path / "missing.pth")
    one_line(tmp_path)
    (tmp_path / "text.pth").write_text("hello")
    one_line(tmp_path / "text.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    one_line(tmp_path / "empty.pth")
    (tmp_path / "text.safetensors").write_text("hello")
    one_line(tmp_path / "text.safetensors")
    torch.save(tiny().state_dict(), tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-100])
    one_line(tmp_path / "cut.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "found list" in one_line(tmp_path / "list.pth")
    torch.save({"fc.weight": torch.eye(3).to_sparse()}, tmp_path / "sparse.pth")
    assert "'fc.weight' is no dense tensor" in one_line(tmp_path / "sparse.pth")
