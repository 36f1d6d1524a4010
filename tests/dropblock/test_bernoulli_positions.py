"""The geometric-gap draw is the Bernoulli process itself, for one trial as for millions."""

from __future__ import annotations

import math

import pytest
import torch

from dropblock.sparse_cpu import bernoulli_positions

SEEDS = 2500


@pytest.mark.parametrize(("trials", "rate"), [(1, 0.97), (2, 0.5), (3, 0.03), (10, 0.03), (10, 0.97)])
def test_every_trial_succeeds_at_its_rate_and_on_its_own(trials: int, rate: float) -> None:
    """5 standard deviations: false alarm below 6e-7 for each of at most 10 rates and 9 products a case."""
    hits = torch.zeros(SEEDS, trials, dtype=torch.float64)
    for seed in range(SEEDS):
        hits[seed, bernoulli_positions(trials, rate, seed).long()] = 1.0
    bound = 5 * math.sqrt(rate * (1 - rate) / SEEDS)
    assert (hits.mean(0) - rate).abs().max() < bound
    both, expected = (hits[:, 1:] * hits[:, :-1]).mean(0), rate * rate
    assert ((both - expected).abs() < 5 * math.sqrt(expected * (1 - expected) / SEEDS)).all()


def test_certain_and_impossible() -> None:
    assert bernoulli_positions(5, 1.0, 0).tolist() == [0, 1, 2, 3, 4]
    assert len(bernoulli_positions(5, 0.0, 0)) == 0
    assert len(bernoulli_positions(0, 0.5, 0)) == 0


def test_positions_are_sorted_distinct_and_inside() -> None:
    for seed in range(50):
        positions = bernoulli_positions(100_000, 0.01, seed)
        assert (positions[1:] > positions[:-1]).all()
        assert positions[0] >= 0
        assert positions[-1] < 100_000


def test_all_64_bits_of_a_seed_count() -> None:
    seeds = [5, 5 + 2**32, 5 + 2**40, 5 - 2**62, -5]
    draws = {tuple(bernoulli_positions(10_000, 0.01, seed).tolist()) for seed in seeds}
    assert len(draws) == len(seeds)
