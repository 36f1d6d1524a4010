"""Every number of the committed reports, recomputed from runs.csv with numpy alone: nothing of scripts/ is used."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
NAMES = sorted(path.parent.name for path in RESULTS.glob("*/report.csv"))
SETTING = ("data", "train_subset", "model", "width", "epochs")
KNOBS = ("keep_prob", "block_size", "groups", "skip", "schedule")
MARGIN = 0.5


def table(name: str, file: str) -> list[dict[str, str]]:
    path = RESULTS / name / file
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


@cache
def student(freedom: int) -> tuple[np.ndarray, np.ndarray]:
    """A grid of t from 0 on and the probability of a smaller absolute value, by integrating the density."""
    t = np.concatenate([np.linspace(0, 60, 240_001), np.geomspace(60, 1e6, 200_000)[1:]])
    density = (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
    area = np.concatenate([[0.0], np.cumsum(np.diff(t) * (density[1:] + density[:-1]) / 2)])
    return t, area / area[-1]


@cache
def detected(freedom: int) -> float:
    """The true difference, in standard errors, that the two-sided t test at .05 finds in 80 of 100 experiments.

    Around a difference d, in units of the true standard error, t is (z + d) / s, s the estimated over the true standard
    deviation: the probability of a larger t than the quantile q is the mean over s of that of z > q s - d.
    """
    t, inside = student(freedom)
    quantile = t[np.searchsorted(inside, 0.95)]
    s = np.linspace(1e-6, 8, 20_001)
    density = s ** (freedom - 1) * np.exp(-freedom * s**2 / 2)
    normal = np.linspace(-9, 9, 40_001)
    below = np.cumsum(np.exp(-(normal**2) / 2))
    shares = []
    differences = np.linspace(2, 20, 901)
    for difference in differences:
        above = np.interp(difference - quantile * s, normal, below / below[-1])
        opposite = np.interp(-difference - quantile * s, normal, below / below[-1])
        shares.append(((above + opposite) * density).sum() / density.sum())
    return float(np.interp(0.8, shares, differences))


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """(low, high, p) of the mean of paired differences."""
    t, inside = student(len(values) - 1)
    error = values.std(ddof=1) / np.sqrt(len(values))
    reach = t[np.searchsorted(inside, 0.95)] * error
    p_value = 1 - np.interp(abs(values.mean()) / error, t, inside) if error else float(values.mean() == 0)
    return values.mean() - reach, values.mean() + reach, p_value


def holm(p_values: Sequence[float]) -> list[float]:
    order = np.argsort(p_values)
    stepped = np.maximum.accumulate(np.minimum(1, np.array(p_values)[order] * np.arange(len(order), 0, -1)))
    return [float(stepped[list(order).index(i)]) for i in range(len(order))]


def verdict(values: np.ndarray, adjusted: float) -> str:
    low, high, _ = interval(values)
    if adjusted < 0.05:
        return "better" if values.mean() > 0 else "worse"
    return "equivalent" if low > -MARGIN and high < MARGIN else "not resolved"


def by_seed(runs: Sequence[dict[str, str]], column: str = "last_test") -> dict[int, float]:
    return {int(run["seed"]): float(run[column]) for run in runs if run[column]}


def differences(ours: dict[int, float], theirs: dict[int, float]) -> np.ndarray:
    return np.array([ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())])


def runs_of(name: str, row: dict[str, str]) -> list[dict[str, str]]:
    """The runs of a row of report.csv."""
    same = [run for run in table(name, "runs.csv") if all(run[key] == row[key] for key in ("experiment", *KNOBS))]
    return [run for run in same if run["seed"] in row["seeds"].split()]


def agree(row: dict[str, str], column: str, expected: float, absolute: float = 2e-4) -> None:
    assert float(row[column]) == pytest.approx(expected, abs=absolute, rel=1e-3), (row["label"], column)


@pytest.mark.parametrize("name", NAMES)
def test_each_row_is_that_of_its_runs(name: str) -> None:
    runs = table(name, "runs.csv")
    checked, p_values, all_differences = [], [], []
    for row in table(name, "report.csv"):
        own = runs_of(name, row)
        assert len(own) == int(row["n"]) == len({run["seed"] for run in own}), row["label"]
        for column in ("last_test", "peak_test", "last_val", "best_test"):
            values = np.array(list(by_seed(own, column).values()))
            if len(values):
                agree(row, f"{column}_mean", values.mean())
            if len(values) > 1:
                agree(row, f"{column}_std", values.std(ddof=1))
        for share in row.get("dropped", "").split():
            group, value = share.split(":")
            found = [float(dict(part.split(":") for part in run["dropped"].split())[group]) for run in own]
            assert float(value) == pytest.approx(np.mean(found), abs=2e-5), row["label"]
        setting = {key: own[0][key] for key in SETTING}
        plain = [run for run in runs if run["regularizer"] == "none" and all(run[k] == v for k, v in setting.items())]
        if own[0]["regularizer"] == "none" or not plain:
            assert row["difference"] == row["verdict"] == ""
            continue
        values = differences(by_seed(own), by_seed(plain))
        agree(row, "difference", values.mean())
        assert [float(pair.split(":")[1]) for pair in row["by_seed"].split()] == pytest.approx(values, abs=2e-4)
        if len(values) > 1:
            low, high, p_value = interval(values)
            agree(row, "difference_low", low, 2e-3)
            agree(row, "difference_high", high, 2e-3)
            agree(row, "difference_p", p_value, 5e-4)
            agree(row, "smallest", detected(len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5, 2e-3)
            checked.append(row)
            p_values.append(p_value)
            all_differences.append(values)
    for row, adjusted, values in zip(checked, holm(p_values), all_differences, strict=True):
        agree(row, "holm", adjusted, 5e-3)
        assert row["verdict"] == verdict(values, adjusted), row["label"]


@pytest.mark.parametrize("name", [name for name in NAMES if table(name, "claims.csv")])
def test_each_claim_is_the_mean_of_its_cells(name: str) -> None:
    rows: dict[tuple[str, ...], list[dict[str, str]]] = {}
    columns = ("experiment", "regularizer", *KNOBS, *SETTING)
    for run in table(name, "runs.csv"):
        rows.setdefault(tuple(run[column] for column in columns), []).append(run)
    claims = table(name, "claims.csv")
    found = []
    for claim in claims:
        where = dict(pair.split("=", 1) for pair in claim["where"].split())
        free = {claim["column"], "experiment"}
        free |= {"regularizer", *KNOBS} if claim["column"] in ("experiment", "regularizer") else set()
        cells = []
        for ours, theirs in product(rows.values(), repeat=2):
            one, other = ours[0], theirs[0]
            if (
                (one[claim["column"]], other[claim["column"]]) == (claim["better"], claim["worse"])
                and all(one[column] == other[column] for column in columns if column not in free)
                and all(run[key] == value for run in (one, other) for key, value in where.items())
            ):
                cells.append(differences(by_seed(ours), by_seed(theirs)))
        assert len(cells) == int(claim["cells"]), claim["claim"]
        assert sum(cell.mean() > 0 for cell in cells) == int(claim["positive"])
        found.append(np.mean(cells, axis=0))
    adjusted = holm([interval(values)[2] for values in found])
    for claim, values, p_value in zip(claims, found, adjusted, strict=True):
        assert float(claim["difference"]) == pytest.approx(values.mean(), abs=2e-4)
        assert float(claim["difference_low"]) == pytest.approx(interval(values)[0], abs=2e-3)
        assert float(claim["holm"]) == pytest.approx(p_value, abs=5e-3)
        assert claim["verdict"] == verdict(values, p_value)


def test_the_integral_gives_students_quantiles() -> None:
    for freedom, expected in ((2, 4.3027), (4, 2.7764), (9, 2.2622)):
        t, inside = student(freedom)
        assert t[np.searchsorted(inside, 0.95)] == pytest.approx(expected, abs=2e-3)


def test_the_smallest_difference_is_that_of_the_noncentral_t() -> None:
    for freedom, expected in ((1, 16.334), (2, 5.6535), (4, 3.7611)):
        assert detected(freedom) == pytest.approx(expected, rel=1e-3)
