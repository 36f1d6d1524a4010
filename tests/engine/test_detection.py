"""Detection: matching, coding, loss and gradients against independent computations; COCO's numbers on known answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.ops import box_iou

from data import DetectionBatch
from engine.tasks.boxes import BACKGROUND, decode, detect, encode, is_object, match
from engine.tasks.coco_metrics import measure
from engine.tasks.detection import Detection
from engine.tasks.voc_metrics import average_precision

CLASSES = ("cat", "dog")


class Output(NamedTuple):
    class_logits: Tensor
    box_deltas: Tensor
    anchors: Tensor


class Fixed(nn.Module):
    """A network whose raw outputs are given."""

    def __init__(self, logits: Tensor, deltas: Tensor, anchors: Tensor) -> None:
        super().__init__()
        self.output = Output(logits, deltas, anchors)

    def forward(self, x: Tensor) -> Output:
        return self.output


def grid(size: int = 64, sides: tuple[int, ...] = (12, 24)) -> Tensor:
    """Square anchors at every 8 pixels."""
    centres = torch.cartesian_prod(torch.arange(4.0, size, 8), torch.arange(4.0, size, 8)).flip(1)
    return torch.cat([torch.cat([centres - side / 2, centres + side / 2], 1) for side in sides])


def batch_of(objects: list[list[tuple[int, list[float]]]], scale: float = 1.0, size: int = 64) -> DetectionBatch:
    """(label, box) of each image, padded with -1."""
    boxes, labels = torch.full((len(objects), 100, 4), -1.0), torch.full((len(objects), 100), -1)
    for i, image in enumerate(objects):
        for j, (label, box) in enumerate(image):
            boxes[i, j], labels[i, j] = torch.tensor(box), label
    numbers = torch.arange(len(objects))
    scales = torch.full((len(objects),), scale, dtype=torch.float64)
    return DetectionBatch(torch.zeros(len(objects), 3, size, size), boxes, labels, scales, 10 + numbers, numbers)


TWO_IMAGES = [[(0, [2.0, 3.0, 15.0, 14.0]), (1, [20.0, 18.0, 50.0, 41.0])], []]


def matched(anchors: Tensor, *boxes: list[float]) -> Tensor:
    return match(anchors, torch.tensor(boxes), torch.ones(len(boxes), dtype=torch.bool))


def test_matching_is_the_rule_of_ssd() -> None:
    torch.manual_seed(0)
    anchors, corner = grid(), torch.rand(9, 2) * 40
    boxes = torch.cat([corner, corner + 4 + torch.rand(9, 2) * 30], 1)
    expected = SSDMatcher(0.5)(box_iou(boxes, anchors))
    assert len(set(box_iou(boxes, anchors).argmax(1).tolist())) == 9  # where no two boxes want the same anchor
    ours = match(anchors, boxes, torch.ones(9, dtype=torch.bool))
    assert torch.equal(ours, expected.clamp(min=BACKGROUND))
    assert (ours != BACKGROUND).sum() >= 9


def test_the_first_of_two_equal_boxes_wins_and_every_box_gets_an_anchor() -> None:
    box, thin = [1.0, 1.0, 13.0, 13.0], [30.0, 30.0, 31.0, 31.0]
    found = matched(grid(), box, box, thin)
    assert set(found.tolist()) == {BACKGROUND, 0, 2}
    assert (found == 2).sum() == 1  # its best anchor, though their IoU is 1 / 144
    # Two different boxes with the same best anchor: the first, although the second overlaps it more.
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert matched(anchors, [0.0, 0.0, 10.0, 6.0], [0.0, 0.0, 10.0, 9.0]).tolist() == [0]


def test_an_overlap_of_one_half_is_enough() -> None:
    box, longer = [0.0, 0.0, 8.0, 4.0], [0.0, 0.0, 8.0, 8.25]
    anchors = torch.tensor([box, [0.0, 0.0, 8.0, 8.0], longer])  # IoU 1, exactly 1/2, less
    assert matched(anchors, box).tolist() == [0, 0, BACKGROUND]


def test_padding_and_boxes_without_area_are_no_objects() -> None:
    image = [(0, [5.0, 5.0, 5.0, 9.0]), (1, [1.0, 1.0, 13.0, 13.0]), (0, [9.0, 9.0, 3.0, 12.0])]
    image.append((1, [20.0, 20.0, 30.0, 20.0]))
    batch = batch_of([image, []])
    objects = is_object(batch.boxes, batch.labels)
    assert objects.nonzero().tolist() == [[0, 1]]
    found = match(grid(), batch.boxes[0], objects[0])
    assert set(found.tolist()) == {BACKGROUND, 1}
    assert (match(grid(), batch.boxes[1], objects[1]) == BACKGROUND).all()
    outside = matched(grid(), [900.0, 900.0, 950.0, 950.0])  # overlaps no anchor, so that it claims none
    assert (outside == BACKGROUND).all()


def test_coding_is_torchvisions_and_goes_back_and_forth() -> None:
    torch.manual_seed(0)
    anchors, corner = grid(), torch.rand(128, 2) * 40
    boxes = torch.cat([corner, corner + 1 + torch.rand(128, 2) * 60], 1)
    coder = BoxCoder((1.0, 1.0, 1.0, 1.0))
    deltas = encode(boxes, anchors)
    torch.testing.assert_close(deltas, coder.encode_single(boxes, anchors))
    torch.testing.assert_close(decode(deltas, anchors), boxes, rtol=1e-5, atol=1e-4)
    wild = deltas * 30
    torch.testing.assert_close(decode(wild, anchors), coder.decode_single(wild, anchors))


def loss_by_numpy(logits: Any, deltas: Any, batch: DetectionBatch, anchors: Any) -> tuple[float, float, int]:
    """Focal loss, box loss, positives; from the definitions, one anchor at a time."""
    focal = huber = 0.0
    positives = 0
    for i in range(len(logits)):
        objects = [
            (int(label), box) for label, box in zip(batch.labels[i], batch.boxes[i].double().numpy(), strict=True)
            if label >= 0 and box[2] > box[0] and box[3] > box[1]
        ]  # fmt: skip
        overlap = np.zeros((len(objects), len(anchors)))
        for j, (_, box) in enumerate(objects):
            for a, anchor in enumerate(anchors):
                width = min(box[2], anchor[2]) - max(box[0], anchor[0])
                height = min(box[3], anchor[3]) - max(box[1], anchor[1])
                both = max(width, 0) * max(height, 0)
                areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, anchor)]
                overlap[j, a] = both / (sum(areas) - both)
        forced = {int(overlap[j].argmax()): j for j in reversed(range(len(objects)))}
        for a, anchor in enumerate(anchors):
            best = int(overlap[:, a].argmax()) if objects else 0
            j = forced.get(a, best if objects and overlap[best, a] >= 0.5 else None)
            for k in range(logits.shape[2]):
                p = 1 / (1 + np.exp(-logits[i, a, k]))
                if j is not None and objects[j][0] == k:
                    focal -= 0.25 * (1 - p) ** 1.5 * np.log(p)
                else:
                    focal -= 0.75 * p**1.5 * np.log(1 - p)
            if j is not None:
                positives += 1
                box, sides = objects[j][1], anchor[2:] - anchor[:2]
                shift = ((box[:2] + box[2:]) / 2 - (anchor[:2] + anchor[2:]) / 2) / sides
                target = np.concatenate([shift, np.log((box[2:] - box[:2]) / sides)])
                error = np.abs(deltas[i, a] - target)
                huber += np.where(error <= 0.1, 0.5 * error**2, 0.1 * (error - 0.05)).sum()
    number = 1 + positives
    return focal / number, 50 * huber / (4 * number), positives


def test_loss_and_gradients_equal_an_independent_computation() -> None:
    torch.manual_seed(0)
    anchors, batch = grid(32, (12,)), batch_of([[(0, [2.0, 3.0, 15.0, 14.0]), (1, [14.0, 14.0, 25.0, 27.0])], []])
    logits = torch.randn(2, 16, 2, requires_grad=True)
    deltas = (torch.randn(2, 16, 4) * 0.2).requires_grad_()
    task = Detection(CLASSES)
    loss, _, sums = task.loss(Fixed(logits, deltas, anchors), batch)
    arrays = [tensor.detach().double().numpy() for tensor in (logits, deltas)]
    focal, box, positives = loss_by_numpy(*arrays, batch, anchors.double().numpy())
    metrics = task.train_metrics(sums, 2)
    assert metrics["loss_class"] == pytest.approx(focal, rel=1e-5)
    assert metrics["loss_box"] == pytest.approx(box, rel=1e-5)
    assert metrics["positives_per_image"] == positives / 2 > 0.5
    assert loss.item() == pytest.approx(focal + box, rel=1e-5)
    loss.backward()
    for which, tensor in ((0, logits), (1, deltas)):
        gradient = tensor.grad.flatten()  # type: ignore[union-attr]
        for place in range(0, gradient.numel(), 5):
            sides = []
            for step in (1e-5, -1e-5):
                moved = [array.copy() for array in arrays]
                moved[which].flat[place] += step
                sides.append(sum(loss_by_numpy(*moved, batch, anchors.double().numpy())[:2]))
            assert gradient[place].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=2e-3, abs=1e-6)


def test_a_batch_without_boxes_trains_on_background_alone() -> None:
    logits, deltas = torch.zeros(2, 128, 2, requires_grad=True), torch.ones(2, 128, 4, requires_grad=True)
    loss, *_ = Detection(CLASSES).loss(Fixed(logits, deltas, grid()), batch_of([[], []]))
    loss.backward()
    assert loss.item() == pytest.approx(2 * 128 * 2 * 0.75 * 0.5**1.5 * np.log(2), rel=1e-5)
    assert deltas.grad is not None  # every parameter of the box head gets a gradient, and it is 0
    assert not deltas.grad.any()
    assert (logits.grad > 0).all()  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_extreme_logits_have_a_finite_loss_and_gradients(dtype: torch.dtype) -> None:
    logits = torch.linspace(-200, 100, 128, dtype=dtype).repeat(2, 2, 1).mT.contiguous().requires_grad_()
    deltas = torch.zeros(2, 128, 4, dtype=dtype)
    loss, *_ = Detection(CLASSES).loss(Fixed(logits, deltas, grid()), batch_of(TWO_IMAGES))
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]


def test_the_best_of_overlapping_detections_stays_in_each_class() -> None:
    anchors = torch.tensor([[0.0, 0.0, 20.0, 20.0], [1.0, 1.0, 21.0, 21.0], [-30.0, 0.0, -10.0, 20.0]])
    logits = torch.tensor([[2.0, -9.0], [3.0, 1.0], [0.0, -9.0]])
    found = detect(logits, torch.zeros(3, 4), anchors, score_threshold=0.05)
    assert found.labels.tolist() == [0, 1, 0]
    assert found.scores.tolist() == pytest.approx(torch.tensor([3.0, 1.0, 0.0]).sigmoid().tolist())
    assert torch.equal(found.boxes, anchors[[1, 1, 2]])
    assert len(detect(logits - 20, torch.zeros(3, 4), anchors, 0.05).boxes) == 0
    # No more than 100, of 256 that do not overlap.
    apart = torch.cartesian_prod(torch.arange(16.0), torch.arange(16.0)) * 10
    many = detect(torch.randn(256, 2), torch.zeros(256, 4), torch.cat([apart, apart + 5], 1), 0.0)
    assert len(many.boxes) == 100
    assert (many.scores.diff() <= 0).all()


def test_classes_do_not_suppress_each_other_above_and_left_of_the_image() -> None:
    """torchvision's shift of a class is its number times the largest coordinate plus 1: here it would be 0."""
    anchors = torch.tensor([[-21.0, -21.0, -1.0, -1.0]])
    assert detect(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 4), anchors, 0.05).labels.tolist() == [1, 0]


