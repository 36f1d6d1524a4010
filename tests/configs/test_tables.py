"""A table is one file: what is wrong with it is answered in one line that names the file and the key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from configs import tables
from configs.checking import UserError
from configs.compose import plan_of

GOOD = "rows: {none: {regularizer: none}, wide: {regularizer: dropblock, block_size: 3}}\n"


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder of tables with one of the name `mine`."""
    monkeypatch.setattr(tables, "FOLDER", tmp_path / "sweep")
    (tmp_path / "sweep").mkdir()
    forget()
    yield tmp_path / "sweep" / "mine.yaml"
    forget()


def forget() -> None:
    tables.table_of.cache_clear()
    tables.rows.cache_clear()


def test_rows_are_experiments_and_a_sweep(write: Path) -> None:
    write.write_text(GOOD + "seed: [1, 2]\nvary: {lr: [0.1, 1e-3], recipe.grad_clip: [null, 1]}\nprefix: my\n")
    assert [*tables.rows()] == ["my/none", "my/wide"]
    assert tables.sweeps() == ["mine"]
    varied = {"seed": "1,2", "experiment": "my/none,my/wide", "lr": "0.1,0.001", "recipe.grad_clip": "null,1"}
    assert tables.table_of("mine").axes() == varied
    plan = plan_of("experiment=my/wide", "data=fake")
    assert plan.layer is not None
    assert (plan.layer.block_size, plan.experiment) == (3, "my/wide")
    assert plan_of("+sweep=mine", "data=fake").regularizer == ["dropblock"]  # a sweep alone names no row


@pytest.mark.parametrize("row", ["kp0.9", "cutmix+cutout", "half rate"])
def test_a_row_has_the_name_that_its_file_gives_it(write: Path, row: str) -> None:
    write.write_text(f"rows: {{{row}: {{regularizer: cutmix}}, other: {{regularizer: mixup}}}}\n")
    plan = plan_of(f"experiment='mine/{row}'", "data=fake")
    assert (plan.experiment, plan.regularizer) == (f"mine/{row}", ["cutmix"])


def test_a_row_sets_the_own_options_of_a_regularizer(write: Path) -> None:
    paper = "paper: {place: Table 1, metrics: {top1: [90.0]}}"
    half = f"half: {{regularizer: [cutout, mixup], regularizer.mixup.alpha: 0.5, {paper}}}"
    write.write_text(f"rows: {{{half}}}\nsetting: {{regularizer: cutmix, regularizer.cutmix.alpha: 2}}\n")
    plan = plan_of("experiment=mine/half", "data=fake")
    assert plan.options_of("batch") == {"mixup": {"alpha": 0.5}}
    assert plan.paper.metrics == {"top1": [90.0]}
    other = plan_of("experiment=mine/half", "data=fake", "regularizer.mixup.alpha=1")
    assert (other.options_of("batch"), other.paper.metrics) == ({"mixup": {"alpha": 1.0}}, {})
    assert plan_of("+sweep=mine", "data=fake").options_of("batch")["cutmix"]["alpha"] == 2.0


def test_a_study_names_the_evaluations_of_its_runs(write: Path) -> None:
    write.write_text(GOOD + "study: {evaluations: [temperature, samples=20, corruption=jpeg severity=2]}\n")
    plan = plan_of("+sweep=mine", "data=fake")
    assert plan.runtime.evaluations == ["temperature", "samples=20", "corruption=jpeg severity=2"]
    assert plan.hash() == plan_of("data=fake").hash()
    write.write_text(GOOD + "study: {evaluations: [samples=none]}\n")
    forget()
    with pytest.raises(UserError, match="evaluations: samples=none: samples=none: expected a whole number"):
        plan_of("+sweep=mine", "data=fake")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("rows: [none, dropblock]\n", "rows"),
        ("rows: {none: none}\n", "none"),
        (GOOD + "seed: 1\n", "seed"),
        (GOOD + "vary: {lr: 0.1}\n", "lr"),
        (GOOD + "sets: {lr: 0.1}\n", "setting"),
        (GOOD + "runs: [mine/nne]\n", "mine/none"),
        (GOOD + "study: {margins: 1}\n", "margin"),
        (GOOD + "setting: {recipe.lrs: 1}\n", "lr"),
        ("rows: {none: {regularizer: mixup, regularizer.mixup.alpah: 1}}\n", "alpha"),
        ("defaults: [{override /data: digits}]\nhydra: {mode: MULTIRUN}\n", "rows"),
        ("rows: {none: {regularizer: none\n", "YAML"),
        ("rows: {}\nrows: {}\n", "rows"),
    ],
)
def test_a_table_that_is_none_is_refused(write: Path, text: str, key: str) -> None:
    write.write_text(text)
    with pytest.raises(UserError, match=key) as caught:
        plan_of("+sweep=mine", "data=fake")
    assert "\n" not in str(caught.value)


def test_rows_of_one_name_are_refused(write: Path) -> None:
    write.write_text(GOOD)
    write.with_name("other.yaml").write_text(GOOD + "prefix: mine\n")
    with pytest.raises(UserError, match=r"other\.yaml: mine/none"):
        plan_of("experiment=mine/none")


def test_a_file_of_the_older_form_is_told_where_it_belongs(write: Path) -> None:
    write.write_text(GOOD)
    older = write.parent.parent / "experiment" / "blocks" / "b1.yaml"
    older.parent.mkdir(parents=True)
    older.write_text("# @package _global_\ndefaults: [{override /regularizer: dropblock}]\n")
    with pytest.raises(UserError, match=r"b1\.yaml.*rows:.*configs/sweep"):
        plan_of("experiment=blocks/b1")
