"""The report: its numbers, its order, what it says of what is missing, and that its pictures are drawn."""

from __future__ import annotations

import csv
import html
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from configs.checking import load_yaml
from scripts.report import main, write_report
from scripts.reporting.comparison import best_on_val, difference
from scripts.reporting.reading import read_sweep
from scripts.reporting.setting import deviations
from tests.scripts.made_up_sweep import jobs, made_up, note, plan_of, write_run


def rows_of(folder: Path, name: str = "report.csv") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / name).read_text().splitlines()))


def titles_of(folder: Path) -> list[str]:
    """The titles of the Markdown's tables, all of which the page has as well."""
    titles = [line[3:] for line in (folder / "report.md").read_text().splitlines() if line.startswith("## ")]
    page = html.unescape((folder / "report.html").read_text())
    assert [title for title in titles if f"<h2>{title}</h2>" not in page] == []
    return titles


@pytest.fixture(scope="module")
def table1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = made_up(tmp_path_factory.mktemp("table1"), "table1")
    assert main([str(folder)]) == 0
    return folder


def test_rows_stand_in_the_papers_order_beside_its_numbers(table1: Path) -> None:
    rows = rows_of(table1)
    assert [row["paper_mean"] for row in rows] == (
        ["76.51", "76.8", "77.1", "77.41", "76.52", "77.63", "77.17", "78.13", "78.35"]
    )
    assert [row["paper_place"] for row in rows] == [f"Table 1, row {i}" for i in range(1, 10)]
    text = (table1 / "report.md").read_text()
    assert "27 runs done." in text
    assert "; cpu (AVX2), " in text
    dropblock = next(line for line in text.splitlines() if line.startswith("| DropBlock, keep_prob 0.9, block 7"))
    assert "78.13 ± 0.05 | +1.62" in dropblock
    assert "76.51 ± 0.07" in next(line for line in text.splitlines() if line.startswith("| no regularizer"))
    assert "77.63 | +1.12" in text  # AutoAugment has no deviation in the paper


def test_every_metric_of_the_paper_stands_beside_ours_with_where_it_was_read(table1: Path) -> None:
    part = (table1 / "report.md").read_text().split("## Beside the paper")[1].split("\n## ")[0]
    cutout = next(line for line in part.splitlines() if line.startswith("| Cutout")).split(" | ")
    ours = next(row for row in rows_of(table1) if row["experiment"] == "table1/cutout")
    assert cutout[1].startswith(f"{float(ours['last_test_mean']):.2f}")
    assert cutout[2] == "76.52 ± 0.07"
    assert cutout[4:] == ["93.21 ± 0.04", "read from an image of the table |"]


def test_means_and_deviations_are_those_of_the_runs(table1: Path) -> None:
    runs = rows_of(table1, "runs.csv")
    assert len(runs) == 27
    for row in rows_of(table1):
        for which in ("last_test", "peak_test", "last_val"):
            values = [float(run[which]) for run in runs if run["experiment"] == row["experiment"]]
            assert len(values) == int(row["n"]) == 3
            assert float(row[f"{which}_mean"]) == pytest.approx(statistics.fmean(values), abs=1e-3)
            assert float(row[f"{which}_std"]) == pytest.approx(statistics.stdev(values), abs=1e-3)
        assert float(row["peak_test_mean"]) >= float(row["last_test_mean"])


def test_differences_to_the_baseline_are_taken_seed_by_seed(table1: Path) -> None:
    runs = rows_of(table1, "runs.csv")
    by = {(run["experiment"], run["seed"]): float(run["last_test"]) for run in runs}
    gains = [by["table1/cutout", seed] - by["table1/baseline", seed] for seed in "123"]
    mean, reach = statistics.fmean(gains), 4.3027 * statistics.stdev(gains) / 3**0.5  # t of 2 degrees, from a table
    expected = f"{mean:+.2f} [{mean - reach:+.2f}, {mean + reach:+.2f}]"
    assert expected in next(line for line in (table1 / "report.md").read_text().splitlines() if "| Cutout" in line)
    (kept,) = [row for row in rows_of(table1) if row["experiment"] == "table1/cutout"]
    assert float(kept["difference"]) == pytest.approx(mean, abs=1e-4)
    assert float(kept["difference_low"]) == pytest.approx(mean - reach, abs=1e-3)
    assert [float(pair.split(":")[1]) for pair in kept["by_seed"].split()] == pytest.approx(gains, abs=1e-4)


def test_deviations_come_from_the_configuration(table1: Path) -> None:
    found = {what: (here, paper) for what, here, paper in deviations(read_sweep(table1))}
    assert found["data"] == ("fashion_mnist", "imagenet")
    assert found["training images"] == ("2000", "all")
    assert found["recipe.epochs"] == ("40", "270")
    assert found["recipe.milestones"] == ("none", "125, 200, 250")
    assert "recipe.nesterov" not in found  # the same in both
    assert "runs a row" not in found  # three, as in the paper


