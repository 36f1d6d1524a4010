"""The kept tables, rebuilt by `scripts/report.py` from the run directories in docs/results/*/finished_runs.tar.xz.

`listed_runs.json` is what the sweeps' folders listed: the runs of each, the experiment that each was run for, and the
paper's number beside it. `test_recomputed.py` checks the same tables from runs.csv on, by other means.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from configs.command_line import check_arguments, tune_of
from experiment.command import jobs_of
from experiment.tuning import Tuning
from scripts.report import main

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"
LISTED: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("listed_runs.json").read_text())
TABLES = ("runs.csv", "report.csv", "claims.csv", "under_drop.csv", "report.md")
SHORT = ("camvid_where", "photographs_small", "schedules_underfit")

# Pilots of their own sweeps have no kept report to compare with: sha256 of the tables of their runs.
PILOTS = {
    "keep_prob_small": "564fd01e94b09468",
    "schedules_overfit_keep_prob": "19de4b1fde8d875f",
    "schedules_underfit_keep_prob": "4a3df6c334ec1b03",
}


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures and TensorBoard's curves take nearly all the time of a report, and hold no number of a table."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, out, **__: Path(out).write_bytes(b""))
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", lambda *_, **__: None)


def unpacked(root: Path, *archives: str) -> None:
    for name in archives:
        with tarfile.open(RESULTS / name / "finished_runs.tar.xz") as archive:
            archive.extractall(root, filter="data")


def listed(root: Path, sweep: str) -> Path:
    """The folder of a sweep as train.py leaves it, in `root`/outputs."""
    folder = root / "outputs" / "sweeps" / sweep
    (folder / "runs").mkdir(parents=True)
    of = LISTED[sweep]
    for run, experiment in of["runs"].items():
        entry = {"run": f"outputs/{run}", "status": "DONE", "overrides": [], "reason": "", "time": 0.0}
        entry |= {"experiment": experiment, "paper": of["paper"][experiment]}
        (folder / "runs" / f"{run.replace('/', '_')}.json").write_text(json.dumps(entry))
    name = sweep.partition("-")[0]
    hydra = {"overrides": {"task": [f"+sweep={name}"]}, "sweeper": {"params": of["params"]}}
    (folder / "multirun.yaml").write_text(json.dumps({"hydra": hydra}))
    return folder


def without_later(path: Path) -> str:
    """A table as the kept ones have it: without the columns that were appended to report.csv since."""
    text = path.read_text()
    if path.name != "report.csv":
        return text
    rows = list(csv.reader(text.splitlines()))
    assert rows[0][-1] == "smallest_holm"
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(row[:-1] for row in rows)
    return out.getvalue()


def assert_rebuilt(root: Path, name: str) -> None:
    (sweep,) = (sweep for sweep in LISTED if sweep.partition("-")[0] == name)
    assert main([str(root / "outputs" / "sweeps" / sweep), "--out", str(root / name)]) == 0
    for table in TABLES:
        kept = RESULTS / name / table
        assert (root / name / table).exists() == kept.exists(), table
        if kept.exists():
            assert without_later(root / name / table) == kept.read_text(), table


@pytest.mark.parametrize("name", SHORT)
def test_kept_tables_are_those_of_the_run_directories(tmp_path: Path, name: str) -> None:
    # The runs that chose keep_prob lie in a sweep of their own.
    pilots = [other for other in PILOTS if other == f"{name}_keep_prob"]
    unpacked(tmp_path, name, *pilots)
    for sweep in LISTED:
        if sweep.partition("-")[0] in (name, *pilots):
            listed(tmp_path, sweep)
    assert_rebuilt(tmp_path, name)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All kept runs, and the folders of their sweeps."""
    root = tmp_path_factory.mktemp("kept")
    unpacked(root, *(path.parent.name for path in sorted(RESULTS.glob("*/finished_runs.tar.xz"))))
    for sweep in LISTED:
        listed(root, sweep)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({sweep.partition("-")[0] for sweep in LISTED} - {*PILOTS}))
def test_all_kept_tables_are_those_of_the_run_directories(everything: Path, name: str) -> None:
    assert_rebuilt(everything, name)


def test_kept_pilots_choose_what_their_rows_have(tmp_path: Path) -> None:
    # Chosen by hand when they were made; `tune=default` finds the same runs and makes the same choice.
    unpacked(tmp_path, "schedules_underfit_keep_prob")
    words = ("+sweep=schedules_underfit", "data.root=cifar10_jpeg", f"output_root={tmp_path / 'outputs'}")
    arguments = check_arguments([*words, "tune=default"])
    tune = tune_of(arguments)
    assert tune is not None
    tuning = Tuning(tune, jobs_of(arguments))
    assert [len(stage) for stage in tuning.stages()] == [12]
    tuned = [row for row in tuning.rows if row.candidates]
    assert len(tuned) == 4
    assert all(row.chosen == row.own == {"keep_prob": 0.97} for row in tuned)


@pytest.mark.slow
@pytest.mark.parametrize("name", PILOTS)
def test_the_tables_of_pilots_do_not_move(everything: Path, name: str) -> None:
    (sweep,) = (sweep for sweep in LISTED if sweep.partition("-")[0] == name)
    assert main([str(everything / "outputs" / "sweeps" / sweep), "--out", str(everything / name)]) == 0
    written = [without_later(everything / name / table) for table in ("runs.csv", "report.csv", "report.md")]
    assert hashlib.sha256("".join(written).encode()).hexdigest()[:16] == PILOTS[name]
