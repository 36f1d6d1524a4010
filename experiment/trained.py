"""Open a finished network: a run directory or a checkpoint file to its plan, its weights and its data."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from configs.checking import UserError, load_yaml
from configs.plan import OF_THE_NETWORK, Plan, changed_since, plan_from
from configs.schema import LayerConfig
from data import Data
from dropblock import LAYERS, LayerControl
from dropblock.shakedrop import folded
from engine import checkpoint
from engine.distributed import Ranks
from engine.run_directory import DONE, RunDirectory, differences, same_data
from experiment.build import build_network, open_data
from experiment.source import NetworkSource


def load(source: NetworkSource) -> tuple[Plan, dict[str, Any]]:
    """Read the plan of a trained network, and its checkpoint with the path of the file as `file`.

    Raises:
        UserError: if there is none, if it is of another run or of the network of older code, or if a finished run has
            lost that of its last step.
    """
    # A checkpoint file alone: it holds its plan.
    if source.run is None:
        path = Path(str(source.checkpoint))
        payload = checkpoint.load(path)
        if not isinstance(payload.get("plan"), dict):
            raise UserError(f"{path}: holds no plan; give a checkpoint that train.py wrote")
        plan = plan_from(payload["plan"])

    else:
        # A run directory; where it is none, runs may lie in it or one level below.
        directory = RunDirectory(Path(source.run))
        plan_file = directory.path / "plan.yaml"
        if not plan_file.exists():
            plans = sorted([*directory.path.glob("*/plan.yaml"), *directory.path.glob("*/*/plan.yaml")])
            runs = [str(path.parent.relative_to(directory.path)) for path in plans]
            listed = f"; runs in it: {', '.join([*runs[:4], *['...'] * (len(runs) > 4)])}" if runs else ""
            raise UserError(f"run={directory.path}: not a run directory, there is no {plan_file}{listed}")
        plan = plan_from(load_yaml(plan_file))

        # The best on val, or the last epoch: of a damaged last.pt the one before it, unless the run was finished.
        if source.which == "best":
            path = directory.checkpoints / "best.pt"
            if not path.exists():
                raise UserError(
                    f"which=best: no {path}; the run had no val to choose it on, or lost it; choose which=last"
                )
            payload = checkpoint.load(path)
        else:
            payload, path = _latest(directory)

        found = differences(plan_from(payload["plan"]).identity(), plan.identity()) if "plan" in payload else []
        if found:
            raise UserError(f"{path}: the checkpoint of another run than {directory.path}: {', '.join(found[:4])}")

    # Weights belong to the network that they were trained in.
    changes = changed_since(plan, OF_THE_NETWORK)
    if changes:
        raise UserError(
            f"{path}: trained before a change of the code, {'; '.join(changes)}; only that code evaluates it"
        )
    # The data may lie elsewhere than in training.
    data_root = source.data_root or plan.runtime.data_root
    runtime = replace(plan.runtime, data_root=data_root, download=source.download, workers=source.workers)
    return replace(plan, runtime=runtime), {**payload, "file": str(path)}


def _latest(directory: RunDirectory) -> tuple[dict[str, Any], Path]:
    """The newest whole checkpoint of a run, which is that of its last step if the run is finished."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checkpoint.load_latest(directory.checkpoints)
    if found is None:
        raise UserError(f"{directory.checkpoints}: no checkpoint to evaluate")
    for warning in caught:
        print(f"note: {warning.message}", file=sys.stderr)
    payload, path = found
    steps = directory.summary().get("steps")
    if directory.status().get("status") == DONE and steps is not None and payload.get("step") != steps:
        raise UserError(
            f"{directory.path}: the run ended at step {steps}, but its newest whole checkpoint is {path.name} of step "
            f"{payload.get('step')}; checkpoint={path} evaluates that one, fresh=true trains again"
        )
    return payload, path


def described(payload: dict[str, Any]) -> str:
    """File, step and epoch of a checkpoint, as text."""
    epoch = payload.get("epochs_done", payload.get("epoch"))
    return f"{payload['file']}, step {payload.get('step')}" + ("" if epoch is None else f", epoch {epoch}")


def weights_of(plan: Plan, payload: dict[str, Any]) -> dict[str, Tensor]:
    """The weights that training evaluated, for a network without layers: the average where there is one.

    The scale of a layer that acts in evaluation (ShakeDrop) is part of them.
    """
    weights, scaling = raw_weights(payload), acting(plan)
    if not scaling:
        return weights
    # Any classes and images will do: only where the layers sit, and their keep_prob, are read off this network.
    shape: Any = SimpleNamespace(num_classes=2, image_shape=(3, plan.data.image_size, plan.data.image_size))
    alike = replace(plan, layer=scaling[0], companions=scaling[1:])
    return folded(build_network(alike, shape, torch.device("cpu"), pretrained=False)[0], weights)


def raw_weights(payload: dict[str, Any]) -> dict[str, Tensor]:
    """The weights of a checkpoint as they are: the average where there is one."""
    ema = payload.get("ema")
    weights: dict[str, Tensor] = payload["model"] if ema is None else ema["module"]
    return weights


def acting(plan: Plan) -> list[LayerConfig]:
    """The layers of a plan that act in evaluation.

    A layer of somebody's script may be unknown to this process, and is not needed: others act in training only.
    """
    return [layer for layer in plan.layers if layer.name in LAYERS and LAYERS[layer.name].in_evaluation]


def opened(
    source: NetworkSource, device: torch.device, ranks: Ranks | None = None
) -> tuple[Plan, dict[str, Any], Data]:
    """Read plan and checkpoint of a trained network, and open the data it was trained on; the ranks share them.

    Raises:
        UserError: if the data have changed.
    """
    plan, payload = load(source)
    data = open_data(plan, device, ranks or Ranks())
    if not same_data(payload["fingerprint"], data.fingerprint):
        place = plan.runtime.data_root or "their default place"
        raise UserError(
            f"{plan.data.name}: the files in {place} are not, or no longer, those that this network was trained on; "
            "data.root=PATH names another place"
        )
    return plan, payload, data


def trained(
    plan: Plan, payload: dict[str, Any], data: Data, device: torch.device, layers: Sequence[LayerConfig] = ()
) -> tuple[nn.Module, LayerControl]:
    """The network of a checkpoint in evaluation mode: its training layers left out, these installed instead.

    Of layers that act in evaluation the weights hold the scale, unless they are installed themselves.
    """
    with_these = replace(plan, layer=layers[0] if layers else None, companions=[*layers[1:]])
    model, control = build_network(with_these, data, device, pretrained=False)
    model.load_state_dict(raw_weights(payload) if acting(with_these) else weights_of(plan, payload))
    return model.eval(), control
