"""Loading weights from a file into a network, and saying in one line why a file does not fit."""

from __future__ import annotations

import os
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WRAPPERS = ("model", "state_dict")  # {"model": weights} and {"state_dict": weights} are common
PREFIXES = ("module.", "_orig_mod.")  # left in the keys by DistributedDataParallel and torch.compile
CLASSIFIER = ("fc.weight", "fc.bias")


def load_pretrained(model: nn.Module, path: str | Path, into: str = "") -> None:
    """Load the weights of the same network from a file; every key and shape has to match.

    Args:
        model: filled in place.
        path: a `.pt` or `.pth` file (read with `weights_only=True`, so nothing in it can run) or a `.safetensors` file.
        into: a module of `model` by name, such as "body": that module gets the weights, and those of the classifier
            `fc`, which it lacks, are left out. Empty for the whole network.

    Raises:
        ValueError: if the file is missing, is no weights file, or holds another network's weights, or if `model` has
            no module `into`.
    """
    path = Path(os.path.expanduser(path))
    weights = named_tensors(read_weights(path), path)
    if into:
        try:
            model = model.get_submodule(into)
        except AttributeError:
            raise ValueError(f"{type(model).__name__} has no module '{into}' to load {path} into") from None
    expected = model.state_dict()
    if into:
        weights = {key: value for key, value in weights.items() if key in expected or key not in CLASSIFIER}
    # Files older than this counter lack it; it only matters to a BN without momentum.
    for key in expected:
        if key.endswith("num_batches_tracked"):
            weights.setdefault(key, expected[key])
    problems = differences(weights, expected)
    if problems:
        raise ValueError(f"the weights in {path} are not of this {type(model).__name__}: {'; '.join(problems)}")
    model.load_state_dict(weights)


def read_weights(path: Path) -> Any:
    """Load the file onto the CPU."""
    if not path.is_file():
        raise ValueError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of torch, about what is refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ValueError(f"reading {path} needs the package safetensors: pip install safetensors") from error
    except pickle.UnpicklingError as error:
        raise ValueError(f"refused to load {path}: it is no file of tensors, or holds objects that run code") from error
    except Exception as error:  # a damaged file may raise nearly anything inside the readers
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} is no readable weights file: {reason[:120]}") from error


def named_tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The weights by key, taken out of a wrapper and without the prefixes of one."""
    for wrapper in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ValueError(f"{path} holds no weights: expected a dictionary of tensors, found {type(loaded).__name__}")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise ValueError(f"{path} holds no weights: its entry {key!r} is no dense tensor")
    weights = dict(loaded)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in weights)), None):  # in any order
        weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    return weights


def differences(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], show: int = 3) -> list[str]:
    """Missing keys, unexpected keys, and keys of another shape; the first few of each."""

    def listed(kind: str, keys: list[str]) -> list[str]:
        more = f" and {len(keys) - show} more" if len(keys) > show else ""
        return [f"{kind} {', '.join(keys[:show])}{more}"] if keys else []

    missing = [key for key in expected if key not in weights]
    unexpected = [key for key in weights if key not in expected]
    reshaped = [
        f"{key} {tuple(weights[key].shape)} for {tuple(value.shape)}"
        for key, value in expected.items()
        if key in weights and weights[key].shape != value.shape
    ]
    return listed("missing", missing) + listed("unexpected", unexpected) + listed("wrong shape", reshaped)
