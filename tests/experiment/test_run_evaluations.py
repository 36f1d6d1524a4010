"""The evaluations of a run right after its last epoch: made once, resumed where stopped, shown by the report."""

from __future__ import annotations

import csv
import io
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import experiment.evaluation
from engine.run_directory import DONE, RunDirectory
from engine.signals import Stopped
from experiment.evaluation import results_of
from scripts.reporting.beside import CORRUPTED
from scripts.reporting.compare import compare
from scripts.reporting.csv_files import runs_csv
from scripts.reporting.figures import reliability
from scripts.reporting.runs import read_sweep
from scripts.reporting.tables import as_markdown, beside_accuracy


def test_evaluations_are_made_once_and_resumed(
    train: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ("-m", "regularizer=none,dropblock", "block_size=3", "epochs=1", "seed=1")
    calls: list[Any] = []

    def counted(finished: Any, wanted: Any) -> Any:
        calls.append(wanted)
        if len(calls) == 3:
            raise Stopped(signal.SIGTERM, "in an evaluation")
        return results_of(finished, wanted)

    monkeypatch.setattr(experiment.evaluation, "results_of", counted)
    evaluations = "evaluations=[temperature,'samples=2']"
    # A signal in the second run's first evaluation: that run is done, and stays so; the command is not.
    assert train(*both, evaluations) == 143
    runs = {path.parent.name.split("-")[0]: RunDirectory(path) for path in tmp_path.glob("fake-resnet18/*/seed-1")}
    assert all(run.status()["status"] == DONE for run in runs.values())
    trained = (runs["dropblock"].path / "summary.json").stat().st_mtime_ns
    assert [*runs["none"].read("evaluations.json")] == ["temperature", "samples=2"]
    assert runs["dropblock"].read("evaluations.json") is None

    # The same command makes what is missing, and no more; then there is nothing to do.
    assert train(*both, evaluations) == 0
    assert len(calls) == 5
    made = runs["dropblock"].read("evaluations.json")
    assert made["temperature"]["temperature"]["fitted_on"] == "val"
    assert made["samples=2"]["sampled"][0]["layers"] == "dropblock"
    assert "sampled" not in runs["none"].read("evaluations.json")["samples=2"]  # it has no layers
    assert (runs["dropblock"].path / "summary.json").stat().st_mtime_ns == trained
    shutil.rmtree(runs["dropblock"].checkpoints)
    assert train(*both, evaluations) == 0
    assert len(calls) == 5
    assert made["samples=2"]["loss"] == runs["dropblock"].summary()["last"]["test/loss"]
    # Without weights nothing further can be measured, and that is said.
    capsys.readouterr()
    assert train(*both, "evaluations=[corruption]") == 1
    assert "no checkpoint to evaluate" in capsys.readouterr().err

    # The report has a line for every number, paired, and a reliability diagram.
    (folder,) = tmp_path.glob("sweeps/*")
    sweep = compare(read_sweep(folder))
    tables = {table["title"].removeprefix("Beside accuracy: "): as_markdown(table) for table in beside_accuracy(sweep)}
    averaged = "mean of 2 masks of the row's own layers"
    assert {*tables} == {"after a temperature fitted on val", averaged, CORRUPTED}
    tempered, masks, corrupt = tables["after a temperature fitted on val"], tables[averaged], tables[CORRUPTED]
    assert "| expected calibration error (%) ↓ |" in tempered
    assert "| predictive entropy (nats) |" in masks
    assert "| all corruptions: top-1 accuracy (%) ↑ |" in corrupt
    # What two evaluations measure alike has one line; where their numbers differ, the second is named.
    for run in sweep.runs:
        again = {f"ood=there {column}": run[column] for column in run["beside"] if column.startswith("samples=2/")}
        run.update(again, beside=[*run["beside"], *again])
    place = [*tables].index(averaged)
    assert as_markdown(beside_accuracy(sweep)[place]) == masks
    sweep.runs[1][f"ood=there samples=2/{averaged}/loss"] += 1
    more = as_markdown(beside_accuracy(sweep)[place])
    assert len(more.splitlines()) == len(masks.splitlines()) + 1
    assert "cross-entropy ↓, by ood=there samples=2 |" in more
    reliability(sweep, tmp_path / "reliability.png")
    lines = [*csv.DictReader(io.StringIO(runs_csv(sweep)))]
    after = made["temperature"]["temperature"]["loss"]
    assert float(lines[1]["temperature/after temperature/loss"]) == pytest.approx(after, abs=1e-6)
    corrupted = runs["none"].read("evaluations.json")["corruption"]["corrupted"]
    jpeg = [row["top1"] for row in corrupted if row["corruption"] == "jpeg"]
    assert float(lines[0]["corruption/jpeg/top1"]) == pytest.approx(sum(jpeg) / 3, abs=1e-6)
    mean = sum(row["top1"] for row in corrupted) / 15
    assert float(lines[0]["corruption/all corruptions/top1"]) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize(
    ("text", "of"),
    [
        ("nonsense", ()),
        ("samples=0", ()),
        ("ood=/nowhere", ()),
        ("severity=1", ()),
        ("temperature", ("data=digit_masks", "model=segmentation_fpn_tiny")),
        ("samples=2", ("data=digit_boxes", "model=retinanet_small")),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(
    text: str, of: tuple[str, ...], train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(f"evaluations=['{text}']", *of) == 2
    assert f"evaluations: {text}:" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]
