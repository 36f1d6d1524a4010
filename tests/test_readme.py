"""What the README shows works: its code runs, its command lines are valid words, its pictures and pages are there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from configs.command_line import check_words
from evaluate import read_request
from scripts.drop_rates import markdown

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md")))]


def text(page: str) -> str:
    return (ROOT / page).read_text()


def command_lines(program: str) -> list[tuple[str, str]]:
    pattern = rf"^\s*(?:\.venv/bin/)?python {re.escape(program)} +(.*)$"
    return [
        (page, line) for page in PAGES for line in re.findall(pattern, text(page), re.MULTILINE) if "..." not in line
    ]


@pytest.mark.parametrize(("page", "line"), command_lines("train.py"))
def test_training_commands_are_valid(page: str, line: str) -> None:
    check_words(shlex.split(line, comments=True))


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
    measured = json.loads((ROOT / "docs" / "results" / "drop_rates.json").read_text())
    assert markdown(measured) in text("README.md")
    for row in measured["sides"].values():  # and ours is within its error of the law: 4 deviations
        mean, error = row["this project"]
        assert abs(mean - row["closed form"]) < 4 * error
