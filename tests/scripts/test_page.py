"""The page of a report, what a sweep declares for it, and runs compared without a sweep."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from configs.checking import UserError
from configs.paper import ClaimConfig, StudyConfig
from scripts import compare
from scripts.report import main
from scripts.reporting.comparison import answers, lines_of
from scripts.reporting.dots import WIDTH, Scale, dots
from scripts.reporting.page import plain_table
from scripts.reporting.reading import read_runs, read_sweep, study_of
from scripts.reporting.statistics import Difference, Spread
from scripts.reporting.sweep import Sweep
from scripts.reporting.tables import markdown_table
from scripts.reporting.text import choice_of_keep_prob
from tests.scripts.made_up_sweep import note, plan_of, write_run

VALUES = {"none": (80.0, 80.4, 80.2, 79.9), "dropblock": (81.1, 81.3, 81.3, 80.8), "dropout": (79.0, 81.5, 80.3, 80.1)}


class Tags(HTMLParser):
    """Counts tags, and fails where one is not closed."""

    VOID = ("meta", "br", "img", "rect", "line")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def a_sweep(root: Path, *words: str, values: dict[str, tuple[float, ...]] = VALUES) -> Path:
    folder = root
    for name, row in values.items():
        for seed, top1 in enumerate(row, start=1):
            plan = replace(plan_of(f"regularizer={name}", *words), seed=seed)
            folder = note(root, plan, write_run(root, plan, top1, epochs=5))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = a_sweep(tmp_path_factory.mktemp("page"), "data=digits")
    assert main([f"sweep={made}"]) == 0
    return made


def test_the_page_needs_nothing_else(folder: Path) -> None:
    text = (folder / "report.html").read_text()
    tags = Tags(text)
    assert tags.open == []
    assert not re.search(r"(?:src|href)=\"(?!data:)|https?://|@import|url\(", text)
    pictures = re.findall(r'src="data:image/png;base64,[A-Za-z0-9+/=]{1000,}"', text)
    assert len(pictures) == len(list(folder.glob("*.png"))) == 2
    assert tags.seen.count("circle") == 2 * 4  # a dot a seed of every row that has a difference
    for word in ("better", "not resolved", "test loss", "seeds 1, 2, 3, 4", "paired t test"):
        assert word in text


def test_page_csv_and_markdown_say_the_same(folder: Path) -> None:
    rows = list(csv.DictReader((folder / "report.csv").read_text().splitlines()))
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert [row["verdict"] for row in rows] == ["", "not resolved", "better"]
    for row in rows[1:]:
        mean, low, high = (float(row[f"difference{end}"]) for end in ("", "_low", "_high"))
        shown = f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"
        assert shown in page
        assert shown in text
    assert float(rows[0]["loss_mean"]) == pytest.approx(0.8)
    assert float(rows[2]["gap_mean"]) == pytest.approx(100 - 81, abs=4)
    assert rows[0]["parameters"] == "123456"


def test_the_drop_of_every_group_stands_beside_the_expected_one(folder: Path) -> None:
    page, text = (folder / "report.html").read_text(), (folder / "report.md").read_text()
    assert "| group3 2.31 % (2.32), group4 9.67 % (9.68) |" in text
    assert "group3 2.31 % (2.32)<br>group4 9.67 % (9.68)" in page
    assert "| group3 1.39 %, group4 5.80 % |" in text  # a drop that rises over five epochs: 0.6 of its end
    assert "group3 1.39 %<br>group4 5.80 %" in page
    for shown in (page, text):
        assert "dropped in the last epoch: measured (expected)" in shown
        assert "the mean of the schedule over the last epoch" in shown
        assert "0.9, not tuned" in shown


def test_the_papers_setting_is_no_matter_of_a_sweep_without_its_rows(folder: Path, tmp_path: Path) -> None:
    for name in ("report.html", "report.md"):
        assert "Deviations" not in (folder / name).read_text()
    plan = plan_of("experiment=table1/baseline", "data=digits")
    beside = note(tmp_path, plan, write_run(tmp_path, plan, 80.0, epochs=1))
    assert main([str(beside)]) == 0
    for name in ("report.html", "report.md"):
        assert "Where the paper does not state a value" in (beside / name).read_text()
        assert "None" not in (beside / name).read_text()  # top-5, which the paper has and these runs do not


def test_tensorboard_gets_the_mean_over_the_seeds(folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (place,) = [path for path in (folder / "tensorboard").iterdir() if path.name.startswith("DropBlock")]
    events = EventAccumulator(str(place)).Reload().Scalars("test/top1")
    assert events[-1].step == 50  # optimizer steps, as those of the runs
    assert events[-1].value == pytest.approx(sum(VALUES["dropblock"]) / 4 - 30 * math.exp(-5), abs=1e-4)


def test_what_one_computation_gives_is_one_row(tmp_path: Path) -> None:
    for block in (3, 4, 7):
        for seed in (1, 2):
            plan = plan_of("regularizer=dropblock", "groups=[4]", f"block_size={block}", f"seed={seed}")
            run = write_run(tmp_path, plan, 80.0 + (block == 3))
            site = {"group": 4, "map_sizes": [[16, 4, 4]], "block": [min(block, 4)] * 2, "clamped": block > 4}
            (run / "sites.json").write_text(json.dumps([site]))
            folder = note(tmp_path, plan, run)
    sweep = read_sweep(folder)
    assert [(row.knob("block_size"), row.same, row.seeds) for row in sweep.rows] == [(3, [], [1, 2]), (4, [7], [1, 2])]
    assert "block 4 (= 7)" in sweep.label(sweep.rows[1])
    claim = ClaimConfig("block 7 beats block 3", "block_size", "7", "3")  # of the runs that block 4 stands for
    assert answers(replace(sweep, study=StudyConfig(claims=[claim])))[0].cells == (-1.0,)
    # Compared without a sweep, in the other order: the first is still what the others are compared with.
    runs = [row.runs[0].folder.path for row in sweep.rows]
    seven = next(tmp_path.glob("place/*b7*/seed-1"))
    compared = read_runs([seven, *runs])
    assert compared.compared_to is compared.rows[0]
    assert compared.rows[0].same == [7]


def test_a_claim_pairs_rows_of_one_setting(tmp_path: Path) -> None:
    for data, base in (("cats", 90.0), ("dogs", 60.0)):
        for name, gain in (("none", 0.0), ("dropblock", 1.0)):
            for seed in (1, 2):
                words = (f"regularizer={name}", "data=folder", f"data.root={data}", f"seed={seed}")
                plan = plan_of(*words)
                folder = note(tmp_path, plan, write_run(tmp_path, plan, base + gain + 0.1 * seed, epochs=5))
    claim = ClaimConfig("DropBlock beats none", "regularizer", "dropblock", "none")
    sweep = replace(read_sweep(folder), study=StudyConfig(claims=[claim]))
    assert answers(sweep)[0].cells == pytest.approx((1.0, 1.0))


def test_cells_of_tables_are_sorted_as_numbers_and_escaped() -> None:
    page_table = plain_table(["", "x"], [["a|b", Spread((9.4, 9.6))], ["c", Spread((84.0, 85.0))]])
    for value in ("9.5", "84.5"):  # numbers, so that 84.5 stands above 9.5
        assert f'data-value="{value}"' in page_table
    assert markdown_table(["", "x"], [["a|b", 1]]).splitlines()[2] == r"| a\|b | 1 |"


def test_runs_that_were_moved_aside_are_not_compared(tmp_path: Path) -> None:
    run = write_run(tmp_path, plan_of("regularizer=none", "seed=1"), 80.0)
    shutil.copytree(run, run.with_name("seed-1-old-1"))
    assert compare.runs_in(run.parent) == [run]


def claims(tmp_path: Path) -> Sweep:
    """Groups 3+4 against group 4 in two cells, blocks 3 and 4, with differences 1, 2 and -1, 0 over two seeds."""
    gains = {(3, 1): 1.0, (3, 2): 2.0, (4, 1): -1.0, (4, 2): 0.0}
    for (block, seed), gain in gains.items():
        for groups, more in (("[4]", 0.0), ("[3,4]", gain)):
            words = (f"groups={groups}", f"block_size={block}", f"seed={seed}")
            plan = plan_of("regularizer=dropblock", *words)
            folder = note(tmp_path, plan, write_run(tmp_path, plan, 80.0 + seed + more, epochs=5))
    return read_sweep(folder)


def test_a_claim_is_averaged_over_the_cells_that_it_covers(tmp_path: Path) -> None:
    sweep = claims(tmp_path)
    asked = (
        ClaimConfig("groups 3+4 beat group 4", "groups", "3+4", "4"),
        ClaimConfig("at block 3", "groups", "3+4", "4", {"block_size": "3"}),
        ClaimConfig("of nothing", "groups", "1", "4"),
    )
    sweep = replace(sweep, study=StudyConfig(claims=list(asked)))
    both, one, nothing = answers(sweep)
    assert both.difference is not None
    assert both.difference.values == pytest.approx((0.0, 1.0))
    assert sorted(both.cells) == pytest.approx([-0.5, 1.5])
    assert one.difference is not None
    assert one.difference.values == pytest.approx((1.0, 2.0))
    assert (nothing.cells, nothing.difference, nothing.word) == ((), None, "")


def test_the_sweep_files_declare_what_the_schema_knows() -> None:
    from configs.plan import choices

    for name in choices("sweep"):
        assert study_of(name).margin > 0
    assert study_of("no such sweep") == StudyConfig()


def test_made_up_images_stand_beside_nothing(tmp_path: Path) -> None:
    for name in ("baseline", "dropblock"):
        plan = plan_of(f"experiment=table1/{name}", "data=fake")
        folder = note(tmp_path, plan, write_run(tmp_path, plan, 80.0, epochs=1))
    assert main([str(folder)]) == 0
    text = (folder / "report.md").read_text()
    assert "Made-up images" in text
    assert "78.13" not in text + (folder / "report.html").read_text() + (folder / "report.csv").read_text()


def test_runs_are_compared_without_a_sweep(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {row.plan["regularizer"][0]: [run.folder.path for run in row.runs] for row in read_sweep(folder).rows}
    first = runs["dropblock"][0].parent  # all of its seeds
    assert compare.main([f"run={first}", *map(str, runs["none"][:2]), "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    (none,) = [line for line in text.splitlines() if line.startswith("| no regularizer | 2 |")]
    assert "-1.00" in none  # the mean of -1.1 and -0.9: the first is what others are compared with
    assert "**Differences are to: DropBlock, keep_prob 0.9, block 7.**" in text
    assert text.index("| DropBlock") < text.index("| no regularizer")
    alone = [str(runs[name][0]) for name in ("dropblock", "none")]
    assert compare.main(alone) == 0
    text = capsys.readouterr().out
    assert "seed 1;" in text
    for absent in ("Holm", "Smallest", "interval"):  # nothing is explained that is not shown
        assert absent not in text
    assert "not resolved, where there is no test" in text
    assert (tmp_path / "report.html").exists()
    assert compare.main([str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_runs_differ_by_configuration_not_by_place(tmp_path: Path) -> None:
    """As `run_dir=` leaves them: side by side in one directory."""
    places = []
    for place, name in (("one", "none"), ("two", "dropblock"), ("three", "dropblock")):
        run = write_run(tmp_path, plan_of(f"regularizer={name}"), 80.0, epochs=1)
        places.append(shutil.copytree(run, tmp_path / "chosen" / place))
    assert len(read_runs(places[:2]).rows) == 2
    with pytest.raises(UserError, match=r"chosen/three: the same configuration and seed as \S+chosen/two"):
        read_runs(places)


def test_the_pilots_of_another_setting_choose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Best on val: keep_prob 0.9 on these data, 0.8 on others; test would prefer 0.8 everywhere."""
    for data, best in (("digits", 0.9), ("fashion_mnist", 0.8)):
        for keep_prob in (0.8, 0.9):
            plan = plan_of("regularizer=dropblock", f"keep_prob={keep_prob}", f"data={data}", "seed=100")
            run = write_run(tmp_path, plan, 80.0, epochs=1)
            record = json.loads((run / "summary.json").read_text())
            record["last"] |= {"val/top1": 90.0 if keep_prob == best else 70.0, "test/top1": 80.0 - 10 * keep_prob}
            (run / "summary.json").write_text(json.dumps(record))
            note(tmp_path, plan, run).rename(tmp_path / "sweeps" / f"pilot-{data}-{keep_prob}")
    study = StudyConfig(keep_prob=[0.8, 0.9], pilot_seed=100, pilot_sweep="pilot")
    monkeypatch.setattr("scripts.reporting.reading.study_of", lambda _: study)
    sweep = read_sweep(a_sweep(tmp_path, "data=digits"))
    assert [(row.knob("keep_prob"), row.seeds) for row in sweep.pilots] == [(0.8, [100]), (0.9, [100])]
    assert 100 not in {run.seed for run in sweep.runs}
    row = next(row for row in sweep.rows if row.plan["regularizer"] == ["dropblock"])
    assert choice_of_keep_prob(sweep, row) == "0.9, on val from 0.8, 0.9 (seed 100)"
    sweep.pilots[0].runs[0].summary["last"]["val/top1"] = 95.0
    assert choice_of_keep_prob(sweep, row).endswith("; val prefers 0.8")
    other = next(row for row in sweep.rows if row.plan["regularizer"] == ["dropout"])
    assert choice_of_keep_prob(sweep, other) == "0.7, as the sweep has it"
    study.keep_prob.append(0.7)
    assert choice_of_keep_prob(sweep, other) == "0.7, without a pilot of its own"
    alone = replace(sweep, pilots=[])
    assert choice_of_keep_prob(alone, row) == "0.9 of 0.8, 0.9, 0.7; the runs that chose are not here"


