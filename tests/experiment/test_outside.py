"""Images of the classes distinguished from others by a score: each measure by its definition, pair by pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from experiment.outside import separation, separations


def test_separation_by_definition() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(0, 1, 200).round(1), rng.normal(1, 1, 50).round(1)  # with ties
    found = separation(ours, theirs)
    pairs = np.sign(theirs[:, None] - ours[None, :])
    assert found["auroc"] == pytest.approx(100 * ((pairs > 0).mean() + (pairs == 0).mean() / 2))
    # Average precision: recall gained at every threshold times the precision there.
    ap, recall = 0.0, 0.0
    for threshold in np.unique(np.concatenate([ours, theirs]))[::-1]:
        hits, alarms = (theirs >= threshold).sum(), (ours >= threshold).sum()
        ap, recall = ap + (hits / 50 - recall) * hits / (hits + alarms), hits / 50
    assert found["ap"] == pytest.approx(100 * ap)
    assert found["base_rate"] == pytest.approx(20)
    threshold = np.sort(ours)[189]  # 190 of 200 pass it
    assert (ours <= threshold).mean() >= 0.95
    assert found["fpr95"] == pytest.approx(100 * (theirs <= threshold).mean())


def test_the_unsure_are_the_others_by_every_score() -> None:
    sure, unsure = torch.tensor([[0.99, 0.1, 0.01]] * 5), torch.tensor([[0.4, 0.9, 0.2]] * 3)
    rows = separations(sure, unsure, 4, {"layers": "dropblock"})
    assert [row["score"] for row in rows] == ["max_softmax", "entropy", "mutual_information"]
    assert all((row["auroc"], row["ap"], row["fpr95"], row["samples"]) == (100, 100, 0, 4) for row in rows)
    assert [row["score"] for row in separations(sure, unsure, 1, {})] == ["max_softmax", "entropy"]
