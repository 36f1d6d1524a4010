"""The files of a report: numbers of the page, the Markdown and the CSV files, and what each says of unusual sweeps."""

from __future__ import annotations

import csv
import html
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from configs.evaluation import EvaluationConfig
from engine.run_directory import RunDirectory
from experiment import evaluation
from scripts import compare as compare_script
from scripts.report import main
from scripts.reporting.beside import columns_of, trained_on
from scripts.reporting.compare import compare
from scripts.reporting.report import DOTS_WIDTH, at_sites, content_of, legend, page, rendered, setting_text
from scripts.reporting.runs import read_runs, read_sweep
from scripts.reporting.statistics import Difference, Spread
from scripts.reporting.tables import beside_accuracy, markdown_table, table_of
from tests.scripts.made_up_sweep import grid, made_up, note, plan_of, recorded, write_run

NONE, DROPOUT = ("regularizer=none",), ("regularizer=dropout",)


def rows_of(folder: Path, name: str = "report.csv") -> list[dict[str, str]]:
    return list(csv.DictReader((folder / name).read_text().splitlines()))


def titles_of(folder: Path) -> list[str]:
    """The titles of the Markdown's tables, all of which the page has as well."""
    titles = [line[3:] for line in (folder / "report.md").read_text().splitlines() if line.startswith("## ")]
    text = html.unescape((folder / "report.html").read_text())
    assert [title for title in titles if f"<h2>{title}</h2>" not in text] == []
    return titles


class Page(HTMLParser):
    """A page as its tags and the cells of its tables; fails where a tag is not closed."""

    VOID = ("meta", "br", "img", "rect", "line", "polygon")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.values: list[str | None] = []  # what the cells sort by
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("th", "td"):
            self.tables[-1][-1].append("")
        if tag == "td":
            self.values.append(dict(attrs)["data-value"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if {"td", "th"} & {*self.open} and "svg" not in self.open:
            self.tables[-1][-1][-1] += data.strip()


# Numbers.


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
    assert cutout[3:] == ["93.21 ± 0.04", "read from an image of the table |"]  # these runs have no top-5
    assert "top5, paper" in part


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


# The page.


def test_the_page_needs_nothing_else(four_seeds: Path) -> None:
    text = (four_seeds / "report.html").read_text()
    tags = Page(text).tags
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://|@import|url\(", text)
    pictures = re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}"', text)
    assert len(pictures) == len(list(four_seeds.glob("*.png"))) == 2
    assert [tag for tag, _ in tags].count("circle") == 2 * 4  # a dot a seed of every row that has a difference


def test_page_csv_and_markdown_say_the_same(four_seeds: Path) -> None:
    rows = rows_of(four_seeds)
    shown = Page((four_seeds / "report.html").read_text()).tables[0]
    text = (four_seeds / "report.md").read_text()
    assert [row["verdict"] for row in rows] == ["", "not resolved", "better"]
    verdicts = shown[0].index("verdict")
    assert [line[verdicts] for line in shown[1:]] == ["", "not resolved", "better"]
    assert [line[0] for line in shown[1:]] == [row["label"] for row in rows]
    for row, line in zip(rows[1:], shown[2:], strict=True):
        mean, low, high = (float(row[f"difference{end}"]) for end in ("", "_low", "_high"))
        expected = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        assert expected in line
        assert expected in text
    assert float(rows[0]["loss_mean"]) == pytest.approx(0.8)
    assert float(rows[2]["gap_mean"]) == pytest.approx(100 - 81, abs=4)
    assert rows[0]["parameters"] == "123456"


def test_both_formats_have_the_same_tables(table1: Path) -> None:
    """Cell by cell; the page shows seeds below n, and folds lists and intervals into lines."""
    titles_of(table1)
    tables = [block for block in (table1 / "report.md").read_text().split("\n\n") if block.startswith("|")]
    shown = Page((table1 / "report.html").read_text()).tables
    assert len(tables) == len(shown)
    for block, table in zip(tables, shown, strict=True):
        lines = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in block.splitlines() if "--" not in line]
        for line, cells in zip(lines, table, strict=True):
            for text, cell in zip(line, cells, strict=True):
                text = text.strip().replace(", group", "group").replace(" [", "[")
                assert cell.removesuffix("seeds 1 2 3").replace(" [", "[") == (text or cell)


