"""The answer to `plan=true`: the resolved plan and the sites table of its network. Trains and writes nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from omegaconf import OmegaConf
from torch import nn

from configs.groups import NODES
from configs.plan import Plan
from data import Data
from dropblock import LayerControl, SiteRow, table_text
from engine.console import columns, table
from engine.distributed import Ranks, find_device, synchronized
from engine.precision import refuse_precision
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
    return "\n\n".join([*parts, *([table_text(layers.table, columns())] if layers.table else [])])


def built(plan: Plan, data: Data | None = None) -> tuple[Data, nn.Module, LayerControl, torch.device]:
    """Build all that a run has before its first step, so that a plan that cannot run is refused.

    data: those of the plan, if another one has opened them.
    """
    device = find_device(plan.runtime.device)
    refuse_precision(device, plan.recipe.precision)
    if data is None:
        data = open_data(plan, device, Ranks())
        refuse_unusable(data, Ranks())
    build_task(plan, data)
    # A run that has a checkpoint goes on from it, whether the file of weights is still there or not.
    begun = any(RunDirectory(plan.run_dir()).checkpoints.glob("*.pt")) and not plan.runtime.fresh
    reads_weights = plan.model.pretrained is not None and not begun
    # Only the shapes of its numbers are looked at, so none are drawn, which takes seconds for a large network. A
    # network of one's own may need them.
    own = plan.model.name in NODES["model"]
    place = device if reads_weights or own else torch.device("meta")
    with place:
        model, layers = build_network(plan, data, place, pretrained=not begun)
    if plan.recipe.sync_batchnorm:
        model = synchronized(model, device)
    return data, model, layers, device


def preview_grid(plans: Mapping[str, Plan]) -> str:
    """The data of a grid once, and a line for each run directory: its layers, what they drop at the full rate.

    The sites table stands below where all runs have the same.

    Args:
        plans: by what sets each apart from the others.

    Raises:
        ValueError, FileNotFoundError: if one of them cannot be run, in one line.
    """
    opened: dict[str, Data] = {}
    tables: dict[str, list[SiteRow]] = {}  # by what of a plan moves a site: not its seed, and pilots have their row's
    rows: dict[str, tuple[str, ...]] = {}  # by run directory, each by the first of the names that lead there
    for name, plan in plans.items():
        recipe, row_of = plan.recipe, repr((plan.model, plan.data, plan.layers, plan.methods))
        if row_of not in tables:
            key = repr((plan.data, plan.runtime.data_root, recipe.augment, recipe.batch_size, recipe.eval_batch_size))
            opened[key], _, layers, _ = built(plan, opened.get(key))
            tables[row_of] = layers.table
        sites = tables[row_of]
        place = str(plan.run_dir())
        rows.setdefault(place, (name, str(len(sites)), drop_of_groups(sites), place))
    cards = {data.fingerprint: data_text(data) for data in opened.values()}
    parts = [*cards.values(), table(("run", "sites", "expected drop", "directory"), [*rows.values()])]
    texts = {table_text(sites, columns()) if sites else "" for sites in tables.values()}
    parts.append(texts.pop() if len(texts) == 1 else "plan=true of one of these runs alone shows its sites")
    return "\n\n".join(filter(None, parts))


def drop_of_groups(sites: Sequence[SiteRow]) -> str:
    """The share of its units that each group drops: "3: 2.47%, 4: 9.34%"."""
    units: dict[object, int] = defaultdict(int)
    dropped: dict[object, float] = defaultdict(float)
    for row in sites:
        count = sum(map(math.prod, row.map_sizes))
        units[row.group] += count
        dropped[row.group] += count * row.expected_drop
    shares = ((group, 100 * dropped[group] / count) for group, count in units.items() if count)
    return ", ".join(f"{group}: {share:.2f}%" for group, share in shares) or "-"
