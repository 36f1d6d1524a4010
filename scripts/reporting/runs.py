"""The table of a report: every run as one flat record, and the rows that its records make.

A record is a dict: what was run (`experiment`, `regularizer`, `setting`, `tried`, ...), every metric under its column
(`last/test/top1`, `peak/test/top1`, `best/val/loss`, ...), the log, and what else a run leaves for its report. A row is
a dict too: what its runs have in common, the runs by seed, its label. `compare.py` adds what follows from other rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from configs import tables
from configs.checking import UserError, check, load_yaml
from configs.command_line import values_given
from configs.paper import StudyConfig, paper_from
from configs.plan import changed_since, plan_from
from engine.run_directory import DONE, RunDirectory, same_data
from scripts.reporting.beside import columns_of
from scripts.reporting.names import ALWAYS_SHOWN, KNOBS, colour_of, knob_text, label_of, metric_label
from scripts.reporting.statistics import Spread

MADE_UP = ("fake",)  # data sets whose accuracies say nothing
MEASURED = ("last", "best", "peak")  # which epoch's metrics
NOT_RUN = "NOT RUN"

Record = dict[str, Any]
Row = dict[str, Any]


@dataclass
class Sweep:
    """The rows of a report, and what its folder says beside them.

    Args:
        name: name of the folder.
        rows: rows in the paper's order.
        lost: (job, status, reason) of jobs without a result.
        study: what the sweep's file declares.
        pilots: rows of the runs that chose keep_prob on val; they enter no comparison.
        tuning: what `tune=` tried and chose, as its tuning.json says; None: nothing.
        compared_to: the row that all others are compared with; None: the baseline of each row's own setting.
    """

    name: str
    rows: list[Row]
    lost: list[tuple[str, str, str]] = field(default_factory=list)
    study: StudyConfig = field(default_factory=StudyConfig)
    pilots: list[Row] = field(default_factory=list)
    tuning: dict[str, Any] | None = None
    compared_to: Row | None = None

    def __post_init__(self) -> None:
        runs = [run for row in self.rows for run in row["runs"]]
        self.runs: list[Record] = runs
        self.headline: str = self.rows[0]["headline"]
        self.metric = metric_label(self.headline, runs[0])
        self.higher_is_better: bool = self.rows[0]["higher_is_better"]
        self.unit: str = runs[0]["metric_units"].get(self.headline, "%")
        self.digits = 2 if self.unit == "%" else 4  # of the headline in tables
        # The default margin is half a point of a percentage: no value of another metric is equivalent by it.
        if self.unit != "%" and self.study.margin == StudyConfig.margin:
            self.study = replace(self.study, margin=0.0)
        # What else was measured, by runs that recorded units; the loss has columns of its own.
        units = {name: unit for run in runs for name, unit in run["metric_units"].items()}
        self.others = [
            name
            for name in units
            if name not in (self.headline, "loss") and any(run.get(f"last/test/{name}") is not None for run in runs)
        ]
        # What training is judged by: the headline, or the loss where training logs no headline, as with mIoU and AP.
        logged = any(f"train/{self.headline}" in entry for run in runs for entry in run["log"])
        self.trained_metric = self.headline if logged else "loss"
        self.made_up = any(run["data"] in MADE_UP for run in runs)
        # A learning rate chosen on val is the row's own, as its knobs are, and no setting to be compared within.
        every = [*self.rows, *self.pilots]
        for row in every:
            row["tuned"] = self.tuned(row)
        if any("lr" in ((row["tuned"] or {}).get("chosen") or {}) for row in every):
            for row in every:
                row["tried"] = {**row["tried"], "lr": row["runs"][0]["setting"]["recipe.lr"]}
                row["setting"] = {key: value for key, value in row["setting"].items() if key != "recipe.lr"}
        # Keys of the setting in which rows differ.
        settings = [row["setting"] for row in self.rows]
        self.varied = [key for key in settings[0] if len({str(setting.get(key)) for setting in settings}) > 1]
        # Rows without a regularizer, those of an earlier choice last; the baseline where there is one setting.
        plain = [row for row in self.rows if row["is_baseline"]]
        self.plain = sorted(plain, key=lambda row: row["tuned"] is None)
        alone = plain and all(row["setting"] == plain[0]["setting"] for row in plain)
        self.baseline: Row | None = self.plain[0] if alone else None
        for row in every:
            row["label"] = label(self, row)

    def tuned(self, row: Row) -> dict[str, Any] | None:
        """The entry of a row in tuning.json, by the plan that was trained; None for a row of an earlier choice."""
        entries = (self.tuning or {}).get("rows", [])
        configurations = {run["configuration"] for run in row["runs"]}
        return next((entry for entry in entries if entry["configuration"] in configurations), None)


def record_of(run: RunDirectory, note: Mapping[str, Any]) -> Record:
    """A finished run as one flat record.

    Args:
        run: its folder.
        note: what the sweep's folder says of it; one run may stand in several tables, for different experiments.
    """
    summary, log = run.summary(), run.metrics()
    checked = plan_from(summary["plan"])  # keys that are newer than the run get their defaults
    plan = checked.values()
    setting = flattened({part: plan[part] for part in ("model", "data", "recipe")})
    methods = methods_of(plan)
    layer = layer_values(plan["layer"])

    # The regularizers' own values by name; those of further layers, and options that several have, behind their names.
    tried: dict[str, Any] = dict.fromkeys(KNOBS)
    count = Counter([*layer, *(key for method in methods for key in method["options"])])
    for method in methods:
        own = method["options"].items()
        method["tried"] = {f"{method['name']} {key}" if count[key] > 1 else key: value for key, value in own}
        tried |= method["tried"]
    tried |= layer
    for companion in plan["companions"]:
        tried |= {f"{companion['name']} {key}": value for key, value in layer_values(companion).items()}

    measured = {f"{which}/{name}": value for which in MEASURED for name, value in (summary.get(which) or {}).items()}
    # A metric of training is averaged over the samples of each epoch; the share of dropped units over all steps.
    trained = {name: epoch_means(log, name) for name in sorted({key for entry in log for key in entry})}
    shares = {group: trained.get(f"drop/measured/{group}") for group in summary["drop_last_epoch"]}
    dropped = {group: sum(means.values()) / len(means) for group, means in shares.items() if means}

    # Everything that decides what is computed, but for the block size: feature maps may clamp two alike.
    identity = checked.identity()
    but_for_block = {**identity, "seed": None, "layer": {**(identity["layer"] or {}), "block_size": None}}

    evaluations = run.read("evaluations.json") or {}
    beside = columns_of(evaluations, summary["headline"])

    return {
        "path": run.path,
        "experiment": note.get("experiment"),
        "paper": paper_from(note.get("paper") or plan["paper"]),
        "seed": plan["seed"],
        "pilot": bool(note.get("pilot")),
        "regularizer": plan["regularizer"],
        "is_baseline": plan["regularizer"] == ["none"] and not methods,
        **{knob: layer.get(knob) for knob in KNOBS},
        "data": plan["data"]["name"],
        "data_title": plan["data"]["title"] or plan["data"]["name"],  # one's own data by the name of their folder
        "task": plan["data"].get("task") or "classification",
        "train_subset": plan["data"]["train_subset"],
        "model": plan["model"]["name"],
        "width": plan["model"]["width"],
        "epochs": plan["recipe"]["epochs"],
        "setting": {key: value for key, value in setting.items() if key not in ("data.root", "data.download")},
        "tried": tried,
        "methods": methods,
        "plan": plan,
        "changed_since": changed_since(checked),
        "configuration": checked.hash(),  # all seeds of a configuration share it, wherever their directories are
        "but_for_block": repr(but_for_block),
        "data_identity": repr(identity["data"]),
        **measured,
        "headline": summary["headline"],
        "log": log,
        "trained": trained,
        "dropped": dropped,
        "drop_last_epoch": summary["drop_last_epoch"],
        "parameters": summary.get("parameters"),
        "train_seconds": summary["train_seconds"],
        "environments": summary.get("environments") or [summary["environment"]],  # of starts on different machines
        "images": summary.get("images") or {},
        "bad_images": summary.get("bad_images") or {},
        "fingerprint": summary.get("fingerprint"),
        "metric_labels": summary.get("metric_labels"),
        # Without them, as in older records: a headline is a percentage, and higher is better.
        "metric_units": summary.get("metric_units") or {},
        "lower_is_better": summary.get("lower_is_better") or [],
        "higher_is_better": summary["headline"] not in summary.get("lower_is_better", ()),
        "styles": summary.get("styles"),
        "tables": summary.get("tables") or [],
        "sites": run.read("sites.json") or [],
        "evaluations": evaluations,
        "beside": list(beside),
        **beside,
        "data_card": run.read("data_card.json"),  # None of older runs
        "under_drop": (run.read("under_drop.json") or {}).get("under_drop", []),
    }


def methods_of(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The chosen regularizers that are no layers: name, kind (image, batch, loss) and options of each."""
    found = [dict(method) for method in plan.get("methods", [])]
    # Three of them were fields of the plan.
    for key, kind in (("cutout", "image"), ("autoaugment", "image"), ("label_smoothing", "loss")):
        if plan.get(key):
            found.append({"name": key, "kind": kind, "options": {key: plan[key]}})
    return found