def test_a_table_says_what_may_be_concluded(four_seeds: Path) -> None:
    text = (four_seeds / "report.md").read_text()
    assert "Better than the baseline: DropBlock, keep_prob 0.9, block 7. Not resolved, so neither a difference" in text
    assert "With 4 seeds a true difference of 1.7 points is found in 80 % of such experiments. 1 point takes 7" in text


def test_seeds_that_resolve_nothing_are_named_as_too_few(tmp_path: Path) -> None:
    folder = grid(tmp_path, {NONE: [60.0, 70.0], DROPOUT: [70.0, 65.0]})
    text = content_of(read_sweep(folder))["results"]["note"]
    assert "shown: dropout, keep_prob 0.7. 2 seeds are too few to resolve any difference here. 1 point takes" in text
    assert "seeds, 0.5 points more than 999 seeds." in text


def test_a_sweep_without_limitations_says_where_its_layers_sat(four_seeds: Path) -> None:
    sweep = read_sweep(four_seeds)
    (row,) = (row for row in sweep.rows if "dropblock" in row["regularizer"])
    site = {"layer": "DropBlock2d", "group": 4, "block": [4, 4], "map_sizes": [[64, 4, 4]], "note": "basic block: ours"}
    row["sites"] = [site, {**site, "group": 3, "map_sizes": [[32, 8, 8]]}]
    compare(sweep)
    assert at_sites(sweep) == [
        "Basic block: ours.",
        "A block is the whole map, as in SpatialDropout: DropBlock, keep_prob 0.9, block 7, group 4.",
    ]


def test_the_drop_of_every_group_stands_beside_the_expected_one(four_seeds: Path) -> None:
    text = (four_seeds / "report.md").read_text()
    assert "| group3 2.31 % (2.32), group4 9.67 % (9.68) |" in text
    assert "| group3 1.39 %, group4 5.80 % |" in text  # a drop that rises over five epochs: 0.6 of its end
    assert "group3 2.31 % (2.32)<br>group4 9.67 % (9.68)" in (four_seeds / "report.html").read_text()
    assert rows_of(four_seeds)[2]["keep_prob_choice"] == "0.9, not tuned"


def test_cells_of_tables_are_sorted_as_numbers_and_escaped(four_seeds: Path) -> None:
    assert markdown_table(["", "x"], [["a|b", 1]]).splitlines()[2] == r"| a\|b | 1 |"
    content = content_of(read_sweep(four_seeds))
    content["tables"] = [table_of("<title>", ["", "x"], [["<b>", Spread((9.4, 9.6))], ["c", Spread((84.0, 85.0))]])]
    made = Page(page(content, four_seeds))
    assert made.tables[1][1] == ["<b>", "9.50 ± 0.14"]
    assert made.values[-3::2] == ["9.5", "84.5"]  # numbers, so that 84.5 stands above 9.5


def test_dots_stay_on_their_scale(four_seeds: Path) -> None:
    """Also of an interval of which one end is far away."""
    content = content_of(read_sweep(four_seeds))
    content["results"]["rows"][1][3]["dots"] = Difference((0.1, 5.0), (1, 2))
    drawn = [attrs for tag, attrs in Page(page(content, four_seeds)).tags if tag in ("circle", "line", "rect")]
    places = [float(attrs[key] or "") for attrs in drawn for key in ("cx", "x1", "x2", "x") if key in attrs]
    assert len(places) >= 20
    assert all(0 <= place <= DOTS_WIDTH for place in places)
    arrows = [attrs["points"] for tag, attrs in Page(page(content, four_seeds)).tags if tag == "polygon"]
    assert [float((arrow or "").split(",")[0]) for arrow in arrows] == [0, DOTS_WIDTH]  # both ends go on
    near, far = [float(attrs["cx"] or "") for attrs in drawn if "cx" in attrs][:2]
    assert near < far


