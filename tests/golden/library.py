"""Measures what must not move in `dropblock` and `models`: signatures, files of the wheel, masks and outputs, weights.

    TRITON_INTERPRET=1 python -m tests.golden.library              # writes tests/golden/library.json anew

Run it only for a change that is meant to move them, and say in CHANGELOG.md which moved and why.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import dropblock
import experiment
from dropblock import DropLayer, FractalDropPath
from dropblock.compat import timm, torchvision
from models import build_model
from tests.dropblock.dropblock_backends import BACKENDS, run

FILE = Path(__file__).parent / "library.json"
ROOT = Path(__file__).parents[2]
SEED = 12345


def parameters(of: Callable[..., Any]) -> str:
    """Names, kinds and defaults of the parameters; annotations may be written in another way."""
    signature = inspect.signature(of)
    plain = []
    for parameter in signature.parameters.values():
        default = "a function" if inspect.isfunction(parameter.default) else parameter.default
        plain.append(parameter.replace(annotation=parameter.empty, default=default))
    return str(signature.replace(parameters=plain, return_annotation=signature.empty))


def public(module: Any) -> dict[str, str]:
    """Every public name of a module: functions, classes with their public methods, the keys of registries."""
    found = {}
    for name in module.__all__:
        value = getattr(module, name)
        key = f"{module.__name__}.{name}"
        if inspect.isclass(value):
            found[key] = parameters(value)
            for method, its in inspect.getmembers(value, inspect.isroutine):
                if not method.startswith("_") and (getattr(its, "__module__", "") or "").startswith("dropblock"):
                    found[f"{key}.{method}"] = parameters(its)
        elif callable(value):
            found[key] = parameters(value)
        else:
            found[key] = ", ".join(value)
    return found


def wheel_files() -> list[str]:
    """The files that pyproject.toml puts into the wheel, without building it."""
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = []
    for package in setuptools["packages"]:
        folder = ROOT / package.replace(".", "/")
        patterns = ["*.py", *setuptools["package-data"].get(package, [])]
        found += [str(path.relative_to(ROOT)) for pattern in patterns for path in folder.glob(pattern)]
    return sorted(found)


def ramp(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers that every floating point type holds exactly, none of them 0."""
    return ((torch.arange(torch.Size(shape).numel()) % 97 + 1) / 8).view(shape).to(dtype)


