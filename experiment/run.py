"""One run in its directory: locked, started or resumed, trained to the end, its record written."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from configs.checking import load_yaml
from configs.plan import Plan, plan_from
from configs.regularizers import styles_of
from data import Data
from dropblock import table_text
from engine import checkpoint
from engine.console import counted, result_text
from engine.distributed import Ranks, find_device, join
from engine.files import absent, write_aside
from engine.lifecycle import locked, nothing_left, refuse_another, require_equal, resume, status_kept
from engine.loggers import add_to_hparams_table
from engine.loop import Fit
from engine.records import DONE, RunFolder, code_diff, environment, same_data
from engine.signals import Stopped, StopRequest
from experiment.build import build_fit, open_data


def run_plan(
    plan: Plan, overrides: Sequence[str] = (), began: float | None = None, wait: bool = False, log: bool = False
) -> dict[str, Any]:
    """Train in the run directory of the plan, from the start or from the last checkpoint; returns the summary.

    Args:
        plan: of the run.
        overrides: those that made the plan, for the record.
        began: time (`time.time`) of the command; with fresh=true, an older run is moved aside. None: now.
        wait: until another process that trains this run has ended, instead of raising.
        log: what is printed goes to log.txt in the run directory, appended.

    Raises:
        ValueError, FileNotFoundError, RunLocked: for what the user can fix, in one line.
        Stopped: if a signal asked for it.
    """
    began = time.time() if began is None else began
    device = find_device(plan.runtime.device)
    ranks = join(device, plan.runtime.rank_timeout)
    # The ranks communicate at these intervals: if they differ between ranks, the run would hang.
    intervals = {key: getattr(plan.runtime, key) for key in ("log_every", "checkpoint_every")}
    require_equal("configuration", {**plan.identity(), **intervals, "run folder": str(plan.run_dir())}, ranks)
    folder = RunFolder(plan.run_dir())
    made = absent(folder.path, Path(plan.runtime.output_root))
    with locked(folder, ranks, began if plan.runtime.fresh else None, wait), nothing_left(folder, made, ranks):
        plan_file = folder.path / "plan.yaml"
        if plan_file.exists():  # a folder given by run_dir= may hold another run
            refuse_another(folder.path, plan.identity(), plan_from(load_yaml(plan_file)).identity())
        summary = folder.summary()
        done = folder.status().get("status") == DONE and bool(summary)
        # What the main rank read: another may see an older state of a shared disk. None writes before all have read.
        summary, done = ranks.gather((summary, done))[0]
        if done:
            refuse_other_data(folder.path, plan, summary, device, ranks)
        else:
            with output_to(folder.path / "log.txt") if log else nullcontext():
                return _train(plan, overrides, folder, device, ranks)
    if ranks.is_main:
        by = summary["environment"]
        commit = f"commit {by['commit'][:9]}" if by.get("commit") else "outside a git repository"
        dirty = ", with local changes" if by.get("dirty") else ""
        print(f"already done ({commit}{dirty}); fresh=true would start over")
        print(result_text(summary, folder.path))
    return summary


def refuse_other_data(path: Path, plan: Plan, summary: dict[str, Any], device: torch.device, ranks: Ranks) -> None:
    """Refuse a finished run that was trained on other data: its directory has the data's name, not their place.

    Data in the place that the record names are taken to be the same, and so are those of a record without fingerprint.

    Raises:
        ValueError: if they differ.
    """
    before, recorded = summary["plan"]["data"].get("root"), summary.get("fingerprint")
    if plan.data.root == before or recorded is None:
        return
    if not same_data(recorded, open_data(plan, device, ranks).fingerprint):
        place = before or "their default place"
        raise ValueError(f"{path}: trained on other data, in {place}; data.title=NAME gives these a name of their own")


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """Append what this process prints, its native code included, to a file."""
    sys.stdout.flush()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    before = [os.dup(stream) for stream in (1, 2)]
    try:
        for stream in (1, 2):
            os.dup2(file, stream)
        yield
    finally:
        sys.stdout.flush()
        for stream, saved in zip((1, 2), before, strict=True):
            os.dup2(saved, stream)
            os.close(saved)
        os.close(file)


def _train(
    plan: Plan, overrides: Sequence[str], folder: RunFolder, device: torch.device, ranks: Ranks
) -> dict[str, Any]:
    """Train to the end in a locked run directory and write its record."""
    started = {**environment(device), "world_size": ranks.world_size}
    with status_kept(folder, ranks), StopRequest() as stop:
        if ranks.is_main:
            for name, values in (("plan.yaml", asdict(plan)), ("config_min.yaml", {"overrides": list(overrides)})):
                write_aside(folder.path / name, [OmegaConf.to_yaml(OmegaConf.create(values)).encode()])
            if started["dirty"]:
                write_aside(folder.path / "code.diff", [code_diff().encode()])
        fit = prepare(plan, folder, device, ranks, stop)
        fit.state.started_in(started)
        fit.run()
        parameters = sum(p.numel() for p in fit.state.model.parameters())
        where = {"environment": started, "environments": fit.state.environments}
        summary = {**fit.result(), "parameters": parameters, **where, "plan": asdict(plan)}
        summary["styles"], summary["fingerprint"] = styles_of(plan.regularizer), fit.identity["fingerprint"]
        loaders = {"training": fit.data.train, "val": fit.data.val, "test": fit.data.test}
        summary["images"] = {split: loader.num_samples for split, loader in loaders.items() if loader is not None}
        if ranks.is_main:
            add_to_hparams_table(folder.path, table_row(plan))
            folder.write("summary.json", summary)
            folder.set_status(DONE, commit=started["commit"])
            print(result_text(summary, folder.path))
    asked = ranks.max(stop.received)
    if asked:  # too late to stop this run, not the ones behind it
        raise Stopped(asked, "after its last step, the run is done", done=True)
    return summary


def prepare(plan: Plan, folder: RunFolder, device: torch.device, ranks: Ranks, stop: StopRequest) -> Fit:
    """Everything a run needs, built from its plan, standing where an earlier start left it."""
    data = open_data(plan, device, ranks)
    if ranks.is_main:
        folder.checkpoints.mkdir(exist_ok=True)
    found = checkpoint.load_latest(folder.checkpoints)
    ours = {
        "fingerprint": data.fingerprint,
        "batches per epoch": len(data.train),
        "step": found and found[0].get("step"),
    }
    require_equal("data set or checkpoint", ours, ranks)
    fit, layers = build_fit(plan, data, folder, device, ranks, stop, pretrained=found is None)
    if found is not None:
        saved, path = found
        normalised = plan_from(saved.get("plan") or {}).identity()  # what an older version did not have yet: defaults
        resume(fit.state, {**saved, "plan": normalised}, path, fit.identity, ranks)
    if ranks.is_main:
        print(plan_text(plan, data, fit.state.model, device))
        if layers.table:
            print(table_text(layers.table))
        if found is not None:
            print(f"resuming after step {fit.state.step}, from {found[1]}")
            checkpoint.set_damaged_aside(found[1])
        folder.write("sites.json", [asdict(row) for row in layers.table])
    return fit


def plan_text(plan: Plan, data: Data, model: nn.Module, device: torch.device) -> str:
    """Two lines that open a run: what is trained on what, and how."""
    recipe, val = plan.recipe, f" + {data.val.num_samples:,} val" if data.val else ""
    parameters = sum(p.numel() for p in model.parameters())
    width = f" width {plan.model.width}" if plan.model.width else ""
    lines = [
        f"{plan.variant} on {data.name}: {data.train.num_samples:,} train{val} + {data.test.num_samples:,} test images",
        f"{plan.model.name}{width}, {parameters / 1e6:.2f} M parameters; recipe {recipe.name}: "
        f"{counted(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, lr {recipe.lr:g} {recipe.lr_schedule}; "
        f"seed {plan.seed}; {device}",
        *(f"note: {note}" for note in [*data.notes, *_notes_on_groups(plan, model)]),
    ]
    return "\n".join(lines)


def _notes_on_groups(plan: Plan, model: nn.Module) -> list[str]:
    """A note for each layer that sits in no site of the last group, the only one that reaches keep_prob itself.

    The groups before get a share of the drop rate.
    """
    last: Any = model.last_group
    return [
        f"{layer.name}: keep_prob={layer.keep_prob:g} is for group {last}, which has no layer; see the sites table"
        for layer in plan.layers
        if layer.group_divisor > 1 and layer.groups and last not in layer.groups
    ]


def table_row(plan: Plan) -> dict[str, Any]:
    """What sets a run apart from others, for a table of many: one level of names, plain values."""
    layer, recipe = plan.layer, plan.recipe
    row: dict[str, Any] = {"data": plan.data.name, "model": plan.model.name, "width": plan.model.width}
    row |= {"regularizer": "+".join(plan.regularizer), "cutout": plan.cutout, "autoaugment": plan.autoaugment}
    row |= {"label_smoothing": plan.label_smoothing, "train_subset": plan.data.train_subset, "seed": plan.seed}
    row |= {name: getattr(recipe, name) for name in ("epochs", "batch_size", "lr", "lr_schedule", "weight_decay")}
    if layer is not None:
        row |= {name: getattr(layer, name) for name in ("keep_prob", "block_size", "skip", "schedule")}
        row["groups"] = ",".join(map(str, layer.groups or []))
    return row
