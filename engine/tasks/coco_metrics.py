"""COCO's detection metrics, by the official pycocotools, and VOC's, from the detections of all ranks."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from engine.tasks.boxes import Detections
from engine.tasks.interface import Metric, Table
from engine.tasks.voc_metrics import average_precision

# The twelve numbers in pycocotools' order.
METRICS = {
    "ap": Metric("AP"),
    "ap50": Metric("AP at IoU 0.5"),
    "ap75": Metric("AP at IoU 0.75"),
    "ap_small": Metric("AP, small objects"),
    "ap_medium": Metric("AP, medium objects"),
    "ap_large": Metric("AP, large objects"),
    "ar1": Metric("AR, 1 detection"),
    "ar10": Metric("AR, 10 detections"),
    "ar100": Metric("AR, 100 detections"),
    "ar_small": Metric("AR, small objects"),
    "ar_medium": Metric("AR, medium objects"),
    "ar_large": Metric("AR, large objects"),
}
VOC_METRIC = {"voc_ap50": Metric("AP at IoU 0.5 by VOC's rule")}


class CocoEvaluator:
    """Average precision and recall of one split, in pixels of the original images.

    Args:
        classes: their names, in the order of the labels.
        truth: the objects, in the form of COCO's JSON: "images", "annotations", "categories"; label i is the category
            `categories[i]`.
        detections: gives those of every image of a batch, in pixels of the batch.
    """

    def __init__(
        self,
        classes: Sequence[str],
        truth: dict[str, Any],
        detections: Callable[[nn.Module, Any], list[Detections]],
    ) -> None:
        self.classes, self.truth, self.detections = classes, truth, detections
        self.categories = torch.tensor([category["id"] for category in truth["categories"]], dtype=torch.float64)
        self.rows: list[Tensor] = []  # (N, 7) float64 each: image id, left, top, width, height, score, category id
        self.image_ids: list[int] = []
        self._result: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None

    def update(self, network: nn.Module, batch: Any) -> None:
        found = self.detections(network, batch)
        for image_id, scale, (boxes, scores, labels) in zip(
            batch.image_ids.tolist(), batch.scales.tolist(), found, strict=True
        ):
            corners = boxes.double().cpu() / scale
            columns = [corners[:, :2], corners[:, 2:] - corners[:, :2], scores.double().cpu()[:, None]]
            ids = torch.full((len(corners), 1), image_id, dtype=torch.float64)
            self.rows.append(torch.cat([ids, *columns, self.categories[labels.cpu()][:, None]], dim=1))
            self.image_ids.append(image_id)

    def state(self) -> dict[str, Any]:
        rows = torch.cat(self.rows) if self.rows else torch.empty(0, 7, dtype=torch.float64)
        return {"rows": rows, "image_ids": self.image_ids}

    def merge(self, states: list[dict[str, Any]]) -> None:
        """Raises ValueError if an image was seen twice."""
        self.image_ids = [number for state in states for number in state["image_ids"]]
        if len(set(self.image_ids)) < len(self.image_ids):
            raise ValueError(f"{len(self.image_ids) - len(set(self.image_ids))} images were evaluated more than once")
        rows = torch.cat([state["rows"] for state in states])
        # Equal scores stand in the order of the rows: let it not depend on batches and ranks.
        self.rows, self._result = [rows[rows[:, 0].argsort(stable=True)]], None

    def metrics(self) -> dict[str, float]:
        """The twelve numbers, without those of sizes that no object has, and VOC's AP at IoU 0.5, in percent.

        Raises:
            ValueError: for a split without objects.
        """
        numbers, _ = self._measured()
        if numbers[0] < 0:
            raise ValueError("a split without objects has no average precision")
        metrics = {name: 100.0 * float(value) for name, value in zip(METRICS, numbers, strict=True) if value >= 0}
        by_class = average_precision(self.truth, self.state()["rows"].numpy(), self.image_ids).values()
        return {**metrics, "voc_ap50": 100.0 * float(np.mean([ap for ap in by_class if ap is not None]))}

    def tables(self) -> list[Table]:
        """AP and AP50 of each class; None for one without objects."""
        _, precision = self._measured()  # (IoU thresholds, recalls, classes), -1 where there are no objects
        counts = dict.fromkeys((category["id"] for category in self.truth["categories"]), 0)
        seen = set(self.image_ids)
        for annotation in self.truth["annotations"]:
            if annotation["image_id"] in seen and not annotation.get("iscrowd"):
                counts[annotation["category_id"]] += 1
        rows = [
            (name, _percent(precision[:, :, k]), _percent(precision[0, :, k]), count)
            for k, (name, count) in enumerate(zip(self.classes, counts.values(), strict=True))
        ]
        return [Table("classes", ("class", "AP (%)", "AP50 (%)", "objects"), rows)]

    def _measured(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        if self._result is None:
            self._result = measure(self.truth, self.state()["rows"].numpy(), self.image_ids)
        return self._result


def _percent(precision: NDArray[np.float64]) -> float | None:
    return 100.0 * float(precision.mean()) if (precision > -1).all() else None


def measure(
    truth: dict[str, Any], rows: NDArray[np.float64], image_ids: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """COCO's twelve numbers, and the precision by (IoU threshold, recall, category in the order of `truth`).

    Shares, at most 100 detections an image; -1 where there is nothing to find.

    Args:
        truth: the objects, in the form of COCO's JSON.
        rows: (N, 7) image id, left, top, width, height, score, category id.
        image_ids: the images that count.
    """
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise ValueError("detection is measured by pycocotools: pip install '.[train,detection]'") from error

    with redirect_stdout(io.StringIO()):  # both print as they go
        # Truth and detections; the evaluation writes into the annotations, so it gets copies.
        objects = COCO()
        objects.dataset = {**truth, "annotations": [dict(annotation) for annotation in truth["annotations"]]}
        objects.createIndex()
        if len(rows):
            found = objects.loadRes(rows)
        else:  # which loadRes does not take
            found = COCO()
            found.dataset = {**truth, "annotations": []}
            found.createIndex()

        evaluation = COCOeval(objects, found, "bbox")
        evaluation.params.imgIds = sorted(image_ids)
        categories = [category["id"] for category in truth["categories"]]
        evaluation.params.catIds = categories
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    # Over objects of all sizes, with the most detections; categories come by rising id, whatever was asked.
    all_sizes, most = 0, -1
    precision = evaluation.eval["precision"][:, :, :, all_sizes, most]
    return np.asarray(evaluation.stats), precision[:, :, np.searchsorted(np.sort(categories), categories)]
