"""A sweep as the report sees it: rows in the paper's order, each with its runs, and what is missing."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from configs.schema import UserError, load_yaml
from engine.records import DONE, RunFolder
from scripts.reporting.words import KNOBS, METHODS, told


@dataclass(frozen=True)
class Run:
    """One finished training. `entry` is what the sweep noted of it: one run may stand in several tables."""

    folder: RunFolder
    entry: dict[str, Any]
    summary: dict[str, Any]

    @property
    def plan(self) -> dict[str, Any]:
        return self.summary["plan"]

    @property
    def seed(self) -> int:
        return self.plan["seed"]

    def value(self, which: str, split: str) -> float | None:
        """The headline metric of `last`, `best` or `peak` on a split; None where there is none."""
        values = self.summary.get(which) or {}
        return values.get(f"{split}/{self.summary['headline']}")

    def curve(self, name: str) -> dict[float, float]:
        """A curve by epoch."""
        return {point["epoch"]: point[name] for point in self.folder.metrics() if name in point}


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
        return f"{self.mean:.2f}" if self.std is None else f"{self.mean:.2f} ± {self.std:.2f}"


@dataclass
class Row:
    """The runs that differ in nothing but the seed."""

    runs: list[Run] = field(default_factory=list)

    @property
    def plan(self) -> dict[str, Any]:
        return self.runs[0].plan

    @property
    def paper(self) -> dict[str, Any]:
        return self.runs[0].entry.get("paper") or self.plan["paper"]

    @property
    def experiment(self) -> str | None:
        return self.runs[0].entry.get("experiment")

    @property
    def is_baseline(self) -> bool:
        return self.plan["regularizer"] == ["none"] and not self.plan["label_smoothing"]

    @property
    def setting(self) -> dict[str, Any]:
        """What the regularizers are tried in, by dotted name: network, data, recipe."""
        whole = flattened({part: self.plan[part] for part in ("model", "data", "recipe")})
        return {key: value for key, value in whole.items() if key not in ("data.root", "data.download")}

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    def knob(self, name: str) -> Any:
        """A knob of the layer; None where there is no layer, or it has no such knob."""
        return (self.plan["layer"] or {}).get(name)

    def spread(self, which: str, split: str = "test") -> Spread | None:
        values = [value for run in self.runs if (value := run.value(which, split)) is not None]
        return Spread(tuple(values)) if values else None

    def paper_top1(self) -> float | None:
        """The paper's number for this row; of a figure, that at this row's keep_prob."""
        if self.paper.get("top1") is not None:
            return self.paper["top1"]
        curve = {float(key): value for key, value in self.paper.get("curve", {}).items()}
        return curve.get(self.knob("keep_prob"))

    def method(self, *knobs: str) -> str:
        """The regularizers in words, with some knobs of the layer."""
        words = [" + ".join(METHODS.get(name, name) for name in self.plan["regularizer"])]
        words += [told(name, self.knob(name)) for name in knobs if self.knob(name) is not None]
        return ", ".join(words)


@dataclass
class Sweep:
    """Everything the report needs.

    Args:
        name: of the folder.
        rows: in the paper's order.
        lost: (what, status, reason) of jobs that have no result.
    """

    name: str
    rows: list[Row]
    lost: list[tuple[str, str, str]]

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @property
    def baseline(self) -> Row | None:
        """The row without a regularizer; None where there are several, in different settings."""
        found = [row for row in self.rows if row.is_baseline]
        return found[0] if found and not any(row.setting != found[0].setting for row in self.rows) else None

    def baseline_of(self, row: Row) -> Row | None:
        """The row without a regularizer in the setting of this one."""
        return next((other for other in self.rows if other.is_baseline and other.setting == row.setting), None)

    @property
    def varied(self) -> list[str]:
        """What of the setting is not the same in all rows, by dotted name."""
        return [key for key in self.rows[0].setting if len({str(row.setting.get(key)) for row in self.rows}) > 1]

    def label(self, row: Row, without: str = "") -> str:
        """A row in words: keep_prob and block size, and what else sets it apart from rows with its regularizer."""
        alike = [other for other in self.rows if other.plan["regularizer"] == row.plan["regularizer"]]
        varying = [knob for knob in KNOBS[2:] if any(other.knob(knob) != row.knob(knob) for other in alike)]
        words = [row.method(*(knob for knob in (*KNOBS[:2], *varying) if knob != without))]
        if any(other.plan["label_smoothing"] != row.plan["label_smoothing"] for other in alike):
            words.append(f"label smoothing {row.plan['label_smoothing']:g}")
        words += [f"{key.removesuffix('.name').rpartition('.')[2]} {row.setting.get(key)}" for key in self.varied]
        return ", ".join(words)

    def lines(self, knob: str) -> list[list[Row]]:
        """The rows of each experiment that takes several values of a knob, by value: the lines of a figure."""
        by_experiment: dict[str | None, list[Row]] = {}
        for row in self.rows:
            if row.knob(knob) is not None:
                by_experiment.setdefault(row.experiment, []).append(row)
        lines = [sorted(rows, key=lambda row: row.knob(knob)) for rows in by_experiment.values()]
        return [rows for rows in lines if len({row.knob(knob) for row in rows}) > 1]


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def read_sweep(folder: Path) -> Sweep:
    """Read the record of every run that a sweep lists.

    Raises:
        UserError: if the folder is no sweep, or none of its runs is finished.
    """
    notes = RunFolder(folder / "runs")
    names = sorted(path.name for path in notes.path.glob("*.json"))
    if not names:
        raise UserError(
            f"{folder}: no sweep, there is no runs/*.json in it; give a folder that train.py listed runs in"
        )
    rows: dict[tuple[str | None, str], Row] = {}
    lost = []
    for name in names:
        entry = notes.read(name)
        if entry is None:
            lost.append((name, "UNREADABLE", f"{notes.path / name} is damaged"))
            continue
        run = RunFolder(place(folder, Path(entry["run"])))
        summary = run.summary()
        if run.status().get("status") == DONE and summary:
            key = (entry.get("experiment"), run.path.parent.name)
            rows.setdefault(key, Row()).runs.append(Run(run, entry, summary))
        else:
            status = run.status().get("status", "MISSING")
            lost.append((named(entry), "NO RECORD" if status == DONE else status, entry.get("reason", "")))
    if not rows:
        raise UserError(f"{folder}: none of its {len(names)} runs is finished")
    for row in rows.values():
        row.runs.sort(key=lambda run: run.seed)
    sweep = Sweep(folder.resolve().name, sorted(rows.values(), key=in_paper_order), lost)
    sweep.lost += [(what, "NOT RUN", "") for what in not_run(folder, sweep, names)]
    return sweep


def place(sweep: Path, run: Path) -> Path:
    """Where a run is: beside the sweeps, wherever the outputs were moved to, or where it was written."""
    beside = sweep.resolve().parent.parent.joinpath(*run.parts[-3:])
    return beside if beside.exists() else run


def named(entry: dict[str, Any]) -> str:
    parts = Path(entry["run"]).parts[-2:]
    return f"{entry['experiment']} ({'/'.join(parts)})" if entry.get("experiment") else "/".join(parts)


def in_paper_order(row: Row) -> tuple[Any, ...]:
    """Tables and figures by number, rows and lines by number, then by what is varied."""
    numbered = [int(word) if word.isdigit() else word for word in re.split(r"(\d+)", row.paper.get("place") or "~")]
    return numbered, row.knob("keep_prob") or 0, row.knob("block_size") or 0, row.plan["regularizer"]


def not_run(folder: Path, sweep: Sweep, noted: list[str]) -> list[str]:
    """What belongs to the sweep and has left nothing: rows of its file, and seeds that other rows have."""
    missing = []
    lost = " ".join(what for what, _, _ in sweep.lost)
    for experiment, knob, value in asked_for(folder):
        mine = [row for row in sweep.rows if row.experiment == experiment]
        swept = [row for row in mine if knob is None or row.knob(knob) in (None, value)]
        if not swept and f"{experiment} (" not in lost:
            missing.append(experiment if knob is None else f"{experiment} {knob}={value:g}")
    seeds = sorted({run.seed for run in sweep.runs})
    for row in sweep.rows:
        for seed in seeds:
            left_a_note = any(row.runs[0].folder.path.parent.name + f"_seed-{seed}." in name for name in noted)
            if seed not in row.seeds and not left_a_note:
                missing.append(
                    f"{row.experiment or row.runs[0].folder.path.parent.name} seed {seed} ({sweep.label(row)})"
                )
    return missing


def asked_for(folder: Path) -> list[tuple[str, str | None, float]]:
    """(experiment, varied knob, value) of every row that the sweep's own file asks for; [] for a plain grid."""
    try:
        params = load_yaml(folder / "multirun.yaml")["hydra"]["sweeper"]["params"] or {}
    except (UserError, KeyError, TypeError):
        return []
    experiments = [name.strip() for name in str(params.get("experiment", "")).split(",") if name.strip()]
    knob = next((name for name in ("keep_prob", "block_size") if name in params), None)
    values = [float(value) for value in str(params[knob]).split(",")] if knob else [0.0]
    return [(experiment, knob, value) for experiment in experiments for value in values]