def test_a_value_that_is_missing_is_an_error(four_seeds: Path) -> None:
    from jinja2 import UndefinedError

    content = content_of(read_sweep(four_seeds))
    del content["legend"]
    with pytest.raises(UndefinedError, match="legend"):
        rendered("report.md.j2", content)
    with pytest.raises(UndefinedError, match="legend"):
        page(content, four_seeds)


# What is shown, and what is not.


def test_deviations_are_listed_beside_rows_of_the_paper_alone(four_seeds: Path, table1: Path) -> None:
    title = "Deviations from the paper's setting"
    assert title not in titles_of(four_seeds)
    assert title in titles_of(table1)
    assert "None" not in (table1 / "report.md").read_text()  # top-5, which the paper has and these runs do not


def test_nothing_is_explained_that_is_not_shown(tmp_path: Path) -> None:
    def words(folder: Path) -> str:
        return " ".join(legend(compare(read_sweep(folder))))

    folder = grid(tmp_path / "a", {NONE: [80.0, 80.1, 80.2], DROPOUT: [80.5, 80.6, 80.9]})
    shown = words(folder)
    assert all(f"*{column}*" in shown for column in ("Difference", "Holm p", "Smallest difference", "Verdict"))
    assert "different seeds" not in words(folder)
    next((folder / "runs").glob("*dropout*seed-3.json")).unlink()
    assert "different seeds" in words(folder)
    alone = grid(tmp_path / "b", {("block_size=3",): [80.0], ("block_size=7",): [80.5]})
    assert "*Difference*" not in words(alone)
    assert "No row without a regularizer" in words(alone)
    apart = [write_run(tmp_path / "c", replace(plan_of(*of), seed=i), 80.0, 5) for i, of in enumerate((NONE, DROPOUT))]
    assert "No seed that two rows have" in " ".join(legend(compare(read_runs(apart))))


def test_made_up_images_stand_beside_nothing(tmp_path: Path) -> None:
    rows = {(f"experiment=table1/{name}", "data=fake"): [80.0] for name in ("baseline", "dropblock")}
    folder = grid(tmp_path, rows, epochs=1)
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "Made-up images" in text
    assert "78.13" not in text + (folder / "report.html").read_text() + (folder / "report.csv").read_text()


def test_images_that_were_left_out_are_counted_once(tmp_path: Path) -> None:
    folder = grid(tmp_path, {NONE: [80.0, 80.4]})
    assert "bad_images" not in setting_text(read_sweep(folder))
    for run in read_sweep(folder).runs:
        recorded(run["path"], bad_images={"cat/03.JPEG": "cannot be read"})
    assert "1 image " in setting_text(read_sweep(folder))


def test_a_report_speaks_of_the_metric_of_its_task(tmp_path: Path) -> None:
    for name, miou in (("none", 40.0), ("dropblock", 42.0)):
        plan, metric = plan_of(f"regularizer={name}"), {"test/miou": miou}
        labels = {"miou": "mean IoU over 11 classes (%)"}
        run = recorded(
            write_run(tmp_path, plan, 80.0, 2), headline="miou", metric_labels=labels, last=metric, peak=metric
        )
        folder = note(tmp_path, plan, run)
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "mean IoU over 11 classes (%)" in text
    assert "top-1" not in text
    assert "+2.00" in (folder / "report.html").read_text()


