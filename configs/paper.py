"""The paper's numbers beside an experiment, and the declarations of a study that its report follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PaperConfig:
    """The numbers of the paper that an experiment stands beside; absent ones are unknown.

    Args:
        place: table and row, or figure and line; differences are taken within one table or figure.
        certainty: where the numbers were read.
        metrics: [mean] or [mean, standard deviation] by the name of the metric, in its unit.
        curve: values of a figure by keep_prob, by the name of the metric.
    """

    place: str = ""
    certainty: str = ""
    metrics: dict[str, list[float]] = field(default_factory=dict)
    curve: dict[str, dict[float, float]] = field(default_factory=dict)


def paper_from(values: dict[str, Any]) -> dict[str, Any]:
    """The values of a `PaperConfig`, also of runs from before its numbers were keyed by metric."""
    old = {"top1", "top1_std", "top5", "top5_std"} & set(values)
    curve = values.get("curve") or {}
    if not old and all(isinstance(points, dict) for points in curve.values()):
        # JSON's keys are strings.
        numbers = {name: {float(at): value for at, value in points.items()} for name, points in curve.items()}
        return {**values, "curve": numbers} if curve else values
    metrics = {
        name: [number for number in (values.get(name), values.get(f"{name}_std")) if number is not None]
        for name in ("top1", "top5")
        if values.get(name) is not None
    }
    kept = {key: values.get(key) or "" for key in ("place", "certainty")}
    return {**kept, "metrics": metrics, "curve": {"top1": curve} if curve else {}}


@dataclass(frozen=True)
class ClaimConfig:
    """A claim that the rows of a sweep speak to: rows that are alike but for one column are a cell.

    Args:
        says: the claim as a sentence, such as "block 7 beats block 1".
        column: a column of the report's runs.csv.
        better, worse: the values of that column whose difference is taken, as runs.csv spells them.
        where: columns and values of the rows it is about; empty for all.
    """

    says: str = ""
    column: str = ""
    better: str = ""
    worse: str = ""
    where: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyConfig:
    """Declarations of a sweep before its first run, for its report; no part of any run.

    Args:
        headline: which number is the result, as a phrase.
        margin: differences within +- this many points are of no interest ("equivalent").
        keep_prob, pilot_seed, pilot_sweep: kept studies whose pilots were a sweep of their own have the candidates, the
            seed and the folder's name. Their rows have what was chosen; `tune:` of the table chooses anew.
        evaluations: what is measured of every run right after its last epoch, each in the words of evaluate.py:
            [temperature, corruption, samples=20]; secondary numbers, named before the first run.
        limitations: sentences that the report ends with.
        claims: what the rows are to answer.
    """

    headline: str = ""
    margin: float = 0.5
    keep_prob: list[float] = field(default_factory=list)
    pilot_seed: int | None = None
    pilot_sweep: str = ""
    evaluations: list[str] = field(default_factory=list)
    limitations: list[str] = field(default_factory=list)
    claims: list[ClaimConfig] = field(default_factory=list)
