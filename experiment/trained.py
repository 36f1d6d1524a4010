"""Open a finished network: a run directory or a checkpoint file to its plan, its weights and its data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from configs.checking import UserError, load_yaml
from configs.plan import Plan, plan_from
from data import Data
from dropblock import LayerControl
from engine import checkpoint
from engine.distributed import Ranks
from experiment.build import build_network, open_data
from experiment.source import NetworkSource


def load(source: NetworkSource) -> tuple[Plan, dict[str, Any]]:
    """The plan that a network was trained to, and its checkpoint."""
    if source.run is not None:
        folder = Path(source.run)
        plan = plan_from(load_yaml(folder / "plan.yaml"))
        if source.which == "best":
            payload = checkpoint.load(folder / "checkpoints" / "best.pt")
        else:
            found = checkpoint.load_latest(folder / "checkpoints")
            if found is None:
                raise UserError(f"{folder}/checkpoints: no checkpoint to evaluate")
            payload = found[0]
    else:
        assert source.checkpoint is not None
        payload = checkpoint.load(Path(source.checkpoint))
        if not isinstance(payload.get("plan"), dict):
            raise UserError(f"{source.checkpoint}: holds no plan; give a checkpoint that train.py wrote")
        plan = plan_from(payload["plan"])
    data_root = source.data_root or plan.runtime.data_root
    runtime = replace(plan.runtime, data_root=data_root, download=source.download, workers=source.workers)
    return replace(plan, runtime=runtime), payload


def weights_of(payload: dict[str, Any]) -> dict[str, Tensor]:
    """What training evaluated: the averaged weights where there are any."""
    ema = payload.get("ema")
    return payload["model"] if ema is None else ema["module"]


def opened(source: NetworkSource, device: torch.device) -> tuple[Plan, dict[str, Any], Data]:
    """The plan that a network was trained to, without what drops in it; its checkpoint; the data it was trained on.

    Raises:
        UserError: if the data are others.
    """
    plan, payload = load(source)
    plan = replace(plan, layer=None, companions=[])
    data = open_data(plan, device, Ranks())
    if data.fingerprint != payload["fingerprint"]:
        raise UserError(f"{plan.data.name}: not the data this network was trained on; set data_root")
    return plan, payload, data


def trained(plan: Plan, payload: dict[str, Any], data: Data, device: torch.device) -> tuple[nn.Module, LayerControl]:
    """The network of a checkpoint in evaluation mode, and the layers that the plan puts in it."""
    model, layers = build_network(plan, data, device, pretrained=False)
    model.load_state_dict(weights_of(payload))
    return model.eval(), layers
