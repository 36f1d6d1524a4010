"""Fill the marked places of README.md and docs/: python scripts/pages.py

A place is <!-- NAME --> ... <!-- end -->, within a line or over several. What stands there comes from committed results
(docs/results), from the schema and the YAML files of the configuration, or from the resolver; a test compares. Prose
between the places is free.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import configuration_tables, measured_values
from scripts.drop_rates import markdown as drop_rates_table
from scripts.reporting.kept import (
    NOT_RUN,
    findings_table,
    results_table,
    studies_table,
    tasks_table,
    value_text,
)

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PLACE = re.compile(r"<!-- (?P<name>(?!end -->)[\w:.,/-]+) -->(?P<text>.*?)<!-- end -->", re.DOTALL)


def pages() -> list[Path]:
    """Every page that may have places."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str, page: Path) -> str:
    """The text of a page with every place filled anew.

    Raises:
        ValueError: for a place that nothing fills.
    """

    def fill(found: re.Match[str]) -> str:
        new = text_of(found["name"], page)
        space = "\n" if found["text"].startswith("\n") else ""
        return f"<!-- {found['name']} -->{space}{new}{space}<!-- end -->"

    return PLACE.sub(fill, text)


def text_of(name: str, page: Path) -> str:
    """What stands in the place of this name, on this page."""
    kind, _, rest = name.partition(":")
    to_root = "../" * (len(page.relative_to(ROOT).parts) - 1)
    makers: dict[str, Callable[[], str]] = {
        "results": lambda: results_table(RESULTS / rest),
        "tasks": lambda: tasks_table(RESULTS),
        "studies": lambda: studies_table(RESULTS),
        "picture": lambda: picture(rest, to_root),
        "value": lambda: value_text(rest, RESULTS),
        "findings": lambda: findings_table(RESULTS, rest.split(","), f"{to_root}docs/results/"),
        "predictions": lambda: findings_table(RESULTS, rest.split(","), f"{to_root}docs/results/", "predicted"),
        "drop_rates": lambda: drop_rates_table(json.loads((RESULTS / "drop_rates.json").read_text())),
        "measured": lambda: measured_values.text_of(rest, RESULTS),
        "configuration": lambda: configuration_tables.text_of(rest),
        "command": lambda: command(rest),
        "first_run": lambda: first_run(rest),
    }
    if kind not in makers:
        raise ValueError(f"{page}: nothing fills the place '{name}'")
    return makers[kind]()


def picture(place: str, to_root: str) -> str:
    """A picture of a kept result, RESULT/FILE/TITLE (the title with _ for spaces); nothing where there is none."""
    path, _, title = place.rpartition("/")
    path = f"docs/results/{path}"
    return f"![{title.replace('_', ' ')}]({to_root}{path})" if (ROOT / path).exists() else ""


def first_run(data: str) -> str:
    """What the shortest command on a data set gave, as `keep_first_runs.py` keeps it."""
    file = RESULTS / "first_runs.json"
    run = json.loads(file.read_text()).get(data) if file.exists() else None
    return f"{run['label'].removesuffix(' (%)')} {run['value']:.1f} %" if run else NOT_RUN


def command(name: str) -> str:
    """A command line with a path that the configuration decides."""
    from configs.command_line import sweep_name
    from configs.compose import plan_of

    if name == "evaluate":
        return f"`python evaluate.py run={plan_of().run_dir()}`"
    data = ["data=folder", "data.root=my_images", "data.image_size=160", "recipe=imagenette"]
    overrides = {"grid": [*data, "regularizer=none,dropout,dropblock", "seed=1,2,3"]}
    line = f"python train.py -m {' '.join(overrides[name])}"
    return f"```\n{line}\npython scripts/report.py outputs/sweeps/{sweep_name(overrides[name])}\n```"


def fill_all() -> list[Path]:
    """Fill every page; returns those that changed."""
    changed = []
    for page in pages():
        before = page.read_text()
        after = filled(before, page)
        if after != before:
            page.write_text(after)
            changed.append(page)
    return changed


def main(arguments: list[Any]) -> int:
    for page in fill_all():
        print(f"filled {page.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
