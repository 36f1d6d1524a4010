"""A sweep as the report sees it: rows, each with its runs, what they are called and what they are compared with."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from configs.paper import StudyConfig, paper_from
from configs.plan import Plan, plan_from
from engine.records import RunFolder
from scripts.reporting.names import ALWAYS_SHOWN, KNOBS, colour_of, knob_text, label_of, metric_label
from scripts.reporting.statistics import Spread, epoch_means

MADE_UP = ("fake",)  # data sets whose accuracies say nothing


@dataclass(frozen=True)
class Run:
    """One finished training. `entry` is what the sweep noted of it: one run may stand in several tables."""

    folder: RunFolder
    entry: dict[str, Any]
    summary: dict[str, Any]

    @cached_property
    def _checked(self) -> Plan:
        return plan_from(self.summary["plan"])

    @cached_property
    def plan(self) -> dict[str, Any]:
        """What was run; a key that is newer than the run has its default, which means: as before."""
        return asdict(self._checked)

    @property
    def seed(self) -> int:
        return self.plan["seed"]

    @property
    def data_name(self) -> str:
        """The data set; one's own by the name of its folder."""
        return self.plan["data"]["title"] or self.plan["data"]["name"]

    @property
    def data_identity(self) -> dict[str, Any]:
        """The configuration of the data, as far as it decides what is read."""
        return self._checked.identity()["data"]

    @property
    def configuration(self) -> str:
        """What all seeds of a configuration share, wherever their directories are."""
        return self._checked.hash()

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Of every start that differs from the one before."""
        return self.summary.get("environments") or [self.summary["environment"]]

    def value(self, which: str, split: str, metric: str | None = None) -> float | None:
        """A metric (the headline) of `last`, `best` or `peak` on a split; None where there is none."""
        values = self.summary.get(which) or {}
        return values.get(f"{split}/{metric or self.summary['headline']}")

    def curve(self, name: str, by: str = "epoch") -> dict[float, float]:
        """The logged values of a metric by epoch, or by optimizer `step`."""
        return {point[by]: point[name] for point in self.folder.metrics() if name in point}

    def epoch_means(self, name: str) -> dict[float, float]:
        """A metric of training over each epoch's samples, by epoch."""
        return epoch_means(self.folder.metrics(), name)

    def dropped(self) -> dict[str, float]:
        """The share of the units of each group that was dropped over all steps of the run; {} where nothing drops."""
        found = {group: self.epoch_means(f"drop/measured/{group}") for group in self.summary["drop_last_epoch"]}
        return {group: sum(means.values()) / len(means) for group, means in found.items() if means}

    def gap(self, metric: str) -> float | None:
        """A metric on the training batches of the last epoch, as trained, less that on test; None without one."""
        trained = self.epoch_means(f"train/{metric}")
        test = self.value("last", "test", metric)
        return None if not trained or test is None else trained[max(trained)] - test


@dataclass
class Row:
    """The runs that differ in nothing but the seed.

    Args:
        runs: one a seed, by seed.
        same: block sizes of further configurations that are the same computation, as their blocks are clamped to the
            feature map; their runs are not repeated.
    """

    runs: list[Run] = field(default_factory=list)
    same: list[int] = field(default_factory=list)

    @property
    def plan(self) -> dict[str, Any]:
        return self.runs[0].plan

    @property
    def paper(self) -> dict[str, Any]:
        """What the paper says of this row: the values of a `PaperConfig`."""
        return paper_from(self.runs[0].entry.get("paper") or self.plan["paper"])

    @property
    def experiment(self) -> str | None:
        return self.runs[0].entry.get("experiment")

    @property
    def colour(self) -> str | None:
        return colour_of(self.plan["regularizer"], self.runs[0].summary.get("styles"))

    @property
    def is_baseline(self) -> bool:
        return self.plan["regularizer"] == ["none"] and not self.plan["label_smoothing"]

    @property
    def setting(self) -> dict[str, Any]:
        """What the regularizers are tried in, by dotted name: network, data, recipe."""
        whole = flattened({part: self.plan[part] for part in ("model", "data", "recipe")})
        return {key: value for key, value in whole.items() if key not in ("data.root", "data.download")}

    @property
    def tried(self) -> dict[str, Any]:
        """The regularizers' own values, by name; those of further layers with the names of these before them."""
        values = dict.fromkeys(KNOBS) | {key: self.plan[key] for key in ("cutout", "autoaugment", "label_smoothing")}
        values |= layer_values(self.plan["layer"])
        for layer in self.plan.get("companions", []):
            values |= {f"{layer['name']} {key}": value for key, value in layer_values(layer).items()}
        return values

    @property
    def seeds(self) -> list[int]:
        return [run.seed for run in self.runs]

    @property
    def headline(self) -> str:
        """The metric that a row is judged by: its task's."""
        return self.runs[0].summary["headline"]

    @property
    def paper_source(self) -> str:
        """The table or figure of the paper that a row stands beside: its place without the row or line."""
        return str(self.paper.get("place") or "").rpartition(",")[0] or str(self.paper.get("place") or "")

    @property
    def paper_curve(self) -> dict[float, float]:
        """The paper's values of the headline by keep_prob, of a figure; {} where none are known."""
        curve = (self.paper.get("curve") or {}).get(self.headline) or {}
        return {float(keep_prob): value for keep_prob, value in sorted(curve.items(), key=lambda item: float(item[0]))}

    def paper_number(self) -> tuple[float | None, float | None]:
        """The paper's (mean, standard deviation) of the headline; of a figure, the value at this row's keep_prob."""
        numbers: list[float] = (self.paper.get("metrics") or {}).get(self.headline) or []
        if not numbers:
            return self.paper_curve.get(self.knob("keep_prob")), None
        return numbers[0], numbers[1] if len(numbers) > 1 else None

    def knob(self, name: str) -> Any:
        """A knob of the layer; None where there is no layer, or it has no such knob."""
        return layer_values(self.plan["layer"]).get(name)

    def by_seed(self, which: str = "last", split: str = "test", metric: str | None = None) -> dict[int, float]:
        """A metric (the headline) of every run that has it, by seed."""
        values = {run.seed: run.value(which, split, metric) for run in self.runs}
        return {seed: value for seed, value in values.items() if value is not None}

    def spread(self, which: str, split: str = "test", metric: str | None = None) -> Spread | None:
        values = tuple(self.by_seed(which, split, metric).values())
        return Spread(values) if values else None


