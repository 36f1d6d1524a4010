"""Metrics of a finished network on a split, also under drop and by column of a FractalNet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from typing import Any

import torch
from torch import nn

from configs.checking import UserError
from configs.schema import LayerConfig
from dropblock import installed_layers
from engine.distributed import Ranks, find_device
from engine.evaluation import Evaluation
from engine.evaluation import evaluate as pass_over
from engine.tasks import metrics_record
from experiment.build import build_task
from experiment.source import NetworkSource
from experiment.trained import described, opened, trained


def evaluate(
    source: NetworkSource,
    split: str = "test",
    keep_prob: Sequence[float] = (),
    block_size: Sequence[int] = (),
    column: Sequence[int] = (),
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Metrics of the split, per class, and under drop at every keep_prob and block size asked for."""
    place, ranks = find_device(device), Ranks()
    plan, payload, data = opened(source, place)
    loader = getattr(data, split)
    if loader is None:
        raise UserError(f"split={split}: {plan.data.name} was used without one")
    task = build_task(plan, data)

    def measure(layer: LayerConfig | None, only: int | None = None) -> Evaluation:
        model, layers = trained(plan, payload, data, place, layer)
        layers.set_progress(1.0)
        for installed in installed_layers(model):
            installed.train()
        torch.manual_seed(seed)
        network = model if only is None else column_of(model, only)
        return pass_over(task, network, loader, ranks, place, plan.recipe.precision)

    under_drop = []
    if keep_prob or block_size:
        last: Any = trained(plan, payload, data, place)[0].last_group
        for block, kept in product(block_size or [7], keep_prob or [0.9]):
            layer = LayerConfig("dropblock", kept, block, [last - 1, last], True, "constant", 4.0)
            under_drop.append({"keep_prob": kept, "block_size": block, **measure(layer).metrics})
    columns = [{"column": k, **measure(None, k).metrics} for k in column]
    done = measure(None)
    result = {"checkpoint": described(payload), "split": split, "samples": done.images, **done.metrics}
    named = {"task": task.name, "headline": task.headline, **metrics_record(task.metrics)}
    tables = [asdict(table) for table in done.tables]
    return {**result, "tables": tables, **named, "under_drop": under_drop, "columns": columns}


def column_of(model: Any, column: int) -> nn.Module:
    """One column of a fractal network, on the same weights."""
    if not hasattr(model, "column"):
        raise UserError(f"column={column}: only a FractalNet has columns")
    if not 1 <= column <= model.depth:
        raise UserError(f"column={column}: this network has the columns 1 to {model.depth}")
    return model.column(column).eval()
