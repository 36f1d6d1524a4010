"""The numbers of a report as Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scripts.reporting.setting import deviations
from scripts.reporting.sweep import Row, Run, Spread, Sweep
from scripts.reporting.words import KNOBS


def gain(row: Row, baseline: Row | None, which: str) -> Spread | None:
    """The difference to the baseline on test, taken seed by seed; None where no seed is common."""
    if baseline is None or row is baseline:
        return None
    ours = {run.seed: run.value(which, "test") for run in row.runs}
    theirs = {run.seed: run.value(which, "test") for run in baseline.runs}
    paired = [a - b for seed, a in ours.items() if a is not None and (b := theirs.get(seed)) is not None]
    return Spread(tuple(paired)) if paired else None


def paper_gain(row: Row, baseline: Row | None) -> float | None:
    """The paper's difference to its baseline, within one of its tables or figures: their baselines differ."""
    if baseline is None or row is baseline or row.paper_source != baseline.paper_source:
        return None
    ours, theirs = row.paper_number()[0], baseline.paper_number()[0]
    return None if ours is None or theirs is None else ours - theirs


def gain_text(row: Row, baseline: Row | None, which: str) -> str:
    """The difference in words; with its own n where not every run has its counterpart."""
    spread = gain(row, baseline, which)
    if spread is None:
        return ""
    pairs = f" (n = {len(spread.values)})" if len(spread.values) < len(row.runs) else ""
    return f"{spread.mean:+.2f}{'' if spread.std is None else f' ± {spread.std:.2f}'}{pairs}"


