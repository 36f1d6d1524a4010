"""What counts towards AP: precision at a recall, classes without objects, images left out, candidates."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from tests.engine.test_detection import (
    CLASSES,
    FOUND,
    Detection,
    Fixed,
    average_precision,
    batch_of,
    detect,
    evaluated,
    perfect,
    truth_of,
    voc_rows,
    voc_truth,
)

A, B, FAR = ([left, 0.0, 10.0, 10.0] for left in (0.0, 20.0, 60.0))


def test_vocs_precision_is_the_best_at_this_recall_or_a_higher_one() -> None:
    rows = voc_rows((1, 0.9, FAR), (1, 0.8, A), (1, 0.7, B))  # precision 0, 1/2, 2/3
    assert average_precision(voc_truth((1, A, 0), (1, B, 0)), rows, [1])[3] == pytest.approx(2 / 3)


def test_vocs_detections_are_ranked_by_score() -> None:
    assert average_precision(voc_truth((1, A, 0)), voc_rows((1, 0.2, FAR), (1, 0.9, A)), [1])[3] == pytest.approx(1.0)


def test_a_class_without_objects_is_out_of_vocs_mean() -> None:
    batch = batch_of([[(0, [4.0, 6.0, 30.0, 28.0])]])
    assert evaluated(perfect(batch), batch, truth_of(batch)).metrics()["voc_ap50"] == pytest.approx(100.0)


def test_the_table_has_ap_and_ap50_of_a_class() -> None:
    batch = batch_of([[(0, [10.0, 10.0, 50.0, 50.0])], [(1, [4.0, 4.0, 44.0, 44.0])]])
    output = perfect(batch).output
    deltas = output.box_deltas.clone()
    deltas[..., 0] += 0.6  # IoU 0.74: right at five of the ten thresholds from 0.5 to 0.95
    shifted = Fixed(output.class_logits, deltas, output.anchors)
    rows = evaluated(shifted, batch, truth_of(batch)).tables()[0].rows
    assert rows == [(name, pytest.approx(50.0), pytest.approx(100.0), 1) for name in ("cat", "dog")]


def test_images_that_were_not_evaluated_do_not_count() -> None:
    """Such as those that on_bad_image=skip leaves out."""
    batch = batch_of(FOUND)
    truth = truth_of(batch)
    truth["images"].append({"id": 99, "width": 64, "height": 64})
    truth["annotations"].append({**truth["annotations"][0], "id": 50, "image_id": 99})
    metrics = evaluated(perfect(batch), batch, truth).metrics()
    assert (metrics["ap"], metrics["voc_ap50"]) == pytest.approx((100.0, 100.0))


def test_equal_scores_are_ranked_by_image_whatever_the_order_of_the_batches() -> None:
    batch = batch_of([[(0, [4.0, 6.0, 30.0, 28.0])], [(0, [4.0, 6.0, 30.0, 28.0])]])
    output, truth, found = perfect(batch).output, truth_of(batch), []
    output.box_deltas[0, 0, 0] += 9.0  # the first image's detection lies elsewhere, at the score of the second's
    for order in ((0, 1), (1, 0)):
        evaluator = Detection(CLASSES).evaluator(SimpleNamespace(truth=truth))
        for i in order:
            part = Fixed(output.class_logits[i : i + 1], output.box_deltas[i : i + 1], output.anchors)
            evaluator.update(part, batch.split(2)[i])
        evaluator.merge([evaluator.state()])
        found.append(evaluator.metrics())
    assert found[0] == found[1]
    assert found[0]["voc_ap50"] == pytest.approx(25.0)  # the miss first: half of the objects at a precision of 1/2


def test_crowds_are_no_objects_of_the_table() -> None:
    batch = batch_of(FOUND)
    truth = truth_of(batch)
    truth["annotations"][0]["iscrowd"] = 1
    assert [row[3] for row in evaluated(perfect(batch), batch, truth).tables()[0].rows] == [0, 2]


def test_suppression_looks_at_5000_candidates() -> None:
    same = torch.tensor([[0.0, 0.0, 20.0, 20.0]]).expand(4000, 4)
    apart = torch.stack([torch.arange(10.0) * 50 + 100, torch.zeros(10)], 1)
    anchors = torch.cat([same, torch.cat([apart, apart + 20], 1)])
    logits = torch.cat([torch.full((4000, 1), 3.0), torch.zeros(10, 1)])
    assert len(detect(logits, torch.zeros(4010, 4), anchors, 0.05).boxes) == 11
