"""Send runs to an experiment tracker, afterwards: python -m scripts.to_tracker RUN ... --to trackio|wandb|mlflow

    RUN   a run directory, a directory above some (outputs, the seeds of a configuration), or an archive (.tar.xz)

Every run becomes one run of the tracker: plan.yaml is its configuration, metrics.jsonl its curves over optimizer steps,
and the numbers of summary.json join the last step. A second call adds what a run has logged since, and nothing twice.

Nothing leaves this machine unless --online is given: trackio writes into its own folder (TRACKIO_DIR), wandb into
./wandb (`wandb sync` uploads it later), mlflow into ./mlflow.db (`mlflow ui`). --online uploads to where the tracker's
own environment variables and login point.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from configs.checking import UserError, load_yaml
from engine.console import counted, table
from engine.run_directory import DONE, RunDirectory
from scripts.entry import folder, guarded, parser_of

SMALL = ("plan.yaml", "metrics.jsonl", "summary.json", "status.json")  # all that is read of a run
NUMBERS = ("parameters", "train_seconds", "images_per_s")  # of summary.json
# Variables that would send to another machine.
REMOTE = {"trackio": ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"), "wandb": (), "mlflow": ("MLFLOW_TRACKING_URI",)}


@dataclass
class TrackedRun:
    """A run as trackers take it.

    Args:
        name: data and model, variant and seed, as its directory has them, with its id.
        group: the name without seed and id.
        id: the same wherever the directory lies, another one for a run that was begun anew in its place.
        config: the plan, flat.
        status: the run's.
        steps: (step, number by name), each step once, ascending.
    """

    name: str
    group: str
    id: str
    config: dict[str, Any]
    status: str
    steps: list[tuple[int, dict[str, float]]]

    def after(self, step: int) -> list[tuple[int, dict[str, float]]]:
        return [entry for entry in self.steps if entry[0] > step]


@contextmanager
def runs_in(place: Path) -> Iterator[list[Path]]:
    """The run directories at a place; those of an archive as long as the context lasts.

    Raises:
        UserError: if there is none.
    """
    with tempfile.TemporaryDirectory() as aside:
        root = place
        if place.is_file():
            root = Path(aside)
            try:
                with tarfile.open(place) as archive:
                    wanted = [member for member in archive if Path(member.name).name in SMALL]
                    archive.extractall(root, wanted, filter="data")
            except tarfile.TarError as error:
                raise UserError(f"{place}: neither a directory nor an archive of runs ({error})") from error
        found = sorted(path.parent for path in root.rglob("metrics.jsonl") if (path.parent / "plan.yaml").exists())
        # What fresh=true moved aside is sent only where it is named itself.
        runs = [run for run in found if run == root or "-old-" not in run.name]
        if not runs:
            raise UserError(f"{place}: no run in it (a directory with plan.yaml and metrics.jsonl)")
        yield runs


def tracked(run: RunDirectory) -> TrackedRun:
    """Read a run for a tracker.

    The last step of a run that is not done is left for a later call: its evaluation may follow.
    """
    entries, summary = run.metrics(), run.summary()
    status = run.status().get("status", "")

    # The losses and the evaluation of one step are two entries; trackers take each step once.
    steps: dict[int, dict[str, float]] = {}
    for entry in entries:
        steps.setdefault(entry["step"], {}).update({key: value for key, value in entry.items() if key != "step"})
    last = max(steps, default=0)
    if status != DONE:
        steps.pop(last, None)
    elif summary:
        for which in ("best", "peak"):
            metrics = summary.get(which) or {}
            steps[last] |= {f"{which}/{name}": value for name, value in metrics.items()}
        steps[last] |= {name: summary[name] for name in NUMBERS if name in summary}

    # The first entry holds the speed that was measured: no two trainings share it, equal seeds or not.
    own = hashlib.sha256(json.dumps(entries[:1]).encode()).hexdigest()[:8]
    *group, seed = run.path.resolve().parts[-3:]
    config = dict(flat(load_yaml(run.path / "plan.yaml")))
    config |= {"commit": (summary.get("environment") or {}).get("commit"), "id": own}
    name = "/".join([*group, f"{seed}-{own}"])
    return TrackedRun(name, "/".join(group), own, config, status, sorted(steps.items()))


def flat(values: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested values under keys with dots; a list is text."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", str(value) if isinstance(value, list) else value


# ---- one function a tracker: it asks how far the tracker is, and sends what comes after; returns the number of steps


def to_trackio(run: TrackedRun, project: str, online: bool) -> int:
    trackio: Any = import_module("trackio")
    # The configuration that trackio keeps says how far it is.
    try:
        known = {other.config["id"]: other for other in trackio.Api().runs(project) if "id" in (other.config or {})}
    except ValueError:  # no such project yet
        known = {}
    name, before = (known[run.id].name, known[run.id].config["sent_to_step"]) if run.id in known else (run.name, 0)
    new = run.after(before)
    if new:
        sent = {**run.config, "sent_to_step": new[-1][0]}
        quiet = {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
        tracker = trackio.init(project, name, group=run.group, config=sent, resume="allow", **quiet)
        for step, values in new:
            tracker.log(values, step=step)
        tracker.finish()
    return len(new)


def to_wandb(run: TrackedRun, project: str, online: bool) -> int:
    wandb: Any = import_module("wandb")
    # A file among those of the tracker's run says how far it is; offline, nothing else can.
    marks = Path("wandb").glob(f"*run-*-{run.id}/files/sent_to_step.json")
    new = run.after(max((json.loads(mark.read_text()) for mark in marks), default=0))
    if new:
        mode, quiet = "online" if online else "offline", wandb.Settings(silent=True, x_disable_stats=True)
        named = {"project": project, "id": run.id, "name": run.name, "group": run.group, "resume": "allow"}
        tracker = wandb.init(**named, config=run.config, mode=mode, settings=quiet)
        for step, values in new:
            tracker.log(values, step=step)
        Path(tracker.dir, "sent_to_step.json").write_text(json.dumps(new[-1][0]))
        tracker.finish()
    return len(new)


def to_mlflow(run: TrackedRun, project: str, online: bool) -> int:
    mlflow: Any = import_module("mlflow")
    client = mlflow.MlflowClient(None if online else "sqlite:///mlflow.db")
    of_project = client.get_experiment_by_name(project)
    experiment = of_project.experiment_id if of_project else client.create_experiment(project)

    # A tag of the run says how far it is.
    found = client.search_runs([experiment], f"tags.dropblock_id = '{run.id}'")
    tags = {"dropblock_id": run.id, "group": run.group}
    tracker = found[0] if found else client.create_run(experiment, tags=tags, run_name=run.name)
    new, now = run.after(int(tracker.data.tags.get("sent_to_step", 0))), int(time.time() * 1000)
    identity = tracker.info.run_id
    if not found:
        parameters = [mlflow.entities.Param(key, str(value)) for key, value in run.config.items()]
        for first in range(0, len(parameters), 100):  # the most that mlflow takes at once
            client.log_batch(identity, params=parameters[first : first + 100])
    for step, values in new:
        metrics = [mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        client.log_batch(identity, metrics=metrics)
    if new:
        client.set_tag(identity, "sent_to_step", str(new[-1][0]))
    client.set_terminated(identity, {"DONE": "FINISHED", "FAILED": "FAILED"}.get(run.status, "KILLED"))
    return len(new)


TRACKERS: dict[str, Callable[[TrackedRun, str, bool], int]] = {
    "trackio": to_trackio,
    "wandb": to_wandb,
    "mlflow": to_mlflow,
}


def send(places: Sequence[Path], to: str, project: str, online: bool = False) -> list[tuple[TrackedRun, int]]:
    """Send every run of some places; returns each with the number of steps that were new.

    Raises:
        UserError: if a place has no run, or the tracker is not installed.
    """
    try:
        import_module(to)
    except ImportError as error:
        raise UserError(f"--to {to} needs the package {to}: pip install {to}") from error
    if not online:
        for variable in REMOTE[to]:
            os.environ.pop(variable, None)
    sent = []
    for place in places:
        with runs_in(place) as runs:
            for path in runs:
                run = tracked(RunDirectory(path))
                with redirect_stdout(sys.stderr):  # what the tracker says of each run
                    sent.append((run, TRACKERS[to](run, project, online)))
    return sent


@guarded
def main(arguments: list[str]) -> int:
    """Arguments in, exit code out: 0, or 2 with one line."""
    parser = parser_of(__doc__)
    parser.add_argument("runs", type=folder, nargs="+", metavar="RUN", help="a run, a folder of runs, or an archive")
    parser.add_argument("--to", required=True, choices=list(TRACKERS))
    parser.add_argument("--project", default="dropblock", help="of the tracker (default: dropblock)")
    parser.add_argument("--online", action="store_true", help="upload")
    given = parser.parse_args(arguments)
    sent = send(given.runs, given.to, given.project, given.online)
    print(table(("run", "status", "steps sent"), [(run.name, run.status, new) for run, new in sent]))
    print(f"{counted(len(sent), 'run')}, {counted(sum(new for _, new in sent), 'new step')} to {given.to}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
