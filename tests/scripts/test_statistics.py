"""Paired differences: intervals and p-values against tables, Holm's rule, and the rule of the verdicts."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from scripts.reporting.csv_files import rounded
from scripts.reporting.statistics import Difference, Spread, detected, holm, paired, seeds_for, verdict


def test_intervals_are_those_of_students_tables() -> None:
    for freedom, quantile in ((1, 12.706), (2, 4.303), (4, 2.776), (30, 2.042)):
        difference = Difference(tuple(float(value) for value in range(freedom + 1)))
        reach = quantile * difference.error  # type: ignore[operator]
        low, high = difference.interval  # type: ignore[misc]
        assert (high - low) / 2 == pytest.approx(reach, rel=1e-3)
        assert (high + low) / 2 == pytest.approx(difference.mean)


def test_an_interval_is_that_of_the_paired_t_test() -> None:
    # Gosset's sleep data (Student 1908): ten paired differences, mean 1.58, t = 4.06, p = .0028.
    gained = (1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4)
    difference = Difference(gained, tuple(range(10)))
    assert difference.mean == pytest.approx(1.58)
    assert difference.interval == pytest.approx((0.70, 2.46), abs=0.005)
    assert difference.p_value == pytest.approx(0.0028, abs=5e-5)


def test_equal_differences_have_neither_interval_nor_smallest_difference() -> None:
    """Two seeds whose networks differ by one image each: +2.78 twice is no certainty."""
    equal = Difference((2.78, 2.78), (1, 2))
    assert equal.interval is equal.p_value is equal.smallest is None
    assert equal.text() == "+2.78"
    assert verdict(equal, None, 0.5) == "not resolved"


def test_intervals_hold_the_truth_in_95_of_100() -> None:
    """1,000 made-up rows of 4 seeds: 3.8 standard errors around 950, a false alarm in 1 of 7,000 drawings."""
    draws = np.random.default_rng(0).normal(0.3, 1.0, (1000, 4))
    covered = sum(low < 0.3 < high for low, high in (Difference(tuple(row)).interval for row in draws))  # type: ignore[misc]
    assert abs(covered - 950) < 3.8 * (1000 * 0.95 * 0.05) ** 0.5


@pytest.mark.parametrize(
    ("n", "errors"),
    [(3, 5.6535), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((2, 16.334), (5, 3.7611), (10, 3.1496)))],
)
def test_the_smallest_difference_is_found_in_80_of_100(n: int, errors: float) -> None:
    """By the power of the t test; 3.8 standard errors around 800 of 1,000, a false alarm in 1 of 7,000 drawings."""
    made_up = Difference(tuple(float(value) for value in np.linspace(-1, 1, n)))
    assert made_up.smallest == pytest.approx(errors * made_up.error, rel=1e-4)  # type: ignore[operator]
    draws = np.random.default_rng(n).normal(errors / n**0.5, 1.0, (1000, n))  # of deviation 1
    found = sum(Difference(tuple(row)).p_value < 0.05 for row in draws)  # type: ignore[operator]
    assert abs(found - 800) < 3.8 * (1000 * 0.8 * 0.2) ** 0.5


def test_the_verdict_of_one_row_of_eight_finds_its_smallest_difference_in_80_of_100() -> None:
    """Seven rows without an effect beside it; 3.8 standard errors around 800 of 1,000, and a little for later steps."""
    n, m = 5, 8
    made_up = Difference(tuple(float(value) for value in np.linspace(-1, 1, n)))
    assert made_up.detected(1) == made_up.smallest
    true = made_up.detected(m) / made_up.std  # type: ignore[operator]
    draws = np.random.default_rng(0).normal(0.0, 1.0, (1000, m, n))
    draws[:, 0] += true
    t = abs(draws.mean(2)) / draws.std(2, ddof=1) * n**0.5
    p_values = 2 * scipy.stats.t.sf(t, n - 1)
    found = sum(holm(list(row))[0] < 0.05 for row in p_values)  # type: ignore[operator]
    assert 752 < found < 860


@pytest.mark.parametrize("n", [2, 3, 5, 14, 40])
def test_the_seeds_that_a_difference_needs_are_those_that_find_it(n: int) -> None:
    for std, tests in ((0.7, 1), (2.0, 8)):
        assert seeds_for(detected(std, n, tests), std, tests) == n
    assert seeds_for(1e-3, 1.0, 4) is None


def test_an_end_of_an_interval_keeps_its_side_of_zero() -> None:
    """Three seeds whose p-value is .0508: 0 is inside."""
    difference = Difference((0.0260, 0.0400, 0.0635), (1, 2, 3))
    low, high = difference.interval  # type: ignore[misc]
    assert -0.005 < low < 0 < high
    assert str(difference).startswith("+0.04 [-0.00, +0.0")
    assert str(Difference((-0.0260, -0.0400, -0.0635), (1, 2, 3))).endswith("+0.00]")


def test_nothing_is_minus_nothing() -> None:
    assert str(Difference((-0.001, 0.0, -0.003), (1, 2, 3))) == "+0.00 [-0.01, +0.00]"
    assert str(Spread((-0.0,))) == "0.00"
    assert str(rounded(-0.0000001)) == "0.0"


def test_pairs_are_the_seeds_that_both_have() -> None:
    difference = paired({3: 5.0, 1: 1.0, 2: 9.0}, {1: 0.5, 3: 4.0, 7: 0.0})
    assert difference is not None
    assert (difference.seeds, difference.values) == ((1, 3), (0.5, 1.0))
    assert paired({1: 1.0}, {2: 1.0}) is None


def test_a_single_pair_has_no_interval_and_no_deviation() -> None:
    one = Difference((0.7,), (1,))
    assert (one.interval, one.p_value, one.smallest, str(one)) == (None, None, None, "+0.70")
    assert verdict(one, None, 0.5) == "not resolved"


def test_a_difference_is_rounded_from_what_its_csv_file_has() -> None:
    """0.365 is a little less than that in one way of adding up, and a little more in the other."""
    ours, theirs = (73.04, 74.82, 74.44, 74.26), (74.66, 73.33, 72.31, 74.8)
    difference = Difference(tuple(a - b for a, b in zip(ours, theirs, strict=True)))
    assert str(difference).split()[0] == f"{round(difference.mean, 6):+.2f}" != f"{difference.mean:+.2f}"


@pytest.mark.parametrize("values", [(5 / 18, 5 / 18 + 1e-15, 5 / 18), (0.0, 0.0)])
def test_equal_differences_are_no_certainty(values: tuple[float, ...]) -> None:
    """On 32 test images two networks easily get the same number right, in two seeds."""
    same = Difference(values, tuple(range(len(values))))
    assert (same.p_value, verdict(same, same.p_value, 0.5)) == (None, "not resolved")


def test_holm_steps_down_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03, None]) == pytest.approx([0.03, 0.06, 0.06, None])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


@pytest.mark.parametrize(
    ("values", "adjusted", "word"),
    [
        ((1.0, 1.1, 0.9), 0.003, "better"),
        ((-1.0, -1.1, -0.9), 0.003, "worse"),
        ((1.0, 1.1, 0.9), 0.06, "not resolved"),  # excludes 0 alone, not beside the other rows
        ((-1.0, -1.1, -0.9), 0.06, "not resolved"),
        ((0.1, -0.1, 0.0), 1.0, "equivalent"),
        ((0.1, -0.9, 0.8), 1.0, "not resolved"),
    ],
)
def test_a_verdict_follows_its_rule(values: tuple[float, ...], adjusted: float, word: str) -> None:
    assert verdict(Difference(values), adjusted, 0.5) == word