def layer_values(layer: Mapping[str, Any] | None) -> dict[str, Any]:
    """The values of a layer of a plan by name, those of its options among them; {} without a layer."""
    values = {key: value for key, value in (layer or {}).items() if key not in ("name", "options")}
    return {**values, **((layer or {}).get("options") or {})}


def flattened(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def epoch_means(log: Iterable[Mapping[str, Any]], name: str) -> dict[float, float]:
    """A metric of training over the samples of each epoch, by epoch.

    A log entry is the mean over the steps since the one before, and all steps see as many samples. The last entry of
    an epoch covers what `log_every` leaves over, so an entry counts by its steps.

    Args:
        log: the entries of a run in their order.
        name: name of the metric.
    """
    sums: dict[float, tuple[float, int]] = {}
    before = 0
    for entry in log:
        if name in entry:
            epoch, steps = float(math.ceil(entry["epoch"])), entry["step"] - before
            total, count = sums.get(epoch, (0.0, 0))
            sums[epoch], before = (total + steps * entry[name], count + steps), entry["step"]
    return {epoch: total / count for epoch, (total, count) in sums.items()}


def curve(run: Record, name: str, by: str = "epoch") -> dict[float, float]:
    """The logged values of a metric by epoch, or by optimizer `step`."""
    return {entry[by]: entry[name] for entry in run["log"] if name in entry}


# Rows.


def by_seed(row: Row, column: str) -> dict[int, float]:
    """A column of every run of a row that has it, by seed."""
    return {run["seed"]: run[column] for run in row["runs"] if run.get(column) is not None}


def spread(row: Row, column: str) -> Spread | None:
    values = tuple(by_seed(row, column).values())
    return Spread(values) if values else None


# What the runs of a row have in common.
SHARED = (
    "experiment",
    "paper",
    "regularizer",
    "is_baseline",
    *KNOBS,
    "data",
    "train_subset",
    "model",
    "width",
    "epochs",
    "setting",
    "tried",
    "methods",
    "headline",
    "higher_is_better",
    "parameters",
    "sites",
)


def row_of(runs: Sequence[Record]) -> Row:
    """The runs of one configuration as a row: what they share, and themselves by seed."""
    runs = sorted(runs, key=lambda run: run["seed"])
    shared = {name: runs[0][name] for name in SHARED}
    colour = colour_of(shared["regularizer"], runs[0]["styles"])
    # `same`: block sizes of further configurations that are the same computation.
    return {**shared, "runs": runs, "seeds": [run["seed"] for run in runs], "same": [], "method_colour": colour}


def rows_of(runs: Sequence[Record]) -> list[Row]:
    """Rows in the paper's order, each with its runs by seed; equal computations are one row.

    Raises:
        UserError: if the runs are of tasks with different headlines.
    """
    headlines = sorted({run["headline"] for run in runs})
    if len(headlines) > 1:
        raise UserError(
            f"these runs are judged by different metrics, {' and '.join(headlines)}: they have no common table"
        )
    configurations: dict[tuple[str | None, str], list[Record]] = {}
    for run in runs:
        configurations.setdefault((run["experiment"], run["configuration"]), []).append(run)
    merged: dict[str, Row] = {}
    for row in sorted(map(row_of, configurations.values()), key=in_paper_order):
        first = merged.setdefault(computation(row), row)
        if first is not row:
            first["same"].append(row["block_size"])
            first["runs"] += [run for run in row["runs"] if run["seed"] not in first["seeds"]]
            first["runs"].sort(key=lambda run: run["seed"])
            first["seeds"] = [run["seed"] for run in first["runs"]]
    return list(merged.values())


def in_paper_order(row: Row) -> tuple[Any, ...]:
    """A key to sort by: tables and figures by number, rows by number; the baseline first, then what is varied."""
    numbered = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row["paper"].get("place") or "~")]
    return numbered, not row["is_baseline"], row["keep_prob"] or 0, row["block_size"] or 0, row["regularizer"]


