"""Strided 1x1 convolutions on few channels: the same function, in a form that does not end the process.

A native crash shows in the exit status of a process alone, so one subprocess runs every case.
"""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from models import build_model
from models.strided import pick_pixels_first

ROOT = Path(__file__).resolve().parents[2]

# (network, width, side, stem): README's commands, the width of its study at sizes of other data, and other networks
# whose projections are narrow.
STEPS = """
import torch
from models import build_model
torch.set_num_threads(1)
small = {"body": "resnet18", "fpn_width": 8, "head_width": 8, "num_classes": 3}
for name, options, side in (
    ("resnet18", {"width": 8, "stem": "small"}, 28),
    ("resnet18", {"width": 8, "stem": "small"}, 64),
    ("resnet18", {"width": 12, "stem": "small"}, 100),
    ("resnet50", {"width": 2, "stem": "small"}, 64),
    ("amoebanet_b", {"width": 8, "stem": "small", "cells": 1}, 66),
    ("retinanet", {"width": 8, "stem": "stride2", **small}, 128),
    ("segmentation_fpn", {"width": 8, "stem": "stride2", **small}, 128),
):
    options.setdefault("num_classes", 3)
    model = build_model(name, **options).to(memory_format=torch.channels_last).train()
    for _ in range(3):
        x = torch.randn(4, 3, side, side).to(memory_format=torch.channels_last)
        y = model(x)
        sum(part.square().sum() for part in (y if isinstance(y, tuple) else (y,)) if part.requires_grad).backward()
    print(name, side, flush=True)
"""


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="the error is of AVX-512 kernels")
def test_a_backward_step_of_narrow_networks_ends_well() -> None:
    run = subprocess.run(
        [sys.executable, "-c", STEPS],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, f"after {run.stdout.splitlines()[-1:]}: {run.stderr[-500:]}"


def test_picking_pixels_first_is_the_same_function() -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 16, 1, stride=2, bias=False)
    other = pick_pixels_first(nn.Sequential(copy.deepcopy(plain)))
    assert other.state_dict().keys() == {"0.weight"}
    for side in (28, 33):
        x = torch.randn(2, 8, side, side, requires_grad=True)
        expected, got = plain(x), copy.deepcopy(other)(x)
        assert torch.equal(got, expected)
        direction = torch.randn_like(expected)
        gradients = [torch.autograd.grad(y, x, direction)[0] for y in (expected, got)]
        torch.testing.assert_close(gradients[0], gradients[1])


def test_only_narrow_strided_1x1_convolutions_are_changed() -> None:
    def changed(width: int) -> list[str]:
        model = build_model("resnet18", num_classes=2, width=width)
        return [path for path, module in model.named_modules() if hasattr(module, "picked_stride")]

    assert changed(8) == ["layer2.0.downsample.0"]
    assert changed(16) == []
