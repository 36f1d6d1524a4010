"""What the loop promises holds for every task: however batches and ranks are cut, across restarts, with bad numbers.

A new task adds one `Case` here: a tiny network, made-up batches, and outputs with a known answer.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from configs.schema import RecipeConfig, RunOptions
from data import Batch, ClassificationBatch, DetectionBatch, SegmentationBatch
from engine.checkpoint import load
from engine.distributed import Ranks
from engine.evaluation import evaluate
from engine.guard import NonFinite
from engine.loop import Fit
from engine.run_directory import RunDirectory
from engine.seeding import mix
from engine.signals import Stopped, StopRequest
from engine.state import TrainState
from engine.tasks import TASKS, Table, Task
from tests.comparison import assert_same

CPU, SIDE, CLASSES = torch.device("cpu"), 32, ("a", "b", "c")


class Raw(NamedTuple):
    class_logits: Tensor
    box_deltas: Tensor
    anchors: Tensor


class Tiny(nn.Module):
    """The smallest network of each task; a (B, K) or (B, K, 4, 4) output, or 16 anchors of 8 pixels."""

    def __init__(self, task: str) -> None:
        super().__init__()
        self.task = task
        outputs = len(CLASSES) + 4 * (task == "detection")
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, outputs, 1))
        corner = torch.cartesian_prod(torch.arange(0.0, SIDE, 8), torch.arange(0.0, SIDE, 8)).flip(1)
        self.register_buffer("anchors", torch.cat([corner, corner + 8], 1), persistent=False)

    def forward(self, x: Tensor) -> Any:
        maps = self.layers(x)
        if self.task == "classification":
            return maps.mean((2, 3))
        if self.task == "segmentation":
            return maps
        flat = maps.flatten(2).mT
        return Raw(flat[..., : len(CLASSES)], flat[..., len(CLASSES) :], self.anchors)


class Known(nn.Module):
    """A network that has learnt the answer by heart."""

    def __init__(self, answer: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor) -> Any:
        return self.answer(x)


@dataclass
class Loader:
    """The samples of one batch, cut into batches of `size`."""

    samples: Any
    size: int
    truth: Any = None

    def __post_init__(self) -> None:
        self.num_samples, self.bad_images = self.samples.size, dict[str, str]()
        self.classes = CLASSES

    def __len__(self) -> int:
        return -(-self.num_samples // self.size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        fields = self.samples.plain()
        for i in range(start, len(self)):
            part = slice(i * self.size, (i + 1) * self.size)
            yield type(self.samples)(**{name: tensor[part] for name, tensor in fields.items()})


@dataclass
class Case:
    """A task on made-up samples; `known` answers them perfectly, and then the metrics are `perfect`."""

    name: str
    samples: Batch
    known: nn.Module
    perfect: dict[str, float]
    truth: Any = None

    def task(self) -> Task:
        return TASKS[self.name](CLASSES)  # type: ignore[call-arg]

    def loader(self, size: int, start: int = 0, stop: int | None = None) -> Loader:
        part = {name: tensor[start:stop] for name, tensor in self.samples.plain().items()}
        return Loader(type(self.samples)(**part), size, self.truth)


def images(count: int = 12) -> Tensor:
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def classification() -> Case:
    labels = torch.arange(12) % 3
    by_heart = {image[0, 0, 0].item(): int(label) for image, label in zip(images(), labels, strict=True)}

    def answer(x: Tensor) -> Tensor:
        return 50.0 * nn.functional.one_hot(torch.tensor([by_heart[i[0, 0, 0].item()] for i in x]), 3).float()

    perfect = {"top1": 100, "macro_accuracy": 100, "brier": 0, "ece": 0}

    return Case("classification", ClassificationBatch(images(), labels, torch.arange(12)), Known(answer), perfect)


def segmentation() -> Case:
    blocks = torch.randint(3, (12, 4, 4), generator=torch.Generator().manual_seed(2))
    masks = torch.full((12, SIDE, SIDE), 255)
    masks[:, ::8, ::8] = blocks  # what lies between the positions of the logits is not labelled
    by_heart = {image[0, 0, 0].item(): block for image, block in zip(images(), blocks, strict=True)}

    def answer(x: Tensor) -> Tensor:
        labels = torch.stack([by_heart[image[0, 0, 0].item()] for image in x])
        return 50.0 * nn.functional.one_hot(labels, 3).movedim(3, 1).float()

    samples = SegmentationBatch(images(), masks, torch.arange(12))
    return Case("segmentation", samples, Known(answer), {"miou": 100, "pixel_accuracy": 100})


def detection() -> Case:
    anchors = Tiny("detection").anchors
    boxes, labels = torch.full((12, 100, 4), -1.0), torch.full((12, 100), -1)
    annotations: list[dict[str, Any]] = []
    logits = torch.full((12, 16, 3), -20.0)
    for i in range(12):
        for j in range(i % 3):  # every third image has no object
            place = (5 * i + 3 * j) % 16
            boxes[i, j], labels[i, j] = anchors[place], (i + j) % 3
            logits[i, place, (i + j) % 3] = 5.0 - 0.1 * i
            x, y = anchors[place, :2].tolist()
            about = {"id": len(annotations) + 1, "image_id": 100 + i, "category_id": 7 + (i + j) % 3, "iscrowd": 0}
            annotations.append({**about, "bbox": [2 * x, 2 * y, 16.0, 16.0], "area": 256.0})
    truth = {
        "images": [{"id": 100 + i} for i in range(12)],
        "annotations": annotations,
        "categories": [{"id": 7 + k, "name": name} for k, name in enumerate(CLASSES)],
    }
    by_heart = {image[0, 0, 0].item(): answer for image, answer in zip(images(), logits, strict=True)}

    def answer(x: Tensor) -> Raw:
        return Raw(torch.stack([by_heart[i[0, 0, 0].item()] for i in x]), torch.zeros(len(x), 16, 4), anchors)

    scales, numbers = torch.full((12,), 0.5, dtype=torch.float64), torch.arange(12)
    samples = DetectionBatch(images(), boxes, labels, scales, 100 + numbers, numbers)
    return Case("detection", samples, Known(answer), {"ap": 100, "ap50": 100, "ap_small": 100}, truth)


CASES = {"classification": classification, "segmentation": segmentation, "detection": detection}


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]()


def test_every_task_is_held_to_these_promises() -> None:
    assert set(CASES) == set(TASKS)


def network(case: Case) -> Tiny:
    torch.manual_seed(0)
    model = Tiny(case.name)
    with torch.no_grad():  # answers that differ, so that the metrics are no zeros
        model.layers[3].weight.mul_(5)
    return model


def results(case: Case, model: nn.Module, size: int, ranks: int = 1) -> tuple[dict[str, float], list[Table]]:
    """Of an evaluation in batches of this size, the samples shared out among ranks."""
    task = case.task()
    evaluators = []
    for rank in range(ranks):
        loader = case.loader(size, *([rank * 12 // ranks, (rank + 1) * 12 // ranks] if ranks > 1 else []))
        evaluators.append(task.evaluator(loader))
        for batch in loader.epoch(0):
            with torch.no_grad():
                evaluators[-1].update(model.eval(), batch)
    evaluators[0].merge([evaluator.state() for evaluator in evaluators])
    return evaluators[0].metrics(), evaluators[0].tables()


def test_metrics_on_a_known_answer(case: Case) -> None:
    metrics, tables = results(case, case.known, 5)
    assert metrics == {**metrics, **{name: pytest.approx(value) for name, value in case.perfect.items()}}
    task = case.task()
    assert task.headline in metrics
    assert set(metrics) <= set(task.metrics)
    assert {type(value) for value in metrics.values()} == {float}
    assert all(len(row) == len(table.header) for table in tables for row in table.rows)
    assert [row[0] for row in tables[0].rows] == list(CLASSES)


@pytest.mark.parametrize(("size", "ranks"), [(1, 1), (5, 1), (12, 1), (2, 2), (4, 3), (5, 5)])
def test_an_evaluation_does_not_depend_on_batches_and_ranks(case: Case, size: int, ranks: int) -> None:
    model = network(case)
    whole, tables = results(case, model, 7)
    cut, cut_tables = results(case, model, size, ranks)
    assert whole.keys() == cut.keys()
    assert cut == pytest.approx(whole, rel=1e-6)
    for ours, theirs in zip(cut_tables, tables, strict=True):
        assert ours.rows == [pytest.approx(row) for row in theirs.rows]


def test_an_empty_split_is_refused(case: Case) -> None:
    empty = case.loader(4, 0, 0)
    with pytest.raises(ValueError, match="split"):
        evaluate(case.task(), network(case), empty, Ranks(), CPU, "float32")


def test_training_sums_add_up(case: Case) -> None:
    """Images and what was counted, not the loss: its normalizer may be of the whole batch."""
    task, model = case.task(), network(case).eval()
    whole = task.loss(model, case.samples)[2]
    parts = torch.stack([task.loss(model, part)[2] for part in case.samples.split(3)]).sum(0)
    assert (whole.dtype, whole.shape) == (torch.float64, parts.shape)
    counted = (whole == whole.round()) & (parts == parts.round())
    assert counted.any()
    assert torch.equal(whole[counted], parts[counted])
    metrics = task.train_metrics(parts, 12)
    assert metrics["loss"] > 0
    assert set(metrics) <= set(task.metrics)


class NoLayers:
    """A network without layers, as the loop sees it."""

    def set_progress(self, progress: float) -> None: ...

    def set_seeds(self, seed_of: Any) -> None: ...

    def take_counts(self) -> dict[str, tuple[int, int]]:
        return {}

    def keep_probs(self, progress: Any) -> dict[str, float]:
        return {}

    def expected_drop(self, progress: Any) -> dict[str, float]:
        return {}


@dataclass
class Splits:
    train: Loader
    val: Loader
    test: Loader


def fit(case: Case, place: Path, accumulate: int = 1) -> Fit:
    """Two epochs of three steps."""
    (place / "checkpoints").mkdir(parents=True, exist_ok=True)
    model = network(case)
    recipe = RecipeConfig("test", epochs=2, lr=0.05, warmup_epochs=0.5, ema_decay=0.9, ema_warmup=True)
    return Fit(
        task=case.task(),
        state=TrainState(model, recipe),
        network=model,
        data=Splits(case.loader(4), case.loader(5), case.loader(7)),
        layers=NoLayers(),
        recipe=replace(recipe, accumulate=accumulate),
        options=RunOptions(log_every=2, progress=False),
        seed=mix(3),
        directory=RunDirectory(place),
        identity={},
        ranks=Ranks(),
        device=CPU,
        stop=StopRequest(),
    )


def test_a_run_goes_on_in_the_middle_of_an_epoch_to_the_last_bit(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = fit(case, tmp_path / "whole", accumulate=2)
    whole.run()
    first = fit(case, tmp_path / "cut", accumulate=2)
    step = Fit.step

    def stopped_at_the_fourth(self: Fit, *arguments: Any) -> None:
        step(self, *arguments)
        if self.state.step == 5:
            self.stop.received = signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(Fit, "step", stopped_at_the_fourth)
        with pytest.raises(Stopped):
            first.run()
    second = fit(case, tmp_path / "cut", accumulate=2)
    second.state.load_state_dict(load(tmp_path / "cut" / "checkpoints" / "last.pt"))
    assert second.state.step == 5
    second.run()
    assert_same(second.state.state_dict(), whole.state.state_dict())
    lines = [
        [{**line, "time/images_per_s": 0} for line in RunDirectory(tmp_path / n).metrics()] for n in ("whole", "cut")
    ]
    assert lines[0] == lines[1]
    result = whole.result()
    assert (result["task"], result["headline"]) == (case.name, case.task().headline)
    assert result["tables"][0]["rows"]
    assert f"test/{result['headline']}" in result["last"]
    assert set(result["metric_labels"]) >= {name.split("/")[1] for name in result["last"] if "/" in name}


def test_a_loss_that_is_not_finite_stops_the_run(case: Case, tmp_path: Path) -> None:
    run = fit(case, tmp_path)
    with torch.no_grad():
        run.state.model.layers[0].weight.fill_(float("nan"))  # type: ignore[union-attr,index,operator]
    with pytest.raises(NonFinite, match=r"loss.* step 0"):
        run.run()
    kept = load(tmp_path / "nonfinite.pt")["batch"]
    assert kept.keys() == case.samples.plain().keys()
    assert torch.equal(kept["images"], case.samples.images[:4])
    assert not (tmp_path / "checkpoints" / "last.pt").exists()


def test_pictures_of_samples(case: Case, tmp_path: Path) -> None:
    """At some epochs, of the same few samples, about as wide as high; none for a task without pictures."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = fit(case, tmp_path)
    run.run()
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "tensors": 0}).Reload()
    drawn = [tag for tag in events.Tags()["images"] if tag.startswith("test/pictures")]
    assert bool(drawn) == bool(case.task().num_pictures)
    if drawn:
        assert {event.step for event in events.Images(drawn[0])} == {3, 6}
        assert all(0.5 <= event.width / event.height <= 2 for event in events.Images(drawn[0]))
        shown = case.task().pictures(run.state.evaluated.eval(), case.samples)
        assert (len(shown), shown.dtype) == (12, torch.uint8)