def computation(row: Row) -> str:
    """A key of what the runs of a row compute: equal where two block sizes are clamped alike by every feature map."""
    run = row["runs"][0]
    if not row["sites"] or row["block_size"] is None:
        return repr((row["experiment"], run["configuration"]))
    sites = [{key: value for key, value in site.items() if key not in ("clamped", "note")} for site in row["sites"]]
    return repr((row["experiment"], run["but_for_block"], sorted(row["setting"].items(), key=str), sites))


def label(sweep: Sweep, row: Row, without: str = "") -> str:
    """A row as a phrase: keep_prob and block size, and what else sets it apart from rows with its regularizer."""
    alike = [other["tried"] for other in sweep.rows if other["regularizer"] == row["regularizer"]]
    parts = [label_of(row["regularizer"], row["runs"][0]["styles"])]
    entry = row["tuned"] or {}
    # Of `regularizer.cutmix.probability` the last part, behind the regularizer's where several have such an option.
    paths = [key.split(".") for key in {**(entry.get("chosen") or {}), **entry.get("given", {})}]
    chosen = {name for *of, key in paths for name in (key, " ".join([*of[1:2], key]))}
    for key, value in row["tried"].items():
        shown = key in ALWAYS_SHOWN or key in chosen or any(other.get(key) != value for other in alike)
        if shown and value is not None and key != without:
            also = f" (= {', '.join(map(str, row['same']))})" if key == "block_size" and row["same"] else ""
            parts.append(knob_text(key, value) + also)
    for key in sweep.varied:
        varied = row["setting"].get(key)
        text = f"{varied:g}" if isinstance(varied, float) else varied
        parts.append(f"{key.removesuffix('.name').rpartition('.')[2]} {text}")
    return ", ".join(parts)


