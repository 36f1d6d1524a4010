"""The folder of a sweep: one small file per run, so that processes may share the work, and the closing summary."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from configs.checking import UserError
from configs.plan import Plan
from engine.console import counted, table
from engine.files import write_aside
from engine.records import DONE, FAILED
from experiment.outcome import STOPPED_CODES, report_error


def note_run(sweep: Path, run: Path, status: str, overrides: list[str], reason: str = "", **values: Any) -> None:
    """Write down what became of a job. Jobs that meet in one run folder meet in one file.

    Args:
        sweep: the folder of the sweep.
        run: the run folder.
        status: DONE, STOPPED or FAILED.
        overrides: the job's own, none for a plan that Python has changed.
        reason: one line, for a job that did not end well.
        values: what the summary shows of it.
    """
    runs = sweep / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    entry = {"run": str(run), "status": status, "overrides": overrides, "reason": reason, "time": time.time(), **values}
    name = "_".join(run.parts[-3:]) + ".json"
    write_aside(runs / name, [(json.dumps(entry, indent=2) + "\n").encode()])


def read_runs(sweep: Path, since: float = 0.0) -> list[dict[str, Any]]:
    """The entries of a sweep, by name; with `since`, those written after that time."""
    entries = [json.loads(path.read_text()) for path in sorted((sweep / "runs").glob("*.json"))]
    return [entry for entry in entries if entry["time"] >= since]


def summary_text(entries: list[dict[str, Any]], sweep: Path | None, refused: Sequence[str] = ()) -> str:
    """The closing table of a sweep, each reason once below it.

    Args:
        entries: of its runs.
        sweep: its folder; None if there is nothing in it.
        refused: the reasons of jobs that came to no run.
    """
    rows = [(entry["status"], entry.get("last test"), entry["run"], entry["reason"]) for entry in entries]
    rows += [("FAILED", None, "-", reason) for reason in refused]
    reasons = [" ".join(reason.split()) for *_, reason in rows]
    numbers = {reason: f"({i})" for i, reason in enumerate(dict.fromkeys(filter(None, reasons)), start=1)}
    cells = [(*row[:1], _shown(row[1]), row[2], numbers.get(of, "")) for row, of in zip(rows, reasons, strict=True)]
    done = sum(entry["status"] == DONE for entry in entries)
    lines = [table(("status", "last test", "run", "reason"), cells)] if rows else []
    lines += [f"{number} {reason}" for reason, number in numbers.items()]
    place = "nothing was written" if sweep is None else f"listed in {sweep}"
    return "\n".join([*lines, f"{counted(done, 'run')} done, {len(rows) - done} not; {place}"])


def train_all(plans: Sequence[Plan], name: str) -> Path:
    """`experiment.run_sweep`."""
    if not plans:
        raise UserError(f"sweep {name}: no plan to train")
    sweep, began = Path(plans[0].runtime.output_root, "sweeps", name), time.time()
    waiting = [plan for plan in plans if not _trained(plan, sweep, began, wait=False)]
    for plan in waiting:
        _trained(plan, sweep, began, wait=True)
    entries = read_runs(sweep, since=began)
    print(f"\n{summary_text(entries, sweep)}")
    failed = [entry for entry in entries if entry["status"] != DONE]
    if failed:
        raise RuntimeError(
            f"{len(failed)} of {len(entries)} runs failed, first {failed[0]['run']}: {failed[0]['reason']}"
        )
    return sweep


def _trained(plan: Plan, sweep: Path, began: float, wait: bool) -> bool:
    """Train one run and note what became of it; False if another process has it."""
    from experiment.run import run_plan

    shown: dict[str, Any] = {"experiment": plan.experiment, "paper": asdict(plan.paper)}
    overrides = list(plan.overrides)
    print("\n".join([f"\n=== {plan.run_dir()}", *(f"note: {note}" for note in plan.notes)]), flush=True)
    try:
        summary = run_plan(plan, plan.overrides, began, wait)
    except Exception as error:  # not a signal, which ends the whole sweep
        if getattr(error, "in_use", False):
            return False
        code, reason = report_error(error)
        if code in STOPPED_CODES:
            raise
        note_run(sweep, plan.run_dir(), FAILED, overrides, reason, **shown)
        return True
    shown["last test"] = summary["last"].get(f"test/{summary['headline']}")
    note_run(sweep, plan.run_dir(), DONE, overrides, **shown)
    return True


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}%"
