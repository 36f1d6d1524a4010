"""Object detection with one-stage detectors: focal loss for the class, Huber loss for the box, COCO's numbers.

Loss and constants are those of the code released with the paper (tensorflow/tpu@d2694ea,
models/official/retinanet/retinanet_model.py); focal loss: Lin et al. 2017, arXiv 1708.02002.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.tasks.boxes import BACKGROUND, Detections, detect, encode, is_object, match
from engine.tasks.coco_metrics import METRICS, VOC_METRIC, CocoEvaluator
from engine.tasks.interface import Metric
from engine.tasks.pictures import as_pixels

ALPHA, GAMMA = 0.25, 1.5
HUBER_DELTA, BOX_WEIGHT = 0.1, 50.0
SHOWN_SCORE = 0.3  # detections above it are drawn


class Detection:
    """Focal and Huber loss over all anchors of a batch; average precision.

    A network gives, in both modes, class logits (B, A, K) without a background class, box deltas (B, A, 4) and anchors
    (A, 4). Everything here is computed in float32.

    Args:
        classes: their names, in the order of the labels.
        score_threshold: detections below it are not evaluated. The released code has none (0): every image then brings
            5,000 boxes to non-maximum suppression, 10 to 100 times as many as with 0.05, for a few tenths of AP.
    """

    name = "detection"
    headline = "ap"
    metrics = {  # noqa: RUF012 - the same for every instance
        "loss": Metric("focal + box loss", "", higher_is_better=False),
        "loss_class": Metric("focal loss", "", higher_is_better=False),
        "loss_box": Metric("box loss", "", higher_is_better=False),
        "positives_per_image": Metric("positive anchors per image", ""),
        **METRICS,
        **VOC_METRIC,
    }
    num_pictures = 4

    def __init__(self, classes: Sequence[str], score_threshold: float = 0.05) -> None:
        self.classes, self.score_threshold = tuple(classes), score_threshold

    def loss(self, network: nn.Module, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Both losses are divided by one number: 1 + the positive anchors of all images given, which are the weight.

        Sums: focal loss and box loss, so divided, times images; positive anchors.
        """
        logits, deltas, anchors = network(batch.images)
        classes, targets, positive = self._targets(batch, anchors)
        positives = positive.sum()
        focal = focal_loss(logits.float(), classes) / (1 + positives)
        box = BOX_WEIGHT * box_loss(deltas.float(), targets, positive) / (4 * (1 + positives))
        with torch.no_grad():
            sums = torch.stack([focal.double() * batch.size, box.double() * batch.size, positives.double()])
        return focal + box, positives.double(), sums

    def normalizer(self, weight: Tensor) -> Tensor:
        return 1 + weight

    def _targets(self, batch: Any, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, A) classes, `BACKGROUND` for none; (B, A, 4) deltas, 0 where there is no box; (B, A) True for a box."""
        objects = is_object(batch.boxes, batch.labels)
        matched = torch.stack([match(anchors, *image) for image in zip(batch.boxes, objects, strict=True)])
        positive, place = matched != BACKGROUND, matched.clamp(min=0)
        classes = torch.where(positive, batch.labels.gather(1, place), BACKGROUND)
        boxes = batch.boxes.gather(1, place[:, :, None].expand(-1, -1, 4))
        return classes, torch.where(positive[:, :, None], encode(boxes, anchors), 0.0), positive

    def train_metrics(self, sums: Tensor, images: int) -> dict[str, float]:
        focal, box, positives = (sums / images).tolist()
        return {"loss": focal + box, "loss_class": focal, "loss_box": box, "positives_per_image": positives}

    def evaluator(self, loader: Any) -> CocoEvaluator:
        return CocoEvaluator(self.classes, loader.truth, self.detections)

    def detections(self, network: nn.Module, batch: Any) -> list[Detections]:
        """Detections of every image of a batch."""
        logits, deltas, anchors = network(batch.images)
        return [detect(*image, anchors, self.score_threshold) for image in zip(logits, deltas, strict=True)]

    def pictures(self, network: nn.Module, batch: Any) -> Tensor:
        """True boxes in green, detections in red with class and score: (N, 3, H, W)."""
        from torchvision.utils import draw_bounding_boxes

        drawn, objects = as_pixels(batch.images).cpu(), is_object(batch.boxes, batch.labels)
        pictures = []
        for i, found in enumerate(self.detections(network, batch)):
            shown = found.scores > SHOWN_SCORE
            boxes, picture = found.boxes[shown].cpu(), drawn[i]
            texts = [
                f"{self.classes[label]} {score:.2f}"
                for label, score in zip(found.labels[shown].tolist(), found.scores[shown].tolist(), strict=True)
            ]
            truth = batch.boxes[i][objects[i]].cpu()
            picture = draw_bounding_boxes(picture, truth, colors="lime") if len(truth) else picture
            picture = draw_bounding_boxes(picture, boxes, texts, colors="red") if len(boxes) else picture
            pictures.append(picture)
        return torch.stack(pictures)


def focal_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """The sum over anchors and classes of -alpha_t (1 - p_t)^gamma log p_t.

    Args:
        logits: (B, A, K).
        classes: (B, A), the one class of an anchor or `BACKGROUND`.

    All pairs count as negatives first; the few positive ones are then exchanged, which saves the (B, A, K) targets.
    """
    picked = logits.gather(2, classes.clamp(min=0)[:, :, None])[:, :, 0]
    exchanged = ALPHA * _focal(-picked) - (1 - ALPHA) * _focal(picked)
    return (1 - ALPHA) * _focal(logits).sum() + torch.where(classes != BACKGROUND, exchanged, 0.0).sum()


def _focal(logits: Tensor) -> Tensor:
    """Loss p^gamma -log(1 - p) of a negative pair whose probability is p = sigmoid(logit)."""
    return logits.sigmoid().pow(GAMMA) * F.softplus(logits)


def box_loss(deltas: Tensor, targets: Tensor, positive: Tensor) -> Tensor:
    """The sum over positive anchors and the four numbers of a box of Huber's loss; deltas (B, A, 4)."""
    wanted = torch.where(positive[:, :, None], deltas, 0.0)  # background predicts its target: no loss, gradient 0
    return F.huber_loss(wanted, targets, delta=HUBER_DELTA, reduction="sum")
