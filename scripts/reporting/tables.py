"""The tables of a report, each made by one function, as its Markdown and its page show them.

A table is a dict: `title`, `heads`, `rows` of cells, `left` (how many of its first columns are words) and a `note`.
A cell is a dict as well: its `text`, the `value` that it sorts by, and what only the page shows of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from data.card import card_text
from engine.console import counted
from scripts.reporting import beside
from scripts.reporting.compare import (
    answers,
    baseline_of,
    best_on_val,
    candidate_text,
    lines,
    paper_curve,
    pooled,
    under_drop,
    values_text,
)
from scripts.reporting.deviations import deviations
from scripts.reporting.names import metric_label
from scripts.reporting.runs import Row, Sweep, by_seed, label, spread
from scripts.reporting.statistics import (
    BETTER,
    EQUIVALENT,
    UNRESOLVED,
    WORSE,
    Difference,
    Spread,
    detected,
    paired,
    seeds_for,
)

MOST_CLASSES = 30  # that a table shows
Table = dict[str, Any]


def all_tables(sweep: Sweep) -> list[Table]:
    """Every table after Results that has a row, in the order of a report: what was asked first."""
    made = [
        lost(sweep),
        claims(sweep),
        details(sweep),
        tuning(sweep),
        other_metrics(sweep),
        *beside_accuracy(sweep),
        chosen_on_val(sweep, "keep_prob"),
        chosen_on_val(sweep, "block_size"),
        pilots(sweep),
        beside_the_paper(sweep),
        each_class(sweep),
        at_inference(sweep),
        *data_cards(sweep),
    ]
    return [table for table in made if table["rows"]]


def table_of(
    title: str, heads: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1, note: str = ""
) -> Table:
    """A table of cells, without the columns in which no row has anything."""
    cells = [[value if isinstance(value, dict) else cell(value) for value in row] for row in rows]
    shown = [i for i in range(len(heads)) if i == 0 or any(row[i]["text"] for row in cells)]
    rows_shown = [[row[i] for i in shown] for row in cells]
    return {
        "title": title,
        "heads": [heads[i] for i in shown],
        "rows": rows_shown,
        "left": min(left, len(shown)),
        "note": note,
    }


def cell(value: object, text: str | None = None, **page: object) -> dict[str, Any]:
    """A cell.

    Args:
        value: what is shown and sorted by; means by the mean. None: an empty cell.
        text: what is shown in its place.
        page: what only the page shows: `colour`, a dot before the text; `dots`, a difference that is drawn under it in
            this colour; `below`, a smaller line under it; `lines`, the text in lines; `words`, that it may be folded;
            `verdict`, by which it is coloured.
    """
    shown = "" if value is None else str(value) if text is None else text
    sort = value.mean if isinstance(value, Spread) else value
    plain: dict[str, Any] = {"colour": "", "dots": None, "below": "", "lines": [], "words": False, "verdict": ""}
    return {"text": shown, "value": "" if sort is None or not shown else sort, **plain, **page}


def as_markdown(table: Table) -> str:
    return markdown_table(table["heads"], [[cell["text"] for cell in row] for row in table["rows"]], table["left"])


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Columns after the first `left` ones are numbers, set to the right; None is an empty cell."""
    rule = [":--"] * left + ["--:"] * (len(headers) - left)
    texts = [["" if value is None else str(value).replace("|", r"\|") for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (headers, rule, *texts))


# The two tables that every report has: a line a row.


def results(sweep: Sweep) -> Table:
    """The headline of every row, its difference from the baseline, the verdict, and the paper's number."""
    heads = ["", "n", "last epoch", "difference [95 %]", "Holm p", "verdict", "paper (peak)", "its difference"]
    rows = []
    for row in sweep.rows:
        n, theirs = len(row["runs"]), row["paper_difference"]
        cells = [
            name_cell(row),
            cell(n, below=seeds_text(row["seeds"])),
            spread_cell(row["last"], sweep.digits),
            cell(
                row["difference"],
                difference_text(row["difference"], row, sweep.digits),
                dots=row["difference"],
                colour=row["colour"] if row["difference"] else "",
            ),
            cell(row["holm"], p_text(row["holm"])),
            cell(row["verdict"], verdict=row["verdict"]),
            # Nothing of the paper stands beside made-up images.
            cell(None if sweep.made_up else row["paper_mean"], paper_text(row["paper_mean"], row["paper_std"])),
            cell(None if sweep.made_up or theirs is None else theirs, "" if theirs is None else f"{theirs:+z.2f}"),
        ]
        rows.append(cells)
    return table_of("Results", heads, rows, note=" ".join(filter(None, [conclusion(sweep), power_text(sweep)])))


def conclusion(sweep: Sweep) -> str:
    """The verdicts in words, one sentence each."""
    by_verdict: dict[str, list[str]] = {}
    for row in sweep.rows if not sweep.made_up else ():
        if row["verdict"]:
            by_verdict.setdefault(row["verdict"], []).append(row["label"])
    meaning = {
        BETTER: "Better than the baseline",
        WORSE: "Worse than the baseline",
        EQUIVALENT: "Equivalent to it",
        UNRESOLVED: "Not resolved, so neither a difference nor equality is shown",
    }
    return " ".join(f"{text}: {'; '.join(by_verdict[word])}." for word, text in meaning.items() if word in by_verdict)


def power_text(sweep: Sweep) -> str:
    """The difference that the seeds of a table find by the rule of the verdicts; the seeds that one point needs."""
    found = pooled(sweep)
    if found is None or sweep.made_up:
        return ""
    std, n, tests = found
    percent, found_by_n = sweep.unit == "%", detected(std, n, tests)
    needs = ""
    if percent:
        one, half = (seeds_for(size, std, tests) or "more than 999" for size in (1.0, 0.5))
        needs = f" 1 point takes {one} seeds, 0.5 points {half} seeds."
    if percent and found_by_n >= 100:
        finds = f"{n} seeds are too few to resolve any difference here."
    else:
        size = f"{found_by_n:.{1 if percent else sweep.digits}f}{' points' if percent else ''}"
        finds = f"With {n} seeds a true difference of {size} is found in 80 % of such experiments."
    scatter, step = f"{std:.{sweep.digits}f}", counted(tests, "comparison")
    return (
        f"{finds}{needs} (Differences scatter by {scatter}; Holm's first "
        f"step of {step}.) Seeds added because of a result make an interval wrong."
    )


def details(sweep: Sweep) -> Table:
    """Loss, gap, peak, measured drop, size and time of every row."""
    heads = ["", "by seed", "smallest difference", "test loss", "its difference [95 %]", "train - test", "peak"]
    heads += [
        "dropped in the last epoch: measured (expected)",
        "dropped over the run",
        "parameters",
        "time",
        "keep_prob" if sweep.tuning is None else "tuned",
    ]
    rows = []
    for row in sweep.rows:
        difference, loss, seconds = row["difference"], row["loss"], row["seconds"].mean
        by_seed = ", ".join(f"{value:+z.{sweep.digits}f}" for value in difference.values) if difference else ""
        smallest = difference.smallest if difference else None
        in_the_end = last_epoch_drops(row)
        over_the_run = [f"{group} {100 * share:.2f} %" for group, share in row["dropped"].items()]
        cells = [
            name_cell(row),
            cell(difference, by_seed, words=True),
            cell(smallest, "" if smallest is None else f"{smallest:.{sweep.digits}f}"),
            # A cross-entropy: its differences are of the order of 0.1, so it has a digit more than percentages.
            spread_cell(loss, 3),
            spread_cell(row["loss_difference"], 3),
            spread_cell(row["gap"], 2 if sweep.trained_metric == "loss" else sweep.digits),
            spread_cell(row["peak"], sweep.digits),
            cell(max(in_the_end.values(), default=None), ", ".join(in_the_end), lines=list(in_the_end)),
            cell(max(row["dropped"].values(), default=None), ", ".join(over_the_run), lines=over_the_run),
            cell(row["parameters"], count_text(row["parameters"])),
            cell(seconds, time_text(seconds)),
            cell(row["keep_prob"] if sweep.tuning is None else row["choice"], row["choice"], words=True),
        ]
        rows.append(cells)
    return table_of("Each row in detail", heads, rows)


def last_epoch_drops(row: Row) -> dict[str, float]:
    """The drop of each group in the last epoch, mean of what the runs measured, beside the closed form: text, share."""
    found = {}
    for group, drop in row["runs"][0]["drop_last_epoch"].items():
        measured = Spread(tuple(run["drop_last_epoch"][group]["measured"] for run in row["runs"])).mean
        found[f"{group} {100 * measured:.2f} % ({100 * drop['expected']:.2f})"] = measured
    return found


# Further tables; one without rows is not shown.


def lost(sweep: Sweep) -> Table:
    """Jobs without a result."""
    return table_of("Not in the numbers", ["job", "status", "reason"], sweep.lost, left=3)


def claims(sweep: Sweep) -> Table:
    """The claims of the sweep's file, and what the rows say of each."""
    heads = ["claim", "difference [95 %]", "n", "cells", "cells above 0", "Holm p", "verdict"]
    rows: list[list[object]] = []
    for answer in answers(sweep):
        difference, cells = answer["difference"], answer["cells"]
        n, above = len(difference.values) if difference else 0, sum(value > 0 for value in cells)
        word = answer["verdict"] or "no such rows"
        p_value = cell(answer["holm"], p_text(answer["holm"]))
        rows.append([answer["claim"].says, difference, n, len(cells), above, p_value, cell(word, verdict=word)])
    note = (
        "A cell is a pair of rows that are alike but for what the claim is about; the difference is averaged over the "
        "cells, seed by seed."
    )
    return table_of("What was asked", heads, rows, note=note)


def tuning(sweep: Sweep) -> Table:
    """Every candidate of every row with its result on val, and which one was chosen."""
    digits, rows = sweep.digits, list[list[object]]()
    for row in sweep.rows if sweep.tuning else ():
        entry = row["tuned"]
        if entry is None or entry["chosen"] is None:
            rows.append([name_cell(row), row["choice"], "", "", "", ""])
            continue
        found = [f"{candidate_text(of['values'])}: {of['val']:.{digits}f}" for of in entry["candidates"]]
        pilots, seconds = pilots_of(entry)
        chosen = values_text({**entry["chosen"], **entry["given"]})
        rows.append(
            [name_cell(row), chosen, cell(", ".join(found), lines=found), pilots, time_text(seconds), entry["source"]]
        )
    heads = ["", "chosen", f"{sweep.metric} on val of each candidate", "pilots", "their time", "list from"]
    note = tuning_text(sweep.tuning) if sweep.tuning else ""
    return table_of("How each row was chosen", heads, rows, left=3, note=note)


def tuning_text(kept: Mapping[str, Any]) -> str:
    """The rule of the choice, its cost, and what to know about it."""
    tuned = [entry for entry in kept["rows"] if entry["candidates"]]
    pilots, seconds = sum(pilots_of(entry)[0] for entry in tuned), sum(pilots_of(entry)[1] for entry in tuned)
    seeds = sorted({seed for entry in tuned for of in entry["candidates"] for seed in of["seeds"]})
    length = "full length" if kept["epochs"] is None else counted(kept["epochs"], "epoch")
    parts = [
        f"{kept['rule']} {counted(kept['pilots_a_row'], 'pilot')} a row, of {length}, with seed "
        f"{', '.join(map(str, seeds))}, which no row has; {pilots} in all, {time_text(seconds)} of training. "
        "The choice reads nothing of test.",
        *(f"{entry['name']}: {entry['end']}." for entry in tuned if entry["end"]),
    ]
    return " ".join(parts)


def pilots_of(entry: Mapping[str, Any]) -> tuple[int, float]:
    """The number of pilots of a row, and their seconds of training."""
    return (
        sum(len(of["seeds"]) for of in entry["candidates"]),
        sum(of["seconds"] for of in entry["candidates"]),
    )


def other_metrics(sweep: Sweep) -> Table:
    """The other metrics on test at the last epoch, and their differences from the baseline; no verdicts."""
    heads, rows = [""], list[list[object]]()
    for name in sweep.others:
        arrow = "↓" if name in sweep.runs[0]["lower_is_better"] else "↑"
        heads += [f"{metric_label(name, sweep.runs[0])} {arrow}", "its difference [95 %]"]
    for row in sweep.rows if sweep.others else ():
        cells: list[object] = [name_cell(row)]
        base = baseline_of(sweep, row)
        for name in sweep.others:
            column, digits = f"last/test/{name}", 2 if sweep.runs[0]["metric_units"].get(name) == "%" else 4
            of = None if base is None or base is row else paired(by_seed(row, column), by_seed(base, column))
            cells += [spread_cell(spread(row, column), digits), cell(of, difference_text(of, row, digits))]
        rows.append(cells)
    note = (
        "On test after the last epoch; ↑ higher is better, ↓ lower is better. Secondary: these intervals are not "
        "corrected for the number of comparisons, and no verdict rests on them."
    )
    return table_of("Beside the headline", heads, rows, note=note)


def beside_accuracy(sweep: Sweep) -> list[Table]:
    """The evaluations of the runs, a table for each kind: a line for every number, a column for every row."""
    run, marked = sweep.runs[0], False
    kinds: dict[str, list[list[object]]] = {}
    shown: dict[str, list[object]] = {}  # the values of all runs in each line
    for column in dict.fromkeys(column for run in sweep.runs for column in run["beside"]):
        text, what, metric = column.rsplit("/", 2)
        kind, of = beside.kind_of(what)
        down = metric == "fpr95" or metric in run["lower_is_better"]
        arrow = "" if metric in beside.UNDIRECTED else " ↓" if down else " ↑"
        name = f"{of and f'{of}: '}{beside.NAMES.get(metric) or metric_label(metric, run)}{arrow}"

        # Two evaluations may measure the same, as `samples=10` and `ood=FOLDER samples=10` do; else each is named.
        values = [run.get(column) for run in sweep.runs]
        if shown.setdefault(f"{kind}/{name}", values) != values:
            name += f", by {text}"
        elif any(line[0] == name for line in kinds.get(kind, ())):
            continue

        digits = 2 if {**run["metric_units"], **beside.UNITS}.get(metric) == "%" else 4
        line: list[object] = [name]
        for row in sweep.rows:
            value, base = spread(row, column), baseline_of(sweep, row)
            paired_with = None if base is None or base is row else paired(by_seed(row, column), by_seed(base, column))
            trained = any(beside.trained_on(run["evaluations"], what) for run in row["runs"])
            marked |= trained
            parts = [f"{value.text(digits)}{'†' if trained else ''}"] if value else []
            parts += [f"({difference_text(paired_with, row, digits)})"] if paired_with else []
            line.append(cell(value, " ".join(parts), lines=parts))
        kinds.setdefault(kind, []).append(line)

    heads = ["", *(row["label"] for row in sweep.rows)]
    tables = [table_of(f"Beside accuracy: {kind}", heads, lines) for kind, lines in kinds.items()]
    results = [result for run in sweep.runs for result in run["evaluations"].values()]
    sources = [row.get("source") or "this project" for result in results for row in result.get("corrupted", ())]
    for table in tables:
        if beside.CORRUPTED in table["title"]:
            table["note"] = f"Corruptions of {' and '.join(dict.fromkeys(sources))}, means over severities." + (
                " †: the row trained on images changed like that." if marked else ""
            )
    if tables:
        named = ", ".join(f"`{text}`" for text in sweep.study.evaluations)
        tables[0]["note"] = (
            "This table and those that follow under *Beside accuracy*: on test, after the last epoch; in brackets the "
            "difference from the baseline, paired by seed, with its 95 % interval. Secondary: the intervals are not "
            "corrected for the number of comparisons, and no verdict rests on them."
            + (f" Named in the sweep's file: {named}." if named else "")
            + (f" {tables[0]['note']}" if tables[0]["note"] else "")
        )
    return tables


def chosen_on_val(sweep: Sweep, knob: str) -> Table:
    """The value of a knob that val chooses, for every line of a figure."""
    heads = ["", knob, "val", "test, last epoch", "difference [95 %]", "test, peak", f"paper's best {knob}"]
    rows = []
    for of_line in lines(sweep, knob):
        best = best_on_val(of_line)
        if best is None:
            continue
        curve = paper_curve(best) if knob == "keep_prob" and not sweep.made_up else {}
        pick = max if sweep.higher_is_better else min
        paper = pick(curve, key=lambda keep_prob: curve[keep_prob], default=None)
        cells = [
            label(sweep, best, without=knob),
            cell(best[knob], f"{best[knob]:g}"),
            spread(best, f"last/val/{sweep.headline}"),
            spread_cell(best["last"], sweep.digits),
            cell(best["difference"], difference_text(best["difference"], best, sweep.digits)),
            spread_cell(best["peak"], sweep.digits),
            "" if paper is None else f"{paper:g} ({curve[paper]:.2f})",
        ]
        rows.append(cells)
    return table_of(f"{knob} chosen on the validation split", heads, rows)


def pilots(sweep: Sweep) -> Table:
    """The headline on val of the runs that chose keep_prob, which are no part of the results."""
    val = f"last/val/{sweep.headline}"
    rows = [[row["label"], " ".join(map(str, row["seeds"])), spread(row, val)] for row in sweep.pilots]
    heads = ["", "seed", f"{metric_label(sweep.headline, {})} on val"]
    return table_of("The runs that chose keep_prob", heads, rows)


def beside_the_paper(sweep: Sweep) -> Table:
    """Every metric that the paper gives of the rows, beside ours; no rows where Results says it all."""
    metrics = list(dict.fromkeys(name for row in sweep.rows for name in row["paper"].get("metrics") or {}))
    heads = [""]
    for name in metrics:
        heads += [metric_label(name, sweep.runs[0]), f"{name}, paper"]
    rows: list[list[object]] = []
    if not sweep.made_up and set(metrics) - {sweep.headline}:
        for row in sweep.rows:
            cells: list[object] = [row["label"]]
            for name in metrics:
                numbers = (row["paper"].get("metrics") or {}).get(name) or []
                cells += [spread(row, f"last/test/{name}"), " ± ".join(f"{number:.2f}" for number in numbers[:2])]
            rows.append([*cells, row["paper"].get("certainty") or ""])
    note = "Here: the last epoch on test. The paper's numbers stand for its own setting; the deviations are listed."
    return table_of("Beside the paper", [*heads, "the paper's numbers"], rows, note=note)


def each_class(sweep: Sweep) -> Table:
    """The first measure of the runs' tables of classes: a line a class, a column a row of the sweep.

    No rows where a run has no such table (an older one), where rows have other classes, or where there are too many.
    """

    def of_run(run: Mapping[str, Any]) -> tuple[str, dict[str, float | None]]:
        for table in run["tables"]:
            if table["name"] == "classes":
                return str(table["header"][1]), {str(line[0]): line[1] for line in table["rows"]}
        return "", {}

    tables = [[of_run(run) for run in row["runs"]] for row in sweep.rows]
    measure, first = tables[0][0]
    same = all((name, list(values)) == (measure, list(first)) for of_row in tables for name, values in of_row)
    rows: list[list[object]] = []
    for name in first if same and len(first) <= MOST_CLASSES else ():
        found = [tuple(value for _, values in of_row if (value := values[name]) is not None) for of_row in tables]
        rows.append([name, *(Spread(values) if values else "" for values in found)])
    return table_of("Each class", [measure, *(row["label"] for row in sweep.rows)], rows)


def at_inference(sweep: Sweep) -> Table:
    """A line for a row of the sweep tested with blocks of one size, a column for a keep_prob."""
    tested = under_drop(sweep)
    keep_probs = sorted({keep_prob for line in tested for keep_prob in line["values"]}, reverse=True)
    rows = [[line["row"]["label"], line["block_size"], *map(line["values"].get, keep_probs)] for line in tested]
    heads = ["trained with", "tested with block", *(f"keep_prob {keep_prob:g}" for keep_prob in keep_probs)]
    return table_of("Under drop at inference", heads, rows)


def data_cards(sweep: Sweep) -> list[Table]:
    """The content of each data set that was trained on: images, and of each class what was counted.

    A class has no line where there are too many; the whole is in data_card.json of a run.
    """
    cards = {run["data_card"]["fingerprint"]: run for run in sweep.runs if run["data_card"]}
    tables = []
    for run in cards.values():
        card = run["data_card"]
        splits, what = card["splits"], next(iter(card["splits"].values()))["counted"]
        each = [[known, *(part["counts"][known] for part in splits.values())] for known in card["classes"]]
        rows = [
            ["all images", *(part["images"] for part in splits.values())],
            *(each if len(each) <= MOST_CLASSES else []),
            ["ignored", *(part["ignored"] or None for part in splits.values())],
        ]
        cells = [[name, *(cell(v, None if v is None else f"{v:,}") for v in numbers)] for name, *numbers in rows]
        shown = [row for row in cells if any(part["text"] for part in row[1:])]
        note = ". ".join([*card_text(card)[1:], *card["notes"]])
        title = f"Data: {run['data_title']}, {what} of each class"
        tables.append(table_of(title, ["class", *splits], shown, note=note and f"{note}."))
    return tables


def deviations_table(sweep: Sweep) -> Table:
    """Everything in which the runs differ from the paper's setting."""
    note = (
        "Where the paper does not state a value, such as the length of the warm-up, its column has that of the "
        "authors' released code."
    )
    return table_of("Deviations from the paper's setting", ["", "here", "paper"], deviations(sweep), left=3, note=note)


# Cells as text.


def name_cell(row: Row) -> dict[str, Any]:
    return cell(row["label"], colour=row["colour"])


def spread_cell(of: Spread | None, digits: int) -> dict[str, Any]:
    """Mean ± standard deviation, or mean and interval of a difference; empty where there is none."""
    return cell(of, None if of is None else of.text(digits))


def difference_text(of: Difference | None, row: Row, digits: int) -> str:
    """The mean and its interval; with its own n where not every run has its counterpart."""
    if of is None:
        return ""
    return f"{of.text(digits)}{f' (n = {len(of.values)})' if len(of.values) < len(row['runs']) else ''}"


def paper_text(mean: float | None, std: float | None) -> str:
    return "" if mean is None else f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def p_text(p_value: float | None) -> str:
    return "" if p_value is None else "< .001" if p_value < 0.001 else f"{p_value:.3f}"


def time_text(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, size in (("h", 3600.0), ("min", 60.0)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def count_text(number: int | None) -> str:
    if number is None:
        return ""
    return f"{number / 1e6:.2f} M" if number >= 1e6 else f"{number / 1e3:.0f} k"


def seeds_text(seeds: Sequence[int]) -> str:
    """Seeds by number, many in a row as a range."""
    in_a_row = len(seeds) > 3 and list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    return f"{seeds[0]} to {seeds[-1]}" if in_a_row else " ".join(map(str, seeds))
