"""Metrics of a finished network on a split: as it is, after a temperature, under drop, averaged over masks."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from configs.checking import UserError
from configs.evaluation import EvaluationConfig, evaluation_of
from configs.groups import declared
from configs.plan import Plan
from configs.schema import CORRUPTIONS, LayerConfig
from data import Data
from data.cifar10c import CLASSES, corrupted_cifar, corruptions_in
from data.corruptions import corrupted
from data.outside import outside
from dropblock import LayerControl, installed_layers
from engine import cpu
from engine.console import duration
from engine.distributed import Ranks, find_device
from engine.evaluation import Evaluation
from engine.evaluation import evaluate as pass_over
from engine.precision import autocast
from engine.run_directory import RunDirectory
from engine.seeding import mix
from engine.signals import Stopped, StopRequest
from engine.tasks import Task, metrics_record
from experiment.build import build_task
from experiment.outcome import missing_evaluations
from experiment.outside import separations
from experiment.sampling import Sampling, remembered
from experiment.source import NetworkSource
from experiment.trained import described, load, opened, trained

DEFAULT_SEVERITIES = (1, 3, 5)


@dataclass(frozen=True)
class Finished:
    """A finished network and its data.

    Args:
        plan, payload, data: results of `opened`.
        task: that of the data.
        device, ranks: where this process stands.
        poll: called before every batch; may raise to end the evaluation.
    """

    plan: Plan
    payload: dict[str, Any]
    data: Data
    task: Task
    device: torch.device
    ranks: Ranks
    poll: Callable[[], None] = lambda: None

    def network(self, *layers: LayerConfig) -> tuple[nn.Module, LayerControl]:
        """The network in evaluation mode; with layers that drop as in training at their full rate, if given."""
        model, control = trained(self.plan, self.payload, self.data, self.device, layers)
        control.set_progress(1.0)
        for layer in installed_layers(model):
            layer.train()
        return model, control

    def split(self, name: str, key: str) -> Any:
        """The loader of a split that `key` asks for."""
        loader = self.data.train_unchanged() if name == "train" else getattr(self.data, name)
        if loader is None:
            raise UserError(f"{key}={name}: {self.plan.data.name} was used without one")
        return loader

    def measured(self, network: nn.Module, loader: Any, task: Any = None) -> Evaluation:
        """One pass over a split; `task` stands in for the network's own."""
        precision = self.plan.recipe.precision
        return pass_over(task or self.task, network, loader, self.ranks, self.device, precision, self.poll)


def evaluate(source: NetworkSource, wanted: EvaluationConfig | None = None, device: str = "auto") -> dict[str, Any]:
    """Open a network and its data, and evaluate it: see `results_of`."""
    place = find_device(device)
    plan, payload, data = opened(source, place)
    finished = Finished(plan, payload, data, build_task(plan, data), place, Ranks())
    return results_of(finished, wanted or EvaluationConfig())


def results_of(finished: Finished, wanted: EvaluationConfig) -> dict[str, Any]:
    """The metrics of a split and its finer tables, and whatever else is wanted, as plain values."""
    # What is asked for is opened before the first pass, so that nothing is refused after one.
    task, loader = finished.task, finished.split(wanted.split, "split")
    wanted.check_task(task.name)
    fitted_on = finished.split(wanted.temperature, "temperature") if wanted.temperature else None
    points = product(wanted.block_size or [7], wanted.keep_prob or [0.9])
    drops = [dropblock_in(finished, *at) for at in points if wanted.keep_prob or wanted.block_size]
    averaged: list[list[LayerConfig]] = []
    if wanted.samples is not None:
        averaged = [[layer] for layer in drops] or [own_layers(finished, wanted.samples)]
    strangers = None
    if wanted.ood is not None:
        strangers = outside(Path(wanted.ood), loader, finished.plan.data, cpu.cores_of_a_rank())
    network = finished.network()[0]
    columns = {column: column_of(network, column) for column in wanted.column}
    cifar10c = cifar10c_of(finished, wanted)

    # The network as training evaluated it.
    began = time.perf_counter()
    done = finished.measured(network, loader)
    seconds = time.perf_counter() - began
    result = {
        "checkpoint": described(finished.payload),
        "split": wanted.split,
        "samples": done.images,
        **done.metrics,
        "tables": [asdict(table) for table in done.tables],
        "task": task.name,
        "headline": task.headline,
        **metrics_record(task.metrics),
    }

    # After a temperature.
    result["temperature"] = None
    if fitted_on is not None:
        temperature = fitted_temperature(network, fitted_on, finished)
        after = finished.measured(Tempered(network, temperature), loader).metrics
        known = {"fitted_on": wanted.temperature, "images": fitted_on.num_samples, "value": temperature}
        result["temperature"] = {**known, **after}

    # With DropBlock on: one mask for each layer and batch, drawn one after the other.
    result["under_drop"] = []
    for layer in drops if wanted.samples is None else ():
        dropping, _ = finished.network(layer)
        rank = finished.ranks.rank
        torch.manual_seed(mix(wanted.seed, rank) if rank else wanted.seed)  # each rank has masks of its own
        at = {"keep_prob": layer.keep_prob, "block_size": layer.block_size}
        result["under_drop"].append({**at, **finished.measured(dropping, loader).metrics})

    # The mean over many masks, of these layers or of the network's own.
    if wanted.samples is not None and finished.ranks.is_main:
        passes = wanted.samples * len(averaged)
        took = f"about {duration(passes * seconds)}"
        print(f"samples={wanted.samples}: {passes} passes over {done.images:,} images, {took}", flush=True)
    found = [sampled(finished, loader, layers, wanted.samples or 1, wanted.seed) for layers in averaged]
    result["sampled"] = [row for row, _ in found]

    # Images of none of the classes, by one prediction and by those means.
    result["outside"] = []
    if strangers is not None:
        for layers, (row, ours) in zip([[], *averaged], [sampled(finished, loader, [], 1), *found], strict=True):
            theirs = sampled(finished, strangers, layers, row["samples"], wanted.seed)[1]
            named = {name: row[name] for name in ("layers", "keep_prob", "block_size")}
            result["outside"] += separations(ours, theirs, row["samples"], named)
        result["outside"] = finished.ranks.gather(result["outside"])[0]  # the main rank has the scores of all

    # On corrupted images.
    result["corrupted"] = corruption_rows(finished, network, loader, wanted, cifar10c)

    # The columns of a FractalNet, each alone.
    result["columns"] = [
        {"column": column, **finished.measured(alone, loader).metrics} for column, alone in columns.items()
    ]
    return result


