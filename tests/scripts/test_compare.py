"""Comparison of rows: differences from their baseline, claims, the choice of keep_prob, the numbers of each column."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from configs.paper import ClaimConfig, StudyConfig
from scripts.report import main
from scripts.reporting.compare import answers, best_on_val, choice_of_keep_prob, compare, few_rows, lines, pooled
from scripts.reporting.csv_files import rows_csv, runs_csv
from scripts.reporting.deviations import deviations
from scripts.reporting.report import content_of, rendered, write_report
from scripts.reporting.runs import Sweep, label, read_sweep
from scripts.reporting.tables import last_epoch_drops, power_text
from tests.scripts.made_up_sweep import grid, made_up, note, plan_of, recorded, write_run

GROUPS = ClaimConfig("groups 3+4 beat group 4", "groups", "3+4", "4")


def asking(sweep: Sweep, *claims: ClaimConfig) -> Sweep:
    return replace(sweep, study=StudyConfig(claims=list(claims)))


# Differences.


def test_the_rows_of_a_table_are_corrected_together(four_seeds: Path) -> None:
    rows = compare(read_sweep(four_seeds)).rows
    assert [row["difference"] is None for row in rows] == [True, False, False]
    dropblock = next(row for row in rows if row["regularizer"] == ["dropblock"])
    assert dropblock["holm"] == pytest.approx(2 * min(row["difference"].p_value for row in rows if row["difference"]))


def test_each_column_has_its_own_numbers(tmp_path: Path) -> None:
    for name, gain in (("none", 0), ("dropblock", 1)):
        for seed in (1, 2):

            def own(record: dict, seed: int = seed, gain: int = gain) -> None:  # type: ignore[type-arg]
                for which, top1, loss in (("last", 80 + gain, 2 - gain), ("peak", 90 + 3 * gain, 5), ("best", 60, 7)):
                    numbers = {"test/top1": top1 + seed, "val/top1": top1 - 10 + seed, "test/loss": float(loss + seed)}
                    record[which] = {"epoch": 5, **numbers}
                if gain:
                    record["drop_last_epoch"]["group4"]["measured"] = 0.1 * seed

            plan = replace(plan_of(f"regularizer={name}", "data=digits"), seed=seed)
            folder = note(tmp_path, plan, recorded(write_run(tmp_path, plan, 80.0, 5), own))
    sweep = compare(read_sweep(folder))
    _, dropblock = csv.DictReader(rows_csv(sweep).splitlines())
    means = {"last_test": 82.5, "loss": 2.5, "peak_test": 94.5, "last_val": 72.5, "best_test": 61.5}
    assert {name: float(dropblock[f"{name}_mean"]) for name in means} == pytest.approx(means)
    differences = {"difference": 1.0, "loss_difference": -1.0, "peak_difference_mean": 3.0}
    assert {name: float(dropblock[name]) for name in differences} == pytest.approx(differences)
    assert list(last_epoch_drops(sweep.rows[1]).values())[1] == pytest.approx(0.15)  # the mean over the seeds


def test_where_lower_is_better_the_smaller_headline_wins(tmp_path: Path) -> None:
    """Verdict, claim, choice on val and the other metrics of a sweep whose runs were judged by the Brier score."""
    units = {"loss": "", "brier": "", "ece": "%"}
    for keep_prob, brier in ((1.0, 0.4), (0.9, 0.3), (0.8, 0.5), (0.7, 0.4)):
        for seed in (1, 2, 3):
            name = "none" if keep_prob == 1 else "dropblock"
            knobs = [] if keep_prob == 1 else [f"keep_prob={keep_prob}", "groups=[4]", "block_size=7"]
            plan = plan_of(f"regularizer={name}", "data=digits", f"seed={seed}", *knobs)
            value = brier + 0.001 * seed + 0.0002 * (seed == 2) * keep_prob + 0.02 * (seed - 2) * (keep_prob == 0.7)
            last = {"epoch": 5, "test/brier": value, "val/brier": value, "test/ece": 10 * value, "test/loss": 1.0}
            run = recorded(write_run(tmp_path, plan, 80.0, 5), headline="brier", last=last, peak=last, best=last)
            folder = note(tmp_path, plan, recorded(run, metric_units=units, lower_is_better=["loss", "brier", "ece"]))
    claim = ClaimConfig("0.9 beats 0.8", "keep_prob", "0.9", "0.8")
    sweep = compare(asking(read_sweep(folder), claim))
    by_keep_prob = {row["keep_prob"]: row for row in sweep.rows}
    verdicts = {None: "", 0.9: "better", 0.8: "worse", 0.7: "not resolved"}  # no half a point of a Brier score
    assert {kp: row["verdict"] for kp, row in by_keep_prob.items()} == verdicts
    assert best_on_val(sweep.rows) is by_keep_prob[0.9]
    (answer,) = answers(sweep)
    assert (answer["verdict"], answer["difference"].mean < 0) == ("better", True)
    # Four places for what is no percentage; the lowest is the peak; another metric in its own table and columns.
    text = rendered("report.md.j2", content_of(sweep))
    assert "| 0.3021 ± 0.0010 |" in text
    assert "the lowest of" in text
    ours = next(line.split("|") for line in text.partition("## Beside the headline")[2].splitlines() if "0.9" in line)
    assert [cell.strip() for cell in ours[2:4]] == ["3.02 ± 0.01", "-1.00 [-1.00, -1.00]"]
    row = next(row for row in csv.DictReader(rows_csv(sweep).splitlines()) if row["keep_prob"] == "0.9")
    assert (list(row)[-2:], float(row["ece_mean"])) == (["ece_mean", "ece_std"], pytest.approx(3.02, abs=0.002))


def test_differences_that_are_equal_but_for_rounding_promise_no_power(tmp_path: Path) -> None:
    """One of 360 images more in both seeds: the last digits of the two differences are all that tells them apart."""
    rows = {("regularizer=none",): [100 * n / 360 for n in (250, 276)]}
    rows[("regularizer=dropblock",)] = [100 * n / 360 for n in (251, 277)]
    sweep = compare(read_sweep(grid(tmp_path, rows)))
    (difference,) = (row["difference"] for row in sweep.rows if row["difference"])
    assert 0 < difference.std < 1e-9
    assert pooled(sweep) is None
    assert power_text(sweep) == ""


def test_a_difference_over_fewer_seeds_says_so(tmp_path: Path) -> None:
    for experiment, seeds in (("baseline", (1, 2)), ("dropout", (1, 2, 3)), ("cutout", (3,))):
        for seed in seeds:
            plan = plan_of(f"experiment=table1/{experiment}", f"seed={seed}")
            folder = note(tmp_path, plan, write_run(tmp_path, plan, 80.0 + (experiment == "dropout"), 5))
    texts = write_report(read_sweep(folder), tmp_path / "out").read_text().splitlines()
    (dropout,) = [line.split("|") for line in texts if line.startswith("| dropout, keep_prob 0.7 | 3 |")]
    (cutout,) = [line.split("|") for line in texts if line.startswith("| Cutout | 1 |")]
    assert dropout[4].strip() == "+1.00 (n = 2)"
    assert cutout[4].strip() == ""  # of seed 3, which the baseline does not have


def test_rows_of_several_settings_are_compared_within_their_own(tmp_path: Path) -> None:
    rows = {
        (f"model={model}", f"regularizer={regularizer}"): [base + gain + 0.1, base + gain + 0.2]
        for model, base in (("resnet18", 80.0), ("resnet50", 90.0))
        for regularizer, gain in (("none", 0.0), ("dropblock", 1.0))
    }
    sweep = compare(read_sweep(grid(tmp_path, rows)))
    assert (sweep.varied, sweep.baseline) == (["model.name"], None)
    assert len({row["label"] for row in sweep.rows}) == 4
    for row in sweep.rows:
        assert (row["difference"] is None) == row["is_baseline"]
        assert row["difference"] is None or row["difference"].mean == pytest.approx(1.0)


def test_rows_are_compared_whatever_learning_rate_val_chose_for_each(tmp_path: Path) -> None:
    """Also beside a baseline of an earlier choice, whose learning rate is no candidate any more."""
    chosen = {"none": 0.1, "dropblock": 0.05, "spatial_dropout": 0.2}
    rows = {(f"regularizer={name}", f"lr={lr}"): [80.0 + 10 * lr, 80.2 + 10 * lr] for name, lr in chosen.items()}
    rows["regularizer=dropblock", "block_size=3", "lr=0.3"] = [83.0, 83.2]
    folder = grid(tmp_path, {("regularizer=none", "lr=0.4"): [70.0, 70.1], **rows})
    entries = [
        {"configuration": plan_of(*words).hash(), "given": {}, "candidates": []}
        | {"chosen": {"lr": float(words[-1].partition("=")[2])}}
        for words in rows
    ]
    tuning = {"rows": entries, "pilots_a_row": 2, "allow_untuned": False, "epochs": None, "rule": ""}
    (folder / "tuning.json").write_text(json.dumps(tuning))
    methods = ClaimConfig("DropBlock beats SpatialDropout", "regularizer", "dropblock", "spatial_dropout")
    blocks = ClaimConfig("block 7 beats block 3", "block_size", "7", "3")
    sweep = compare(asking(read_sweep(folder), methods, blocks))
    gains = {row["label"]: row["difference"] and row["difference"].mean for row in sweep.rows}
    assert gains == {
        "no regularizer, lr 0.1": None,
        "no regularizer, lr 0.4": pytest.approx(-11.05),
        "DropBlock, keep_prob 0.9, block 3, lr 0.3": pytest.approx(2.0),
        "DropBlock, keep_prob 0.9, block 7, lr 0.05": pytest.approx(-0.5),
        "SpatialDropout, keep_prob 0.9, lr 0.2": pytest.approx(1.0),
    }
    assert (sweep.varied, sweep.baseline and sweep.baseline["tried"]["lr"]) == ([], 0.1)
    assert [sorted(answer["cells"]) for answer in answers(sweep)] == [pytest.approx([-1.5, 1.0]), pytest.approx([-2.5])]


def test_every_run_of_a_grid_has_its_line_in_runs_csv(tmp_path: Path) -> None:
    """Also where rows differ in what has no column: by the label of the row and the directory of the run."""
    sweep = compare(read_sweep(grid(tmp_path, {("lr=0.1",): [80.0, 80.1], ("lr=0.05",): [80.5, 80.6]})))
    table = list(csv.DictReader(runs_csv(sweep).splitlines()))
    labels = [line["label"] for line in table]
    assert sorted(label.rpartition(", ")[2] for label in set(labels)) == ["lr 0.05", "lr 0.1"]
    assert labels.count(labels[0]) == 2
    assert {line["run"] for line in table} == {str(run["path"].relative_to(tmp_path)) for run in sweep.runs}


# Beside the paper.


def test_the_papers_difference_is_taken_within_one_table(tmp_path: Path) -> None:
    for place, baseline, expected in (("a", "table1/baseline", 78.13 - 76.51), ("b", "fig4/baseline", None)):
        names = ("table1/dropblock", baseline)
        folder = grid(tmp_path / place, {(f"experiment={name}", "data=digits"): [80.0] for name in names})
        rows = compare(read_sweep(folder)).rows
        (dropblock,) = (row for row in rows if row["experiment"] == "table1/dropblock")
        assert dropblock["difference"] is not None
        assert dropblock["paper_difference"] == (None if expected is None else pytest.approx(expected))


def test_deviations_come_from_the_configuration(table1: Path) -> None:
    found = {what: (here, paper) for what, here, paper in deviations(read_sweep(table1))}
    assert found["data"] == ("fashion_mnist", "imagenet")
    assert found["training images"] == ("2000", "all")
    assert found["recipe.epochs"] == ("40", "270")
    assert found["recipe.milestones"] == ("none", "125, 200, 250")
    assert found["Cutout"][0].endswith("images of 32 pixels")
    assert "recipe.nesterov" not in found  # the same in both
    assert "runs a row" not in found  # three, as in the paper


def test_the_papers_own_setting_deviates_in_nothing(tmp_path: Path) -> None:
    words = ("experiment=table1/dropblock", "data=imagenet", "recipe=imagenet_270")
    found = {what: (here, paper) for what, here, paper in deviations(read_sweep(grid(tmp_path, {words: [78.0]})))}
    batch = next(what for what in found if "micro-batch" in what)
    assert found == {"runs a row": ("1", "3"), batch: ("1024", "128 (a core)")}


# Lines of a figure, and what val chooses.


def test_keep_prob_is_chosen_on_val_alone(tmp_path: Path) -> None:
    folder = made_up(tmp_path, "fig3_keep_prob", seeds=2)
    sweep = compare(read_sweep(folder))
    found = lines(sweep, "keep_prob")
    names = ("dropout", "spatial_dropout", "drop_path", "dropblock", "dropblock_constant")
    assert [rows[0]["experiment"] for rows in found] == [f"fig3/{name}" for name in names]
    for i, row in enumerate(found[0]):  # the best on test is the worst on val
        for run in row["runs"]:
            run["last/test/top1"], run["last/val/top1"] = 80.0 + i, 90.0 - i
    assert best_on_val(found[0]) is found[0][0]

    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "0.9 (78.08)" in text  # DropBlock's best in the paper's figure
    assert "0.7 (76.80)" in text  # dropout's
    assert "keep_prob chosen on the validation split" in (folder / "report.html").read_text()
    assert (folder / "keep_prob.png").exists()
    # The baseline has no keep_prob: its jobs meet in one run a seed.
    table = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    assert [row["n"] for row in table if row["experiment"] == "fig3/baseline"] == ["2"]


def test_the_lines_of_a_figure_differ_in_its_knob_alone(tmp_path: Path) -> None:
    rows = {
        (f"model={model}", f"regularizer={name}", f"block_size={block}", f"keep_prob={keep_prob}"): [80.0]
        for model in ("resnet18", "resnet50")
        for name in ("none", "dropout", "dropblock")
        for block in (3, 7)
        for keep_prob in (0.8, 0.9)
    }
    folder = grid(tmp_path, rows)
    sweep = read_sweep(folder)
    for knob, count in (("keep_prob", 2 * 3), ("block_size", 2 * 2)):
        found = lines(sweep, knob)
        assert len(found) == count
        for of_line in found:
            assert len(of_line) == 2
            assert len({str({**row["tried"], knob: None}) + row["model"] for row in of_line}) == 1
        assert len({label(sweep, of_line[0], without=knob) for of_line in found}) == count
    assert main([str(folder)]) == 0
    assert (folder / "block_size.png").exists()


def test_many_rows_without_a_figure_have_their_curves(tmp_path: Path) -> None:
    rows = {
        (f"schedule={schedule}", f"groups={groups}"): [80.0]
        for schedule in ("linear", "constant", "cosine", "curriculum")
        for groups in ("[4]", "[3]", "[3,4]", "[2]", "[2,4]")
    }
    sweep = read_sweep(grid(tmp_path, rows))
    assert len(sweep.rows) == 20
    assert few_rows(sweep) == sweep.rows[:16]


def test_the_pilots_of_another_setting_choose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Best on val: keep_prob 0.9 on these data, 0.8 on others; test would prefer 0.8 everywhere."""
    for data, best in (("digits", 0.9), ("fashion_mnist", 0.8)):
        for keep_prob in (0.8, 0.9):
            plan = plan_of("regularizer=dropblock", f"keep_prob={keep_prob}", f"data={data}", "seed=100")
            run = write_run(tmp_path, plan, 80.0, epochs=1)
            last = {"val/top1": 90.0 if keep_prob == best else 70.0, "test/top1": 80.0 - 10 * keep_prob, "epoch": 1}
            recorded(run, last=last)
            note(tmp_path, plan, run).rename(tmp_path / "sweeps" / f"pilot-{data}-{keep_prob}")
    study = StudyConfig(keep_prob=[0.8, 0.9], pilot_seed=100, pilot_sweep="pilot")
    monkeypatch.setattr("scripts.reporting.runs.study_of", lambda _: study)
    rows = {(f"regularizer={name}", "data=digits"): [80.0, 80.4] for name in ("none", "dropblock", "dropout")}
    sweep = read_sweep(grid(tmp_path, rows))
    assert [(row["keep_prob"], row["seeds"]) for row in sweep.pilots] == [(0.8, [100]), (0.9, [100])]
    assert 100 not in {run["seed"] for run in sweep.runs}
    row = next(row for row in sweep.rows if row["regularizer"] == ["dropblock"])
    other = next(row for row in sweep.rows if row["regularizer"] == ["dropout"])
    assert choice_of_keep_prob(sweep, row) == "0.9, on val from 0.8, 0.9 (seed 100)"
    sweep.pilots[0]["runs"][0]["last/val/top1"] = 95.0
    assert choice_of_keep_prob(sweep, row).endswith("val prefers 0.8")
    as_it_is = choice_of_keep_prob(sweep, other)  # 0.7 is no candidate
    study.keep_prob.append(0.7)
    without_pilot = choice_of_keep_prob(sweep, other)
    without_any = choice_of_keep_prob(replace(sweep, pilots=[]), row)
    assert len({as_it_is, without_pilot, without_any}) == 3
    assert all("on val" not in text for text in (as_it_is, without_pilot, without_any))