def paper_number(row: Row) -> str:
    value, std = row.paper_number()
    return "" if value is None else f"{value:.2f}" if std is None else f"{value:.2f} ± {std:.2f}"


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[object]], left: int = 1) -> str:
    """Columns after the first `left` ones are numbers, set to the right."""
    rule = [":--"] * left + ["--:"] * (len(headers) - left)
    lines = [headers, rule, *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def results(sweep: Sweep) -> str:
    """One line a row: last epoch and peak beside the paper's number, each with its difference to the baseline."""
    headers = ["", "n", "last epoch", "to baseline", "peak", "to baseline", "paper (peak)", "to baseline", "dropped"]
    lines = []
    for row in sweep.rows:
        baseline = sweep.baseline_of(row)
        theirs = paper_gain(row, baseline)
        lines.append(
            [
                *(sweep.label(row), len(row.runs)),
                *(row.spread("last") or "", gain_text(row, baseline, "last")),
                *(row.spread("peak") or "", gain_text(row, baseline, "peak")),
                *(paper_number(row), "" if theirs is None else f"{theirs:+.2f}", drop_text(row)),
            ]
        )
    return markdown_table(headers, lines)


def drop_text(row: Row) -> str:
    """Measured drop in the last group at the last epoch, beside the closed form."""
    groups = row.runs[0].summary["drop_last_epoch"]
    if not groups:
        return ""
    last = max(groups, key=lambda name: int(name.rpartition("group")[2]))  # of several layers the first
    measured = Spread(tuple(run.summary["drop_last_epoch"][last]["measured"] for run in row.runs)).mean
    return f"{100 * measured:.2f} % ({100 * groups[last]['expected']:.2f})"


def best_on_val(rows: Sequence[Row]) -> Row | None:
    """The row with the best mean accuracy on val at the last epoch; test is not looked at."""
    judged = [(spread.mean, -i, row) for i, row in enumerate(rows) if (spread := row.spread("last", "val"))]
    return max(judged)[2] if judged else None


def chosen(sweep: Sweep, knob: str) -> str:
    """What val chooses among the values of a knob, for every line of a figure; '' where nothing is varied."""
    lines = []
    for rows in sweep.lines(knob):
        best = best_on_val(rows)
        if best is None:
            continue
        curve = best.paper_curve if knob == "keep_prob" else {}
        paper = max(curve, key=lambda k: curve[k], default=None)
        lines.append(
            [
                *(sweep.label(best, without=knob), f"{best.knob(knob):g}", best.spread("last", "val") or ""),
                *(
                    best.spread("last") or "",
                    gain_text(best, sweep.baseline_of(best), "last"),
                    best.spread("peak") or "",
                ),
                "" if paper is None else f"{paper:g} ({curve[paper]:.2f})",
            ]
        )
    if not lines:
        return ""
    headers = ["", knob, "val", "test, last epoch", "to baseline", "test, peak", f"paper's best {knob}"]
    if not any(line[-1] for line in lines):  # its figure is not known in numbers
        headers, lines = headers[:-1], [line[:-1] for line in lines]
    return markdown_table(headers, lines)


@dataclass(frozen=True)
class DropLine:
    """A row, tested with blocks of one size: accuracy on test by keep_prob at inference."""

    row: Row
    block_size: int
    top1: dict[float, Spread]


def under_drop(sweep: Sweep) -> list[DropLine]:
    """What scripts/inference_drop.py measured; nothing before it did so for every row, as runs may be of two sweeps."""
    lines = []
    for row in sweep.rows:
        found: dict[int, dict[float, list[float]]] = {}
        for run in row.runs:
            for point in (run.folder.read("under_drop.json") or {}).get("under_drop", []):
                found.setdefault(point["block_size"], {}).setdefault(point["keep_prob"], []).append(point["top1"])
        for block, values in sorted(found.items()):
            lines.append(DropLine(row, block, {kp: Spread(tuple(values[kp])) for kp in sorted(values, reverse=True)}))
    return lines if {id(line.row) for line in lines} == {id(row) for row in sweep.rows} else []


def under_drop_table(sweep: Sweep) -> str:
    lines = under_drop(sweep)
    keep_probs = sorted({keep_prob for line in lines for keep_prob in line.top1}, reverse=True)
    rows = [[sweep.label(line.row), line.block_size, *(line.top1.get(kp, "") for kp in keep_probs)] for line in lines]
    return markdown_table(["trained with", "tested with block", *(f"keep_prob {kp:g}" for kp in keep_probs)], rows)


def told_of_sweep(sweep: Sweep) -> str:
    """What was run, on what, by which code; and what is missing."""
    runs = sweep.runs
    plan, environments = runs[0].plan, [e for run in runs for e in run.environments]
    commits = sorted({str(e["commit"])[:9] + ("+" if e["dirty"] else "") for e in environments})
    devices = sorted({e["device"] for e in environments})
    subset = plan["data"]["train_subset"]
    images = f"{subset:,} training images" if subset else "all training images"
    setting = (
        f"{plan['model']['name']} of width {plan['model']['width']} on {plan['data']['name']}, {images}, "
        f"{plan['recipe']['epochs']} epochs of recipe `{plan['recipe']['name']}`"
    )
    if sweep.varied:
        setting = f"Not all in one setting: {', '.join(sweep.varied)} differ, and a row is compared within its own"
    evaluations = len(runs[0].curve(f"test/{runs[0].summary['headline']}"))
    hours = sum(run.summary["train_seconds"] for run in runs) / 3600
    lines = [
        f"{len(runs)} runs done{f', {len(sweep.lost)} not (listed below)' if sweep.lost else ''}. "
        f"{setting}; {', '.join(devices)}, "
        f"{hours:.1f} hours of training in all; commit {', '.join(commits)} (+: with changes).",
        "",
        "Top-1 accuracy on the official test set in percent, mean ± sample standard deviation over n seeds (none for "
        "n = 1). *Last epoch* is the headline. *Peak* is the maximum over the evaluations of a run on test "
        f"({evaluations} of them), the paper's convention; nothing is chosen by it. Differences to the baseline are "
        "taken seed by seed, where both have the seed. *Dropped*: share of units in the last group, measured in the "
        "last epoch (and expected).",
    ]
    if sweep.lost:
        lost = [(what, status, reason.replace("|", "/")[:120]) for what, status, reason in sweep.lost]
        lines += ["", "## Not in the numbers", "", markdown_table(["job", "status", "reason"], lost, left=3)]
    return "\n".join(lines)


def report_text(sweep: Sweep, figures: Sequence[tuple[str, str]]) -> str:
    """The whole report. `figures` are (caption, file name)."""
    parts = [f"# {sweep.name}", told_of_sweep(sweep), "## Results", results(sweep)]
    for knob in ("keep_prob", "block_size"):
        table = chosen(sweep, knob)
        if table:
            parts += [f"## {knob} chosen on the validation split", table]
    if under_drop(sweep):
        parts += ["## Under drop at inference", under_drop_table(sweep)]
    for caption, name in figures:
        parts.append(f"![{caption}]({name})\n\n*{caption}*")
    differences = markdown_table(["", "here", "paper"], deviations(sweep), left=3)
    told = "Where the paper is silent (warm-up) its column has the released code: `configs/recipe/imagenet_270.yaml`."
    return "\n\n".join([*parts, "## Deviations from the paper's setting", differences, told]) + "\n"


def rows_csv(sweep: Sweep) -> str:
    """One line a row of the results."""
    lines = []
    for row in sweep.rows:
        line: dict[str, Any] = {"experiment": row.experiment, "label": sweep.label(row), "n": len(row.runs)}
        line |= {"seeds": " ".join(map(str, row.seeds)), **knobs(row)}
        for which, split in (("last", "test"), ("peak", "test"), ("last", "val"), ("best", "test")):
            line |= mean_and_std(f"{which}_{split}", row.spread(which, split))
        baseline = sweep.baseline_of(row)
        line |= mean_and_std("last_gain", gain(row, baseline, "last"))
        theirs = paper_gain(row, baseline)
        line["paper_place"] = row.paper.get("place")
        line["paper_mean"], line["paper_std"] = row.paper_number()
        line["paper_gain"] = None if theirs is None else round(theirs, 4)
        lines.append(line)
    return csv_text(lines)


def runs_csv(sweep: Sweep) -> str:
    """One line a run: what the rows are made of."""
    lines = []
    for row in sweep.rows:
        for run in row.runs:
            plan = run.plan
            line = {"experiment": row.experiment, "regularizer": "+".join(plan["regularizer"]), **knobs(row)}
            line |= {"seed": run.seed, "data": plan["data"]["name"], "train_subset": plan["data"]["train_subset"]}
            line |= {
                "model": plan["model"]["name"],
                "width": plan["model"]["width"],
                "epochs": plan["recipe"]["epochs"],
            }
            for which, split in (
                ("last", "test"),
                ("peak", "test"),
                ("last", "val"),
                ("best", "val"),
                ("best", "test"),
            ):
                line[f"{which}_{split}"] = run.value(which, split)
            line |= {"train_seconds": round(run.summary["train_seconds"], 1), "device": joined(run, "device")}
            dirty = any(environment["dirty"] for environment in run.environments)
            lines.append({**line, "commit": joined(run, "commit"), "dirty": dirty})
    return csv_text(lines)


def joined(run: Run, key: str) -> str:
    """What a run has been through, each once, in order."""
    return "+".join(dict.fromkeys(str(environment[key]) for environment in run.environments))


def under_drop_csv(sweep: Sweep) -> str:
    """One line for every run, keep_prob and block size tested with."""
    lines = []
    for row in sweep.rows if under_drop(sweep) else []:
        for run in row.runs:
            for point in (run.folder.read("under_drop.json") or {}).get("under_drop", []):
                line = {"experiment": row.experiment, "trained_with": sweep.label(row), "seed": run.seed}
                lines.append({**line, **{k: point[k] for k in ("block_size", "keep_prob", "top1", "loss")}})
    return csv_text(lines)


def mean_and_std(name: str, spread: Spread | None) -> dict[str, float | None]:
    """Two columns; empty where there is no number."""
    mean, std = (None, None) if spread is None else (spread.mean, spread.std)
    return {f"{name}_{key}": None if v is None else round(v, 4) for key, v in (("mean", mean), ("std", std))}


def knobs(row: Row) -> dict[str, Any]:
    values = {name: row.knob(name) for name in KNOBS}
    return {**values, "groups": None if values["groups"] is None else "+".join(map(str, values["groups"]))}


def csv_text(lines: list[dict[str, Any]]) -> str:
    out = io.StringIO()
    if lines:
        writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return out.getvalue()