def test_runs_of_different_tasks_have_no_common_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for seed, headline in ((1, "top1"), (2, "miou")):
        path = write_run(tmp_path, plan_of("regularizer=none", f"seed={seed}"), 80.0, epochs=1)
        record = json.loads((path / "summary.json").read_text())
        (path / "summary.json").write_text(json.dumps({**record, "headline": headline}))
        paths.append(str(path))
    assert compare.main(paths) == 2
    assert "no common table" in capsys.readouterr().err


def test_a_report_speaks_of_the_metric_of_its_task(tmp_path: Path) -> None:
    for name, miou in (("none", 40.0), ("dropblock", 42.0)):
        plan = plan_of(f"regularizer={name}")
        path = write_run(tmp_path, plan, 80.0, epochs=2)
        record = json.loads((path / "summary.json").read_text())
        record |= {"headline": "miou", "metric_labels": {"miou": "mean IoU over 11 classes (%)"}}
        record["last"] = record["peak"] = {"test/miou": miou}
        (path / "summary.json").write_text(json.dumps(record))
        folder = note(tmp_path, plan, path)
    assert main([str(folder)]) == 0
    assert "mean IoU over 11 classes (%) on the test set" in (folder / "report.md").read_text()
    assert "top-1" not in (folder / "report.md").read_text()
    assert "+2.00" in (folder / "report.html").read_text()