def digest(*tensors: Tensor) -> str:
    whole = hashlib.sha256()
    for x in tensors:
        whole.update(str(x.dtype).encode() + x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()[:12]


# shape, block, keep_prob, type, channels last; masks.json has maps of two axes in float32 contiguous.
BACKEND_CASES: list[tuple[tuple[int, ...], int, float, torch.dtype, bool]] = [
    ((3, 8, 30), 4, 0.7, torch.float32, False),
    ((3, 8, 5), 7, 0.7, torch.float32, False),
    ((2, 6, 5, 6, 7), 2, 0.8, torch.float32, False),
    ((2, 6, 5, 6, 7), 3, 0.8, torch.bfloat16, True),
    ((2, 24, 3, 3, 3), 3, 0.8, torch.float32, True),
    ((4, 24, 14, 14), 6, 0.9, torch.bfloat16, True),
    ((4, 24, 14, 14), 7, 0.9, torch.float16, False),
    ((4, 24, 7, 7), 7, 0.9, torch.bfloat16, True),
    ((4, 24, 7, 7), 7, 0.9, torch.float64, False),
    ((3, 8, 5, 20), 4, 0.5, torch.float32, True),
]
LAYERS: dict[str, Callable[[], DropLayer]] = {
    "DropBlock1d": lambda: dropblock.DropBlock1d(block_size=4, keep_prob=0.7),
    "DropBlock2d": lambda: dropblock.DropBlock2d(block_size=4, keep_prob=0.7),
    "DropBlock3d": lambda: dropblock.DropBlock3d(block_size=2, keep_prob=0.7),
    "Dropout": lambda: dropblock.Dropout(keep_prob=0.7),
    "SpatialDropout": lambda: dropblock.SpatialDropout(keep_prob=0.7),
    "DropPath": lambda: dropblock.DropPath(keep_prob=0.5),
    "StochasticDepth": lambda: dropblock.StochasticDepth(keep_prob=0.2),
    "DropConnect": lambda: dropblock.DropConnect(keep_prob=0.7),
    "ShakeDrop": lambda: dropblock.ShakeDrop(keep_prob=0.5),
    "FractalDropPath": lambda: FractalDropPath([[1, 2], [1, 2, 3]] * 3, keep_prob=0.6),
    "torchvision.DropBlock2d": lambda: torchvision.DropBlock2d(0.3, 4),
    "torchvision.DropBlock3d": lambda: torchvision.DropBlock3d(0.3, 2),
    "timm.DropBlock2d, channels coupled": lambda: timm.DropBlock2d(0.3, 4),
    "timm.DropBlock2d, per channel": lambda: timm.DropBlock2d(0.3, 4, couple_channels=False),
    "timm.DropBlock2d, unscaled": lambda: timm.DropBlock2d(0.2, 4, gamma_scale=1.5, scale_by_keep=False),
}
SHAPES = {
    "DropBlock1d": (3, 8, 30),
    "DropBlock3d": (2, 6, 5, 6, 7),
    "torchvision.DropBlock3d": (2, 6, 5, 6, 7),
    "FractalDropPath": (1, 15, 1, 1),
}


def of_backend(backend: str) -> dict[str, str]:
    """Case -> number of kept units, and a digest of output and gradient to the last bit."""
    found = {}
    for shape, block, keep_prob, dtype, last in BACKEND_CASES:
        if backend != "triton" or len(shape) < 5:
            layout = {4: torch.channels_last, 5: torch.channels_last_3d}[len(shape)] if last else LAYOUT
            x = ramp(*shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
            y, kept = run(backend, x, keep_prob, block, SEED)
            (gradient,) = torch.autograd.grad(y, x, ramp(*shape, dtype=dtype))
            name = f"{'x'.join(map(str, shape))} {'last ' if last else ''}{dtype} {block} {keep_prob}"
            found[name] = f"{int(kept)} {digest(y, gradient)}"
    return found


def of_layers() -> dict[str, str]:
    """The same of every layer, function and generator."""
    found = {}
    for name, make in LAYERS.items():
        for dtype in (torch.float32, torch.bfloat16):
            layer, x = make(), ramp(*SHAPES.get(name, (8, 6, 9, 10)), dtype=dtype)
            layer.set_mask_seed(SEED)
            y = layer(x)
            found[f"{name} {dtype}"] = f"{int(layer.kept_units)} {int(layer.seen_units)} {digest(y)}"
    for name, x in (("1d", ramp(3, 8, 30)), ("2d", ramp(4, 8, 9, 10)), ("3d", ramp(2, 6, 5, 6, 7))):
        function = getattr(dropblock, f"drop_block{name}")
        torch.manual_seed(SEED)
        found[f"drop_block{name}, torch's generator"] = digest(function(x, p=0.2, block_size=4), function(x))
        y, kept = dropblock.drop_block_reference(
            x, keep_prob=0.8, block_size=4, generator=torch.Generator().manual_seed(SEED)
        )
        found[f"drop_block_reference {name}"] = f"{int(kept)} {digest(y)}"
    for together in ("unit", "channel", "sample", "batch"):
        y = dropblock.drop_together(ramp(8, 6, 9, 10), together=together, keep_prob=0.5, seed=torch.tensor(SEED))
        found[f"drop_together {together}"] = digest(y)
    torch.manual_seed(SEED)
    found["timm.drop_block_2d, noise"] = digest(timm.drop_block_2d(ramp(8, 6, 9, 10), 0.3, 4, with_noise=True))
    found["random_uniform"] = digest(dropblock.random_uniform((100,), torch.tensor(SEED)))
    return found


LAYOUT = torch.contiguous_format
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"stem": "small", "zero_gamma": True},
    "resnet50": {"width": 8},
    "fractalnet20": {"stem": "small"},
    "fractalnet40": {"stem": "small"},
    "fractalnet34": {},
    "amoebanet_b": {"cells": 1},
    "segmentation_fpn": {"body": "resnet18", "stem": "stride2", "fpn_width": 8, "head_width": 8, "freeze_stem": True},
    "retinanet": {"body": "resnet18", "stem": "small", "fpn_width": 8, "head_width": 8, "bn_momentum": 0.1},
}


def network(name: str) -> dict[str, Any]:
    """A small network from one seed: its keys in order, its weights and its output as sums."""
    torch.manual_seed(0)
    model: nn.Module = build_model(name, num_classes=3, **{"width": 4, **NETWORKS[name]}).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    with torch.no_grad():
        output = model(torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    parts = output if isinstance(output, tuple) else (output,)
    weights = [p for p in model.parameters() if p.requires_grad]
    return {
        "keys": hashlib.sha256("\n".join(model.state_dict()).encode()).hexdigest()[:12],
        "trained": len(weights),
        "weights": sum(float(p.detach().double().abs().sum()) for p in weights),
        "output": [float(part.double().abs().sum()) for part in parts],
    }


def measured() -> dict[str, dict[str, Any]]:
    """Everything in the file."""
    return {
        "signatures": {**public(dropblock), **public(experiment)},
        "wheel": dict.fromkeys(wheel_files(), ""),
        **{backend: of_backend(backend) for backend in BACKENDS if backend != "reference"},
        "layers": of_layers(),
        "networks": {name: network(name) for name in NETWORKS},
    }


if __name__ == "__main__":
    assert "triton" in BACKENDS, "set TRITON_INTERPRET=1"
    text = json.dumps(measured(), indent=0)
    FILE.write_text(re.sub(r"\[\n([^\]]*)\n\]", lambda m: f"[{' '.join(m[1].split())}]", text) + "\n")
