"""Differences between two rows, paired by seed: Student t interval, Holm's correction, and the rule of the verdicts.

A seed fixes the initial weights, the order of the images and their augmentation, so two rows share what a seed does,
and the differences within seeds are what is tested.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95  # of intervals; 1 - LEVEL of tests
POWER = 0.8
BETTER, WORSE, EQUIVALENT, UNRESOLVED = "better", "worse", "equivalent", "not resolved"


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over seeds; no deviation for a single run."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return self.text()

    def text(self, digits: int = 2) -> str:
        """Mean ± standard deviation, rounded from the six digits of the CSV files so that both say the same."""
        mean = f"{round(self.mean, 6):z.{digits}f}"
        return mean if self.std is None else f"{mean} ± {round(self.std, 6):.{digits}f}"


@dataclass(frozen=True)
class Difference(Spread):
    """One row minus another, seed by seed.

    Args:
        values: differences, in the unit of the metric.
        seeds: the seeds that both rows have, in the same order.
    """

    seeds: tuple[int, ...] = ()

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None for a single pair and for equal differences.

        On a test set of 360 images two networks easily get the same number right in each of two seeds: zero variance
        is an artefact of the size of the test set there, so neither an interval nor a test is reported.
        """
        return None if self.std is None or self.std < 1e-9 else self.std / len(self.values) ** 0.5

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % Student t interval of the mean, n - 1 degrees of freedom; None where there is no error."""
        if self.error is None:
            return None
        reach = _t_quantile(len(self.values) - 1) * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p_value(self) -> float | None:
        """Two-sided p-value of the paired t test; None where there is no error."""
        from scipy.stats import ttest_1samp

        if self.error is None:
            return None
        return float(ttest_1samp(self.values, 0.0).pvalue)

    @property
    def smallest(self) -> float | None:
        """The true difference that n seeds with this spread would find in 80 % of such experiments.

        From the power of the t test itself: around a true difference its t is noncentral. The sum of two quantiles,
        often used instead, is too small for few seeds (at n = 2 by a seventh).
        """
        return self.detected(1)

    def detected(self, tests: int) -> float | None:
        """`smallest` at Holm's first step of that many tests: the largest of them is found at a level of 0.05 / tests.

        It is what the verdict asks of a row whose neighbours show nothing.
        """
        return None if self.std is None or self.error is None else detected(self.std, len(self.values), tests)

    def text(self, digits: int = 2) -> str:
        """Mean and interval, rounded from the six digits of the CSV files. An end keeps its side of zero: -0.00."""
        mean = f"{round(self.mean, 6):+z.{digits}f}"
        ends = [f"{round(end, 6) + 0.0:+.{digits}f}" for end in self.interval or ()]
        return f"{mean} [{', '.join(ends)}]" if ends else mean


def detected(std: float, n: int, tests: int) -> float:
    """The true difference that n pairs find in 80 % of such experiments, at Holm's first step of that many tests.

    Args:
        std: standard deviation of the differences.
    """
    from scipy.special import nctdtrinc

    return float(nctdtrinc(n - 1, 1 - POWER, _t_quantile(n - 1, tests))) * (std / n**0.5)


def seeds_for(difference: float, std: float, tests: int) -> int | None:
    """The smallest number of pairs that finds a true difference so; None above 999."""
    return next((n for n in range(2, 1000) if detected(std, n, tests) <= difference), None)


def _t_quantile(freedom: int, tests: int = 1) -> float:
    """The |t| that a two-sided test at a level of 0.05 / tests asks for."""
    from scipy.stats import t

    return float(t.ppf(0.5 + LEVEL / 2 if tests == 1 else 1 - (1 - LEVEL) / 2 / tests, freedom))


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs over the seeds that both have; None where they share none."""
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    return Difference(tuple(ours[seed] - theirs[seed] for seed in seeds), seeds) if seeds else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values: all below 0.05 hold together with 95 %, however the tests depend on each other.

    Args:
        p_values: one for each test of a table; None where there is no test, which is not counted.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted


def verdict(difference: Difference, adjusted: float | None, margin: float, higher_is_better: bool = True) -> str:
    """The word for a difference, by a rule that is fixed before the first run.

    better, worse: the adjusted p-value is below 0.05. equivalent: it is not, and the 95 % interval lies within
    ± margin. not resolved: anything else, a single pair and equal differences included.
    """
    if difference.interval is None or adjusted is None:
        return UNRESOLVED
    if adjusted < 1 - LEVEL:
        return BETTER if (difference.mean > 0) == higher_is_better else WORSE
    low, high = difference.interval
    return EQUIVALENT if -margin < low and high < margin else UNRESOLVED