@dataclass
class Sweep:
    """Everything the report needs.

    Args:
        name: of the folder.
        rows: in the paper's order.
        lost: (what, status, reason) of jobs that have no result.
        study: what the sweep's file declares.
        pilots: rows of the runs that chose keep_prob on val, which enter no row.
        compared_to: the row that all others are compared with; None: that without a regularizer in their setting.
    """

    name: str
    rows: list[Row]
    lost: list[tuple[str, str, str]]
    study: StudyConfig = field(default_factory=StudyConfig)
    pilots: list[Row] = field(default_factory=list)
    compared_to: Row | None = None

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @property
    def metric(self) -> str:
        """The name of the headline with its unit, for axes and columns."""
        return metric_label(self.rows[0].headline, self.runs[0].summary)

    @property
    def trained_metric(self) -> str:
        """What training is judged by: the headline, or the loss where training has no headline, as with mIoU and AP."""
        headline = self.rows[0].headline
        return headline if any(run.curve(f"train/{headline}") for run in self.runs) else "loss"

    @property
    def made_up(self) -> bool:
        """Whether the images are made up, so that nothing may stand beside the paper's numbers."""
        return any(run.plan["data"]["name"] in MADE_UP for run in self.runs)

    @property
    def baseline(self) -> Row | None:
        """The row without a regularizer; None where there are several, in different settings."""
        found = [row for row in self.rows if row.is_baseline]
        return found[0] if found and not any(row.setting != found[0].setting for row in self.rows) else None

    def baseline_of(self, row: Row) -> Row | None:
        """What a row is compared with: the one without a regularizer in its setting, or the one that was chosen."""
        if self.compared_to is not None:
            return self.compared_to
        return next((other for other in self.rows if other.is_baseline and other.setting == row.setting), None)

    @property
    def varied(self) -> list[str]:
        """What of the setting is not the same in all rows, by dotted name."""
        settings = [row.setting for row in self.rows]
        return [key for key in settings[0] if len({str(setting.get(key)) for setting in settings}) > 1]

    def label(self, row: Row, without: str = "") -> str:
        """A row as a phrase: keep_prob and block size, and what else sets it apart from rows with its regularizer."""
        alike = [other.tried for other in self.rows if other.plan["regularizer"] == row.plan["regularizer"]]
        parts = [label_of(row.plan["regularizer"], row.runs[0].summary.get("styles"))]
        for key, value in row.tried.items():
            shown = key in ALWAYS_SHOWN or any(other.get(key) != value for other in alike)
            if shown and value is not None and key != without:
                also = f" (= {', '.join(map(str, row.same))})" if key == "block_size" and row.same else ""
                parts.append(knob_text(key, value) + also)
        for key in self.varied:
            varied = row.setting.get(key)
            text = f"{varied:g}" if isinstance(varied, float) else varied
            parts.append(f"{key.removesuffix('.name').rpartition('.')[2]} {text}")
        return ", ".join(parts)

    def lines(self, knob: str) -> list[list[Row]]:
        """The lines of a figure: rows that differ in nothing but a knob (and seeds), by its value."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            if row.knob(knob) is not None:
                fixed = {key: value for key, value in row.tried.items() if key != knob}
                key = repr((row.experiment, row.plan["regularizer"], fixed, sorted(row.setting.items(), key=str)))
                found.setdefault(key, []).append(row)
        lines = [sorted(rows, key=lambda row: row.knob(knob)) for rows in found.values()]
        return [rows for rows in lines if len(rows) > 1]


def layer_values(layer: dict[str, Any] | None) -> dict[str, Any]:
    """The values of a layer of a plan by name, those of its options among them; {} without a layer."""
    values = {key: value for key, value in (layer or {}).items() if key not in ("name", "options")}
    return {**values, **((layer or {}).get("options") or {})}


def flattened(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
