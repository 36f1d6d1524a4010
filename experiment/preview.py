"""The answer to `plan=true`: the resolved plan and the sites table of its network. Trains and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from omegaconf import OmegaConf
from torch import nn

from configs.plan import Plan
from data import Data
from dropblock import LayerControl, table_text
from engine.console import table
from engine.distributed import Ranks, find_device, synchronized
from engine.run_directory import RunDirectory
from experiment.build import build_network, build_task, open_data
from experiment.run import plan_text


def preview(plan: Plan) -> str:
    """The plan as YAML, its run directory, the lines that a run opens with, the sites table.

    Raises:
        ValueError, FileNotFoundError: if the plan cannot be run, in one line.
    """
    data, model, layers, device = built(plan)
    parts = [
        OmegaConf.to_yaml(OmegaConf.create(plan.values())).rstrip(),
        f"run directory: {plan.run_dir()}",
        plan_text(plan, data, model, device),
    ]
    return "\n\n".join([*parts, *([table_text(layers.table)] if layers.table else [])])


def built(plan: Plan) -> tuple[Data, nn.Module, LayerControl, torch.device]:
    """Build all that a run has before its first step, so that a plan that cannot run is refused."""
    device = find_device(plan.runtime.device)
    data = open_data(plan, device, Ranks())
    build_task(plan, data)
    # A run that has a checkpoint goes on from it, whether the file of weights is still there or not.
    begun = any(RunDirectory(plan.run_dir()).checkpoints.glob("*.pt")) and not plan.runtime.fresh
    model, layers = build_network(plan, data, device, pretrained=not begun)
    if plan.recipe.sync_batchnorm:
        model = synchronized(model, device)
    return data, model, layers, device


def preview_grid(plans: Mapping[str, Plan]) -> str:
    """The runs of a grid with their directories, and below them each sites table once.

    Args:
        plans: by what sets each apart from the others.

    Raises:
        ValueError, FileNotFoundError: if one of them cannot be run, in one line.
    """
    found: dict[str, list[str]] = {}
    # The seed moves no site, and pilots have those of their rows.
    for plan in {plan.hash(): plan for plan in plans.values() if not plan.pilot}.values():
        _, _, layers, _ = built(plan)
        found.setdefault(table_text(layers.table) if layers.table else "no layers", []).append(plan.variant)
    runs = table(("run", "directory"), [(name, plan.run_dir()) for name, plan in plans.items()])
    return "\n\n".join([runs, *(f"{', '.join(variants)}:\n{text}" for text, variants in found.items())])
