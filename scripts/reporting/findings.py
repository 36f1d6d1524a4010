"""The paper's findings as differences between two rows of the published results, seed by seed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.reporting.sweep import Spread
from scripts.reporting.tables import markdown_table


@dataclass(frozen=True)
class Finding:
    """What the paper says, and the two rows of a result whose difference says whether it is so here.

    Args:
        says: the finding (paper, section 4.1).
        result: a folder of docs/results.
        better, worse: rows, by columns of runs.csv.
    """

    says: str
    result: str
    better: Mapping[str, str]
    worse: Mapping[str, str]


BEST = {"experiment": "fig4/groups34_conv_skip", "block_size": "7"}
FINDINGS = (
    Finding("block 7 beats block 1", "fig4_block_size", BEST, {**BEST, "block_size": "1"}),
    Finding("groups 3 and 4 beat group 4", "fig4_block_size", BEST, {**BEST, "experiment": "fig4/group4_conv_skip"}),
    Finding("conv and skip beat conv alone", "fig4_block_size", BEST, {**BEST, "experiment": "fig4/groups34_conv"}),
    *(
        Finding(
            f"a linear schedule beats a fixed keep_prob of {keep_prob}",
            "fig3_keep_prob",
            {"experiment": "fig3/dropblock", "keep_prob": keep_prob},
            {"experiment": "fig3/dropblock_constant", "keep_prob": keep_prob},
        )
        for keep_prob in ("0.95", "0.9", "0.8")
    ),
)


def by_seed(results: Path, result: str, row: Mapping[str, str]) -> dict[str, float]:
    """Accuracy on test at the last epoch of the runs of a row, by seed.

    Raises:
        ValueError: if there is no such row.
    """
    with open(results / result / "runs.csv") as file:
        found = [run for run in csv.DictReader(file) if all(run[key] == value for key, value in row.items())]
    if not found:
        raise ValueError(f"{results / result}/runs.csv: no run of {dict(row)}")
    return {run["seed"]: float(run["last_test"]) for run in found}


def difference(results: Path, finding: Finding) -> Spread:
    """What the better row gains over the worse, over the seeds of both."""
    ours, theirs = (by_seed(results, finding.result, row) for row in (finding.better, finding.worse))
    return Spread(tuple(ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())))


def findings_table(results: Path) -> str:
    """All findings with our differences; empty where a result is not there yet."""
    if not all((results / finding.result / "runs.csv").exists() for finding in FINDINGS):
        return ""
    lines = []
    for finding in FINDINGS:
        gain = difference(results, finding)
        link = f"[{finding.result}](docs/results/{finding.result}/report.md)"
        lines.append([finding.says, f"{gain.mean:+.2f} ± {gain.std or 0:.2f}", len(gain.values), link])
    return markdown_table(["the paper", "here, points", "n", "from"], lines)
