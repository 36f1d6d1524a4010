"""One run in its directory: locked, started or resumed, trained to the end, its record written."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from configs.checking import UserError, load_yaml
from configs.groups import styles_of
from configs.plan import Plan, changed_since, plan_from
from configs.schema import RecipeConfig
from data import Data
from data.card import card_of, card_text
from dropblock import table_text
from engine import checkpoint
from engine.console import columns, counted, result_text, wrapped
from engine.distributed import Ranks, find_device, join
from engine.environment import code_diff, environment
from engine.files import write_aside
from engine.loggers import add_to_hparams_table
from engine.loop import Fit
from engine.precision import numerics
from engine.run_directory import RunDirectory, differences, refuse_another, same_data
from engine.signals import Stopped, StopRequest
from experiment.build import build_fit, open_data, refuse_unusable
from experiment.evaluation import evaluate_run


def run_plan(
    plan: Plan, overrides: Sequence[str] = (), began: float | None = None, wait: bool = False, log: bool = False
) -> dict[str, Any]:
    """Train in the run directory of the plan, from the start or from the last checkpoint; returns the summary.

    Args:
        plan: decides everything.
        overrides: those that made the plan, for the record.
        began: time (`time.time`) of the command; with fresh=true, an older run is moved aside. None: now.
        wait: until another process that trains this run has ended, instead of raising.
        log: append what is printed to log.txt in the run directory.

    Raises:
        ValueError, FileNotFoundError, RunLocked: for what the user can fix, in one line.
        Stopped: if a signal asked for it.
    """
    began = time.time() if began is None else began
    device = find_device(plan.runtime.device)
    ranks = join(device, plan.runtime.rank_timeout)
    directory = RunDirectory(plan.run_dir())

    # The ranks communicate at these intervals: if they differed, the run would hang.
    intervals = {key: getattr(plan.runtime, key) for key in ("log_every", "checkpoint_every")}
    require_equal("configuration", {**plan.identity(), **intervals, "run directory": str(directory.path)}, ranks)

    fresh_since = began if plan.runtime.fresh else None
    with directory.session(ranks, fresh_since, wait, within=Path(plan.runtime.output_root)):
        # A directory given by run_dir= may hold another run.
        plan_file = directory.path / "plan.yaml"
        if plan_file.exists():
            there = plan_from(load_yaml(plan_file))
            if there.revision < plan.revision:
                changes = "; ".join(changed_since(replace(plan, revision=there.revision)))
                raise UserError(f"{directory.path}: begun before a change of the code, {changes}; give fresh=true")
            refuse_another(directory.path, plan.identity(), there.identity())

        summary = directory.finished(ranks)
        if not summary:
            with output_to(directory.path / "log.txt") if log else nullcontext():
                return train(plan, overrides, directory, device, ranks)

        # Done before. The directory has the name of the data, not their place: another place may hold other data. Those
        # in the place that the record names are taken to be the same, and so are those of a record without fingerprint.
        place, fingerprint = summary["plan"]["data"].get("root"), summary.get("fingerprint")
        elsewhere = plan.data.root != place and fingerprint is not None
        if elsewhere and not same_data(fingerprint, open_data(plan, device, ranks).fingerprint):
            raise ValueError(
                f"{directory.path}: trained on other data, in {place or 'their default place'}; data.title=NAME gives "
                "these a name of their own"
            )
        with StopRequest() as stop:
            evaluate_run(plan, directory, device, ranks, stop)

    if ranks.is_main:
        by = summary["environment"]
        commit = f"commit {by['commit'][:9]}" if by.get("commit") else "outside a git repository"
        dirty = ", with local changes" if by.get("dirty") else ""
        print(f"already done ({commit}{dirty}); fresh=true would start over")
        print(result_text(summary, directory.path))
    return summary


def require_equal(what: str, value: dict[str, Any], ranks: Ranks) -> None:
    """Check that `value` is equal on all ranks.

    Raises:
        ValueError: on every rank, naming the first that differs from rank 0, and the keys.
    """
    values = ranks.gather(value)
    for rank, other in enumerate(values):
        found = differences(other, values[0])
        if found:
            raise ValueError(f"rank {rank} has another {what} than rank 0: {', '.join(found[:4])}")


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


def train(
    plan: Plan, overrides: Sequence[str], directory: RunDirectory, device: torch.device, ranks: Ranks
) -> dict[str, Any]:
    """Train to the end in a locked run directory and write its record."""
    started = {**environment(device), "world_size": ranks.world_size}
    directory.start(ranks)

    # A signal before the first step ends the run at once, a later one at the end of a step.
    with StopRequest() as stop:
        # What is run, by which code: written first, so that a run that fails can be understood.
        if ranks.is_main:
            for name, values in (("plan.yaml", plan.values()), ("config_min.yaml", {"overrides": list(overrides)})):
                write_aside(directory.path / name, [OmegaConf.to_yaml(OmegaConf.create(values)).encode()])
            if started["dirty"]:
                write_aside(directory.path / "code.diff", [code_diff().encode()])

        fit = prepare(plan, directory, device, ranks, stop)
        started |= numerics(device)
        fit.state.started_in(started)
        fit.run()

        # The record: results, the plan, and what a reviewer asks of a number.
        loaders = {"training": fit.data.train, "val": fit.data.val, "test": fit.data.test}
        summary = {
            **fit.result(),
            "parameters": sum(p.numel() for p in fit.state.model.parameters()),
            "environment": started,
            "environments": fit.state.environments,
            "plan": plan.values(),
            "styles": styles_of(plan.regularizer),
            "fingerprint": fit.data.fingerprint,
            "images": {split: loader.num_samples for split, loader in loaders.items() if loader is not None},
        }
        if ranks.is_main:
            add_to_hparams_table(directory.path, table_row(plan))
        directory.finish(ranks, summary)
        if ranks.is_main:
            print(result_text(summary, directory.path))
        evaluate_run(plan, directory, device, ranks, stop, fit.data)

    asked = ranks.max(stop.received)
    if asked:  # too late to stop this run, not the ones behind it
        raise Stopped(asked, "after its last step, the run is done", done=True)
    return summary


def prepare(plan: Plan, directory: RunDirectory, device: torch.device, ranks: Ranks, stop: StopRequest) -> Fit:
    """Everything a run needs, built from its plan, standing where an earlier start left it.

    Raises:
        ValueError: for data that cannot be used, or if the checkpoint was written by another run or with other data.
    """
    # A directory for checkpoints means that the data could be opened: what fails before leaves nothing behind.
    data = open_data(plan, device, ranks)
    if not directory.checkpoints.exists():
        refuse_unusable(data, ranks)
    if not plan.runtime.run_dir and not plan.runtime.fresh:
        refuse_changed_data(plan, directory, data, ranks)
    if ranks.is_main:
        directory.checkpoints.mkdir(exist_ok=True)
    found = checkpoint.load_latest(directory.checkpoints)

    # Ranks on different machines may see different files.
    ours = {"fingerprint": data.fingerprint, "batches per epoch": len(data.train)}
    require_equal("data set or checkpoint", {**ours, "step": found and found[0].get("step")}, ranks)

    # With a checkpoint, pretrained weights need not be read.
    fit, layers = build_fit(plan, data, directory, device, ranks, stop, pretrained=found is None)
    if found is not None:
        saved, path = found
        if not same_data(saved.get("fingerprint"), data.fingerprint):
            raise ValueError(f"{path}: written with other data; give the same data, or fresh=true to start over")
        # Fields that an older version did not have yet get their defaults.
        refuse_another(path, plan.identity(), plan_from(saved.get("plan") or {}).identity())
        try:
            fit.state.load_state_dict(saved, ranks)
        except ValueError as error:
            raise ValueError(f"{path}: {error}; fresh=true starts over") from error

    # What is trained, and where it drops, before the first step.
    if ranks.is_main:
        print(wrapped(plan_text(plan, data, fit.state.model, device)))
        if layers.table:
            print(wrapped(table_text(layers.table, columns())))
        if found is not None:
            print(f"resuming after step {fit.state.step}, from {found[1]}")
            checkpoint.set_damaged_aside(found[1])
        directory.write("sites.json", [asdict(row) for row in layers.table])
        directory.write("data_card.json", card_of(data))
    return fit


def refuse_changed_data(plan: Plan, directory: RunDirectory, data: Data, ranks: Ranks) -> None:
    """Refuse to begin a run on other files than those that finished seeds of the same plan were trained on.

    A report would refuse to compare them, when all of them are trained.

    Raises:
        ValueError: on all ranks, in one line that names the finished run.
    """
    begun = directory.checkpoints.exists()  # its checkpoint knows its own data
    places = [] if begun else sorted(directory.path.parent.glob("seed-*/summary.json"))
    others = [RunDirectory(path.parent) for path in places if "-old-" not in path.parent.name]
    finished = [(str(other.path), other.summary().get("fingerprint")) for other in others]
    # What the main rank read: a seed may end at this moment.
    for path, fingerprint in ranks.gather(finished)[0]:
        if fingerprint is not None and not same_data(fingerprint, data.fingerprint):
            raise ValueError(
                f"{path} was trained on other files of {data.name}: put those back, train all seeds again by "
                f"fresh=true, or give these a name of their own by data.title=NAME"
            )


def data_text(data: Data) -> str:
    """The card of a data set in a few lines, and the notes on it."""
    loaders = {"train": data.train, "val": data.val, "test": data.test}
    counts = [f"{loader.num_samples:,} {split}" for split, loader in loaders.items() if loader is not None]
    lines = [f"{data.name}: {' + '.join(counts)} images", *(f"  {line}" for line in card_text(card_of(data)))]
    return "\n".join([*lines, *(f"note: {note}" for note in (*data.notes, *card_of(data)["notes"]))])


def plan_text(plan: Plan, data: Data, model: nn.Module, device: torch.device) -> str:
    """The lines that open a run: its data and their card, network, recipe and device; then its notes."""
    recipe, val = plan.recipe, f" + {data.val.num_samples:,} val" if data.val else ""
    parameters = sum(p.numel() for p in model.parameters())
    width = f" width {plan.model.width}" if plan.model.width else ""
    lines = [
        f"{plan.variant} on {data.name}: {data.train.num_samples:,} train{val} + {data.test.num_samples:,} test images",
        *(f"  {line}" for line in card_text(card_of(data))),
        f"{plan.model.name}{width}, {parameters / 1e6:.2f} M parameters; seed {plan.seed}; {device}",
        f"recipe {recipe.name}: {counted(recipe.epochs, 'epoch')}, batch {recipe.batch_size}, "
        f"lr {recipe.lr:g} {recipe.lr_schedule}",
    ]

    # Layers that the last group has none of: it alone reaches keep_prob itself.
    last: Any = model.last_group
    notes = [*plan.notes, *data.notes, *card_of(data)["notes"]]
    for layer in plan.layers:
        if layer.group_divisor > 1 and layer.groups and last not in layer.groups:
            notes.append(
                f"{layer.name}: no layer in group {last}: group_divisor leaves the chosen groups with less drop than "
                f"keep_prob={layer.keep_prob:g}; see the sites table"
            )
    notes += notes_on_average(recipe, recipe.epochs * len(data.train))
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def notes_on_average(recipe: RecipeConfig, steps: int) -> list[str]:
    """A note where the averaged weights, which are evaluated, end with more than 5 % of the first ones.

    Args:
        recipe: `ema_decay`, and whether it warms up: then it fits a run of any length.
        steps: optimizer steps of the run. The first one copies the weights; each further one keeps `ema_decay` of them.
    """
    if recipe.ema_decay is None or recipe.ema_warmup or recipe.ema_decay ** (steps - 1) <= 0.05:
        return []
    # An average over the last fifth of the steps keeps at most exp(-5) of the first; its decay in two digits.
    gap = 5 / steps
    digit = 10.0 ** (math.floor(math.log10(gap)) - 1)
    fits = f"recipe.ema_decay={1 - math.ceil(gap / digit) * digit:.6g}" if gap < 0.9 else "recipe.ema_decay=null"
    held = f"{100 * recipe.ema_decay ** (steps - 1):.0f} % of the first weights"
    return [
        f"recipe.ema_decay={recipe.ema_decay:g}: what is evaluated still holds {held} after the {steps:,} steps of the "
        f"run; {fits} fits, or recipe.ema_warmup=true"
    ]


def table_row(plan: Plan) -> dict[str, Any]:
    """The knobs of a run as one flat row, for TensorBoard's HParams table."""
    layer, recipe, values = plan.layer, plan.recipe, plan.values()
    row: dict[str, Any] = {"data": plan.data.name, "model": plan.model.name, "width": plan.model.width}
    row |= {"regularizer": "+".join(plan.regularizer), "train_subset": plan.data.train_subset, "seed": plan.seed}

    # The knobs of regularizers under their old keys, then the options of each, then those of the (first) layer.
    row |= {key: values[key] for key in ("cutout", "autoaugment", "label_smoothing")}
    for method in values.get("methods", []):
        row |= {f"{method['name']}.{option}": value for option, value in method["options"].items()}
    row |= {name: getattr(recipe, name) for name in ("epochs", "batch_size", "lr", "lr_schedule", "weight_decay")}
    if layer is not None:
        row |= {name: getattr(layer, name) for name in ("keep_prob", "block_size", "skip", "schedule")}
        row["groups"] = ",".join(map(str, layer.groups or []))
    return row