def with_classes(root: Path, name: str, seed: int, values: dict[str, float | None]) -> Path:
    plan = plan_of(f"regularizer={name}", f"seed={seed}")
    path = write_run(root, plan, 80.0, epochs=1)
    record = json.loads((path / "summary.json").read_text())
    rows = [[key, value, 10] for key, value in values.items()]
    record["tables"] = [{"name": "classes", "header": ["class", "IoU (%)", "pixels"], "rows": rows}]
    (path / "summary.json").write_text(json.dumps(record))
    return note(root, plan, path)


def test_each_class_over_the_seeds(tmp_path: Path) -> None:
    for seed, iou in ((1, 60.0), (2, 62.0)):
        with_classes(tmp_path, "none", seed, {"road": iou, "pole": None})
        folder = with_classes(tmp_path, "dropblock", seed, {"road": iou + 1, "pole": 7.0 if seed == 1 else None})
    assert main([str(folder)]) == 0
    text, page = (folder / "report.md").read_text(), (folder / "report.html").read_text()
    assert "| road | 61.00 ± 1.41 | 62.00 ± 1.41 |" in text
    assert "| pole |  | 7.00 |" in text
    assert "61.00 ± 1.41" in page[page.index("Each class") :]
    with_classes(tmp_path, "dropout", 1, {"another": 1.0})  # rows of other classes have no common table
    assert main([str(folder)]) == 0
    assert "Each class" not in (folder / "report.md").read_text()


def test_dots_stay_on_their_scale() -> None:
    differences = [Difference((0.1, 5.0), (1, 2)), Difference((-0.2, 0.3), (1, 2)), None]
    scale = Scale.of(differences, 0.5)
    for difference in differences[:2]:
        assert difference is not None
        for place in map(float, re.findall(r'(?:cx|x1|x2|x)="([-\d.]+)"', dots(difference, scale, "#123456"))):
            assert 0 <= place <= WIDTH
    assert scale.x(0.1) < scale.x(5.0)


def test_the_rows_of_a_report_are_corrected_together(folder: Path) -> None:
    lines = lines_of(read_sweep(folder))
    raw = [line.difference.p_value for line in lines if line.difference]
    assert lines[2].adjusted == pytest.approx(2 * min(p for p in raw if p is not None))
