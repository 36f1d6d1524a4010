"""Out-of-distribution detection: does a network's uncertainty distinguish images of no class of its own?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from experiment.sampling import SCORES

CONFIDENT = 0.95  # share of the images of the classes that are taken for such


def separations(ours: Tensor, theirs: Tensor, samples: int, named: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every score; mutual information is one where there are several predictions.

    Args:
        ours, theirs: (N, 3) the scores of images of the classes and of others, see `experiment.sampling`.
        samples: predictions that were averaged.
        named: what else stands in each row.
    """
    rows = []
    for column, name in enumerate(SCORES if samples > 1 else SCORES[:2]):
        sign = -1 if name == "max_softmax" else 1  # so that more is less sure
        values = separation(*(sign * scores[:, column].numpy() for scores in (ours, theirs)))
        rows.append({**named, "samples": samples, "score": name, **values})
    return rows


def separation(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> dict[str, float]:
    """Measures of a score that is higher for other images, the positive class, than for ours; in %.

    auroc: the chance that one of theirs has a higher score than one of ours; a tie counts half. ap: average precision,
    whose value by chance is base_rate, the share of theirs. fpr95: the share of theirs that passes for ours at the
    threshold that 95 % of ours pass.
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth, scores = np.repeat([0, 1], [len(ours), len(theirs)]), np.concatenate([ours, theirs])
    threshold = np.quantile(ours, CONFIDENT, method="inverted_cdf")
    return {
        "auroc": 100 * float(roc_auc_score(truth, scores)),
        "ap": 100 * float(average_precision_score(truth, scores)),
        "base_rate": 100 * len(theirs) / len(scores),
        "fpr95": 100 * float((theirs <= threshold).mean()),
    }
