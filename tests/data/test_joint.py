"""Image, mask and boxes move together: what the square shows inside a box is what the image showed inside it."""

from __future__ import annotations

import numpy as np
import pytest

from data.draws import FLIP, LEFT, SCALE, TOP, uniforms
from data.placement import Placement, drawn, fitted


def scene(height: int, width: int, box: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A black image with a white box (left, top, width, height), and its mask."""
    left, top, across, down = box
    mask = np.zeros((height, width), np.uint8)
    mask[top : top + down, left : left + across] = 1
    return np.repeat(mask[:, :, None] * 255, 3, 2), mask


@pytest.mark.parametrize("index", range(12))
def test_image_mask_and_boxes_agree_for_any_draw(index: int) -> None:
    box = (20, 30, 40, 24)
    image, mask = scene(90, 120, box)
    place = drawn(90, 120, 64, (0.5, 1.8), True, uniforms(0, 0, np.array([index]), 0, SCALE + 1)[0])
    shown, labels = place.image(image), place.mask(mask)
    assert shown.shape == (*place.seen, 3)
    assert labels.shape == place.seen
    corners, kept = place.boxes(np.array([box], float))
    assert len(kept) == (labels.sum() > 0)
    if len(kept):
        left, top, right, bottom = corners[0]
        rows, columns = np.nonzero(labels)
        edges = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.array(edges) - (left, top, right, bottom)).max() <= 1  # pixels are whole, boxes are not
        assert ((shown[:, :, 0] > 127) != labels).mean() < 0.03  # at the edges alone


def test_evaluation_shows_all_of_the_image_and_scales_back_exactly() -> None:
    place = fitted(427, 640, 320)
    assert (place.height, place.width, place.top, place.left, place.flip) == (214, 320, 0, 0, False)
    assert place.scale == 0.5
    boxes = np.array([[0.0, 0.0, 640.0, 427.0], [10.5, 20.25, 30.0, 7.0]])
    corners, kept = place.boxes(boxes)
    assert kept.tolist() == [0, 1]
    back = corners / place.scale
    assert np.array_equal(back[:, :2], boxes[:, :2])
    assert np.array_equal(back[:, 2:], boxes[:, :2] + boxes[:, 2:])
    assert fitted(640, 427, 320).seen == (320, 214)
    assert fitted(1, 3000, 320).seen == (1, 320)


def test_extreme_draws_reach_all_edges_and_both_ends_of_the_jitter() -> None:
    draws = np.zeros(SCALE + 1)
    low = drawn(100, 50, 64, (0.8, 1.2), True, draws)
    assert (low.height, low.width, low.top, low.left, low.flip) == (51, 26, 0, 0, True)
    draws[[TOP, LEFT, SCALE, FLIP]] = 1 - 2.0**-53
    high = drawn(100, 50, 64, (0.8, 1.2), True, draws)
    assert (high.height, high.width, high.top, high.left, high.flip) == (76, 38, 12, 0, False)
    assert not drawn(100, 50, 64, (0.8, 1.2), False, np.zeros(SCALE + 1)).flip


def test_half_of_the_images_are_mirrored_and_every_part_is_seen_as_often() -> None:
    """Of 10,000 images: 5 standard deviations are 250 mirrored ones, and 200 at each of 5 rows and 5 columns."""
    places = [drawn(12, 12, 8, (1.5, 1.5), True, row) for row in uniforms(0, 0, np.arange(10_000), 0, SCALE + 1)]
    assert abs(sum(place.flip for place in places) - 5_000) < 250
    for corner in ("top", "left"):
        counts = np.bincount([getattr(place, corner) for place in places])
        assert len(counts) == 5
        assert abs(counts - 2_000).max() < 200


def test_boxes_are_clipped_to_the_image_and_lost_below_one_pixel() -> None:
    place = Placement(10, 20, 20, 1.0, top=5, left=5)
    boxes = np.array([[0, 0, 5.5, 20], [0, 0, 6, 20], [12, 12, 9, 9], [16, 0, 4, 4], [-3, 2, 40, 40]], float)
    corners, kept = place.boxes(boxes)
    assert kept.tolist() == [1, 2, 4]
    assert corners.tolist() == [[0, 0, 1, 10], [7, 7, 10, 10], [0, 0, 10, 10]]
    assert place.boxes(boxes, 0.0)[1].tolist() == [0, 1, 2, 4]
    mirrored, _ = Placement(10, 20, 20, 1.0, top=5, left=5, flip=True).boxes(boxes)
    assert mirrored.tolist() == [[9, 0, 10, 10], [0, 7, 3, 10], [0, 0, 10, 10]]
    assert place.boxes(np.zeros((0, 4)))[0].shape == (0, 4)
