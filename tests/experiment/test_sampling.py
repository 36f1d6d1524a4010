"""Averages over masks: each number against numpy, and the same whatever the batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.special import softmax
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from configs.evaluation import EvaluationConfig
from dropblock import Dropout
from engine.distributed import Ranks
from engine.evaluation import evaluate
from engine.tasks import Classification, Segmentation
from experiment.build import build_task
from experiment.evaluation import Finished, images_passed, own_layers, results_of
from experiment.sampling import Remembered, Sampling, remembered
from experiment.source import NetworkSource
from experiment.trained import opened
from models.resnet import ResNet
from tests.last_of_each import last_of_each
from train import main as train

CPU = torch.device("cpu")


def test_the_mean_prediction_has_the_metrics_that_numpy_finds() -> None:
    rng = np.random.default_rng(0)
    logits, labels = 3 * rng.normal(size=(4, 50, 3)), rng.integers(0, 3, 50)  # samples, images, classes
    drawn = iter(torch.from_numpy(logits).float().split(1))
    batch = SimpleNamespace(
        images=torch.zeros(50, 1), labels=torch.from_numpy(labels), indices=torch.arange(50), size=50
    )

    class Drawn(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return next(drawn)[0]

    class Split:
        def __len__(self) -> int:
            return 1

        def epoch(self, epoch: int) -> Any:
            return iter([batch])

    sampling: Any = Sampling(Classification(("a", "b", "c")), samples=4)
    done = evaluate(sampling, Drawn(), Split(), Ranks(), CPU, "float32")

    each = softmax(logits.astype(np.float32).astype(np.float64), axis=2)
    p = each.mean(0)
    of_label = p[np.arange(50), labels]
    bins = np.ceil(15 * p.max(1))
    right = p.argmax(1) == labels
    gaps = [abs((right - p.max(1))[bins == b].sum()) for b in range(1, 16)]
    entropy = -(p * np.log(p)).sum(1)
    expected = {
        "loss": -np.log(of_label).mean(),
        "top1": 100 * right.mean(),
        "brier": ((p - np.eye(3)[labels]) ** 2).sum(1).mean(),
        "ece": 100 * sum(gaps) / 50,
        "entropy": entropy.mean(),
        "mutual_information": (entropy + (each * np.log(each)).sum(2).mean(0)).mean(),
    }
    for name, value in expected.items():
        assert done.metrics[name] == pytest.approx(value, rel=1e-5), name
    assert np.allclose(sampling.seen.scores[:, 0], p.max(1), rtol=1e-6)


def test_a_segmentation_is_measured_at_its_labelled_pixels() -> None:
    rng = np.random.default_rng(1)
    logits, labels = 3 * rng.normal(size=(2, 3, 4, 5, 5)), rng.integers(0, 4, (3, 5, 5))  # samples, images, classes
    labels[0, :3], labels[2] = 255, 255
    drawn = iter(torch.from_numpy(logits).float())
    batch = SimpleNamespace(images=torch.zeros(3, 1), masks=torch.from_numpy(labels), indices=torch.arange(3), size=3)
    sampling: Any = Sampling(Segmentation(("a", "b", "c", "d")), samples=2)
    evaluator = sampling.evaluator(None)
    evaluator.update(lambda _: next(drawn), batch)
    found = evaluator.metrics()

    each = np.moveaxis(softmax(logits.astype(np.float32).astype(np.float64), axis=2), 2, -1)
    counted = labels != 255
    p, truth = each.mean(0)[counted], labels[counted]
    right, bins = p.argmax(1) == truth, np.ceil(15 * p.max(1))
    entropy = -(p * np.log(p)).sum(1)
    ious = [((p.argmax(1) == k) & (truth == k)).sum() / ((p.argmax(1) == k) | (truth == k)).sum() for k in range(4)]
    expected = {
        "loss": -np.log(p[np.arange(len(p)), truth]).mean(),
        "miou": 100 * np.mean(ious),
        "ece": 100 * sum(abs((right - p.max(1))[bins == b].sum()) for b in range(1, 16)) / len(p),
        "entropy": entropy.mean(),
        "mutual_information": (entropy + (each * np.log(each)).sum(-1).mean(0)[counted]).mean(),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5), name


@pytest.fixture(scope="module")
def run(small_run: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sampled")
    layer = ("regularizer=dropblock", "schedule=early", "schedule_end=0.5", "block_size=3", "keep_prob=0.5")
    assert train(last_of_each(*small_run, f"output_root={root}", *layer)) == 0
    (path,) = root.glob("fake-resnet18/*/seed-1")
    return path


def finished(run: Path, eval_batch_size: int = 256) -> Finished:
    plan, payload, data = opened(NetworkSource(run=str(run)), CPU)
    data.test.batches = replace(data.test.batches, batch_size=eval_batch_size)
    return Finished(plan, payload, data, build_task(plan, data), CPU, Ranks())


def test_masks_do_not_depend_on_the_batch_and_have_the_full_rate(run: Path) -> None:
    """The schedule of this run ends at a rate of 0; its layers are drawn at the rate that it began with."""
    of = finished(run)
    once = results_of(of, EvaluationConfig(samples=2))["sampled"][0]
    again = results_of(finished(run, eval_batch_size=7), EvaluationConfig(samples=2))["sampled"][0]
    assert (once["layers"], once["keep_prob"], once["block_size"], once["samples"]) == ("dropblock", 0.5, 3, 2)
    for name in ("loss", "top1", "brier", "ece", "entropy", "mutual_information"):
        assert again[name] == pytest.approx(once[name], rel=1e-4), name
    assert once["mutual_information"] > 1e-4
    other = results_of(of, EvaluationConfig(samples=2, seed=1))["sampled"][0]
    assert other["loss"] != once["loss"]
    # Of keep_prob 1 every sample is the network itself.
    plain = results_of(of, EvaluationConfig(samples=2, keep_prob=[1.0]))
    [same] = plain["sampled"]
    assert same["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert same["mutual_information"] < 1e-9


@pytest.mark.parametrize(
    "wanted",
    [
        EvaluationConfig(samples=2),
        EvaluationConfig(keep_prob=[0.9, 0.8], block_size=[3]),
        EvaluationConfig(samples=2, keep_prob=[0.9, 0.8], temperature="val", ood="strangers"),
        EvaluationConfig(corruption=["jpeg", "contrast"], severity=[2]),
    ],
)
def test_what_an_evaluation_will_cost_is_what_it_passes(run: Path, tmp_path: Path, wanted: EvaluationConfig) -> None:
    of, passed = finished(run), [0]
    if wanted.ood is not None:
        wanted.ood = str(tmp_path)
        for name in "abc":
            Image.new("RGB", (32, 32), "blue").save(tmp_path / f"{name}.png")

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(module, ResNet) and len(inputs[0]) > 1:  # not the one that finds the sizes of the maps
            passed[0] += len(inputs[0])

    with register_module_forward_pre_hook(count):
        results_of(of, wanted)
    assert of.data.val is not None
    assert passed[0] == images_passed(of.plan, wanted, of.data.test.num_samples, of.data.val.num_samples)


def test_what_lies_before_the_layers_is_computed_once_a_batch(run: Path) -> None:
    of = finished(run)
    x = next(of.data.test.epoch(0)).images
    networks = [of.network(*own_layers(of, 2)) for _ in range(2)]
    calls: list[Any] = []
    model: Any = networks[0][0]
    model.layer1[0].conv1.register_forward_hook(lambda *_: calls.append(1))
    model.layer3[0].conv1.register_forward_hook(lambda *_: calls.append(3))
    with remembered(model), torch.no_grad():
        for seed in (1, 2, 3):
            for _, control in networks:
                control.set_image_seeds(lambda i, seed=seed: 10 * seed + i, torch.arange(len(x)))
            assert torch.equal(networks[0][0](x), networks[1][0](x))
        other = networks[0][0](x + 1)
        assert not torch.equal(other, networks[0][0](x))
    assert calls == [1, 3, 3, 3, 1, 3, 1, 3]
    assert not any(isinstance(module.forward, Remembered) for module in model.modules())


def test_a_part_that_two_modules_share_is_remembered_once() -> None:
    shared = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model = nn.Sequential(nn.Sequential(shared, Dropout()), nn.Sequential(shared, Dropout()))
    with remembered(model):
        assert isinstance(shared.forward, Remembered)
    assert not isinstance(shared.forward, Remembered)


def test_a_remembered_value_is_not_used_where_something_changed_it_in_place() -> None:
    doubled = Remembered(lambda x: 2 * x)
    x = torch.ones(3)
    with torch.no_grad():
        doubled(x).add_(1)
        assert doubled(x).tolist() == [2, 2, 2]
        x.add_(1)
        assert doubled(x).tolist() == [4, 4, 4]
        # A pyramid takes the maps of several groups and gives several.
        both = Remembered(lambda maps, more=0: (maps[0] + more, maps[1]))
        assert [both((x, x), more=1)[0].tolist() for _ in range(2)] == [[3, 3, 3], [3, 3, 3]]
        assert [len(Remembered(lambda x: (x, x))(x)) for _ in range(2)] == [2, 2]
