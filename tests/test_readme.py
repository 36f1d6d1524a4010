"""What the README shows works: its code runs, its command lines are valid words, its pictures and pages are there."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.command_line import check_arguments
from dropblock import declared_sites
from dropblock.sites import map_sizes
from evaluate import read_request
from models import build_model
from scripts.bench import op, step
from scripts.drop_rates import markdown
from scripts.keep_results import marked, short
from scripts.reporting.findings import findings_table

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]


def text(page: str) -> str:
    return (ROOT / page).read_text()


def rows_of(benchmark: str) -> dict[str, Any]:
    """The rows of a benchmark's measured result, by their names."""
    measured = json.loads((ROOT / "docs" / "results" / f"{benchmark}.json").read_text())
    return {row["name"]: row for row in measured["rows"]}


def command_lines(program: str) -> list[tuple[str, str]]:
    pattern = rf"^\s*(?:\.venv/bin/)?python {re.escape(program)} +(.*)$"
    return [
        (page, line) for page in PAGES for line in re.findall(pattern, text(page), re.MULTILINE) if "..." not in line
    ]


@pytest.mark.parametrize(("page", "line"), command_lines("train.py"))
def test_training_commands_are_valid(page: str, line: str) -> None:
    check_arguments(shlex.split(line, comments=True))


@pytest.mark.parametrize(("page", "line"), command_lines("evaluate.py"))
def test_evaluation_commands_are_valid(page: str, line: str) -> None:
    read_request(shlex.split(line, comments=True))


@pytest.mark.parametrize("page", PAGES)
def test_links_inside_the_repository_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", text(page)):
        assert ((ROOT / page).parent / target).exists(), f"{page}: {target}"


def test_the_example_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", text("README.md"), re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), names)
    model, schedule = names["model"], names["schedule"]
    assert schedule.layers  # type: ignore[attr-defined]
    import torchvision

    keys = torchvision.models.resnet18(num_classes=10).state_dict().keys()
    assert model.state_dict().keys() == keys  # type: ignore[attr-defined]
    last = max(schedule.layers, key=lambda layer: layer.group)  # type: ignore[attr-defined]
    assert last.keep_prob.item() == pytest.approx(1 - 0.1 * 2 / 3)


def test_the_table_of_drop_rates_is_the_measured_one() -> None:
    assert markdown(json.loads((ROOT / "docs" / "results" / "drop_rates.json").read_text())) in text("README.md")


@pytest.mark.parametrize("name", sorted(path.parent.name for path in (ROOT / "docs/results").glob("*/report.csv")))
def test_the_tables_of_results_are_those_of_the_runs(name: str) -> None:
    report = text(f"docs/results/{name}/report.csv")
    shown = marked(name).search(text("README.md"))
    assert shown is None or shown[0].split("\n", 1)[1].removesuffix("\n<!-- end -->") == short(report)


def test_the_findings_are_those_of_the_results() -> None:
    shown = marked("findings").search(text("README.md"))
    assert shown is not None
    assert shown[0].split("\n", 1)[1].removesuffix("\n<!-- end -->") == findings_table(ROOT / "docs" / "results")


def test_the_numbers_of_figure_5_are_the_measured_ones() -> None:
    points = list(csv.DictReader(io.StringIO(text("docs/results/fig5_inference/under_drop.csv"))))
    for experiment, words in (
        ("fig5/dropblock_b7", "is right for {} % of the images"),
        ("fig5/dropblock_b1", "with block 1 for {} %"),
        ("fig5/baseline", "without a regularizer for {} %"),
    ):
        found = [
            float(point["top1"])
            for point in points
            if (point["experiment"], point["block_size"], point["keep_prob"]) == (experiment, "7", "0.7")
        ]
        assert len(found) == 3
        assert words.format(f"{sum(found) / 3:.2f}") in " ".join(text("README.md").split())


