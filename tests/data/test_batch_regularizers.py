"""Batch regularizers: what becomes of images and targets, and what decides the draws."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from configs.checking import UserError
from configs.compose import plan_of
from data import ClassificationBatch
from data.batch_regularizers import CutMix, FeatureCutMix, ManifoldMixup, Mixup, MixupCutMix
from engine.seeding import mix
from engine.tasks import Classification
from engine.tasks.losses import LabelSmoothing
from models import build_model


def batch_of(count: int, classes: int = 7) -> ClassificationBatch:
    draws = torch.Generator().manual_seed(3)
    images = torch.randn(count, 3, 6, 6, generator=draws).contiguous(memory_format=torch.channels_last)
    return ClassificationBatch(images, torch.randint(classes, (count,), generator=draws), torch.arange(count))


def test_mixup_is_the_batch_and_another_order_of_it() -> None:
    batch = batch_of(64)
    mixed = Mixup(alpha=1.0)(batch, partial(mix, 5))
    assert mixed.share is not None
    assert mixed.other_labels is not None
    assert 0 < mixed.share < 1
    assert torch.equal(mixed.labels, batch.labels)
    assert sorted(mixed.other_labels.tolist()) == sorted(batch.labels.tolist())
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    rest = (mixed.images - mixed.share * batch.images) / (1 - mixed.share)
    others = torch.cdist(rest.flatten(1), batch.images.flatten(1)).argmin(1)
    assert sorted(others.tolist()) == list(range(64))
    assert torch.equal(batch.labels[others], mixed.other_labels)
    torch.testing.assert_close(rest, batch.images[others], rtol=1e-3, atol=1e-3)


def test_mixup_draws_from_its_seeds_alone() -> None:
    batch, seen = batch_of(16), []
    for seed in (1, 2, 1):
        np.random.seed(seed + 7)
        seen.append(Mixup(alpha=0.4)(batch, partial(mix, seed)))
    assert (seen[0].share, seen[0].images.tolist()) == (seen[2].share, seen[2].images.tolist())
    assert seen[0].share != seen[1].share


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_the_share_has_the_beta_distribution(alpha: float) -> None:
    few, count = batch_of(2), 1500
    shares = np.array([Mixup(alpha)(few, partial(mix, seed)).share for seed in range(count)])
    # Mean 1/2, variance 1 / (4 (2 alpha + 1)); five standard errors of each (the variance's from the fourth moment).
    variance = 1 / (4 * (2 * alpha + 1))
    assert abs(shares.mean() - 0.5) < 5 * np.sqrt(variance / count)
    squares = (shares - 0.5) ** 2
    assert abs(squares.mean() - variance) < 5 * squares.std() / np.sqrt(count)


@pytest.mark.parametrize("share", [0.3, torch.rand(30, generator=torch.Generator().manual_seed(2))])
@pytest.mark.parametrize("criterion", [F.cross_entropy, LabelSmoothing(0.1)])
def test_the_loss_of_a_mixed_batch_is_that_of_the_mixed_target(
    criterion: Callable[..., torch.Tensor], share: float | torch.Tensor
) -> None:
    batch, logits = batch_of(30), torch.randn(30, 7)
    mixed = replace(batch, images=logits, other_labels=batch.labels.roll(1), share=share)
    loss, _, sums = Classification("abcdefg", criterion).loss(nn.Identity(), mixed)
    own = torch.as_tensor(share).expand(30)[:, None]
    target = own * F.one_hot(mixed.labels, 7) + (1 - own) * F.one_hot(batch.labels.roll(1), 7)
    if isinstance(criterion, LabelSmoothing):  # as timm's `mixup_target`
        target = 0.9 * target + 0.1 / 7
    torch.testing.assert_close(loss, -(target * logits.log_softmax(1)).sum(1).mean())
    larger = torch.where(own[:, 0] >= 0.5, batch.labels, batch.labels.roll(1))
    assert sums[1] == (logits.argmax(1) == larger).sum()


def test_a_mixed_batch_splits_and_a_plain_one_is_as_it_was() -> None:
    batch = batch_of(7)
    assert [*batch.plain()] == ["images", "labels", "indices"]
    mixed = Mixup(1.0)(batch, partial(mix, 5))
    first, second = mixed.split(2)
    assert first.share == second.share == mixed.share
    assert torch.equal(torch.cat([first.other_labels, second.other_labels]), mixed.other_labels)  # type: ignore[list-item]


def test_cutmix_by_hand() -> None:
    class Drawn:
        """Probability, share, centre and order as written here."""

        def __init__(self, seed: int) -> None:
            self.centers = [1, 5]

        random_sample = staticmethod(lambda: 0.49)
        beta = staticmethod(lambda a, b: 0.75)  # sides of half an image: 6 x sqrt(1/4) = 3, and 2 as halves are cut
        permutation = staticmethod(lambda count: np.array([2, 0, 1]))

        def randint(self, size: int) -> int:
            return self.centers.pop(0)

    batch = batch_of(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np.random, "RandomState", Drawn)
        mixed = CutMix(alpha=1.0, probability=0.5)(batch, partial(mix, 5))
        left = CutMix(alpha=1.0, probability=0.49)(batch, partial(mix, 5))
    assert torch.equal(left.images, batch.images)
    assert left.share == 1.0
    # Rows 0 and 1 around row 1; columns 4 and 5 around column 5: 4 of 36 pixels.
    expected = batch.images.clone()
    expected[:, :, :2, 4:] = batch.images[[2, 0, 1], :, :2, 4:]
    assert torch.equal(mixed.images, expected)
    assert mixed.images.is_contiguous(memory_format=torch.channels_last)
    assert mixed.share == pytest.approx(1 - 4 / 36)
    assert torch.equal(mixed.labels, batch.labels)
    assert torch.equal(mixed.other_labels, batch.labels[[2, 0, 1]])  # type: ignore[arg-type]


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_boxes_of_cutmix_have_the_areas_of_the_definition(alpha: float) -> None:
    change, count, (height, width) = CutMix(alpha, 1.0), 4000, (200, 300)
    draws = np.random.RandomState(0)
    found = [change.box(height, width, draws) for _ in range(count)]
    areas = np.array([(r.stop - r.start) * (c.stop - c.start) for r, c in found]) / (height * width)
    # By the definition with numbers of its own: r = size x sqrt(1 - share), centre anywhere, cut at the border.
    own = np.random.default_rng(0)
    share, centers = own.beta(alpha, alpha, 100_000), own.random((2, 100_000))
    half = np.sqrt(1 - share) / 2
    low, high = np.maximum(centers - half, 0), np.minimum(centers + half, 1)
    expected = np.prod(high - low, axis=0)
    for power in (1, 2):
        error = 5 * (expected**power).std() / np.sqrt(count)
        assert (areas**power).mean() == pytest.approx((expected**power).mean(), abs=error + 0.01)  # whole pixels
    tops = np.array([r.start for r, _ in found])
    assert (tops == 0).mean() == pytest.approx((low[0] * height < 1).mean(), abs=0.05)


def test_the_share_is_that_of_the_pixels_that_were_kept() -> None:
    count = 8
    images = torch.arange(count).float()[:, None, None, None].expand(count, 1, 24, 16)
    batch = ClassificationBatch(images, torch.arange(count), torch.arange(count))
    shares = []
    for seed in range(30):
        mixed = CutMix(1.0, 1.0)(batch, partial(mix, seed))
        assert mixed.share is not None
        assert mixed.other_labels is not None
        moved = mixed.other_labels != mixed.labels
        kept = (mixed.images == images).float().mean((1, 2, 3))
        assert torch.allclose(kept[moved], torch.tensor(mixed.share))
        assert {*mixed.images.flatten(1)[0].tolist()} <= {0.0, float(mixed.other_labels[0])}
        shares.append(mixed.share)
    assert len({*shares}) > 15


def test_a_switch_between_mixup_and_cutmix() -> None:
    batch, cut = batch_of(16), 0
    change = MixupCutMix(mixup_alpha=0.8, cutmix_alpha=1.0, switch=0.25)
    for seed in range(200):
        seed_of = partial(mix, seed)
        found = change(batch, seed_of)
        as_cutmix = CutMix(1.0, 1.0)(batch, seed_of)
        is_cut = torch.equal(found.images, as_cutmix.images)
        assert is_cut or torch.equal(found.images, Mixup(0.8)(batch, seed_of).images)
        cut += is_cut
    assert cut / 200 == pytest.approx(0.25, abs=5 * np.sqrt(0.25 * 0.75 / 200))


def test_the_choice_of_cutmix_says_nothing_about_the_share_that_is_drawn() -> None:
    batch, shares = batch_of(4), []
    for seed in range(600):
        mixed = MixupCutMix(mixup_alpha=1.0, cutmix_alpha=1.0, switch=0.5)(batch, partial(mix, seed))
        if torch.equal(mixed.images, Mixup(1.0)(batch, partial(mix, seed)).images):
            shares.append(float(np.mean(mixed.share)))
    assert np.mean(shares) == pytest.approx(0.5, abs=3 * np.sqrt(1 / 12 / len(shares)))


@pytest.mark.parametrize("change", [CutMix(1.0, 0.7), MixupCutMix(0.8, 1.0, 0.5), MixupCutMix(0.8, 1.0, 0.5, "image")])
def test_draws_are_those_of_the_seeds_alone(change: Callable[..., ClassificationBatch]) -> None:
    batch, seen = batch_of(16), []
    for seed in (1, 2, 1):
        np.random.seed(seed + 7)
        torch.manual_seed(seed)
        seen.append(change(batch, partial(mix, seed)))
    assert torch.equal(seen[0].images, seen[2].images)
    assert not torch.equal(seen[0].images, seen[1].images)


@pytest.mark.parametrize("together", ["batch", "image"])
def test_the_gradient_of_a_mixed_batch_is_that_of_the_dense_target(together: str) -> None:
    network, batch = nn.Sequential(nn.Flatten(), nn.Linear(108, 7)), batch_of(20)
    mixed = CutMix(1.0, 1.0, together)(batch, partial(mix, 11))
    assert mixed.share is not None
    assert mixed.other_labels is not None
    loss, *_ = Classification("abcdefg").loss(network, mixed)
    found = torch.autograd.grad(loss, list(network.parameters()))
    own = torch.as_tensor(mixed.share).expand(20)[:, None]
    target = own * F.one_hot(mixed.labels, 7) + (1 - own) * F.one_hot(mixed.other_labels, 7)
    dense = F.cross_entropy(network(mixed.images), target)
    torch.testing.assert_close(loss, dense)
    torch.testing.assert_close(found, torch.autograd.grad(dense, list(network.parameters())))


def test_two_that_mix_are_refused_in_favour_of_their_union() -> None:
    with pytest.raises(UserError, match=r"regularizer=\[.*mixup.*\].*mixup_cutmix"):
        plan_of("data=digits", "regularizer=[mixup,cutmix]")
    for name in ("cutmix", "mixup_cutmix", "feature_cutmix", "trivialaugment", "random_erasing"):
        with pytest.raises(UserError, match=f"regularizer={name}"):
            plan_of("data=digit_masks", f"regularizer={name}")
    with pytest.raises(UserError, match="regularizer=manifold_mixup"):
        plan_of("data=digit_boxes", "regularizer=manifold_mixup")


def test_images_that_draw_for_themselves() -> None:
    """Each image has a share, a box and a choice of its own; what is in it comes from itself and one other."""
    count, seeds = 64, 40
    images = torch.arange(count).float()[:, None, None, None].expand(count, 1, 24, 16)
    batch = ClassificationBatch(images, torch.arange(count), torch.arange(count))
    found = {
        "mixup": Mixup(0.5, "image"),
        "cutmix": CutMix(0.5, 0.75, "image"),
        "both": MixupCutMix(0.5, 0.5, 0.25, "image"),
    }
    for name, change in found.items():
        shares, boxes, changed = [], 0, 0
        for seed in range(seeds):
            mixed = change(batch, partial(mix, seed))
            assert isinstance(mixed.share, torch.Tensor)
            assert mixed.other_labels is not None
            # The share is that of the pixels: an image of ones mixed with one of zeros has it as its mean.
            means = mixed.share * batch.labels + (1 - mixed.share) * mixed.other_labels
            torch.testing.assert_close(mixed.images.mean((1, 2, 3)), means)
            whole = mixed.images.flatten(1).std(1) < 1e-4
            boxes, changed = boxes + int((~whole).sum()), changed + int((mixed.share < 1).sum())
            shares.append(mixed.share)
        drawn = torch.stack(shares).flatten().numpy()
        if name == "mixup":  # Beta(1/2, 1/2): mean 1/2, variance 1/8
            assert drawn.mean() == pytest.approx(0.5, abs=5 * np.sqrt(1 / 8 / drawn.size))
            assert drawn.var() == pytest.approx(1 / 8, abs=0.01)
            assert len({*drawn.tolist()}) > 0.99 * drawn.size
        elif name == "cutmix":
            assert changed / drawn.size == pytest.approx(0.75, abs=0.1)  # an empty box now and then
        else:
            assert boxes / drawn.size == pytest.approx(0.25, abs=0.1)


PLACES = ("input", "layer1", "layer2")
HIDDEN = {"mixup": ManifoldMixup(1.0, PLACES), "cutmix": FeatureCutMix(1.0, 1.0, PLACES)}
HIDDEN |= {"images": ManifoldMixup(1.0, PLACES, "image"), "boxes": FeatureCutMix(1.0, 1.0, PLACES, "image")}


def resnet(change: ManifoldMixup | FeatureCutMix | None = None) -> Any:
    torch.manual_seed(0)
    network: Any = build_model("resnet18", num_classes=7, width=4, stem="small").train()
    network.to(memory_format=torch.channels_last)
    if change is not None:
        change.install(network)
    return network


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_state_is_mixed_at_the_place_that_is_drawn(name: str) -> None:
    change, batch, seen = HIDDEN[name], batch_of(9), set()
    network, plain = resnet(change), resnet()
    for seed in range(12):
        mixed = change(batch, partial(mix, seed))
        seen.add(change.place)
        found = network(mixed.images)
        assert mixed.share is not None
        assert mixed.other_labels is not None
        if change.place == "input":
            assert torch.equal(mixed.images, change.mixing(batch, partial(mix, seed)).images)
            torch.testing.assert_close(found, plain(mixed.images))
            continue
        # By hand: up to the place, the mixture, the rest.
        assert torch.equal(mixed.images, batch.images)
        maps = plain.relu(plain.bn1(plain.conv1(batch.images)))
        for stage in ("layer1", "layer2", "layer3", "layer4"):
            maps = plain.get_submodule(stage)(maps)
            if change.place == stage:
                weights, others = change.mixing.draw(batch, maps.shape[2:], partial(mix, seed))
                own = torch.from_numpy(weights).float()
                maps = own * maps + (1 - own) * maps[others]
                torch.testing.assert_close(torch.as_tensor(mixed.share).expand(9), own.mean((1, 2, 3)).expand(9))
                assert torch.equal(mixed.other_labels, batch.labels[others])
        torch.testing.assert_close(found, plain.fc(maps.mean((2, 3))), rtol=1e-4, atol=1e-5)
    assert seen == {*PLACES}
    # Evaluation is that of the network without it, also after a batch that was mixed at layer1.
    change.place = "layer1"
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(batch.images), plain.eval()(batch.images))


def test_places_are_equally_likely_and_drawn_apart_from_the_shares() -> None:
    change, few = ManifoldMixup(1.0, PLACES), batch_of(2)
    _network = resnet(change)
    shares: dict[str, list[float]] = {place: [] for place in PLACES}
    for seed in range(300):
        mixed = change(few, partial(mix, seed))
        shares[change.place].append(mixed.share)  # type: ignore[arg-type]
    for found in shares.values():
        assert len(found) == pytest.approx(100, abs=5 * np.sqrt(300 * 2 / 9))
        assert np.mean(found) == pytest.approx(0.5, abs=5 * np.sqrt(1 / 12 / len(found)))


def test_a_place_that_is_listed_twice_is_mixed_once_and_drawn_twice_as_often() -> None:
    change, once = ManifoldMixup(1.0, ["layer1", "layer2", "layer1"]), ManifoldMixup(1.0, ["layer1"])
    batch = batch_of(4)
    twice, network = resnet(change), resnet(once)
    drawn = 0
    for seed in range(300):
        mixed = change(batch, partial(mix, seed))
        drawn += change.place == "layer1"
        if change.place == "layer1" and drawn < 4:
            once(batch, partial(mix, seed))
            assert torch.equal(twice(mixed.images), network(batch.images))
    assert drawn == pytest.approx(200, abs=5 * np.sqrt(300 * 2 / 9))


def test_a_mixed_state_under_compile_and_checkpointing() -> None:
    """One graph for each place, whatever the draws; and the gradients of a block that is computed twice."""
    change = FeatureCutMix(1.0, 1.0, ["0", "2"], "image")
    first = nn.Conv2d(3, 4, 3)
    network = nn.Sequential(first, nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 7))
    change.install(network)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, graphs = torch.compile(network, fullgraph=True, backend="eager"), torch._dynamo.utils.counters["stats"]

    def twice(images: torch.Tensor) -> torch.Tensor:
        images = images.requires_grad_()
        return network[1:](checkpoint(first, images, use_reentrant=False))

    for seed in range(6):
        mixed, gradients = change(batch_of(4), partial(mix, seed)), []
        for run in (network, compiled, twice):
            Classification("abcdefg").loss(run, mixed)[0].backward()  # type: ignore[arg-type]
            gradients.append([p.grad for p in network.parameters()])
            network.zero_grad()
        torch.testing.assert_close(gradients[1:], [gradients[0]] * 2)
    assert graphs["unique_graphs"] == 2
    torch._dynamo.reset()


def test_a_network_whose_states_are_mixed_goes_with_its_last_user() -> None:
    """A cycle through the hooks would keep it, and its memory on a GPU, until Python looks for cycles."""
    change = ManifoldMixup(1.0, PLACES)
    gc.disable()
    try:
        network = resnet(change)
        change(batch_of(2), partial(mix, 1))
        alive = weakref.ref(network)
        del network
        assert alive() is None
    finally:
        gc.enable()


def test_a_place_that_the_network_does_not_have_is_named() -> None:
    with pytest.raises(ValueError, match=r"'layer9'.*layer"):
        resnet(ManifoldMixup(1.0, ["layer9"]))
    change = ManifoldMixup(1.0, ["fc"])
    _network = resnet(change)
    with pytest.raises(ValueError, match="'fc' does not give feature maps"):
        change(batch_of(2), partial(mix, 1))
    for wrong in ("layer1", "[]"):
        with pytest.raises(UserError, match=r"regularizer.manifold_mixup.places"):
            plan_of("data=digits", "regularizer=manifold_mixup", f"regularizer.manifold_mixup.places={wrong}")