def test_one_huge_box_does_not_blur_the_overlap_of_small_ones_in_the_last_class() -> None:
    small = [[10.0, 10.0, 14.0, 14.0], [11.3, 10.0, 15.3, 14.0]]  # IoU 0.51; 0.45 if rounded to half pixels
    anchors = torch.tensor([*small, [0.0, 0.0, 80_000.0, 80_000.0]])
    logits = torch.full((3, 80), -20.0)
    logits[0, 79], logits[1, 79], logits[2, 0] = 2.0, 1.0, 0.0
    assert detect(logits, torch.zeros(3, 4), anchors, 0.05).labels.tolist() == [79, 0]


# ---- evaluation -------------------------------------------------------------------------------------------------


def truth_of(batch: DetectionBatch, ids: tuple[int, ...] = (3, 7)) -> dict[str, Any]:
    """COCO's dictionary in original pixels; category ids have gaps."""
    annotations: list[dict[str, Any]] = []
    for i, j in is_object(batch.boxes, batch.labels).nonzero().tolist():
        x, y, right, bottom = (batch.boxes[i, j].double() / batch.scales[i]).tolist()
        annotations.append({
            "id": len(annotations) + 1, "image_id": int(batch.image_ids[i]), "iscrowd": 0,
            "category_id": ids[int(batch.labels[i, j])], "bbox": [x, y, right - x, bottom - y],
            "area": (right - x) * (bottom - y),
        })  # fmt: skip
    images = [{"id": number, "width": 64, "height": 64} for number in batch.image_ids.tolist()]
    categories = [{"id": number, "name": name} for number, name in zip(ids, CLASSES, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def perfect(batch: DetectionBatch) -> Fixed:
    """A network that answers with the truth: one anchor for each box."""
    logits = torch.full((batch.size, 100, 2), -20.0)
    for i, j in is_object(batch.boxes, batch.labels).nonzero().tolist():
        logits[i, j, batch.labels[i, j]] = 5.0 - 0.01 * j
    shared = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(100, 4)
    boxes = torch.where(is_object(batch.boxes, batch.labels)[..., None], batch.boxes, torch.tensor([0.0, 0, 1, 1]))
    return Fixed(logits, encode(boxes, shared), shared)


def evaluated(network: nn.Module, batch: DetectionBatch, truth: dict[str, Any]) -> Any:
    evaluator = Detection(CLASSES).evaluator(SimpleNamespace(truth=truth))
    evaluator.update(network, batch)
    evaluator.merge([evaluator.state()])
    return evaluator


FOUND = [
    [(0, [4.0, 6.0, 30.0, 28.0]), (1, [40.0, 36.0, 62.0, 60.0])],
    [(1, [8.0, 8.0, 48.0, 56.0])],
    [],
]


def test_perfect_detections_are_worth_a_hundred(capsys: pytest.CaptureFixture[str]) -> None:
    batch = batch_of(FOUND, scale=0.5)
    truth = truth_of(batch)
    evaluator = evaluated(perfect(batch), batch, truth)
    metrics = evaluator.metrics()
    assert list(metrics)[:3] == ["ap", "ap50", "ap75"]
    assert all(value == pytest.approx(100.0) for name, value in metrics.items() if name != "ar1")
    assert "ap_small" not in metrics  # there is nothing small: no number, rather than -100 %
    best = pytest.approx(100.0)
    assert evaluator.tables()[0].rows == [("cat", best, best, 1), ("dog", best, best, 2)]
    assert capsys.readouterr().out == ""
    assert all("ignore" not in annotation for annotation in truth["annotations"])  # the caller's truth is untouched


def test_each_class_has_its_own_row_whatever_the_order_of_the_category_ids() -> None:
    batch = batch_of(FOUND)
    network = perfect(batch)
    network.output.class_logits[..., 1] = -20.0  # no dog is found
    for ids in ((3, 7), (7, 3)):
        cat, dog = evaluated(network, batch, truth_of(batch, ids)).tables()[0].rows
        assert (cat[0], cat[3], dog[0], dog[3]) == ("cat", 1, "dog", 2)
        assert (cat[1], dog[1]) == (pytest.approx(100.0), 0.0)


def test_boxes_come_back_in_pixels_of_the_original_image() -> None:
    batch = batch_of(FOUND, scale=0.5)
    rows = evaluated(perfect(batch), batch, truth_of(batch)).state()["rows"]
    assert rows[:, 0].tolist() == [10, 10, 11]
    assert rows[0, 1:5].tolist() == pytest.approx([8.0, 12.0, 52.0, 44.0], rel=1e-5)
    assert rows[:, 6].tolist() == [3, 7, 7]


def test_no_detections_are_worth_nothing_and_no_objects_have_no_precision() -> None:
    batch = batch_of(FOUND)
    nothing = Fixed(torch.full((3, 1, 2), -20.0), torch.zeros(3, 1, 4), torch.tensor([[0.0, 0.0, 9.0, 9.0]]))
    evaluator = evaluated(nothing, batch, truth_of(batch))
    assert set(evaluator.metrics().values()) == {0.0}
    assert [row[1] for row in evaluator.tables()[0].rows] == [0.0, 0.0]
    empty = batch_of([[], []])
    with pytest.raises(ValueError, match="without objects"):
        evaluated(perfect(empty), empty, truth_of(empty)).metrics()


def test_shifted_detections_count_up_to_their_overlap() -> None:
    """A shift by s of a box 40 wide leaves an IoU of (40 - s) / (40 + s): 0.74 at s = 6, so 5 of 10 thresholds."""
    batch = batch_of([[(0, [10.0, 10.0, 50.0, 50.0])], [(1, [4.0, 4.0, 44.0, 44.0])]])
    network = perfect(batch)
    deltas = network.output.box_deltas.clone()
    deltas[..., 0] += 0.6  # of the anchor's 10 pixels
    shifted = evaluated(Fixed(network.output.class_logits, deltas, network.output.anchors), batch, truth_of(batch))
    metrics = shifted.metrics()
    assert metrics["ap50"] == pytest.approx(100.0)
    assert metrics["ap75"] == 0.0
    assert metrics["ap"] == pytest.approx(50.0)


def voc_truth(*objects: tuple[int, list[float], int]) -> dict[str, Any]:
    """(image, box as left, top, width, height, whether difficult) of each object of category 3; 7 is empty."""
    annotations = [
        {"id": n, "image_id": image, "category_id": 3, "bbox": box, "area": box[2] * box[3], "iscrowd": difficult}
        for n, (image, box, difficult) in enumerate(objects, start=1)
    ]
    return {"images": [{"id": 1}, {"id": 2}], "annotations": annotations, "categories": [{"id": 3}, {"id": 7}]}


def voc_rows(*rows: tuple[int, float, list[float]]) -> np.ndarray:
    """Detections of category 3: image, score, box."""
    return np.array([[image, *box, score, 3] for image, score, box in rows], np.float64).reshape(-1, 7)


def test_vocs_average_precision_on_an_example_by_hand() -> None:
    """Of 3 objects two are found: hit, a second time the same, hit, nothing; precision 1, 1/2, 2/3, 2/4."""
    a, b, difficult, far = ([left, 0.0, 10.0, 10.0] for left in (0.0, 20.0, 40.0, 60.0))
    truth = voc_truth((1, a, 0), (1, b, 0), (1, difficult, 1), (2, a, 0))
    rows = voc_rows((1, 0.6, b), (1, 0.9, a), (1, 0.8, a), (1, 0.7, difficult), (1, 0.65, difficult), (1, 0.5, far))
    assert average_precision(truth, rows, [1, 2]) == {3: pytest.approx((1 + 2 / 3) / 3), 7: None}
    assert average_precision(truth, rows, [1]) == {3: pytest.approx((1 + 2 / 3) / 2), 7: None}
    assert average_precision(truth, voc_rows(), [1, 2]) == {3: 0.0, 7: None}


def test_voc_gives_a_detection_to_the_object_that_it_overlaps_most() -> None:
    one, other = [0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]
    truth, rows = voc_truth((1, one, 0), (1, other, 0)), voc_rows((1, 0.9, one), (1, 0.8, one))
    assert average_precision(truth, rows, [1])[3] == pytest.approx(0.5)
    numbers, _ = measure(truth, rows, [1])
    assert numbers[1] == pytest.approx(1.0)  # COCO gives it to the one that is left
    half = voc_rows((1, 0.9, [0.0, 0.0, 10.0, 5.0]))  # an IoU of exactly 0.5 is enough
    assert average_precision(voc_truth((1, one, 0)), half, [1])[3] == pytest.approx(1.0)


def test_an_image_counts_once() -> None:
    batch = batch_of(FOUND)
    evaluator = Detection(CLASSES).evaluator(SimpleNamespace(truth=truth_of(batch)))
    evaluator.update(perfect(batch), batch)
    with pytest.raises(ValueError, match="3 images were evaluated more than once"):
        evaluator.merge([evaluator.state(), evaluator.state()])


def test_pictures_show_truth_and_detections() -> None:
    batch = batch_of(FOUND)
    shown = Detection(CLASSES).pictures(perfect(batch), batch)
    assert (shown.shape, shown.dtype) == ((3, 3, 64, 64), torch.uint8)
    assert shown[0, :, 6, 20].tolist() == [255, 0, 0]  # a red detection over the green truth
    assert not shown[2].any()
