"""The answer to `plan=true`: the resolved plan and the sites table of its network. Trains and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from omegaconf import OmegaConf

from configs.plan import Plan
from dropblock import table_text
from engine.console import table
from engine.distributed import Ranks, find_device
from experiment.build import build_network, open_data
from experiment.run import plan_text


def preview(plan: Plan) -> str:
    """The plan as YAML, its run directory, the lines that a run opens with, the sites table.

    Raises:
        ValueError, FileNotFoundError: if the plan cannot be run, in one line.
    """
    device = find_device(plan.runtime.device)
    data = open_data(plan, device, Ranks())
    model, layers = build_network(plan, data, device, pretrained=False)
    parts = [
        OmegaConf.to_yaml(OmegaConf.create(asdict(plan))).rstrip(),
        f"run directory: {plan.run_dir()}",
        plan_text(plan, data, model, device),
    ]
    return "\n\n".join([*parts, *([table_text(layers.table)] if layers.table else [])])


def preview_grid(plans: Mapping[str, Plan]) -> str:
    """The runs of a grid with their directories, and below them each sites table once.

    Args:
        plans: by what sets each apart from the others.

    Raises:
        ValueError, FileNotFoundError: if one of them cannot be run, in one line.
    """
    found: dict[str, list[str]] = {}
    for plan in {plan.hash(): plan for plan in plans.values()}.values():  # the seed moves no site
        device = find_device(plan.runtime.device)
        _, layers = build_network(plan, open_data(plan, device, Ranks()), device, pretrained=False)
        found.setdefault(table_text(layers.table) if layers.table else "no layers", []).append(plan.variant)
    runs = table(("run", "directory"), [(name, plan.run_dir()) for name, plan in plans.items()])
    return "\n\n".join([runs, *(f"{', '.join(variants)}:\n{text}" for text, variants in found.items())])
