"""From the folder of a sweep to its rows in the paper's order, and to what is missing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs import tables
from configs.checking import UserError, check, load_yaml
from configs.command_line import values_given
from configs.paper import StudyConfig
from engine.records import DONE, RunFolder, same_data
from scripts.reporting.sweep import Row, Run, Sweep, layer_values


def read_sweep(folder: Path) -> Sweep:
    """Read the record of every run that a sweep lists.

    Raises:
        UserError: if the folder is no sweep, none of its runs is finished, or their data have changed between them.
    """
    notes = RunFolder(folder / "runs")
    names = sorted(path.name for path in notes.path.glob("*.json"))
    if not names:
        if (folder / "multirun.yaml").exists():
            raise UserError(f"{folder}: none of its runs has ended yet; the command that began them goes on with them")
        raise UserError(
            f"{folder}: no sweep, there is no runs/*.json in it; give a folder that train.py listed runs in, "
            "or compare runs by scripts/compare.py"
        )
    asked = asked_for(folder)
    found: list[Run] = []
    lost, jobs = [], []
    for name in names:
        entry = notes.read(name)
        if entry is None:
            lost.append((name, "UNREADABLE", f"{notes.path / name} is damaged"))
            continue
        run = RunFolder(place_of(folder, Path(entry["run"])))
        jobs.append(job_of(run, entry, asked.knob))
        summary = run.summary()
        if run.status().get("status") == DONE and summary:
            found.append(Run(run, entry, summary))
        else:
            status = run.status().get("status", "MISSING")
            lost.append((named(entry), "NO RECORD" if status == DONE else status, entry.get("reason", "")))
    if not found:
        raise UserError(f"{folder}: none of its {len(names)} runs is finished")
    study = study_of(asked.sweep)
    chosen_by = [run for run in [*found, *pilots_beside(folder, study)] if run.seed == study.pilot_seed]
    rows = rows_of([run for run in found if run.seed != study.pilot_seed] or found)
    settings = [row.setting for row in rows]  # the pilots of another data set choose nothing here
    choosing = [run for run in chosen_by if Row([run]).setting in settings]
    refuse_changed_data([*(run for row in rows for run in row.runs), *choosing])
    pilots = rows_of(choosing)
    sweep = Sweep(folder.resolve().name, rows, lost, study, pilots)
    sweep.lost += [(what, "NOT RUN", "") for what in not_run(asked, jobs, sweep)]
    return sweep


def read_runs(folders: Sequence[Path]) -> Sweep:
    """Runs that no sweep lists, as one: rows by configuration, the first run's at the top and the baseline.

    Raises:
        UserError: if one of them is not finished, two are one configuration with one seed, or their data differ.
    """
    runs: list[Run] = []
    seen: dict[tuple[str, int], Path] = {}
    for folder in dict.fromkeys(path.resolve() for path in folders):
        record = RunFolder(folder)
        summary = record.summary()
        if not summary:
            raise UserError(f"{folder}: no finished run, there is no summary.json in it")
        runs.append(Run(record, {"experiment": summary["plan"].get("experiment")}, summary))
        other = seen.setdefault((runs[-1].configuration, runs[-1].seed), folder)
        if other != folder:
            raise UserError(f"{folder}: the same configuration and seed as {other}; there is nothing to compare")
    names = sorted({run.data_name for run in runs})
    prints = {run.summary.get("fingerprint") for run in runs}  # equal ones: a folder that was renamed
    if len(names) > 1 and (None in prints or len(prints) > 1):
        raise UserError(f"these runs are of different data sets, {' and '.join(names)}: their numbers do not compare")
    refuse_changed_data(runs)
    rows = rows_of(runs)
    first = next(row for row in rows if computation(row) == computation(Row(runs[:1])))
    return Sweep("comparison", [first, *(row for row in rows if row is not first)], [], compared_to=first)


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Rows in the paper's order, each with its runs by seed; what is one computation is one row.

    Raises:
        UserError: if the runs are of tasks with different headlines.
    """
    headlines = sorted({run.summary["headline"] for run in runs})
    if len(headlines) > 1:
        raise UserError(
            f"these runs are judged by different metrics, {' and '.join(headlines)}: they have no common table"
        )
    rows: dict[tuple[str | None, str], Row] = {}
    for run in runs:
        key = (run.entry.get("experiment"), run.configuration)
        rows.setdefault(key, Row()).runs.append(run)
    for row in rows.values():
        row.runs.sort(key=lambda run: run.seed)
    merged: dict[str, Row] = {}
    for row in sorted(rows.values(), key=in_paper_order):
        first = merged.setdefault(computation(row), row)
        if first is not row:
            first.same.append(row.knob("block_size"))
            first.runs += [run for run in row.runs if run.seed not in first.seeds]
            first.runs.sort(key=lambda run: run.seed)
    return list(merged.values())


def refuse_changed_data(runs: Sequence[Run]) -> None:
    """Refuse runs that read the same configuration of data, but other files.

    Raises:
        UserError: if two fingerprints differ; it names a run of each.
    """
    first: dict[str, Run] = {}
    # Fingerprints with more to compare come first; a run from before fingerprints has none.
    for run in sorted(runs, key=lambda run: -len(run.summary.get("fingerprint") or "")):
        recorded = run.summary.get("fingerprint")
        if recorded is None:
            continue
        other = first.setdefault(repr(run.data_identity), run)
        if not same_data(recorded, other.summary["fingerprint"]):
            raise UserError(
                f"{other.folder.path} and {run.folder.path} were trained on different files of {run.data_name}: train "
                "one of them again by fresh=true, or give one of the two data sets a name of its own by data.title=NAME"
            )