def test_the_papers_own_setting_deviates_in_nothing(tmp_path: Path) -> None:
    plan = plan_of("experiment=table1/dropblock", "data=imagenet", "recipe=imagenet_270")
    folder = note(tmp_path, plan, write_run(tmp_path, plan, 78.0))
    found = {what: (here, paper) for what, here, paper in deviations(read_sweep(folder))}
    assert found == {
        "runs a row": ("1", "3"),
        "micro-batch of a device, over which BatchNorm and DropBlock normalise": ("1024", "128 (a core)"),
    }


def test_pictures_are_drawn(table1: Path) -> None:
    for name in ("ranking.png", "curves.png"):
        assert f"({name})" in (table1 / "report.md").read_text()
        with Image.open(table1 / name) as image:
            assert min(image.size) > 300
            assert len(image.convert("RGB").resize((80, 60)).getcolors(4800)) > 20


def test_keep_prob_is_chosen_on_val_alone(tmp_path: Path) -> None:
    folder = made_up(tmp_path, "fig3_keep_prob", seeds=2)
    sweep = read_sweep(folder)
    lines = sweep.lines("keep_prob")
    assert [rows[0].experiment for rows in lines] == [
        f"fig3/{name}" for name in ("dropout", "spatial_dropout", "drop_path", "dropblock", "dropblock_constant")
    ]
    rows = lines[0]
    for i, row in enumerate(rows):  # the best on test is the worst on val
        for run in row.runs:
            run.summary["last"]["test/top1"], run.summary["last"]["val/top1"] = 80.0 + i, 90.0 - i
    assert best_on_val(rows) is rows[0]
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "keep_prob chosen on the validation split" in titles_of(folder)
    assert "0.9 (78.08)" in text  # DropBlock's best in the paper's figure
    assert "0.7 (76.80)" in text  # dropout's
    assert (folder / "keep_prob.png").exists()
    # The baseline has no keep_prob: its jobs meet in one run a seed.
    assert [row["n"] for row in rows_of(folder) if row["experiment"] == "fig3/baseline"] == ["2"]


def test_block_sizes_and_drop_at_inference_have_their_pictures(tmp_path: Path) -> None:
    folder = made_up(tmp_path / "a", "fig4_block_size_small", seeds=1)
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert (tmp_path / "out" / "block_size.png").exists()
    assert not (folder / "report.md").exists()
    assert "±" not in text.split("## Results")[1].split("mean ± sample")[0].replace("76.51 ± 0.07", "")  # n = 1
    assert "groups 3+4, conv+skip" in text

    folder = made_up(tmp_path / "b", "fig5_inference", seeds=2)
    for run in read_sweep(folder).runs:
        points = [{"keep_prob": kp, "block_size": b, "top1": 80 * kp, "loss": 1.0} for b in (1, 7) for kp in (1.0, 0.5)]
        run.folder.write("under_drop.json", {"under_drop": points})
    assert main([str(folder)]) == 0
    assert (
        "| DropBlock, keep_prob 0.9, block 7 | 7 | 80.00 ± 0.00 | 40.00 ± 0.00 |" in (folder / "report.md").read_text()
    )
    assert len(rows_of(folder, "under_drop.csv")) == 3 * 2 * 4
    assert "Under drop at inference" in titles_of(folder)


def test_what_is_missing_is_counted_and_named(tmp_path: Path) -> None:
    for words, seed, status in (
        (["experiment=table1/baseline"], 1, "DONE"),
        (["experiment=table1/baseline"], 2, "DONE"),
        (["experiment=table1/dropout"], 1, "DONE"),
        (["experiment=table1/dropblock"], 1, "FAILED"),
    ):
        plan = plan_of(*words, f"seed={seed}")
        run = write_run(tmp_path, plan, 80.0)
        if status == "FAILED":
            (run / "summary.json").unlink()
            (run / "status.json").write_text(json.dumps({"status": status}))
        folder = note(tmp_path, plan, run, status, "" if status == "DONE" else "the loss is not finite | step 3")
    torn = folder / "runs" / "torn.json"
    torn.write_text("{")
    (folder / "multirun.yaml").write_text(
        "hydra: {sweeper: {params: {experiment: 'table1/baseline,table1/dropout,table1/dropblock,table1/cutout'}}}\n"
    )
    sweep = read_sweep(folder)
    assert [(status, what.split(" ")[0]) for what, status, _ in sweep.lost] == [
        ("FAILED", "table1/dropblock"),
        ("UNREADABLE", "torn.json"),
        ("NOT RUN", "table1/dropout"),  # seed 2, which the baseline has
        ("NOT RUN", "table1/dropblock"),
        ("NOT RUN", "table1/cutout"),
        ("NOT RUN", "table1/cutout"),
    ]
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "3 runs done, 6 not (listed below)." in text
    assert r"the loss is not finite \| step 3" in text  # in a cell of a Markdown table


