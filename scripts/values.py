"""Numbers that README and docs show: docs/results/values.json, computed from the tables that are committed beside it.

A value is the text of one number, under a path such as photographs_small/dropblock/difference. The file is written when
a sweep is kept (`python -m scripts.keep_results`) or a benchmark was repeated (`python -m scripts.pages`), and a test
recomputes it.
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from scripts.reporting.statistics import Difference, Spread, holm, paired

VALUES = "values.json"

# Sweeps to which seeds were added after a look at the first ones, and how many these were.
FIRST_SEEDS = {"camvid_where": 3, "findings_small": 5, "photographs_small": 3}
# Two rows that a page compares with each other; every other difference is from the baseline.
COMPARED = {"schedules_overfit": [("linear", "constant")]}

GPU_IMAGES_PER_S = 2600  # ResNet-50 at 224 px in mixed precision on one A100 (timm issue 1491)


def values_of(results: Path) -> dict[str, Any]:
    """All values, nested as their paths are: result or benchmark first."""
    kept = {report.parent.name: values_of_sweep(report.parent) for report in sorted(results.glob("*/report.csv"))}
    return kept | benchmark_values(results) | {"resnet50": resnet50_values(), "first_runs": first_runs(results)}


def rows_of(file: Path) -> list[dict[str, str]]:
    """The lines of a CSV file; none where there is no such file."""
    if not file.exists():
        return []
    with open(file) as lines:
        return list(csv.DictReader(lines))


def values_of_sweep(result: Path) -> dict[str, Any]:
    """Row -> its values; under `claims` those of every claim, under `under_drop` accuracies with drop at inference.

    `first_difference` and `first_p` are as they stood after the first seeds of a sweep that was given more later.
    """
    # Rows of the report: means, differences from the baseline, verdicts.
    rows = rows_of(result / "report.csv")
    names = [row["experiment"].rpartition("/")[2] for row in rows]
    repeated = Counter(names)  # a grid over one experiment: its rows have no names of their own
    losses = holm([float(row["loss_difference_p"]) if row["loss_difference_p"] else None for row in rows])
    values: dict[str, Any] = {}
    for name, row, first, loss_p in zip(names, rows, _after_first_seeds(result.name, rows), losses, strict=True):
        if repeated[name] > 1:
            continue
        of = {"n": row["n"], "last": _mean(row, "last_test"), "difference": _difference(row), "p": _p(row["holm"])}
        of |= {"verdict": row["verdict"], **first, "smallest": row["smallest"] and f"{float(row['smallest']):.2f}"}
        of |= {"gap": _mean(row, "gap"), "loss_difference": _difference(row, "loss_difference"), "loss_p": _p(loss_p)}
        values[name] = _without_empty(of)
    for better, worse in COMPARED.get(result.name, []):
        ours, theirs = (differences_by_seed(rows[names.index(name)]) for name in (better, worse))
        values[better][f"less_{worse}"] = str(paired(ours, theirs))
    if any(losses):
        values["largest_loss_p"] = _p(max(p for p in losses if p is not None))

    # What the study asked, and accuracies with drop at inference, where a sweep has them.
    claims = rows_of(result / "claims.csv")
    if claims:
        values["claims"] = {}
        for row, first in zip(claims, _after_first_seeds(result.name, claims), strict=True):
            name = f"{row['column']}:{row['better'].rpartition('/')[2]}"
            values["claims"][name] = _without_empty({"difference": _difference(row), "p": _p(row["holm"]), **first})
    points = rows_of(result / "under_drop.csv")
    if points:
        values["under_drop"] = _under_drop(points)
    return values


def _after_first_seeds(sweep: str, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """For each row of a table its difference and p-value, adjusted over the table, after the first seeds alone."""
    if sweep not in FIRST_SEEDS:
        return [{} for _ in rows]
    differences = []
    for row in rows:
        by_seed = differences_by_seed(row)
        seeds = tuple(range(1, FIRST_SEEDS[sweep] + 1))
        differences.append(Difference(tuple(by_seed[seed] for seed in seeds), seeds) if by_seed else None)
    adjusted = holm([of.p_value if of else None for of in differences])
    return [
        {"first_difference": str(of), "first_p": _p(p)} if of else {}
        for of, p in zip(differences, adjusted, strict=True)
    ]


def _under_drop(points: list[dict[str, str]]) -> dict[str, Any]:
    """Row -> block -> mean accuracy at the lowest keep_prob at inference, and the difference from each other row."""
    lowest = min(points, key=lambda point: float(point["keep_prob"]))["keep_prob"]
    found: dict[tuple[str, str], dict[int, float]] = {}
    for point in points:
        if point["keep_prob"] == lowest:
            key = point["experiment"].rpartition("/")[2], f"block{point['block_size']}"
            found.setdefault(key, {})[int(point["seed"])] = float(point["top1"])
    values: dict[str, Any] = {}
    for (name, block), accuracies in found.items():
        of = {"mean": f"{Spread(tuple(accuracies.values())).mean:.2f} %"}
        of |= {
            f"less_{other}": str(paired(accuracies, theirs))
            for (other, other_block), theirs in found.items()
            if other_block == block and other != name
        }
        values.setdefault(name, {})[block] = of
    return values


def benchmark_values(results: Path) -> dict[str, Any]:
    """Values of every benchmark, from the JSON file that it left; its own Markdown tables are shown as they are."""

    def rows(benchmark: str) -> dict[str, Any]:
        return {row["name"]: row for row in read(benchmark)}

    def read(benchmark: str) -> list[dict[str, Any]]:
        return list(json.loads((results / f"{benchmark}.json").read_text())["rows"])

    values: dict[str, Any] = {}
    # The operator on the two smallest maps, as a multiple of one pass over memory.
    for side, shape in (("7x7", "32x512x7x7"), ("14x14", "32x1024x14x14")):
        own = [row for row in read("op_benchmark") if (row["name"], row["dtype"]) == ("dropblock (this)", "float32")]
        times = [row["to_floor"]["median"] for row in own if row["shape"] == shape]
        values.setdefault("op_benchmark", {})[side] = f"{min(times):.1f} to {max(times):.1f}"
    # A training step with DropBlock: the median of the rounds with its 95 % interval.
    for name in ("step_float32", "step_bfloat16"):
        step = rows(name)["dropblock (this)"]
        median, low, high = (100 * x for x in (step["overhead"]["median"], *step["overhead"]["interval"]))
        values[name] = {"overhead": f"{median:.1f} % [{low:.1f}, {high:.1f}]"}
        values[name]["calls_alone"] = f"{100 * step['calls_alone']['median']:.1f} %"
    values["precision"] = {}
    for key, name in (("this", "bfloat16, this project"), ("torch", "bfloat16, torch alone")):
        ratio = rows("precision")[name]["to_float32"]
        values["precision"][key] = "{:.2f} [{:.2f}, {:.2f}]".format(ratio["median"], *ratio["interval"])
    # Processor time for one photograph, and the cores that one GPU, 8 and 64 need of it.
    values["loader_photographs"] = {}
    for name, row in rows("loader_photographs").items():
        own = row["processor_ms"]["median"]
        cores = {f"cores_for_{gpus}": str(math.ceil(gpus * own / 1000 * GPU_IMAGES_PER_S)) for gpus in (1, 8, 64)}
        short = name.removeprefix("this, ").replace(", ", "_").replace(" ", "_").replace("=", "_")
        values["loader_photographs"][short] = {
            "ms": f"{own:.2f}",
            "a_core": f"{1000 / own:,.0f}",
            "faster": f"{row['faster']['median']:.2f}",
            **cores,
        }
    # Small images, which stay in memory, beside a DataLoader with PIL.
    small = rows("loader_small")
    per_s = {name: row["images_per_s"]["median"] for name, row in small.items()}
    values["loader_small"] = {
        "images_per_s": f"{per_s['this']:,.0f}",
        "faster": f"{small['this']['faster']['median']:.1f}",
        "faster_than_2_workers": f"{per_s['this'] / per_s['torchvision, PIL, 2 workers']:.1f}",
    }
    (loop,) = read("loop")
    ours, barest = (loop["outside_ms"][name]["median"] for name in ("this", "barest loop"))
    values["loop"] = {
        "outside": f"{ours - barest:.1f} ms",
        "step": f"{loop['step_ms']['barest loop']['median']:.0f} ms",
        "cost": f"{100 * loop['cost']['median']:+.1f} %",
    }
    # What a library drops of a 7x7 map when 10 % is asked for, by the rule that it follows.
    values["drop_rates"] = {}
    for name, rule in (
        ("paper", "the paper's"),
        ("pypi", "p / b²"),
        ("holocron", "p / b⁴"),
        ("timm", "corrected gamma"),
    ):
        (found,) = (row for row in read("drop_rates") if row["name"].startswith(rule))
        share = found["closed_form"][0]
        values["drop_rates"][name] = f"{share:.{1 if share >= 0.95 else 2}f} %"
    (table,) = (row for row in read("jobs") if (row["what"], row["jobs"]) == ("a table", "jobs=2"))
    values["jobs"] = {"table_with_2": f"{table['times_as_fast']['median']:.2f}"}
    return values


def resnet50_values() -> dict[str, str]:
    """Sites of ResNet-50 in groups 3 and 4, their units for an image of 224 pixels, and the blocks drawn in them."""
    import torch

    from dropblock import declared_sites
    from dropblock.sites import map_sizes
    from models import build_model

    with torch.device("meta"):
        model = build_model("resnet50", num_classes=1000)
        sites = {name: site for name, site in declared_sites(model).items() if site.group in (3, 4)}
        calls = map_sizes(model, torch.empty(1, 3, 224, 224), sites)
    units = {g: sum(math.prod(calls[name][0][0]) for name, site in sites.items() if site.group == g) for g in (3, 4)}
    values = {"sites": str(len(sites)), "units": f"{sum(units.values()) / 1e6:.2f}"}
    values |= {f"units_{group}": f"{count / 1e6:.2f}" for group, count in units.items()}
    for block in (7, 1):  # expected at keep_prob 0.9, to two or three digits
        number = sum(units[group] * (1 - kept) / block**2 for group, kept in ((3, 0.975), (4, 0.9)))
        rounded = round(number, 2 - len(str(int(number)))) if number < 10_000 else round(number, -3)
        values[f"blocks_{block}"] = f"{rounded:,.0f}"
    return values


def first_runs(results: Path) -> dict[str, str]:
    """Data set -> what the shortest command on it gave, as `keep_results` keeps it."""
    runs = json.loads((results / "first_runs.json").read_text())
    return {name: f"{run['label'].removesuffix(' (%)')} {run['value']:.1f} %" for name, run in runs.items()}


def _mean(row: dict[str, str], column: str) -> str:
    """A mean with its standard deviation, as far as there is one."""
    mean, std = row[f"{column}_mean"], row[f"{column}_std"]
    return f"{float(mean):z.2f}" + (f" ± {float(std):.2f}" if std else "") if mean else ""


def _difference(row: dict[str, str], column: str = "difference") -> str:
    """A difference and its interval, which a single pair does not have; of losses with a digit more."""
    digits = 3 if column == "loss_difference" else 2
    given = [row[f"{column}{end}"] for end in ("", "_low", "_high")]
    mean, *ends = [f"{float(value):+z.{digits}f}" for value in given if value] or [""]
    return f"{mean} [{', '.join(ends)}]" if ends else mean


def _p(p_value: float | str | None) -> str:
    return "" if p_value in (None, "") else "< .001" if float(p_value) < 0.001 else f"{float(p_value):.3f}"


def differences_by_seed(row: dict[str, str]) -> dict[int, float]:
    """The single differences of a row."""
    pairs = (pair.split(":") for pair in row["by_seed"].split())
    return {int(seed): float(value) for seed, value in pairs}


def _without_empty(values: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}
