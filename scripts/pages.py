"""Fill the marked places of README.md and docs/: python scripts/pages.py

A place is <!-- NAME --> ... <!-- end -->, within a line or over several. What stands there comes from committed results
(docs/results), from the schema and the YAML files of the configuration, or from the resolver; a test compares. Prose
between the places is free.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts import configuration_tables, measured_values
from scripts.drop_rates import markdown as drop_rates_table
from scripts.reporting.findings import findings_table
from scripts.reporting.tables import markdown_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PLACE = re.compile(r"<!-- (?P<name>(?!end -->)[\w:.,/-]+) -->(?P<text>.*?)<!-- end -->", re.DOTALL)
NOT_RUN = "*Not run yet.*"


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
        "results": lambda: results_table(rest),
        "picture": lambda: picture(rest, to_root),
        "findings": lambda: findings_table(RESULTS, f"{to_root}docs/results/"),
        "drop_rates": lambda: drop_rates_table(json.loads((RESULTS / "drop_rates.json").read_text())),
        "measured": lambda: measured_values.text_of(rest, RESULTS),
        "configuration": lambda: configuration_tables.text_of(rest),
        "command": lambda: command(rest),
        "first_run": lambda: first_run(rest),
    }
    if kind not in makers:
        raise ValueError(f"{page}: nothing fills the place '{name}'")
    return makers[kind]()


def results_table(name: str) -> str:
    """The short table of a kept result, or that there is none."""
    report = RESULTS / name / "report.csv"
    return short(report.read_text()) if report.exists() else NOT_RUN


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
    overrides = {"grid": ["data=folder", "data.root=my_images", "regularizer=none,dropout,dropblock", "seed=1,2,3"]}
    line = f"python train.py -m {' '.join(overrides[name])}"
    return f"```\n{line}\npython scripts/report.py outputs/sweeps/{sweep_name(overrides[name])}\n```"


def short(report: str) -> str:
    """A table from the text of a report.csv: ours beside the paper, both with the difference to the baseline."""
    rows = list(csv.DictReader(io.StringIO(report)))
    headers = ["", "n", "ours, last epoch", "to baseline [95 %]", "verdict"]
    published = any(row["paper_mean"] for row in rows)
    lines = []
    for row in rows:
        line = [row["label"], row["n"], number(row["last_test_mean"], row["last_test_std"])]
        line += [interval(row["difference"], row["difference_low"], row["difference_high"]), row["verdict"]]
        if published:
            line += [number(row["paper_mean"], row["paper_std"]), number(row["paper_difference"], sign="+")]
        lines.append(line)
    return markdown_table(headers + (["the paper", "to baseline"] if published else []), lines)


def number(mean: str, std: str = "", sign: str = "") -> str:
    """A mean with its standard deviation, as far as there is one."""
    if not mean:
        return ""
    return f"{float(mean):{sign}.2f}" + (f" ± {float(std):.2f}" if std else "")


def interval(mean: str, low: str, high: str) -> str:
    """A difference and its interval, which a single pair does not have."""
    ends = f" [{float(low):+.2f}, {float(high):+.2f}]" if low else ""
    return f"{float(mean):+.2f}{ends}" if mean else ""


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