def test_values_in_another_form_and_directories_of_another_name_are_read(tmp_path: Path) -> None:
    for name, plan in (("a", plan_of("experiment=table1/baseline")), ("b", plan_of("experiment=table1/dropblock"))):
        run = write_run(tmp_path, plan, 80.0, epochs=1).rename(tmp_path / f"my run {name}")
        folder = note(tmp_path, plan, run)
    params = "{experiment: 'table1/baseline,table1/dropblock', keep_prob: 'choice(0.9,0.95)'}"
    (folder / "multirun.yaml").write_text(f"hydra: {{sweeper: {{params: {params}}}}}\n")
    assert main([str(folder)]) == 0
    assert "2 runs done." in (folder / "report.md").read_text()


def test_every_missing_point_of_a_figure_is_counted_once(tmp_path: Path) -> None:
    folder = made_up(tmp_path, "fig4_block_size_small", seeds=2)
    assert read_sweep(folder).lost == []
    runs = {
        (run.entry["experiment"], row.knob("block_size"), run.seed): run.folder.path
        for row in read_sweep(folder).rows
        for run in row.runs
    }
    stopped = runs["fig4/group4_conv_skip", 2, 2]
    (stopped / "summary.json").unlink()
    (stopped / "status.json").write_text(json.dumps({"status": "STOPPED"}))
    never = [("fig4/group4_conv_skip", 8, 1), ("fig4/group4_conv_skip", 8, 2), ("fig4/baseline", None, 2)]
    for point in never:
        (folder / "runs" / ("_".join(runs[point].parts[-3:]) + ".json")).unlink()
    assert sorted((status, what) for what, status, _ in read_sweep(folder).lost) == [
        ("NOT RUN", "fig4/baseline seed 2"),
        ("NOT RUN", "fig4/group4_conv_skip block_size=8 seed 1"),
        ("NOT RUN", "fig4/group4_conv_skip block_size=8 seed 2"),
        ("STOPPED", f"fig4/group4_conv_skip ({stopped.parent.name}/seed-2)"),
    ]


def test_the_words_of_the_command_replace_what_the_sweeps_file_asks_for(tmp_path: Path) -> None:
    folder = made_up(tmp_path, "fig3_keep_prob", seeds=1)
    for run in read_sweep(folder).runs:
        if (run.plan["layer"] or {}).get("keep_prob") not in (None, 0.8, 0.9):
            (folder / "runs" / ("_".join(run.folder.path.parts[-3:]) + ".json")).unlink()
    params = load_yaml(folder / "multirun.yaml")["hydra"]["sweeper"]
    words = ["+sweep=fig3_keep_prob", "keep_prob=0.8,0.9", "seed=1,2"]
    asked = {"hydra": {"sweeper": params, "overrides": {"task": words}}}
    (folder / "multirun.yaml").write_text(json.dumps(asked))
    missing = [what for what, _, _ in read_sweep(folder).lost]
    assert len(missing) == 1 + 5 * 2
    assert all(what.endswith("seed 2") for what in missing)


def test_the_lines_of_a_figure_differ_in_its_knob_alone(tmp_path: Path) -> None:
    for model in ("resnet18", "resnet50"):
        for regularizer in ("none", "dropout", "dropblock"):
            for block in (3, 7):
                for keep_prob in (0.8, 0.9):
                    words = [
                        f"model={model}",
                        f"regularizer={regularizer}",
                        f"block_size={block}",
                        f"keep_prob={keep_prob}",
                    ]
                    plan = plan_of(*words)
                    folder = note(tmp_path, plan, write_run(tmp_path / model, plan, 80.0))
    sweep = read_sweep(folder)
    for knob, count in (("keep_prob", 2 * 3), ("block_size", 2 * 2)):
        lines = sweep.lines(knob)
        assert len(lines) == count
        for rows in lines:
            assert len(rows) == 2
            assert len({str({**row.plan["layer"], knob: None}) + row.plan["model"]["name"] for row in rows}) == 1
        assert len({sweep.label(rows[0], without=knob) for rows in lines}) == count
    assert main([str(folder)]) == 0
    assert (folder / "block_size.png").exists()