def test_each_class_over_the_seeds(tmp_path: Path) -> None:
    def sweep(**of_rows: list[dict[str, float | None]]) -> Path:
        for name, runs in of_rows.items():
            for seed, classes in enumerate(runs, start=1):
                plan = plan_of(f"regularizer={name}", f"seed={seed}")
                lines = [[key, value, 10] for key, value in classes.items()]
                tables = [{"name": "classes", "header": ["class", "IoU (%)", "pixels"], "rows": lines}]
                folder = note(tmp_path, plan, recorded(write_run(tmp_path, plan, 80.0, 1), tables=tables))
        return folder

    plain = [{"road": 60.0, "pole": None}, {"road": 62.0, "pole": None}]
    folder = sweep(none=plain, dropblock=[{"road": 61.0, "pole": 7.0}, {"road": 63.0, "pole": None}])
    assert main([str(folder)]) == 0
    assert "Each class" in titles_of(folder)
    text = (folder / "report.md").read_text()
    assert "| road | 61.00 ± 1.41 | 62.00 ± 1.41 |" in text
    assert "| pole |  | 7.00 |" in text
    sweep(dropout=[{"another": 1.0}])  # rows of other classes have no common table
    assert main([str(folder)]) == 0
    assert "Each class" not in titles_of(folder)


def test_networks_of_a_library_and_maps_out_of_reach(tmp_path: Path) -> None:
    library = ("model=torchvision", "model.name=efficientnet_b0", "regularizer=dropblock")
    folder = grid(tmp_path, {(*library, f"block_size={size}"): [80.0] for size in (3, 7)})
    for run in read_sweep(folder).runs:
        lost = {"group": 3, "map_sizes": [], "block": None, "layer": "out of reach"}
        RunDirectory(run["path"]).write("sites.json", [*run["sites"], lost])
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "efficientnet_b0 on " in text
    assert "None" not in text
    assert (folder / "block_size.png").exists()


def test_an_earlier_report_is_gone(tmp_path: Path) -> None:
    folder = grid(tmp_path, {NONE: [80.0], DROPOUT: [80.5]})
    (folder / "claims.csv").write_text("of a claim that the sweep has no more\n")
    for name in ("keep_prob.png", "mine.png"):
        (folder / name).write_bytes(b"earlier")
    assert main([str(folder)]) == 0
    assert not (folder / "claims.csv").exists()
    assert not (folder / "keep_prob.png").exists()
    assert (folder / "mine.png").exists()


def test_a_report_goes_to_another_folder(tmp_path: Path) -> None:
    folder = made_up(tmp_path / "a", "fig4_block_size_small", seeds=1)
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    assert not (folder / "report.md").exists()
    text = (tmp_path / "out" / "report.md").read_text()
    assert "±" not in text.split("## Results")[1].split("mean ± sample")[0].replace("76.51 ± 0.07", "")  # n = 1
    assert "groups 3+4, conv+skip" in text
    assert (tmp_path / "out" / "block_size.png").exists()


# Evaluations, TensorBoard, drop at inference, runs without a sweep.


def test_corruptions_are_named_and_averaged_by_their_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan, numbers = plan_of("regularizer=autoaugment", "data=cifar10"), iter((10.0, 20.0, 30.0, 40.0))
    for name in ("corrupted", "corrupted_cifar"):
        monkeypatch.setattr(evaluation, name, lambda *_: None)
    finished: Any = SimpleNamespace(plan=plan, measured=lambda *_: SimpleNamespace(metrics={"top1": next(numbers)}))
    wanted: Any = EvaluationConfig(corruption=["brightness", "jpeg"], severity=[1], cifar10c="there")
    rows = evaluation.corruption_rows(finished, wanted, None, wanted, ["brightness", "fog"])
    both = {"both": {"top1": 50.0, "corrupted": rows}}
    expected = {
        "all corruptions": 15.0,
        "those that no augmentation has": 20.0,
        "brightness": 10.0,
        "jpeg": 20.0,
        "CIFAR-10-C all corruptions": 35.0,
        "CIFAR-10-C those that no augmentation has": 40.0,
        "CIFAR-10-C brightness": 30.0,
        "CIFAR-10-C fog": 40.0,
    }
    assert columns_of(both, "top1") == {f"both/{what}/top1": value for what, value in expected.items()}
    trained = ("brightness", "all corruptions")
    assert [what for what in expected if trained_on(both, what)] == [
        what for what in expected if what.removeprefix("CIFAR-10-C ") in trained
    ]

    # The note names the sources that are there. Older records have none, and are read as they are.
    def note_of(rows: list[dict[str, Any]]) -> str:
        run = write_run(tmp_path, plan, 80.0, 1)
        RunDirectory(run).write("evaluations.json", {"both": {"top1": 50.0, "corrupted": rows}})
        (table,) = beside_accuracy(compare(read_sweep(note(tmp_path, plan, run))))
        return str(table["note"])

    assert "Corruptions of this project and CIFAR-10-C, means" in note_of(rows)
    assert "Corruptions of CIFAR-10-C, means" in note_of(rows[2:])
    older = [{key: value for key, value in row.items() if key != "source"} for row in rows[:2]]
    assert "Corruptions of this project, means" in note_of(older)
    assert columns_of({"both": {"top1": 50.0, "corrupted": older}}, "top1") == columns_of(
        {"both": {"top1": 50.0, "corrupted": rows[:2]}}, "top1"
    )


