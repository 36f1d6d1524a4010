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
from experiment.build import build_network, build_task, open_data, refuse_unusable
from experiment.run import data_text, plan_text


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


def built(plan: Plan, data: Data | None = None) -> tuple[Data, nn.Module, LayerControl, torch.device]:
    """Build all that a run has before its first step, so that a plan that cannot run is refused.

    data: those of the plan, if another one has opened them.
    """
    device = find_device(plan.runtime.device)
    if data is None:
        data = open_data(plan, device, Ranks())
        refuse_unusable(data, Ranks())
    build_task(plan, data)
    # A run that has a checkpoint goes on from it, whether the file of weights is still there or not.
    begun = any(RunDirectory(plan.run_dir()).checkpoints.glob("*.pt")) and not plan.runtime.fresh
    model, layers = build_network(plan, data, device, pretrained=not begun)
    if plan.recipe.sync_batchnorm:
        model = synchronized(model, device)
    return data, model, layers, device


def preview_grid(plans: Mapping[str, Plan]) -> str:
    """The data of a grid, its runs with their directories, and below them each sites table once.

    Data are opened once, whatever trains on them.

    Args:
        plans: by what sets each apart from the others.

    Raises:
        ValueError, FileNotFoundError: if one of them cannot be run, in one line.
    """
    found: dict[str, list[str]] = {}
    opened: dict[str, Data] = {}
    # The seed moves no site, and pilots have those of their rows.
    for plan in {plan.hash(): plan for plan in plans.values() if not plan.pilot}.values():
        recipe = plan.recipe
        key = repr((plan.data, plan.runtime.data_root, recipe.augment, recipe.batch_size, recipe.eval_batch_size))
        opened[key], _, layers, _ = built(plan, opened.get(key))
        found.setdefault(table_text(layers.table) if layers.table else "no layers", []).append(plan.variant)
    # One line for each run directory, by the first of the names that lead there.
    names: dict[str, str] = {}
    for name, plan in plans.items():
        names.setdefault(str(plan.run_dir()), name)
    runs = table(("run", "directory"), [(name, place) for place, name in names.items()])
    cards = {data.fingerprint: data_text(data) for data in opened.values()}
    return "\n\n".join(
        [*cards.values(), runs, *(f"{', '.join(variants)}:\n{text}" for text, variants in found.items())]
    )