def test_rows_that_differ_have_names_that_differ(tmp_path: Path) -> None:
    for words in (
        ["regularizer=cutout", "regularizer.cutout.input.cutout=0.25"],
        ["regularizer=cutout", "regularizer.cutout.input.cutout=0.5"],
        ["regularizer=[dropblock,drop_path]", "regularizer.drop_path.layer.keep_prob=0.8"],
        ["regularizer=[dropblock,drop_path]", "regularizer.drop_path.layer.keep_prob=0.9"],
    ):
        plan = plan_of(*words)
        folder = note(tmp_path, plan, write_run(tmp_path, plan, 80.0))
    sweep = read_sweep(folder)
    assert len(sweep.rows) == 4
    labels = [sweep.label(row) for row in sweep.rows]
    assert len(set(labels)) == 4, labels
    assert "DropBlock + DropPath, keep_prob 0.9, block 7, drop_path keep_prob 0.8" in labels


def test_a_difference_over_fewer_seeds_says_so(tmp_path: Path) -> None:
    for experiment, seeds in (("baseline", (1, 2)), ("dropout", (1, 2, 3)), ("cutout", (3,))):
        for seed in seeds:
            plan = plan_of(f"experiment=table1/{experiment}", f"seed={seed}")
            folder = note(tmp_path, plan, write_run(tmp_path, plan, 80.0 + (experiment == "dropout")))
    lines = write_report(read_sweep(folder), tmp_path / "out").read_text().splitlines()
    (dropout,) = [line.split("|") for line in lines if line.startswith("| dropout, keep_prob 0.7 | 3 |")]
    (cutout,) = [line.split("|") for line in lines if line.startswith("| Cutout | 1 |")]
    assert dropout[4].strip() == "+1.00 [+1.00, +1.00] (n = 2)"
    assert cutout[4].strip() == ""  # of seed 3, which the baseline does not have


def test_a_folder_that_moved_is_still_read(tmp_path: Path) -> None:
    plan = plan_of("experiment=table1/baseline")
    note(tmp_path / "before", plan, write_run(tmp_path / "before", plan, 80.0))
    (tmp_path / "before").rename(tmp_path / "after")
    assert len(read_sweep(tmp_path / "after" / "sweeps" / "made-up").runs) == 1


def test_a_plain_grid_is_reported_too(tmp_path: Path) -> None:
    for word in ("regularizer=none", "regularizer=drop_connect", "regularizer=[dropout,cutout]"):
        plan = plan_of(word)
        folder = note(tmp_path, plan, write_run(tmp_path, plan, 80.0))
    assert main([str(folder)]) == 0
    assert "| dropout + Cutout, keep_prob 0.7 | 1 |" in (folder / "report.md").read_text()


@pytest.mark.parametrize("make", [lambda folder: None, lambda folder: (folder / "runs").mkdir(parents=True)])
def test_a_folder_that_is_no_sweep_gets_one_line(
    tmp_path: Path, make: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "x")
    assert main([str(tmp_path / "x")]) == 2
    printed = capsys.readouterr().err.strip().splitlines()
    assert len(printed) == 1
    assert "no sweep" in printed[0]


def test_a_sweep_without_a_finished_run_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of("experiment=table1/baseline")
    folder = note(tmp_path, plan, tmp_path / "place" / "x" / "seed-1", "FAILED")
    assert main([str(folder)]) == 2
    assert "none of its 1 runs is finished" in capsys.readouterr().err


def test_jobs_are_those_of_the_sweeps_file() -> None:
    assert len(jobs("table1")) == 9
    assert len(jobs("fig3_keep_prob")) == 6 * 5


def test_rows_of_several_settings_are_compared_within_their_own(tmp_path: Path) -> None:
    for model, base in (("resnet18", 80.0), ("resnet50", 90.0)):
        for regularizer, gain in (("none", 0.0), ("dropblock", 1.0)):
            for seed in (1, 2):
                plan = plan_of(f"model={model}", f"regularizer={regularizer}", f"seed={seed}")
                folder = note(tmp_path, plan, write_run(tmp_path / model, plan, base + gain + seed / 10))
    sweep = read_sweep(folder)
    labels = [sweep.label(row) for row in sweep.rows]
    assert len(set(labels)) == 4
    for row in sweep.rows:
        found = difference(sweep, row)
        assert (found is None) == row.is_baseline
        assert found is None or found.mean == pytest.approx(1.0)
    assert sweep.baseline is None
    text = write_report(sweep, tmp_path / "out").read_text()
    assert "model.name" in text
    assert text.count("+1.00 [+1.00, +1.00]") >= 2


def test_label_smoothing_by_its_knob_is_no_baseline(tmp_path: Path) -> None:
    for smoothing, top1 in ((0.1, 85.0), (0.0, 80.0)):
        plan = plan_of("regularizer=none", f"label_smoothing={smoothing}")
        folder = note(tmp_path, plan, write_run(tmp_path, plan, top1))
    sweep = read_sweep(folder)
    assert sweep.baseline is not None
    assert sweep.baseline.spread("last").mean == pytest.approx(80.0, abs=0.3)
    assert len({sweep.label(row) for row in sweep.rows}) == 2
