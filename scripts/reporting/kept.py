"""Short tables for README and docs from the report.csv of kept results."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from configs.checking import load_yaml
from configs.plan import CONFIGS
from scripts.reporting.tables import markdown_table, p_text, without_empty

NOT_RUN = "*Not run yet.*"

# Each task, classification on two data sets: what was trained, the metric, the kept result, the experiment with
# DropBlock, in groups 3 and 4 of the backbone, which was decided before the runs that are shown.
TASKS = (
    (
        "classification",
        "ResNet-18 of width 16, 8,400 photographs (Tiny ImageNet)",
        "top-1",
        "photographs_small",
        "table1_small/dropblock",
    ),
    (
        "classification",
        "ResNet-18 of width 16, 5,000 CIFAR-10 images",
        "top-1",
        "table1_small",
        "table1_small/dropblock",
    ),
    ("segmentation", "ResNet-18-FPN of width 32, 92 CamVid images", "mIoU", "camvid_where", "camvid/backbone"),
    ("detection", "small RetinaNet (0.9 M), 205 BCCD images", "AP", "bccd_where", "bccd/backbone_b7"),
)

# Sweeps with rules of their own, and what each asks.
STUDIES = {
    "table1_small": "which of the paper's methods helps (Table 1)",
    "findings_small": "block size, groups, branches, schedule (Figures 3 and 4)",
    "schedules_overfit": "when to drop, where a network overfits",
    "schedules_underfit": "when to drop, where it underfits",
    "camvid_where": "segmentation: backbone, head or both",
    "bccd_where": "detection: backbone with blocks 3 and 7, or head",
    "bccd_long": "the same, four times as long",
    "photographs_small": "photographs; dropping at inference (Figure 5), where a network looks (Figure 6)",
}


def rows_of(result: Path, name: str = "report.csv") -> list[dict[str, str]]:
    """The rows of a file of a kept report; none where it has not been run."""
    if not (result / name).exists():
        return []
    with open(result / name) as file:
        return list(csv.DictReader(file))


def results_table(result: Path) -> str:
    """A kept result, ours beside the paper, both with the difference from the baseline; or that there is none."""
    rows = rows_of(result)
    headers = ["", "n", "ours, last epoch", "difference [95 %]", "verdict"]
    published = any(row["paper_mean"] for row in rows)
    lines = []
    for row in rows:
        line = [row["label"], row["n"], number(row["last_test_mean"], row["last_test_std"])]
        line += [difference(row), row["verdict"]]
        if published:
            line += [number(row["paper_mean"], row["paper_std"]), number(row["paper_difference"], sign="+")]
        lines.append(line)
    return markdown_table(headers + (["the paper", "its difference"] if published else []), lines) if rows else NOT_RUN


def tasks_table(results: Path) -> str:
    """No regularizer against DropBlock, a row for each data set, in %; one that was not run says so.

    Args:
        results: the folder docs/results.
    """
    lines = []
    for task, trained, metric, result, experiment in TASKS:
        rows = rows_of(results / result)
        dropblock = next((row for row in rows if row["experiment"] == experiment), None)
        baseline = next((row for row in rows if row["experiment"].endswith(("/baseline", "/none"))), None)
        cells = ["not run yet", "", "", "", ""]
        if baseline and dropblock:
            means = [number(row["last_test_mean"], row["last_test_std"]) for row in (baseline, dropblock)]
            cells = [*means, difference(dropblock), dropblock["n"], dropblock["verdict"]]
        lines.append([task, trained, metric, *cells])
    headers = ["task", "trained from scratch", "metric", "none", "DropBlock", "difference [95 %]", "n", "verdict"]
    return markdown_table(headers, lines, left=3)


def studies_table(results: Path) -> str:
    """Every study, its question, and how many of the seeds that its sweep declares are kept.

    Args:
        results: the folder docs/results.
    """
    lines = []
    for name, question in STUDIES.items():
        counts = sorted({int(row["n"]) for row in rows_of(results / name)})
        declared = len(load_yaml(CONFIGS / "sweep" / f"{name}.yaml")["hydra"]["sweeper"]["params"]["seed"].split(","))
        seeds = f"{declared} seeds" if counts == [declared] else f"{'-'.join(map(str, counts))} of {declared} seeds"
        state = f"{seeds}, [report](results/{name}/report.md)" if counts else "not run yet"
        lines.append([f"`+sweep={name}`", question, state])
    return markdown_table(["study", "question", "state"], lines, left=3)


def findings_table(results: Path, names: Sequence[str], link: str = "docs/results/", of: str = "the paper") -> str:
    """The claims of kept results (claims.csv), each with its difference averaged over cells; or that there are none.

    Args:
        results: the folder docs/results.
        names: of the results.
        link: the way there from the page that shows the table.
        of: whose claims they are; the head of their column.
    """
    found = [(name, row) for name in names for row in rows_of(results / name, "claims.csv") if row["difference"]]
    many = any(row["cells"] != "1" for _, row in found)  # else every claim is about a single pair of rows
    lines = []
    for name, row in found:
        cells = f"{row['positive']} of {row['cells']}" if many else ""
        p_value = p_text(float(row["holm"]) if row["holm"] else None)
        source = f"[{name}]({link}{name}/report.md)"
        lines.append([row["claim"], difference(row), row["n"], cells, p_value, row["verdict"], source])
    headers = [of, "here, points [95 %]", "n", "cells above 0", "Holm p", "verdict", "from"]
    return markdown_table(*without_empty(headers, lines)) if lines else NOT_RUN


def value_text(place: str, results: Path) -> str:
    """One number of a kept report within a sentence.

    Args:
        place: RESULT/EXPERIMENT/COLUMN, the experiment without its folder: table1_small/dropblock/loss_difference; or,
            of a claim, RESULT/claim/COLUMN, what it is about: findings_small/claim/schedule.
        results: the folder docs/results.
    """
    name, experiment, column = place.split("/")
    if experiment == "claim":
        (row,) = (row for row in rows_of(results / name, "claims.csv") if row["column"] == column)
        return difference(row)
    (row,) = (row for row in rows_of(results / name) if row["experiment"].rpartition("/")[2] == experiment)
    if f"{column}_low" in row:
        return difference(row, column)
    return number(row[f"{column}_mean"], row[f"{column}_std"]) if f"{column}_mean" in row else number(row[column])


def number(mean: str, std: str = "", sign: str = "") -> str:
    """A mean with its standard deviation, as far as there is one."""
    if not mean:
        return ""
    return f"{float(mean):{sign}z.2f}" + (f" ± {float(std):.2f}" if std else "")


def difference(row: dict[str, str], column: str = "difference") -> str:
    """A difference and its interval, which a single pair does not have; of losses with a digit more."""
    digits = 3 if column == "loss_difference" else 2
    values = [row[f"{column}{end}"] for end in ("", "_low", "_high")]
    mean, *ends = [f"{float(value):+z.{digits}f}" for value in values if value] or [""]
    return f"{mean} [{', '.join(ends)}]" if ends else mean