def images_passed(plan: Plan, wanted: EvaluationConfig, test: int, val: int) -> int:
    """The number of images that an evaluation of a run passes through its network, for what it will cost.

    At most: what lies before the layers is computed once for all `samples`.

    Args:
        test, val: images of these splits.
    """
    points = len(wanted.keep_prob or [0.9]) * len(wanted.block_size or [7])
    drops = points if wanted.keep_prob or wanted.block_size else 0
    samples = wanted.samples if wanted.samples and (drops or plan.layers) else 0
    severities = len(wanted.severity or DEFAULT_SEVERITIES)
    corruptions = len(CORRUPTIONS) if "all" in wanted.corruption else len(wanted.corruption)
    masks = max(1, drops) * samples
    passes = 1 + len(wanted.column) + corruptions * severities + (masks or drops)
    images = test * passes + (val + test if wanted.temperature else 0)
    if wanted.ood is not None:
        images += test + sum(len(files) for *_, files in os.walk(wanted.ood)) * (1 + masks)
    if wanted.cifar10c is not None:
        images += test * severities * len(corruptions_in(Path(wanted.cifar10c)))
    return images


def evaluate_run(
    plan: Plan, directory: RunDirectory, device: torch.device, ranks: Ranks, stop: StopRequest, data: Data | None = None
) -> None:
    """Make the evaluations of a finished run that its plan names and that are missing; each stands in evaluations.json.

    Of the last epoch's weights. What was made stays, so the same command goes on where it was stopped.

    Args:
        data: those of the run, where they are open already.

    Raises:
        Stopped: if a signal asked for it.
    """
    missing, made = ranks.gather((missing_evaluations(plan), directory.read("evaluations.json") or {}))[0]
    if not missing:
        return
    stop.defer()

    def poll() -> None:
        if asked := ranks.max(stop.received):
            raise Stopped(asked, "in an evaluation of the finished run")

    runtime = plan.runtime
    source = NetworkSource(str(directory.path), None, "last", runtime.data_root, runtime.download, runtime.workers)
    if data is None:
        _, payload, data = opened(source, device, ranks)
    else:
        _, payload = load(source)
    finished = Finished(plan, payload, data, build_task(plan, data), device, ranks, poll)
    for text in missing:
        if ranks.is_main:
            print(f"evaluation: {text}", flush=True)
        wanted = evaluation_of(text)
        if not plan.layers and not wanted.keep_prob and not wanted.block_size:
            wanted.samples = None  # a row without layers among others that have some
        result = results_of(finished, wanted)
        made[text] = {name: value for name, value in result.items() if value not in (None, []) and name != "tables"}
        if ranks.is_main:
            directory.write("evaluations.json", made)
        ranks.barrier()


def dropblock_in(finished: Finished, block_size: int, keep_prob: float) -> LayerConfig:
    """DropBlock as in the paper's Figure 5: at all sites of the last two groups, in the first a quarter of the rate."""
    last: Any = finished.network()[0].last_group
    return LayerConfig("dropblock", keep_prob, block_size, [last - 1, last], True, "constant", 4.0)


