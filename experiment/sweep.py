"""The directory of a sweep: one small file per run, so that processes may share the work, and the closing summary."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.checking import UserError
from configs.command_line import Arguments
from configs.plan import Plan, plan_from
from engine.console import counted, metric_text, table
from engine.files import write_aside, write_json
from engine.run_directory import DONE, RunDirectory
from experiment.outcome import Job, Outcome, missing_evaluations


def note_command(sweep: Path, arguments: Arguments, jobs: Sequence[Job]) -> None:
    """Write down what a command asks for, before its first run; a report names what of it is missing.

    multirun.yaml has the command line, in the form in which Hydra leaves one; jobs.json lists the jobs of all commands
    on this sweep, by their run directories.
    """
    if os.environ.get("RANK", "0") != "0":
        return
    sweep.mkdir(parents=True, exist_ok=True)
    task = [override for override in arguments.overrides if not override.startswith("hydra")]
    asked = {"hydra": {"sweeper": {"params": dict(arguments.varied)}, "overrides": {"task": task}}}
    write_aside(sweep / "multirun.yaml", [OmegaConf.to_yaml(OmegaConf.create(asked)).encode()])
    listed = sweep / "jobs.json"
    known = json.loads(listed.read_text()) if listed.exists() else []
    entries = {entry["run"]: entry for entry in known}
    for job in jobs:
        assert job.plan is not None
        named = {"experiment": job.plan.experiment, "seed": job.plan.seed, "overrides": job.overrides}
        named |= {"pilot": True} if job.plan.pilot else {}
        entries[str(job.run)] = {"run": str(job.run), **named}
    write_json(listed, [*entries.values()])


def skip_done(jobs: Sequence[Job], sweep: Path) -> list[Job]:
    """Give the jobs whose run is done their outcome, from the small files of the run alone; returns the others.

    A run whose data lie in another place than its record says is left to `experiment.run`, which compares them.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # every rank has to come to the same list
        return list(jobs)
    left = []
    for job in jobs:
        assert job.plan is not None
        run = RunDirectory(job.run)
        summary = run.summary() if not job.plan.runtime.fresh and run.status().get("status") == DONE else {}
        theirs = summary.get("plan") or {}
        elsewhere = summary.get("fingerprint") and theirs["data"].get("root") != job.plan.data.root
        if not theirs or elsewhere or differs(theirs, job.plan) or missing_evaluations(job.plan):
            left.append(job)
            continue
        job.outcome = Outcome(done=True)
        note_run(sweep, job, job.outcome, summary)
    skipped = len(jobs) - len(left)
    if skipped:
        what = "pilot" if all(job.plan is not None and job.plan.pilot for job in jobs) else "run"
        print(f"{skipped} of {counted(len(jobs), what)} already done; fresh=true would start over", flush=True)
    return left


def differs(recorded: dict[str, Any], plan: Plan) -> bool:
    """True if the plan in a record is another one than this, or cannot be read."""
    try:
        return plan_from(recorded).identity() != plan.identity()
    except UserError:
        return True


def last_test(summary: dict[str, Any]) -> dict[str, Any]:
    """The headline of a finished run on test, after its last epoch, and its unit, for the note of the run."""
    headline = summary["headline"]
    # Records from before metrics had units hold percentages.
    unit = summary.get("metric_units", {}).get(headline, "%")
    return {"last test": summary["last"].get(f"test/{headline}"), "unit": unit}


def note_run(sweep: Path, job: Job, outcome: Outcome, summary: dict[str, Any] | None = None) -> None:
    """Write down the outcome of a job. Jobs that meet in one run directory meet in one file.

    Args:
        sweep: directory of the sweep.
        job: one that has a plan; its overrides are empty for a plan that Python has changed.
        outcome: whether it ended well, and else the reason.
        summary: the record of a finished run.
    """
    plan, run = job.plan, job.run
    assert plan is not None
    runs = sweep / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    entry: dict[str, Any] = {
        "run": str(run),
        "status": outcome.status,
        "overrides": job.overrides,
        "reason": outcome.reason,
    }
    entry |= {"time": time.time(), "experiment": plan.experiment, "paper": asdict(plan.paper)}
    entry |= {"pilot": True} if plan.pilot else {}  # a run may be a pilot here and a row of another table
    write_json(runs / f"{'_'.join(run.parts[-3:])}.json", entry | (last_test(summary) if summary else {}))


def read_notes(sweep: Path, since: float = 0.0) -> list[dict[str, Any]]:
    """The entries of a sweep, by name; with `since`, those written after that time."""
    entries = [json.loads(path.read_text()) for path in sorted((sweep / "runs").glob("*.json"))]
    return [entry for entry in entries if entry["time"] >= since]


def entries_of(jobs: Sequence[Job], sweep: Path, since: float) -> list[dict[str, Any]]:
    """One entry for every run that a command asked for, in its order.

    A run that it did not come to before a signal has the status that it had before, or NOT RUN.
    """
    noted = {entry["run"]: entry for entry in read_notes(sweep, since)}
    entries: dict[str, dict[str, Any]] = {}
    for job in jobs:
        if job.plan is None or (run := str(job.run)) in entries:
            continue
        status = RunDirectory(job.run).status().get("status", "NOT RUN")
        reason = "" if status == DONE else "this command did not come to it"
        pilot = {"pilot": True} if job.plan.pilot else {}
        entries[run] = noted.get(run) or {"run": run, "status": status, "reason": reason, **pilot}
    return [*entries.values()]


def summary_text(entries: list[dict[str, Any]], sweep: Path | None, refused: Sequence[str] = ()) -> str:
    """The closing table of a sweep, each reason once below it.

    Args:
        entries: one for each run, see `entries_of`.
        sweep: its directory; None if there is nothing in it.
        refused: reasons of jobs that came to no run.
    """
    rows: list[tuple[str, str, str, str]] = []
    for entry in entries:
        value = entry.get("last test")
        shown = "pilot" if entry.get("pilot") else "-" if value is None else metric_text(value, entry.get("unit", "%"))
        rows.append((entry["status"], shown, entry["run"], entry["reason"]))
    rows += [("FAILED", "-", "-", reason) for reason in refused]
    reasons = [" ".join(reason.split()) for *_, reason in rows]
    numbers = {reason: f"({i})" for i, reason in enumerate(dict.fromkeys(filter(None, reasons)), start=1)}
    cells = [(*row[:3], numbers.get(of, "")) for row, of in zip(rows, reasons, strict=True)]
    heads = ("status", "last test", "run", "reason")[: 4 if numbers else 3]
    lines = [table(heads, [row[: len(heads)] for row in cells])] if rows else []
    lines += [f"{number} {reason}" for reason, number in numbers.items()]
    place = "nothing was written" if sweep is None else f"listed in {sweep}"
    kinds = ["pilot" if entry.get("pilot") else "run" for entry in entries]
    done = Counter(kind for kind, entry in zip(kinds, entries, strict=True) if entry["status"] == DONE)
    counts = " and ".join(counted(done[kind], kind) for kind in dict.fromkeys(kinds or ["run"]))
    lines.append(f"{counts} done, {len(rows) - done.total()} not; {place}")
    if done["run"] and sweep:
        lines.append(f"report: python scripts/report.py {sweep}")
    return "\n".join(lines)