def computation(row: Row) -> str:
    """What the runs of a row compute: rows with the same differ in a block size that every feature map clamps alike."""
    sites = row.runs[0].folder.read("sites.json")
    if not sites or row.knob("block_size") is None:
        return repr((row.experiment, row.runs[0].configuration))
    sites = [{key: value for key, value in site.items() if key not in ("clamped", "note")} for site in sites]
    tried = {key: value for key, value in row.tried.items() if key != "block_size"}
    return repr((row.experiment, row.plan["regularizer"], tried, sorted(row.setting.items(), key=str), sites))


def pilots_beside(folder: Path, study: StudyConfig) -> list[Run]:
    """The finished runs of the sweep that chose keep_prob, from its own folder beside this one."""
    found = {}
    for place in sorted(folder.resolve().parent.glob(f"{study.pilot_sweep}*")) if study.pilot_sweep else []:
        notes = RunFolder(place / "runs")
        for entry in filter(None, (notes.read(path.name) for path in sorted(notes.path.glob("*.json")))):
            run = RunFolder(place_of(place, Path(entry["run"])))
            if summary := run.summary():
                found[run.path] = Run(run, entry, summary)
    return list(found.values())


def study_of(sweep: str | None) -> StudyConfig:
    """What a sweep's file declares for its report; the defaults for another folder."""
    return check(tables.study_of(sweep), StudyConfig)


def place_of(sweep: Path, run: Path) -> Path:
    """Where a run is: beside the sweeps, wherever the outputs were moved to, or where it was written."""
    beside = sweep.resolve().parent.parent.joinpath(*run.parts[-3:])
    return beside if beside.exists() else run


def named(entry: dict[str, Any]) -> str:
    parts = Path(entry["run"]).parts[-2:]
    return f"{entry['experiment']} ({'/'.join(parts)})" if entry.get("experiment") else "/".join(parts)


def in_paper_order(row: Row) -> tuple[Any, ...]:
    """Tables and figures by number, rows and lines by number; the baseline first, then by what is varied."""
    numbered = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", row.paper.get("place") or "~")]
    return (
        numbered,
        not row.is_baseline,
        row.knob("keep_prob") or 0,
        row.knob("block_size") or 0,
        row.plan["regularizer"],
    )


@dataclass(frozen=True)
class Asked:
    """What a sweep's own file, of this name, and its last command ask for; no experiments for a plain grid."""

    sweep: str | None = None
    experiments: tuple[str, ...] = ()
    knob: str | None = None
    values: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """A job that has left a note; no value where its layer does not have the knob that the sweep varies."""

    experiment: str | None
    value: float | None
    seed: int
    variant: str


def asked_for(folder: Path) -> Asked:
    """Read multirun.yaml, as Hydra leaves it: the sweep's file, and the overrides that replace what it says."""
    try:
        hydra = load_yaml(folder / "multirun.yaml")["hydra"]
        overrides = (hydra.get("overrides") or {}).get("task") or []
        given = values_given(overrides)
        params = dict(hydra["sweeper"].get("params") or {})
    except (UserError, KeyError, TypeError, AttributeError):
        return Asked()
    experiments = tuple(name.strip() for name in str(params.get("experiment", "")).split(",") if name.strip())
    knob = next((name for name in ("keep_prob", "block_size") if name in params), None)
    asked = str(given.get("seed", params.get("seed", "")))
    seeds = tuple(int(seed) for seed in asked.split(",") if seed.strip().isdigit())
    values = numbers_in(str(given.get(knob, params[knob]))) if knob else ()
    return Asked(given.get("table", given.get("sweep")), experiments, knob, values, seeds)


def numbers_in(text: str) -> tuple[float, ...]:
    """The values of a list; () for another form, as Hydra's choice() and range(), which is not taken apart here."""
    try:
        return tuple(float(value) for value in text.split(","))
    except ValueError:
        return ()


def job_of(run: RunFolder, entry: dict[str, Any], knob: str | None) -> Job:
    """A job from what it left: its plan, or the overrides that it was started with."""
    given = values_given(entry.get("overrides", []))
    try:
        plan = load_yaml(run.path / "plan.yaml")
        seed, value = plan["seed"], layer_values(plan.get("layer")).get(knob or "")
    except UserError:
        seed = int(given.get("seed", run.path.name.removeprefix("seed-")))
        value = float(given[knob]) if knob in given else None
    return Job(entry.get("experiment"), value, seed, run.path.parent.name)


def not_run(asked: Asked, jobs: list[Job], sweep: Sweep) -> list[str]:
    """What belongs to the sweep and has left no note: every row that was asked for, in every seed that is known.

    Of a plain grid the rows are those that are there.
    """
    seeds = sorted({*asked.seeds, *(job.seed for job in jobs)} - {sweep.study.pilot_seed})
    if not asked.experiments:
        seen = {(job.variant, job.seed) for job in jobs}
        rows = [(row.runs[0].folder.path.parent.name, sweep.label(row)) for row in sweep.rows]
        return [f"{label} seed {seed}" for variant, label in rows for seed in seeds if (variant, seed) not in seen]
    left = {(job.experiment, job.value, job.seed) for job in jobs}
    knobless = {job.experiment for job in jobs if job.value is None}
    missing = []
    for experiment in asked.experiments:
        for value in (None,) if experiment in knobless or not asked.knob else asked.values:
            for seed in seeds:
                if (experiment, value, seed) not in left:
                    of = "" if value is None else f" {asked.knob}={value:g}"
                    missing.append(f"{experiment}{of} seed {seed}")
    return missing