def own_layers(finished: Finished, samples: int) -> list[LayerConfig]:
    """The layers that the network was trained with, at their full rate."""
    if not finished.plan.layers:
        raise UserError(f"samples={samples}: this network has no layers of its own; give keep_prob=0.9 block_size=7")
    constant: dict[str, Any] = {"schedule": "constant", "schedule_start": None, "schedule_end": None}
    return [replace(layer, **constant) for layer in finished.plan.layers]


def sampled(
    finished: Finished, loader: Any, layers: Sequence[LayerConfig], samples: int, seed: int = 0
) -> tuple[dict[str, Any], Tensor]:
    """The mean prediction over the masks of some layers: a row of its metrics, and the scores of every image.

    Args:
        layers: none for the network as it is.
        samples: masks.
        seed: decides the masks.

    Returns:
        layers, their knobs and the metrics, entropy and mutual information among them; and (N, 3), see `Sampling`.
    """
    network, control = finished.network(*layers)
    shown = samples > 1 and finished.ranks.is_main and sys.stderr.isatty()
    with tqdm(total=samples * len(loader), desc="samples", unit="batch", disable=not shown) as bar, remembered(network):
        sampling = Sampling(finished.task, control if layers else None, samples, seed, bar)
        done = finished.measured(network, loader, sampling)
    first = layers[0] if layers else LayerConfig("none")
    named = {
        "layers": "+".join(layer.name for layer in layers),
        **{k: getattr(first, k) for k in ("keep_prob", "block_size")},
    }
    return {**named, "samples": samples, **done.metrics}, sampling.seen.scores


def corruption_rows(
    finished: Finished, network: nn.Module, loader: Any, wanted: EvaluationConfig, cifar10c: Sequence[str]
) -> list[dict[str, Any]]:
    """The metrics on each corruption at each severity, and if the network has trained on images changed like that.

    Args:
        cifar10c: the corruptions of CIFAR-10-C, see `cifar10c_of`; the `source` of their rows, None for our own.
    """
    names = CORRUPTIONS if "all" in wanted.corruption else wanted.corruption
    severities = wanted.severity or DEFAULT_SEVERITIES
    plan = finished.plan
    known = {corruption for name in plan.regularizer for corruption in declared(name).corruptions}
    known |= {"brightness", "contrast"} if plan.recipe.augment.photometric else set()
    rows = []
    for name, severity in product(names, severities):
        done = finished.measured(network, corrupted(loader, name, severity, wanted.seed))
        named = {"corruption": name, "source": None, "severity": severity, "trained_on": name in known}
        rows.append({**named, **done.metrics})
    for name, severity in product(cifar10c, severities):
        done = finished.measured(network, corrupted_cifar(Path(wanted.cifar10c or ""), name, severity, loader))
        named = {"corruption": name, "source": "CIFAR-10-C", "severity": severity, "trained_on": name in known}
        rows.append({**named, **done.metrics})
    return rows


def cifar10c_of(finished: Finished, wanted: EvaluationConfig) -> list[str]:
    """The corruptions of CIFAR-10-C that are asked for, none without `cifar10c=`."""
    if wanted.cifar10c is None:
        return []
    if finished.data.classes != CLASSES or wanted.split != "test":
        raise UserError(f"cifar10c={wanted.cifar10c}: for networks of CIFAR-10, and on test")
    return corruptions_in(Path(wanted.cifar10c))


def column_of(model: Any, column: int) -> nn.Module:
    """One column of a fractal network, on the same weights."""
    if not hasattr(model, "column"):
        raise UserError(f"column={column}: only a FractalNet has columns")
    if not 1 <= column <= model.depth:
        raise UserError(f"column={column}: this network has the columns 1 to {model.depth}")
    return model.column(column).eval()


class Tempered(nn.Module):
    """A network whose logits are divided by a temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x).float() / self.temperature


@torch.no_grad()
def fitted_temperature(network: nn.Module, loader: Any, finished: Finished) -> float:
    """The temperature T that minimises the negative log-likelihood of softmax(logits / T) on a split.

    One number for all classes, which leaves every prediction as it is (Guo et al. 2017, section 4.2). Between 0.01 and
    100: where all images of the split are classified correctly, no finite one is best.
    """
    with autocast(finished.device, finished.plan.recipe.precision):
        seen = [(network(batch.images).double().cpu(), batch.labels.cpu()) for batch in loader.epoch(0)]
    parts = [part for ours in finished.ranks.gather(seen) for part in ours]
    logits, labels = torch.cat([z for z, _ in parts]), torch.cat([y for _, y in parts])
    of_label = logits.gather(1, labels[:, None]).mean()

    # The loss is convex in 1 / T, so its slope there, E_p[z] - z_y, changes sign once: halve the interval of log T.
    low, high = math.log(0.01), math.log(100.0)
    while high - low > 1e-9:
        middle = (low + high) / 2
        expected = ((logits / math.exp(middle)).softmax(1) * logits).sum(1).mean()
        # A temperature too high makes the expected logit smaller than that of the labels.
        low, high = (low, middle) if expected < of_label else (middle, high)
    return math.exp((low + high) / 2)