# From folders to rows.


def read_sweep(folder: Path) -> Sweep:
    """Read the record of every run that a sweep lists.

    Raises:
        UserError: if the folder is no sweep, none of its runs is finished, or their data have changed between them.
    """
    notes = RunDirectory(folder / "runs")
    names = sorted(path.name for path in notes.path.glob("*.json"))
    if not names:
        if (folder / "multirun.yaml").exists():
            raise UserError(f"{folder}: none of its runs has ended yet; the command that began them goes on with them")
        raise UserError(
            f"{folder}: no sweep, there is no runs/*.json in it; give a folder that train.py listed runs in, "
            "or compare runs by python -m scripts.compare"
        )

    found: list[Record] = []
    lost = []
    for name in names:
        note = notes.read(name)
        if note is None:
            lost.append((name, "UNREADABLE", f"{notes.path / name} is damaged"))
            continue
        run = RunDirectory(place_of(folder, Path(note["run"])))
        status = run.status().get("status", "MISSING")
        if status == DONE and run.summary():
            found.append(record_of(run, note))
        else:
            lost.append((job_name(note), "NO RECORD" if status == DONE else status, note.get("reason", "")))
    if not found:
        raise UserError(f"{folder}: none of its {len(names)} runs is finished")

    # Pilots chose keep_prob on val: those of the sweep itself and of the sweep that its file names. They enter no row,
    # and those of another setting chose nothing here.
    study = study_of(sweep_of(folder))
    compared = [run for run in found if not run["pilot"]]
    if not compared:
        raise UserError(
            f"{folder}: only pilots of it are finished yet; the command that began them goes on to its rows"
        )
    rows = rows_of([run for run in compared if run["seed"] != study.pilot_seed] or compared)
    settings = [row["setting"] for row in rows]
    pilots = [
        run
        for run in [*found, *pilots_beside(folder, study)]
        if run["seed"] == study.pilot_seed and run["setting"] in settings
    ]
    refuse_changed_data([*(run for row in rows for run in row["runs"]), *pilots, *found])
    tuning = RunDirectory(folder).read("tuning.json")
    sweep = Sweep(folder.resolve().name, rows, lost, study, rows_of(pilots), tuning)
    sweep.lost += not_noted(folder, names, rows)
    return sweep


def read_runs(folders: Sequence[Path]) -> Sweep:
    """Runs that no sweep lists, as one: rows by configuration, the first run's at the top and the baseline.

    Raises:
        UserError: if one of them is not finished, two are one configuration with one seed, or their data differ.
    """
    runs: list[Record] = []
    seen: dict[tuple[str, int], Path] = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        run = RunDirectory(folder)
        if not run.summary():
            raise UserError(f"{folder}: no finished run, there is no summary.json in it")
        runs.append(record_of(run, {"experiment": run.summary()["plan"].get("experiment")}))
        other = seen.setdefault((runs[-1]["configuration"], runs[-1]["seed"]), folder)
        if other != folder:
            raise UserError(f"{folder}: the same configuration and seed as {other}; there is nothing to compare")
    names = sorted({run["data_title"] for run in runs})
    prints = {run["fingerprint"] for run in runs}  # equal ones: a folder that was renamed
    if len(names) > 1 and (None in prints or len(prints) > 1):
        raise UserError(f"these runs are of different data sets, {' and '.join(names)}: their numbers do not compare")
    refuse_changed_data(runs)
    rows = rows_of(runs)
    first = next(row for row in rows if computation(row) == computation(row_of(runs[:1])))
    return Sweep("comparison", [first, *(row for row in rows if row is not first)], compared_to=first)