def weighed_differently(case: Case) -> Case:
    """Images that weigh differently: of the classifier by their number, of the others by what is labelled in them."""
    if case.name == "segmentation":
        case.samples.masks[0, 8:], case.samples.masks[2, :, 8:], case.samples.masks[3] = 255, 255, 255
    return case


def gradient_of_a_step(case: Case, place: Path, accumulate: int, ranks: Ranks, start: int, stop: int) -> Tensor:
    """Over samples `start` to `stop`, of a network without BatchNorm."""
    run = fit(case, place, accumulate)
    run.state.model.layers[1] = nn.Identity()  # type: ignore[union-attr,index,operator]
    seen: list[Tensor] = []

    def keep(optimizer: Any, *_: Any) -> None:
        seen.append(torch.cat([p.grad.flatten() for group in optimizer.param_groups for p in group["params"]]))

    state = TrainState(run.state.model, replace(run.recipe, ema_decay=None))
    state.optimizer.register_step_pre_hook(keep)
    run = replace(run, state=state, recipe=replace(run.recipe, ema_decay=None), ranks=ranks)
    run.step(next(case.loader(stop - start, start, stop).epoch(0)), 0.0)
    return seen[0]


@pytest.mark.parametrize("accumulate", [2, 3, 5])
def test_micro_batches_have_the_gradient_of_the_batch(case: Case, tmp_path: Path, accumulate: int) -> None:
    case = weighed_differently(case)
    whole = gradient_of_a_step(case, tmp_path, 1, Ranks(), 0, 5)
    torch.testing.assert_close(gradient_of_a_step(case, tmp_path, accumulate, Ranks(), 0, 5), whole)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_ranks_have_the_gradient_of_the_batch(case: Case, tmp_path: Path, accumulate: int) -> None:
    """DDP takes the mean of the ranks' gradients."""
    case = weighed_differently(case)
    model = network(case)
    model.layers[1] = nn.Identity()
    weights = [case.task().loss(model, part)[1] for part in case.loader(3).epoch(0)][:2]

    class Both(Ranks):
        """One of two ranks, which knows the weight of both."""

        def sum(self, tensor: Tensor) -> Tensor:
            return weights[0] + weights[1] if tensor.ndim == 0 else 2 * tensor

        def max(self, number: int) -> int:
            return number

    halves = [gradient_of_a_step(case, tmp_path, accumulate, Both(r, 2), 3 * r, 3 * r + 3) for r in range(2)]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, gradient_of_a_step(case, tmp_path, 1, Ranks(), 0, 6))


def test_more_micro_batches_than_samples_are_refused(case: Case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"recipe\.accumulate=5"):
        fit(case, tmp_path, accumulate=5).run()