# Claims.


@pytest.fixture(scope="module")
def two_cells(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Groups 3+4 against group 4 in two cells, blocks 3 and 4, with differences 1, 2 and -1, 0 over two seeds."""
    gains = {("[4]", 3): (0.0, 0.0), ("[4]", 4): (0.0, 0.0), ("[3,4]", 3): (1.0, 2.0), ("[3,4]", 4): (-1.0, 0.0)}
    rows = {
        ("regularizer=dropblock", f"groups={groups}", f"block_size={block}"): [81 + one, 82 + two]
        for (groups, block), (one, two) in gains.items()
    }
    return read_sweep(grid(tmp_path_factory.mktemp("claims"), rows))


def test_a_claim_is_averaged_over_the_cells_that_it_covers(two_cells: Sweep) -> None:
    at_block_3 = replace(GROUPS, where={"block_size": "3"})
    both, one, nothing = answers(asking(two_cells, GROUPS, at_block_3, ClaimConfig("of nothing", "groups", "1", "4")))
    assert both["difference"].values == pytest.approx((0.0, 1.0))
    assert sorted(both["cells"]) == pytest.approx([-0.5, 1.5])
    assert one["difference"].values == pytest.approx((1.0, 2.0))
    assert (nothing["cells"], nothing["difference"], nothing["verdict"]) == ([], None, "")
    # The claims of a sweep are corrected together.
    assert one["holm"] == pytest.approx(2 * one["difference"].p_value)
    assert both["holm"] == pytest.approx(max(one["holm"], both["difference"].p_value))


def test_a_claim_pairs_rows_of_one_setting(tmp_path: Path) -> None:
    rows = {
        (f"regularizer={name}", "data=folder", f"data.root={data}"): [base + gain, base + gain + 0.1]
        for data, base in (("cats", 90.0), ("dogs", 60.0))
        for name, gain in (("none", 0.0), ("dropblock", 1.0))
    }
    claim = ClaimConfig("DropBlock beats none", "regularizer", "dropblock", "none")
    (answer,) = answers(asking(read_sweep(grid(tmp_path, rows)), claim))
    assert answer["cells"] == pytest.approx([1.0, 1.0])


def test_a_claim_pairs_rows_that_differ_in_nothing_else(tmp_path: Path) -> None:
    divisor = "regularizer.dropblock.layer.group_divisor"
    rows = [(f"block_size={block}", f"{divisor}={value}") for block, value in ((3, 4), (1, 4), (1, 2))]
    rows.append(("block_size=3", f"{divisor}=4", "label_smoothing=0.1"))
    claim = ClaimConfig("block 3 beats block 1", "block_size", "3", "1")
    (answer,) = answers(asking(read_sweep(grid(tmp_path / "blocks", {row: [80.0] for row in rows})), claim))
    assert len(answer["cells"]) == 1
    limits = ("schedule=late", "schedule_start=0.5"), ("schedule=linear",)  # a limit goes with its schedule
    claim = ClaimConfig("linear beats late", "schedule", "linear", "late")
    (answer,) = answers(asking(read_sweep(grid(tmp_path / "schedules", {row: [80.0] for row in limits})), claim))
    assert len(answer["cells"]) == 1


def test_a_claim_is_about_every_block_size_that_a_row_stands_for(tmp_path: Path) -> None:
    """Blocks 4 and 7 are one computation on a map of 4 x 4."""
    for block in (3, 4, 7):
        plan = plan_of("regularizer=dropblock", "groups=[4]", f"block_size={block}")
        run = write_run(tmp_path, plan, 80.0 + (block == 3), epochs=5)
        site = {"group": 4, "map_sizes": [[16, 4, 4]], "block": [min(block, 4)] * 2}
        (run / "sites.json").write_text(json.dumps([site]))
        folder = note(tmp_path, plan, run)
    claim = ClaimConfig("block 7 beats block 3", "block_size", "7", "3")
    (answer,) = answers(asking(read_sweep(folder), claim))
    assert answer["cells"] == pytest.approx([-1.0])


def test_a_pair_of_rows_is_one_cell(tmp_path: Path) -> None:
    """Blocks 4 and 7 are one row in group 4 and two rows in groups 3 and 4."""
    for groups, skip, blocks in (("[4]", "false", (4, 7)), ("[4]", "true", (4, 7)), ("[3,4]", "false", (4, 7))):
        for block in blocks:
            plan = plan_of("regularizer=dropblock", f"groups={groups}", f"skip={skip}", f"block_size={block}")
            run = write_run(tmp_path, plan, 80.0 + (skip == "true") + (groups == "[3,4]") * block, epochs=5)
            if groups == "[4]":
                (run / "sites.json").write_text(json.dumps([{"group": 4, "map_sizes": [[16, 4, 4]], "block": [4, 4]}]))
            folder = note(tmp_path, plan, run)
    skip = ClaimConfig("skip beats conv", "skip", "True", "False")
    at_block_7 = replace(GROUPS, where={"block_size": "7"})
    found = answers(asking(read_sweep(folder), skip, GROUPS, at_block_7))
    assert [answer["cells"] for answer in found] == [[1.0], [4.0], [7.0]]