def place_of(sweep: Path, run: Path) -> Path:
    """The place of a run: beside the sweeps, wherever the outputs were moved to, or where it was written."""
    beside = sweep.resolve().parent.parent.joinpath(*run.parts[-3:])
    return beside if beside.exists() else run


def refuse_changed_data(runs: Sequence[Record]) -> None:
    """Refuse runs that read the same configuration of data, but other files.

    Raises:
        UserError: if two fingerprints differ; it names a run of each.
    """
    first: dict[str, Record] = {}
    # Fingerprints with more to compare come first; a run from before fingerprints has none.
    for run in sorted(runs, key=lambda run: -len(run["fingerprint"] or "")):
        if run["fingerprint"] is None:
            continue
        other = first.setdefault(run["data_identity"], run)
        if not same_data(run["fingerprint"], other["fingerprint"]):
            raise UserError(
                f"{other['path']} and {run['path']} were trained on different files of {run['data_title']}: train "
                "one of them again by fresh=true, or give one of the two data sets a name of its own by data.title=NAME"
            )


def pilots_beside(folder: Path, study: StudyConfig) -> list[Record]:
    """The finished runs of the sweep that chose keep_prob, from its own folder beside this one."""
    found = {}
    for place in sorted(folder.resolve().parent.glob(f"{study.pilot_sweep}*")) if study.pilot_sweep else []:
        notes = RunDirectory(place / "runs")
        for note in filter(None, (notes.read(path.name) for path in sorted(notes.path.glob("*.json")))):
            run = RunDirectory(place_of(place, Path(note["run"])))
            if run.summary():
                found[run.path] = record_of(run, note)
    return list(found.values())


def sweep_of(folder: Path) -> str | None:
    """The name of the sweep's file, from the command line in multirun.yaml; None for a plain grid."""
    try:
        given = values_given(load_yaml(folder / "multirun.yaml")["hydra"]["overrides"]["task"])
    except (UserError, KeyError, TypeError):
        return None
    return given.get("table", given.get("sweep"))


def study_of(sweep: str | None) -> StudyConfig:
    """The `study` of a sweep's file; the defaults for another folder."""
    return check(tables.study_of(sweep), StudyConfig)


def not_noted(folder: Path, noted: Sequence[str], rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    """The jobs of a sweep that have left no note in its folder: its plans minus the runs found.

    Args:
        folder: the folder of the sweep, where jobs.json lists the jobs of all its commands.
        noted: `place_in_notes` of every job that has left one.
        rows: the rows found. Without jobs.json, as for sweeps of earlier versions, each is expected in every seed.

    Returns:
        the name of each, its status, and what else there is to say.
    """
    listed = RunDirectory(folder).read("jobs.json")
    if listed is not None:
        left = [job for job in listed if place_in_notes(Path(job["run"])) not in noted]
        runs = [RunDirectory(place_of(folder, Path(job["run"]))) for job in left]
        status = [run.status().get("status", NOT_RUN) for run in runs]
        done = ("NOT LISTED", "done; the command that began it lists it when it is run again")
        return [(job_name(job), *(done if of == DONE else (of, ""))) for job, of in zip(left, status, strict=True)]
    seeds = sorted({seed for row in rows for seed in row["seeds"]})
    expected = [(row, seed, row["runs"][0]["path"].with_name(f"seed-{seed}")) for row in rows for seed in seeds]
    return [
        (f"{row['label']} seed {seed}", NOT_RUN, "")
        for row, seed, run in expected
        if seed not in row["seeds"] and place_in_notes(run) not in noted
    ]


def job_name(note: Mapping[str, Any]) -> str:
    """A job as a reader knows it: its experiment, and its run directory below that of data and network."""
    run = "/".join(Path(note["run"]).parts[-2:])
    return f"{note['experiment']} ({run})" if note.get("experiment") else run


def place_in_notes(run: Path) -> str:
    """The name of the file in which a sweep's folder notes a run."""
    return f"{'_'.join(run.parts[-3:])}.json"