def test_the_speed_of_the_operator_is_the_measured_one() -> None:
    results = ROOT / "docs" / "results"
    measured = json.loads((results / "op_benchmark.json").read_text())
    assert op.short(measured) in text("README.md")
    assert op.short(measured) in text("docs/OP.md")
    assert op.markdown(measured) == text("docs/results/op_benchmark.md").strip()
    for shape in ("32x512x7x7", "32x1024x14x14"):
        ours = [row for row in measured["rows"] if row["name"] == op.OURS and row["shape"] == shape]
        times = [row["to_floor"]["median"] for row in ours if row["dtype"] == "float32"]
        assert f"{shape} takes {min(times):.1f} to {max(times):.1f} times" in text("docs/OP.md")
    for dtype in ("float32", "bfloat16"):
        measured = json.loads((results / f"step_{dtype}.json").read_text())
        ours = rows_of(f"step_{dtype}")[op.OURS]
        assert f"| {dtype} | {' | '.join(step.overhead_text(ours))} |" in text("docs/OP.md")
        assert step.markdown(measured) == text(f"docs/results/step_{dtype}.md").strip()


def test_the_constants_of_the_arithmetic_are_the_measured_ones() -> None:
    results, page = ROOT / "docs" / "results", text("docs/SCALING.md")
    lines = {
        "torchvision, PIL, bicubic": "torchvision's recipe with PIL",
        "this, decoder=pillow": "`data.decoder=pillow`",
        "this, decoder=simplejpeg": "`data.decoder=simplejpeg`",
        "this, JPEG shards of 256": "prepared shards, JPEG of short side 256",
        "this, raw shards of 256": "prepared shards, raw pixels of short side 256",
    }
    measured = rows_of("loader_photographs")
    for name, words in lines.items():
        own = measured[name]["processor_ms"]["median"]
        one, eight = (math.ceil(gpus * own / 1000 * 2600) for gpus in (1, 8))
        assert f"| {words} | {own:.2f} | {measured[name]['faster']['median']:.2f} | {one} | {eight} |" in page
    small = rows_of("loader_small")["this"]
    assert f"{small['images_per_s']['median']:,.0f} images/s" in page
    assert f"{small['faster']['median']:.1f} times the DataLoader with PIL" in page
    (loop,) = json.loads((results / "loop.json").read_text())["rows"]
    outside = {name: times["median"] for name, times in loop["outside_ms"].items()}
    assert f"cost {outside['this'] - outside['barest loop']:.1f} ms a step more" in page
    assert f"{100 * loop['cost']['median']:+.1f} %" in page
    for dtype in ("float32", "bfloat16"):
        ours = rows_of(f"step_{dtype}")[op.OURS]
        assert f"{100 * ours['overhead']['median']:.1f} % in {dtype}" in page


def test_the_units_of_the_arithmetic_are_those_of_the_network() -> None:
    with torch.device("meta"):
        model = build_model("resnet50", num_classes=1000)
        sites = {name: site for name, site in declared_sites(model).items() if site.group in (3, 4)}
        sizes = map_sizes(model, torch.empty(1, 3, 224, 224), sites)
    units = {group: sum(math.prod(sizes[n][0]) for n, site in sites.items() if site.group == group) for group in (3, 4)}
    third, fourth = (units[group] / 1e6 for group in (3, 4))
    page = " ".join(text("docs/SCALING.md").split())
    assert f"{third + fourth:.2f} M units" in page
    assert f"({third:.2f} M in group 3, {fourth:.2f} M in group 4)" in page
    assert f"The {len(sites)} sites" in page
    for block, words in ((7, "3,300"), (1, "162,000")):
        blocks = sum(units[group] * (1 - kept) / block**2 for group, kept in ((3, 0.975), (4, 0.9)))
        assert blocks == pytest.approx(int(words.replace(",", "")), rel=0.002)
        assert words in page


def test_every_promise_names_a_test_that_exists() -> None:
    rows = [line for line in text("docs/RELIABILITY.md").splitlines() if line.startswith("| ")][1:]
    sources = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^def (test_\w+)\(", sources, re.MULTILINE))
    for row in rows:
        named = re.findall(r"`(test_\w+)`", row)
        assert named, row
        assert set(named) <= defined, set(named) - defined
    held = {name for row in rows for name in re.findall(r"`(test_\w+)`", row)}
    assert len(rows) >= 30
    assert len(held) >= 60
