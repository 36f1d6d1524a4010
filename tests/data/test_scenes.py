"""Scenes of digits: fixed, disjoint between splits, and their boxes and masks say the same."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from data.mask_sets import COMPOSITION
from data.scenes import COVERED, SCATTERED, SPLITS, Composition, compose, digits_of


def test_a_scene_is_a_function_of_its_split_and_number() -> None:
    few, more = compose("train", 3, 64), compose("train", 5, 64)
    assert (few.images == more.images[:3]).all()
    assert (few.masks == more.masks[:3]).all()
    assert (few.boxes == more.boxes[: len(few.boxes)]).all()
    assert (compose("test", 3, 64).images != few.images).mean() > 0.9


def test_the_digits_of_the_splits_are_disjoint() -> None:
    labels = load_digits().target.astype(np.int64)
    parts = digits_of(labels)
    assert [len(parts[split]) for split in SPLITS] == [1257, 180, 360]
    assert len(np.unique(np.concatenate(list(parts.values())))) == len(labels)
    assert all(np.bincount(labels[part]).min() >= len(part) // 12 for part in parts.values())


@pytest.mark.parametrize("made_of", [SCATTERED, COMPOSITION])
def test_boxes_and_masks_say_the_same(made_of: Composition) -> None:
    scenes = compose("val", 40, 64, made_of)
    for i, mask in enumerate(scenes.masks):
        rows = slice(scenes.starts[i], scenes.starts[i + 1])
        assert 1 <= rows.stop - rows.start <= made_of.most
        inside = np.zeros_like(mask, bool)
        for (left, top, width, height), label in zip(scenes.boxes[rows].astype(int), scenes.labels[rows], strict=True):
            part = mask[top : top + height, left : left + width] == 1 + label
            assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
            inside[top : top + height, left : left + width] |= part
        assert (inside == (mask > 0)).all()
        assert scenes.areas[rows].sum() == (mask > 0).sum()


def test_sizes_span_a_factor_of_three_and_digits_overlap() -> None:
    scenes = compose("train", 200, 64)
    heights = scenes.boxes[:, 3]
    assert heights.max() <= round(64 * SCATTERED.largest)
    assert heights.max() > 2.5 * np.median(heights[heights < 64 * SCATTERED.smallest * 1.2])
    overlapping = 0
    for begin, end in zip(scenes.starts[:-1], scenes.starts[1:], strict=True):
        boxes = scenes.boxes[begin:end]
        for i in range(len(boxes)):
            for other in boxes[i + 1 :]:
                sides = np.minimum(boxes[i, :2] + boxes[i, 2:], other[:2] + other[2:]) - np.maximum(
                    boxes[i, :2], other[:2]
                )
                overlapping += bool((sides > 0).all())
    assert overlapping > 40
    assert set(scenes.labels.tolist()) == set(range(10))
    assert scenes.areas.min() > (1 - COVERED) * 20  # no digit is nearly covered


def test_what_cannot_be_composed_is_refused() -> None:
    with pytest.raises(ValueError, match="scenes"):
        compose("training", 1, 64)
