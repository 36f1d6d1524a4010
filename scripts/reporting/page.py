"""A report as one HTML file that needs nothing else: pictures inside, tables that sort, no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from scripts.reporting.comparison import Line, Report
from scripts.reporting.dots import Scale, dots
from scripts.reporting.figures import colours
from scripts.reporting.sections import sections
from scripts.reporting.setting import SILENT_PAPER, deviations
from scripts.reporting.statistics import Spread
from scripts.reporting.sweep import Sweep
from scripts.reporting.tables import (
    DROPPED,
    OVER_THE_RUN,
    count_text,
    difference_text,
    drops_of,
    loss_text,
    p_text,
    paper_text,
    run_drops_of,
    time_text,
)
from scripts.reporting.text import choice_of_keep_prob, legend, setting_text

STYLE = """
:root { color-scheme: light; --ink: #222; --faint: #6b6b6b; --line: #e2e2e2; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; max-width: 100rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p, li { max-width: 56rem; } .note { color: var(--faint); font-size: .88rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .86rem; }
th, td { padding: .32rem .65rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { background: #fff; border-bottom: 2px solid #bbb; vertical-align: bottom; }
th button { all: unset; cursor: pointer; white-space: normal; }
th button:focus-visible { outline: 2px solid #1f5fb4; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 13rem; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
.words { white-space: normal; min-width: 9rem; max-width: 11rem; }
tr:hover td { background: #f6f8fb; }
.better { color: #1a6b34; font-weight: 600; } .worse { color: #a3281e; font-weight: 600; }
.swatch { display: inline-block; width: .7em; height: .7em; border-radius: 50%; }
img { max-width: 100%; height: auto; } figure { margin: 1.4rem 0; }
figcaption { color: var(--faint); font-size: .88rem; }
""".strip()

# A click on a head sorts by its column, numbers as numbers (data-value), empty cells last; a second click turns round.
SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentNode, table = head.closest("table"), body = table.tBodies[0];
  const column = head.cellIndex, down = head.getAttribute("aria-sort") === "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const rows = [...body.rows].sort((a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");
    const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
    return down ? order : -order;
  });
  body.append(...rows);
};
""".strip()

Cell = tuple[str, object]  # (HTML, what it sorts by)


def page(report: Report, folder: Path) -> str:
    """The whole page.

    Args:
        report: what it says.
        folder: where the pictures are.
    """
    sweep = report.sweep
    parts = [f"<h1>{escape(sweep.name)}</h1>", f"<p>{prose(setting_text(sweep))}</p>", "<h2>Results</h2>"]
    parts.append(results(report))
    entries = "".join(f"<li>{prose(entry)}</li>" for entry in legend(sweep, report.lines))
    parts.append(f'<ul class="note">{entries}</ul>')
    parts += ["<h2>Each row in detail</h2>", details(report)]
    for section in sections(report):
        parts += [f"<h2>{escape(section.title)}</h2>", plain_table(section.heads, section.rows)]
        parts += [f'<p class="note">{prose(section.note)}</p>'] if section.note else []
    parts.append("<h2>Pictures</h2>")
    parts += [figure(folder / name, caption) for caption, name in report.figures]
    if sweep.study.limitations:
        items = "".join(f"<li>{prose(sentence)}</li>" for sentence in sweep.study.limitations)
        parts += ["<h2>Limitations</h2>", f"<ul>{items}</ul>"]
    differing = deviations(sweep)
    if differing:
        parts += ["<h2>Deviations from the paper's setting</h2>", plain_table(["", "here", "paper"], differing)]
        parts.append(f'<p class="note">{SILENT_PAPER}</p>')
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(sweep.name)}</title>'
    )
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n'
        f"<script>{SCRIPT}</script>\n</body></html>\n"
    )


def results(report: Report) -> str:
    """The headline of every row, and its differences as dots on one scale."""
    scale = Scale.of([line.difference for line in report.lines], report.sweep.study.margin)
    heads = ["", "n", f"{report.sweep.metric}, last epoch", "difference from baseline [95\u00a0%]"]
    heads += ["by seed, and the interval", "Holm p", "verdict", "smallest difference"]
    heads += ["paper (peak)", "paper's difference"]
    tints = colours(report.sweep)
    return filled_columns(heads, [result_cells(report.sweep, line, scale, tints[line.label]) for line in report.lines])


def result_cells(sweep: Sweep, line: Line, scale: Scale, tint: str) -> list[Cell]:
    """The cells of a row, in the order of the heads of `results`."""
    row, difference = line.row, line.difference
    smallest = difference.smallest if difference else None
    theirs = None if sweep.made_up else line.paper_difference
    paper = None if sweep.made_up else row.paper_number()[0]
    return [
        name_cell(line, tint),
        number(str(len(row.runs)), len(row.runs)),
        number(line.last, line.last and line.last.mean),
        number(difference_text(difference, row), difference and difference.mean),
        (dots(difference, scale, tint) if difference else "", difference.mean if difference else ""),
        number(p_text(line.adjusted), line.adjusted),
        (f'<span class="{line.word}">{line.word}</span>' if line.word else "", line.word),
        number("" if smallest is None else f"{smallest:.2f}", smallest),
        number("" if paper is None else paper_text(row), paper),
        number("" if theirs is None else f"{theirs:+z.2f}", theirs),
    ]


def details(report: Report) -> str:
    """What else is known of every row."""
    heads = ["", DROPPED, OVER_THE_RUN, "keep_prob", "peak", "train - test", "test loss", "loss difference [95\u00a0%]"]
    heads += ["parameters", "time a run", "seeds"]
    tints = colours(report.sweep)
    return filled_columns(heads, [detail_cells(report.sweep, line, tints[line.label]) for line in report.lines])


def detail_cells(sweep: Sweep, line: Line, tint: str) -> list[Cell]:
    """The cells of a row, in the order of the heads of `details`."""
    row = line.row
    measured = [drop["measured"] for drop in row.runs[0].summary["drop_last_epoch"].values()]
    choice = f'<div class="words">{escape(choice_of_keep_prob(sweep, row))}</div>'
    return [
        name_cell(line, tint),
        ("<br>".join(map(escape, drops_of(row))), max(measured, default="")),
        ("<br>".join(map(escape, run_drops_of(line))), max(line.dropped.values(), default="")),
        (choice if row.knob("keep_prob") is not None else "", row.knob("keep_prob") or ""),
        number(line.peak, line.peak and line.peak.mean),
        number(line.gap, line.gap and line.gap.mean),
        number(loss_text(line.loss), line.loss and line.loss.mean),
        number(loss_text(line.loss_difference), line.loss_difference and line.loss_difference.mean),
        number(count_text(line.parameters), line.parameters),
        number(time_text(line.seconds.mean), line.seconds.mean),
        number(seeds_text(row.seeds), len(row.seeds)),
    ]


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds by number, many in a row as a range."""
    in_a_row = len(seeds) > 3 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if in_a_row else " ".join(map(str, seeds))


def name_cell(line: Line, tint: str) -> Cell:
    swatch = f'<span class="swatch" style="background:{tint}"></span> '
    return swatch + escape(line.label), line.label


def filled_columns(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table without the columns in which no row has anything."""
    shown = [i for i in range(len(heads)) if i == 0 or any(row[i][0] for row in rows)]
    return table([heads[i] for i in shown], [[row[i] for i in shown] for row in rows])


def number(shown: object, value: object) -> Cell:
    return ("", "") if shown is None or value is None else (escape(str(shown)), value)


def table(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table that sorts by the column whose head is clicked."""
    top = "".join(f'<th scope="col"><button type="button">{escape(head) or "row"}</button></th>' for head in heads)
    lines = []
    for row in rows:
        cells = "".join(f'<td data-value="{escape(str(value), quote=True)}">{html}</td>' for html, value in row)
        lines.append(f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def plain_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """The same of cells that are text, or means."""

    def value(cell: object) -> object:
        return cell.mean if isinstance(cell, Spread) else cell

    return table(heads, [[number(cell, value(cell)) for cell in row] for row in rows])


def figure(picture: Path, caption: str) -> str:
    """A picture inside the page."""
    data = base64.b64encode(picture.read_bytes()).decode()
    image = f'<img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{escape(caption)}</figcaption></figure>"


def prose(text: str) -> str:
    """The little Markdown that the report's sentences use: **bold**, *emphasis* and `code`."""
    shown = escape(text)
    for mark, tag in (("**", "strong"), ("*", "em"), ("`", "code")):
        pieces = shown.split(mark)
        shown = "".join(piece if i == 0 else f"<{'' if i % 2 else '/'}{tag}>{piece}" for i, piece in enumerate(pieces))
    return shown