def test_tensorboard_gets_the_mean_over_the_seeds(four_seeds: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = [path for path in (four_seeds / "tensorboard").iterdir() if path.name.startswith("DropBlock")]
    events = EventAccumulator(str(place)).Reload().Scalars("test/top1")
    assert events[-1].step == 50  # optimizer steps, as those of the runs
    runs = [run for run in rows_of(four_seeds, "runs.csv") if run["regularizer"] == "dropblock"]
    assert events[-1].value == pytest.approx(statistics.fmean(float(run["last_test"]) for run in runs), abs=1e-4)


def test_drop_at_inference_is_a_table_and_a_picture(tmp_path: Path) -> None:
    folder = made_up(tmp_path, "fig5_inference", seeds=2)
    for run in read_sweep(folder).runs:
        points = [{"keep_prob": kp, "block_size": b, "top1": 80 * kp, "loss": 1.0} for b in (1, 7) for kp in (1.0, 0.5)]
        RunDirectory(run["path"]).write("under_drop.json", {"under_drop": points})
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "| DropBlock, keep_prob 0.9, block 7 | 7 | 80.00 ± 0.00 | 40.00 ± 0.00 |" in text
    assert len(rows_of(folder, "under_drop.csv")) == 3 * 2 * 4
    assert "Under drop at inference" in titles_of(folder)
    assert (folder / "under_drop.png").exists()


def test_runs_are_compared_without_a_sweep(
    four_seeds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = read_sweep(four_seeds).rows
    runs = {row["regularizer"][0]: [run["path"] for run in row["runs"]] for row in rows}
    first = runs["dropblock"][0].parent  # all of its seeds
    assert compare_script.main([f"run={first}", *map(str, runs["none"][:2]), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    (none,) = [line for line in text.splitlines() if line.startswith("| no regularizer | 2 |")]
    assert "-1.00" in none  # the mean of -1.1 and -0.9: the first is what others are compared with
    assert "**Differences are to: DropBlock, keep_prob 0.9, block 7.**" in text
    assert text.index("| DropBlock") < text.index("| no regularizer")
    assert (tmp_path / "report.html").exists()
    assert compare_script.main([str(runs[name][0]) for name in ("dropblock", "none")]) == 0
    text = capsys.readouterr().out
    assert "seed 1;" in text
    for absent in ("Holm", "Smallest", "interval"):  # a single pair has no test
        assert absent not in text
    assert compare_script.main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_results_of_older_code_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = grid(tmp_path, {NONE: [80.0, 81.0], DROPOUT: [82.0, 83.0]})
    change = (2, "another mask of the head", lambda plan: plan.layer is not None)
    monkeypatch.setattr("configs.plan.REVISIONS", [change])
    (sentence,) = content_of(read_sweep(folder))["limitations"]
    assert "another mask of the head" in sentence
    assert "dropout" in sentence
    assert "no regularizer" not in sentence
    monkeypatch.setattr("configs.plan.REVISIONS", [])
    assert content_of(read_sweep(folder))["limitations"] == []
