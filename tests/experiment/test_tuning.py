"""`tune=`: every row is tuned on val by equally many pilots, then trained with what was chosen, by one command."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from configs.checking import UserError
from configs.command_line import check_arguments, tune_of
from configs.groups import choices, declared
from configs.plan import plan_from
from configs.schema import TuneConfig
from engine.run_directory import RunDirectory
from experiment.command import jobs_of, shown_jobs
from experiment.outcome import Job, Outcome
from experiment.tuning import TunedRow, Tuning, end_of_list, limits_of
from scripts.reporting.report import write_report
from scripts.reporting.runs import read_sweep
from tests.conftest import SMALL_RUN
from tests.last_of_each import last_of_each
from train import main

BASE = ("-m", *SMALL_RUN, "epochs=1", "block_size=3")


@cache
def jobs(regularizers: str, *words: str) -> list[Job]:
    return jobs_of(check_arguments(last_of_each(*BASE, "output_root=OUT", f"regularizer={regularizers}", *words)))


def tuning_of(root: Path, regularizers: str, *words: str, table: tuple[str, ...] = ("seed=1",)) -> Tuning:
    """The tuning of some rows, with run directories under `root`."""
    tune = tune_of(check_arguments(["-m", *table, *words]))
    assert tune is not None
    tuning = Tuning(tune, jobs(regularizers, *table))
    for pilot in (job for row in tuning.rows for pilots in row.pilots for job in pilots):
        moved(pilot, root)
    return tuning


def moved(job: Job, root: Path) -> None:
    assert job.plan is not None
    job.plan = replace(job.plan, runtime=replace(job.plan.runtime, output_root=str(root)))


def record(job: Job, val: float, **last: float) -> None:
    """A finished run with these results."""
    run = RunDirectory(job.run)
    run.path.mkdir(parents=True, exist_ok=True)
    run.write("status.json", {"status": "DONE"})
    run.write("summary.json", {"headline": "top1", "last": {"val/top1": val, **last}, "train_seconds": 1.0})


def rows(tuning: Tuning) -> dict[str, TunedRow]:
    return {row.name: row for row in tuning.rows}


# The command.


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], tuple[int, Path]]:
    root = tmp_path_factory.mktemp("tuned")
    words = last_of_each(
        *BASE,
        f"output_root={root}",
        "regularizer=none,dropblock",
        "data.train_subset=64",
        "epochs=2",
        "tune=default",
        "tune.epochs=1",
    )

    def run() -> tuple[int, Path]:
        code = main(words)
        (sweep,) = (root / "sweeps").iterdir()
        return code, sweep

    assert run()[0] == 0
    return run


def test_one_command_goes_from_pilots_to_the_table(
    tuned: Callable[[], tuple[int, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sweep = tuned()
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, out, **__: Path(out).write_bytes(b"drawn"))
    root = sweep.parent.parent
    pilots = sorted(root.glob("*/*/seed-100"))
    assert len(pilots) == 3
    # By hand, from the records alone.
    found = {}
    for path in pilots:
        summary = json.loads((path / "summary.json").read_text())
        plan = plan_from(summary["plan"])
        assert plan.pilot
        assert plan.recipe.epochs == 1
        assert plan.layer is not None
        found[plan.layer.keep_prob] = summary["last"]["val/top1"]
    best = [keep_prob for keep_prob, val in found.items() if val == max(found.values())]
    nearest = min(best, key=lambda keep_prob: abs(keep_prob - 0.9))
    kept = json.loads((sweep / "tuning.json").read_text())
    entry = next(row for row in kept["rows"] if row["name"] == "dropblock")
    assert entry["chosen"] == {"keep_prob": nearest}
    assert {of["values"]["keep_prob"]: of["val"] for of in entry["candidates"]} == found

    # The rows of the report are those with the choice; pilots are none of them.
    report = read_sweep(sweep)
    write_report(report, tmp_path)
    assert [row["seeds"] for row in report.rows] == [[1], [1]]
    assert report.rows[1]["keep_prob"] == nearest
    assert all(not plan_from(run["plan"]).pilot for run in report.runs)
    (_, line) = csv.DictReader((tmp_path / "report.csv").read_text().splitlines())
    assert (line["tuned"], line["tuned_pilots"]) == (f"keep_prob={nearest}", "3")
    assert (tmp_path / "tuning.png").read_bytes() == b"drawn"
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "How each row was chosen" in text
        assert f"keep_prob {nearest:g}" in text


def test_the_same_command_goes_on_from_anywhere(tuned: Callable[[], tuple[int, Path]]) -> None:
    _, sweep = tuned()
    root = sweep.parent.parent
    kept = (sweep / "tuning.json").read_text()
    # As if it had been killed in the pilots, before any was noted as a part of a table, and in the table.
    for path in (sorted(root.glob("*/*/seed-100"))[1], *root.glob("*/none-*/seed-1")):
        shutil.rmtree(path)
    (sweep / "tuning.json").unlink()
    code, _ = tuned()
    assert code == 0
    again = json.loads((sweep / "tuning.json").read_text())
    for text in (again, before := json.loads(kept)):
        for of in (of for row in text["rows"] for of in row["candidates"]):
            del of["seconds"]
    assert again == before
    assert len([*root.glob("*/*/seed-*/summary.json")]) == 3 + 2


def test_a_refused_job_is_named_before_the_first_pilot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiment.command.run_grid", interrupted)
    words = (*BASE, f"output_root={tmp_path}", "regularizer=dropblock", "groups=[4],[]", "tune=default")
    assert main(last_of_each(*words)) == 130
    assert "groups=[]: name at least one group" in capsys.readouterr().err


def test_a_row_may_name_its_knob_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"regularizer": "dropblock", "regularizer.dropblock.keep_prob": 0.85, "block_size": 3}
    monkeypatch.setattr("configs.tables.rows", lambda: {"mine/long": row})
    of_table = jobs_of(check_arguments(last_of_each(*BASE, f"output_root={tmp_path}", "experiment=mine/long")))
    (pilots,) = Tuning(TuneConfig("default"), of_table).stages()
    plans = [job.plan.layer for job in pilots if job.plan is not None]
    assert [layer and layer.keep_prob for layer in plans] == [0.8, 0.9, 0.95]  # the nearest first


# The choice.


def test_the_choice_reads_nothing_of_test(tmp_path: Path) -> None:
    def chosen(**test: float) -> Any:
        tuning = tuning_of(tmp_path, "dropblock,none", "tune=default")
        (pilots,) = tuning.stages()
        for job, val in zip(pilots, (50.0, 60.0, 55.0), strict=True):
            record(job, val, **({"test/top1": 100.0 - val, "test/loss": val} if test else {}))
        list(tuning.stages())
        return rows(tuning)["dropblock"].chosen

    assert chosen() == chosen(poisoned=1.0) == {"keep_prob": 0.95}


def test_equal_candidates_go_to_the_papers_value(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path, "dropblock,cutmix", "tune=default")
    (pilots,) = tuning.stages()
    for job in pilots:
        record(job, 50.0)
    list(tuning.stages())
    assert rows(tuning)["dropblock"].chosen == {"keep_prob": 0.9}
    assert rows(tuning)["cutmix"].chosen == {"regularizer.cutmix.probability": 1.0}


def test_every_row_has_the_same_budget(tmp_path: Path) -> None:
    words = ("tune={keep_prob:[0.8,0.9,0.95],label_smoothing:[0.1,0.2]}", "tune.lr=[0.1,0.2]", "tune.seeds=[0,7]")
    tuning = tuning_of(tmp_path, "none,dropblock,label_smoothing", *words)
    (pilots,) = tuning.stages()
    by_row = {name: [job.plan for of in row.pilots for job in of] for name, row in rows(tuning).items()}
    assert {name: len(plans) for name, plans in by_row.items()} == dict.fromkeys(by_row, 12)  # 3 x 2 x two seeds
    assert len({job.run for job in pilots}) == 36
    # A shorter list has further seeds, none of them compared.
    assert {plan.seed for plan in by_row["dropblock"]} == {0, 7}
    assert {plan.seed for plan in by_row["label_smoothing"]} == {0, 7, 8}
    assert {plan.seed for plan in by_row["none"]} == {0, 7, 8, 9, 10, 11}
    assert {plan.recipe.lr for plan in by_row["none"]} == {0.1, 0.2}


def test_candidates_are_compared_on_the_seeds_that_all_of_them_have(tmp_path: Path) -> None:
    """Three pilots for two values of CutMix: the third has a seed of which nothing is known at the other value."""
    tuning = tuning_of(tmp_path, "cutmix,dropblock", "tune={cutmix.probability:[1.0,0.5],keep_prob:[0.8,0.9,0.95]}")
    (pilots,) = tuning.stages()
    first, other = rows(tuning)["cutmix"].pilots
    for job in pilots:
        record(job, 50.0)
    for job, val in zip((*first, *other), (60.0, 52.0, 58.0), strict=True):
        record(job, val)
    list(tuning.stages())
    assert rows(tuning)["cutmix"].chosen == {"regularizer.cutmix.probability": 1.0}
    entry = next(entry for entry in tuning.entries() if entry["name"] == "cutmix")
    assert [(of["val"], of["seeds"]) for of in entry["candidates"]] == [(58.0, [100]), (60.0, [100, 101])]
    assert "probability 1: 60" in tuning.text()


def test_a_combination_takes_the_choice_of_its_parts(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path, "cutmix,[cutmix,dropblock]", "tune=default")
    stages = tuning.stages()
    first = next(stages)
    assert len(first) == 3
    for job, val in zip(first, (50.0, 60.0, 55.0), strict=True):  # probability 1, 0.5, 0.25
        record(job, val)
    second = next(stages)
    assert len(second) == 3
    for job in second:
        moved(job, tmp_path)
        assert job.plan is not None
        assert job.plan.options_of("batch")["cutmix"]["probability"] == 0.5
        record(job, 40.0)
    assert next(stages, None) is None
    both = tuning.table()[-1].plan
    assert both is not None
    assert both.layer is not None
    assert (both.layer.keep_prob, both.options_of("batch")["cutmix"]["probability"]) == (0.9, 0.5)


def test_a_combination_whose_part_has_no_choice_is_named_with_the_reason(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path, "cutmix,[cutmix,dropblock]", "tune=default")
    stages = tuning.stages()
    pilots = next(stages)
    for job in pilots:
        record(job, 50.0)
    RunDirectory(pilots[0].run).write("status.json", {"status": "FAILED"})
    list(stages)
    assert "nothing is chosen for cutmix" in tuning.text()


def test_a_part_without_a_knob_holds_nothing_up(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path, "trivialaugment,[dropblock,trivialaugment]", "tune=default")
    (pilots,) = tuning.stages()
    assert len(pilots) == 3
    assert all(job.plan is not None and job.plan.runtime.run_dir is None for job in pilots)


def test_a_result_that_is_no_number_is_not_chosen(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path, "dropblock,none", "tune=default")
    (pilots,) = tuning.stages()
    for job, val in zip(pilots, (float("nan"), 10.0, 20.0), strict=True):
        record(job, val)
    list(tuning.stages())
    assert rows(tuning)["dropblock"].chosen == {"keep_prob": 0.8}


def test_a_row_whose_pilot_failed_is_not_trained(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path, "dropblock,none", "tune=default")
    stages = tuning.stages()
    first, second, third = next(stages)
    for job in (first, second, third):
        record(job, 50.0)
    RunDirectory(first.run).write("status.json", {"status": "FAILED"})
    third.outcome = Outcome(2, reason="trained on other data")  # its directory holds a finished run of theirs
    assert next(stages, None) is None
    refused, none = tuning.table()
    assert refused.plan is None
    assert "dropblock: 2 pilots" in refused.refused
    assert none.plan is not None


@pytest.mark.parametrize(
    ("name", "chosen", "note"),
    [("dropblock", 0.95, "add 0.975"), ("dropblock", 0.8, "add 0.7"), ("dropblock", 0.9, ""), ("cutmix", 1.0, "")],
)
def test_the_end_of_a_list_gets_a_note(name: str, chosen: float, note: str) -> None:
    of = declared(name).tune
    assert of is not None
    row = TunedRow([], name, of.knob, candidates=[{of.knob: value} for value in of.values], chosen={of.knob: chosen})
    assert end_of_list(row).endswith(note)
    assert bool(end_of_list(row)) == bool(note)


# Refusals.


REFUSED: list[tuple[str, tuple[str, ...], tuple[str, ...], str]] = [
    ("none,dropblock,cutmix", ("seed=1", "data.val_fraction=0"), ("tune=default",), "data.val_fraction"),
    ("none,dropblock,cutmix", ("seed=1",), ("tune={keep_prob:[0.8,0.9]}",), "cutmix"),
    ("none,dropblock,cutmix", ("seed=1",), ("tune={keep_prb:[0.8,0.9]}", "tune.allow_untuned=true"), "keep_prob"),
    ("none,dropblock,cutmix", ("seed=1",), ("tune={keep_prob:[0.8,1.5]}", "tune.allow_untuned=true"), "keep_prob"),
    ("none,dropblock,cutmix", ("seed=1",), ("tune=default", "tune.seeds=[1]"), "tune.seeds"),
    ("dropblock", ("seed=1", "keep_prob=0.8"), ("tune=default",), "keep_prob=0.8"),
    ("dropblock", ("seed=1", "lr=0.1"), ("tune=default", "tune.lr=[0.1,0.2]"), "lr=0.1"),
    ("dropblock", ("seed=1",), ("tune={keep_prob:[0.8,0.9],block_size:[3,5]}",), "one knob"),
    ("none,trivialaugment", ("seed=1",), ("tune=default",), "tune.lr"),
    ("dropblock", (), ("tune={keep_prob:[0.8]}",), "keep_prob"),
    ("dropblock", (), ("tune=default", "tune.lr=[0.1]"), "lr"),
    ("dropblock", (), ("tune.lr=[0.1,0.2]",), "tune=default"),
    ("dropblock", (), ("tune=best",), "tune=best"),
    ("dropblock", (), ("tune=default", "tune.epoch=3"), "tune.epochs"),
]


@pytest.mark.parametrize(("regularizers", "table", "words", "named"), REFUSED)
def test_what_would_mislead_is_refused(
    tmp_path: Path, regularizers: str, table: tuple[str, ...], words: tuple[str, ...], named: str
) -> None:
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        tuning_of(tmp_path, regularizers, *words, table=table)


def test_a_single_run_has_nothing_to_choose() -> None:
    with pytest.raises(UserError, match="-m"):
        check_arguments(["regularizer=dropblock", "tune=default"])


def test_null_may_be_a_candidate(tmp_path: Path) -> None:
    (null, image) = tuning_of(tmp_path, "mixup", "tune={together:[null,image]}").rows[0].pilots
    options = [job.plan.options_of("batch")["mixup"] for job in (*null, *image) if job.plan is not None]
    assert options == [{"alpha": 0.2}, {"alpha": 0.2, "together": "image"}]


def test_rows_may_stay_untuned_if_it_is_said(tmp_path: Path) -> None:
    tuning = tuning_of(tmp_path, "dropblock,cutmix", "tune={keep_prob:[0.8,0.9]}", "tune.allow_untuned=true")
    assert [len(row.pilots) for row in tuning.rows] == [2, 0]


# What is shown before anything runs, and the lists themselves.


def test_plan_and_price_show_the_pilots_and_the_table(tmp_path: Path) -> None:
    words = ("regularizer=none,[dropblock,cutmix],cutmix", "tune=default")
    shown = shown_jobs(check_arguments(last_of_each(*BASE, f"output_root={tmp_path}", *words)))
    plans = [job.plan for job in shown if job.plan is not None]
    assert [plan.pilot for plan in plans] == [True] * 6 + [False] * 3
    assert len({plan.run_dir() for plan in plans}) == 9  # what is not chosen yet is no directory of a run


@pytest.mark.parametrize("name", [name for name in choices("regularizer") if name not in ("none", "trivialaugment")])
def test_lists_of_regularizers_are_three_valid_values(name: str) -> None:
    of = declared(name)
    assert of.tune is not None
    assert len(of.tune.values) == len({*map(str, of.tune.values)}) == 3  # so that all rows have as many pilots
    assert of.tune.source
    least, most = limits_of(TunedRow([], name, of.tune.knob), of.tune.knob)
    known = of.options.get(of.tune.knob, {}).get("choices")
    assert all(value in known if known else least <= value <= most for value in of.tune.values)
