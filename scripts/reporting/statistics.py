"""Differences between two rows, paired by seed: Student t interval, Holm's correction, and the word that a rule gives.

A seed fixes the weights at the start, the order of the images and their augmentation, so two rows share what a seed
does, and the differences within seeds are what is tested.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LEVEL = 0.95  # of intervals; 1 - LEVEL of tests
POWER = 0.8
BETTER, WORSE, EQUIVALENT, UNRESOLVED = "better", "worse", "equivalent", "not resolved"


def t_quantile(share: float, freedom: int) -> float:
    """The value below which a Student t variable of `freedom` degrees lies with probability `share`."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, share))


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
        """Mean ± standard deviation, with this many digits after the point, of the six that CSV files have."""
        mean = f"{round(self.mean, 6):z.{digits}f}"
        return mean if self.std is None else f"{mean} ± {round(self.std, 6):.{digits}f}"


@dataclass(frozen=True)
class Difference(Spread):
    """What one row has more than another, seed by seed.

    Args:
        values: differences, in the unit of the metric.
        seeds: the seeds that both rows have, in the same order.
    """

    seeds: tuple[int, ...] = ()

    @property
    def error(self) -> float | None:
        """The standard error of the mean; None for a single pair."""
        return None if self.std is None else self.std / len(self.values) ** 0.5

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % Student t interval of the mean, n - 1 degrees of freedom; None for a single pair."""
        if self.error is None:
            return None
        reach = t_quantile(0.5 + LEVEL / 2, len(self.values) - 1) * self.error
        return self.mean - reach, self.mean + reach

    @property
    def p_value(self) -> float | None:
        """Two-sided, of the paired t test; None for a single pair, and for equal differences.

        Two seeds on a test set of 360 images easily differ from the baseline by the same number of images, or by none:
        that is no certainty.
        """
        from scipy.special import stdtr

        if self.error is None or self.error < 1e-9:
            return None
        return float(2 * stdtr(len(self.values) - 1, -abs(self.mean) / self.error))

    @property
    def smallest(self) -> float | None:
        """The true difference that this many seeds with this spread would find in 80 % of such experiments.

        The power of the t test itself: around a true difference its t is noncentral. The sum of two quantiles that is
        often used in its place is too small for few seeds, at n = 2 by a seventh.
        """
        from scipy.special import nctdtrinc

        if self.error is None:
            return None
        freedom = len(self.values) - 1
        return float(nctdtrinc(freedom, 1 - POWER, t_quantile(0.5 + LEVEL / 2, freedom))) * self.error

    def text(self, digits: int = 2) -> str:
        """Mean and interval, with this many digits after the point, of the six that CSV files have."""
        numbers = (self.mean, *(self.interval or ()))
        mean, *ends = (f"{round(number, 6):+z.{digits}f}" for number in numbers)
        return f"{mean} [{', '.join(ends)}]" if ends else mean


def epoch_means(log: Iterable[Mapping[str, Any]], name: str) -> dict[float, float]:
    """A metric of training over the samples of each epoch, by epoch.

    A log entry is the mean over the steps since the one before, and all steps see as many samples. The last entry of
    an epoch covers what `log_every` leaves over, so an entry counts by its steps.

    Args:
        log: the entries of a run in their order.
        name: of the metric.
    """
    sums: dict[float, tuple[float, int]] = {}
    before = 0
    for entry in log:
        if name in entry:
            epoch, steps = float(math.ceil(entry["epoch"])), entry["step"] - before
            total, count = sums.get(epoch, (0.0, 0))
            sums[epoch], before = (total + steps * entry[name], count + steps), entry["step"]
    return {epoch: total / count for epoch, (total, count) in sums.items()}


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> Difference | None:
    """Ours minus theirs over the seeds that both have; None where they share none."""
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    return Difference(tuple(ours[seed] - theirs[seed] for seed in seeds), seeds) if seeds else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values: all below 0.05 hold together with 95 %, however the tests depend on each other.

    Args:
        p_values: of the tests of one table; None where there is no test, which counts for nothing.
    """
    tested = sorted((p, i) for i, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted


def verdict(difference: Difference, adjusted: float | None, margin: float) -> str:
    """The word for a difference, by rule.

    better, worse: the adjusted p-value is below 0.05. equivalent: it is not, and the 95 % interval lies within
    +- margin. not resolved: anything else, a single pair and equal differences included.
    """
    if difference.interval is None or adjusted is None:
        return UNRESOLVED
    if adjusted < 1 - LEVEL:
        return BETTER if difference.mean > 0 else WORSE
    low, high = difference.interval
    return EQUIVALENT if -margin < low and high < margin else UNRESOLVED
