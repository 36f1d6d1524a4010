"""A report as Markdown."""

from __future__ import annotations

from scripts.reporting.comparison import Report
from scripts.reporting.sections import sections
from scripts.reporting.setting import SILENT_PAPER, deviations
from scripts.reporting.tables import DETAILS, RESULTS, details_row, markdown_table, results_row, without_empty
from scripts.reporting.text import legend, setting_text


def report_text(report: Report) -> str:
    """The whole report."""
    sweep, lines = report.sweep, report.lines
    results = [results_row(line, sweep.made_up) for line in lines]
    details = [details_row(sweep, line) for line in lines]
    parts = [f"# {sweep.name}", setting_text(sweep)]
    parts += ["## Results", markdown_table(*without_empty(RESULTS, results))]
    parts.append("\n".join(f"* {entry}" for entry in legend(sweep, lines)))
    parts += ["## Each row in detail", markdown_table(*without_empty(DETAILS, details))]
    for section in sections(report):
        parts += [f"## {section.title}", markdown_table(section.heads, section.rows, section.left), section.note]
    parts += [f"![{caption}]({name})\n\n*{caption}*" for caption, name in report.figures]
    if sweep.study.limitations:
        parts += ["## Limitations", "\n".join(f"* {sentence}" for sentence in sweep.study.limitations)]
    differing = deviations(sweep)
    if differing:
        parts += ["## Deviations from the paper's setting", markdown_table(["", "here", "paper"], differing, left=3)]
        parts.append(SILENT_PAPER)
    return "\n\n".join(part for part in parts if part) + "\n"
