"""The files of a report: Markdown and a page from the two templates beside this file, the CSV files, the pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from engine.console import counted
from scripts.reporting import csv_files
from scripts.reporting.compare import baseline_of, compare
from scripts.reporting.names import metric_label
from scripts.reporting.runs import Record, Sweep
from scripts.reporting.statistics import POWER, Difference
from scripts.reporting.tables import all_tables, as_markdown, deviations_table, results

DOTS_WIDTH, DOTS_HEIGHT = 190, 26  # pixels of the drawing of a difference


def write_report(sweep: Sweep, out: Path, with_page: bool = True) -> Path:
    """Write everything but the curves for TensorBoard; returns the path of the Markdown.

    Args:
        sweep: the runs.
        out: the folder of the files.
        with_page: the HTML as well, which holds every picture a second time.
    """
    from scripts.reporting.figures import draw_all

    out.mkdir(parents=True, exist_ok=True)
    content = content_of(sweep)
    content["figures"] = draw_all(sweep, out)
    texts = {
        "report.csv": csv_files.rows_csv(sweep),
        "runs.csv": csv_files.runs_csv(sweep),
        "claims.csv": csv_files.claims_csv(sweep),
        "under_drop.csv": csv_files.under_drop_csv(sweep),
        "report.md": rendered("report.md.j2", content),
        "report.html": page(content, out) if with_page else "",
    }
    for name, text in texts.items():
        if text:
            (out / name).write_text(text)
        else:
            (out / name).unlink(missing_ok=True)  # of an earlier report, that had something to say there
    return out / "report.md"


def content_of(sweep: Sweep) -> dict[str, Any]:
    """Compare the rows and collect what both templates show."""
    compare(sweep)
    return {
        "name": sweep.name,
        "setting": setting_text(sweep),
        "results": results(sweep),
        "legend": legend(sweep),
        "tables": all_tables(sweep),
        "figures": [],
        "limitations": [*(sweep.study.limitations or at_sites(sweep)), *older_code(sweep)],
        "deviations": deviations_table(sweep),
        "margin": sweep.study.margin,
    }


def rendered(template: str, content: dict[str, Any]) -> str:
    """A template with the content of a report; values are escaped in HTML, and a missing one is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"markdown_table": as_markdown, "prose": prose}
    return environment.get_template(template).render(content)


def page(content: dict[str, Any], folder: Path) -> str:
    """The page, one file that needs nothing else.

    Args:
        content: what it says.
        folder: the place of its pictures, which become part of it.
    """
    pictures = [
        (caption, base64.b64encode((folder / name).read_bytes()).decode()) for caption, name in content["figures"]
    ]
    # One horizontal axis for the differences of all rows.
    differences = [cell["dots"] for row in content["results"]["rows"] for cell in row if cell.get("dots")]
    low, high = scale_of(differences, content["margin"])

    def x(value: float) -> float:
        """Pixels from the left, at most at the edge."""
        return round(DOTS_WIDTH * min(1.0, max(0.0, (value - low) / (high - low))), 1)

    drawing = {"drawn": bool(differences), "x": x, "size": (DOTS_WIDTH, DOTS_HEIGHT)}
    return rendered("report.html.j2", {**content, "pictures": pictures, **drawing})


def scale_of(differences: Sequence[Difference], margin: float) -> tuple[float, float]:
    """The ends of an axis wide enough for every dot, and for intervals not much wider than the dots."""
    values = [value for of in differences for value in of.values] or [0.0]
    widest = 1.6 * max(margin, *(abs(value) for value in values))
    ends = [min(max(end, -widest), widest) for of in differences for end in of.interval or ()]
    reach = [-margin, margin, *values, *ends]
    padding = 0.06 * (max(reach) - min(reach)) or 1.0
    return min(reach) - padding, max(reach) + padding


def prose(text: str) -> Markup:
    """The little Markdown that the report's sentences use as HTML: **bold**, *emphasis* and `code`."""
    shown = str(escape(text))
    for mark, tag in (("**", "strong"), ("*", "em"), ("`", "code")):
        pieces = shown.split(mark)
        shown = "".join(piece if i == 0 else f"<{'' if i % 2 else '/'}{tag}>{piece}" for i, piece in enumerate(pieces))
    return Markup(shown)


# The sentences that both templates share.


def at_sites(sweep: Sweep) -> list[str]:
    """Sentences on where layers sat, for sweeps whose file states no limitations."""
    notes, whole = dict[str, None](), list[str]()
    for row in sweep.rows:
        notes |= dict.fromkeys(site["note"] for site in row["sites"] if site.get("note"))
        blocks = [site for site in row["sites"] if site.get("layer") == "DropBlock2d" and site["map_sizes"]]
        for group in dict.fromkeys(site["group"] for site in blocks):
            of_group = [site for site in blocks if site["group"] == group]
            if all(size[1:] == site["block"] for site in of_group for size in site["map_sizes"]):
                whole.append(f"{row['label']}, group {group}")
    covers = [f"A block is the whole map, as in SpatialDropout: {'; '.join(whole)}."] if whole else []
    return [*(f"{note[0].upper()}{note[1:]}." for note in notes), *covers]


def older_code(sweep: Sweep) -> list[str]:
    """A sentence for every change of the code that moves the numbers of runs made before it."""
    rows: dict[str, list[str]] = {}
    for row in sweep.rows:
        for change in dict.fromkeys(change for run in row["runs"] for change in run["changed_since"]):
            rows.setdefault(change, []).append(row["label"])
    return [f"Made before a change of the code, {what}: {', '.join(labels)}." for what, labels in rows.items()]


def setting_text(sweep: Sweep) -> str:
    """One paragraph: network, data, recipe, seeds, machine and code of the runs."""
    runs, first = sweep.runs, sweep.runs[0]
    environments = [environment for run in runs for environment in run["environments"]]
    commits = sorted({str(e["commit"])[:9] + ("+" if e["dirty"] else "") for e in environments})
    devices = sorted({f"{e['device']} ({e['processor']})" if "processor" in e else e["device"] for e in environments})
    of_width = "" if first["width"] is None else f" of width {first['width']}"  # a network of a library has its own
    setting = (
        f"{first['model']}{of_width} on {data_text(first)}, "
        f"{counted(first['epochs'], 'epoch')} of recipe `{first['setting']['recipe.name']}`"
    )
    if sweep.varied:
        how = "a row is compared within its own" if sweep.compared_to is None else "the differences are across settings"
        setting = f"Not all in one setting ({', '.join(sweep.varied)}): {how}"
    hours = sum(run["train_seconds"] for run in runs) / 3600
    spent = f"{hours:.1f} hours" if hours >= 0.1 else f"{3600 * hours:.0f} seconds"
    seeds = sorted({run["seed"] for run in runs})
    lost = f", {len(sweep.lost)} not (table Not in the numbers)" if sweep.lost else ""
    text = (
        f"{counted(len(runs), 'run')} done{lost}. "
        f"{setting}; {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}; "
        f"{', '.join(devices)}, {spent} of training in all; "
        f"commit {', '.join(commits)}{' (+: with local changes)' if any('+' in c for c in commits) else ''}."
    )
    if unread := {path for run in runs for path in run["bad_images"]}:
        were = "was" if len(unread) == 1 else "were"
        text += (
            f" {counted(len(unread), 'image')} could not be used and {were} left out (`bad_images` of summary.json)."
        )
    if sweep.compared_to is not None:
        text += f" **Differences are to: {sweep.compared_to['label']}.**"
    if sweep.tuning is not None:
        text += " " + tuned_text(sweep)
    if sweep.made_up:
        text = f"**Made-up images: these numbers say nothing of any method.** {text}"
    return text


def tuned_text(sweep: Sweep) -> str:
    """The sentence above the table of a tuned sweep: how many pilots a row had, and which rows had none."""
    kept = sweep.tuning or {}
    images = sweep.runs[0]["images"].get("val")
    one = f" (one is {100 / images:.2g} points)" if images and images < 1000 and sweep.headline == "top1" else ""
    val = f"the {images:,} images of val{one}" if images else "val"
    text = f"Each tuned row was chosen on {val} by {counted(kept['pilots_a_row'], 'pilot')} (How each row was chosen)."
    left = [row["label"] for row in sweep.rows if not (row["tuned"] or {}).get("chosen")]
    bold = "**" if kept["allow_untuned"] else ""  # methods that have a knob were left as they are
    return f"{text} {bold}Not tuned: {', '.join(left)}.{bold}" if left else text


def data_text(run: Record) -> str:
    """The data set, own data by their folder, and how many images each part of it has."""
    subset = f"{run['train_subset']:,}" if run["train_subset"] else "all"
    counts = [f"{number:,} {split}" for split, number in run["images"].items()]
    return f"{run['data_title']}, {', '.join(counts) if counts else f'{subset} training'} images"


def legend(sweep: Sweep) -> list[str]:
    """The meaning of each column that is shown, and the rule of the verdicts: one entry each."""
    rows, recipe = sweep.rows, sweep.runs[0]["plan"]["recipe"]
    differences = [row["difference"] for row in rows if row["difference"]]
    intervals = any(of.interval for of in differences)
    tested = sum(row["holm"] is not None for row in rows)

    test = "made-up test images" if sweep.made_up else "the test set"
    entries = [
        f"*Last epoch*, the headline: {sweep.metric} on {test}, mean ± sample standard deviation over n seeds (none "
        "for n = 1)."
    ]
    if differences:
        ends = ", with its 95 % Student t interval (n - 1 degrees of freedom)" if intervals else ""
        unequal = len({tuple(row["seeds"]) for row in rows}) > 1
        shared = "; the rows have different seeds: over those that both rows have" if unequal else ""
        images = sweep.runs[0]["images"].get("test")
        entries.append(f"*Difference*: to the baseline, within seeds{ends}{shared}.")
        if intervals and images:
            one = f", one of which is {100 / images:.2g} points" if sweep.headline == "top1" and images < 1000 else ""
            entries.append(f"Intervals are over seeds alone: all runs have the same {images:,} test images{one}.")
    elif len(rows) > 1:
        has_baseline = any(baseline_of(sweep, row) not in (None, row) for row in rows)
        none = "No seed that two rows have" if has_baseline else "No row without a regularizer in the same setting"
        entries.append(f"{none}: no differences.")
    if tested:
        entries.append(f"*Holm p*: of the paired t test, corrected for the comparisons of this table ({tested}).")
        within = f"within ±{sweep.study.margin:g}{' points' if sweep.unit == '%' else ''}"
        alike = f"equivalent where it is not and the interval lies {within}; " if sweep.study.margin else ""
        entries.append(
            f"*Verdict*: better or worse where Holm p is below .05; {alike}not resolved otherwise, and where the "
            "differences of all seeds are the same number (no test). Only p is corrected: an interval may exclude 0 "
            "where Holm p does not reach .05."
        )
    elif differences:
        entries.append("*Verdict*: not resolved, where there is no test.")
    if intervals:
        entries.append(
            "*Smallest difference*: the true difference that n seeds with this spread would show to be significant "
            f"with a probability of {100 * POWER:.0f} % (before the correction)."
        )
    if any(row["gap"] for row in rows):
        trained = metric_label(sweep.trained_metric, sweep.runs[0])
        entries.append(f"*Train - test*: {trained} of the training batches of the last epoch, as trained, less test.")
    evaluations = counted(-(-recipe["epochs"] // recipe["eval_every"]), "evaluation")
    best = "highest" if sweep.higher_is_better else "lowest"
    entries.append(
        f"*Peak*: the {best} of the {evaluations} of a run on test, as the paper reports; for comparison only."
    )
    for row in rows:
        if any(drop.get("off") for run in row["runs"] for drop in run["drop_last_epoch"].values()):
            entries.append(
                f"**{row['label']} does not drop what its layer declares** (Dropped): no result of the method."
            )
    if any(row["runs"][0]["drop_last_epoch"] for row in rows):
        entries.append(
            "*Dropped*: share of the units of each group, measured over the last epoch; in brackets what is expected "
            "from the mean of the schedule over the last epoch: while a schedule rises, less than the rate that it "
            "ends at. *Dropped over the run*: measured over all steps."
        )
    if sweep.tuning is None and any("not tuned" in row["choice"] for row in rows):
        entries.append("*Not tuned*: keep_prob as the configuration has it, not chosen on a validation split.")
    if any(row["same"] for row in rows):
        entries.append(
            "*Block n (= m)*: every feature map clamps both blocks alike: one computation, which is one row."
        )
    if sweep.study.headline:
        entries.append(f"Headline, as the sweep's file states it: {sweep.study.headline}.")
    if not any(run.get(f"last/val/{sweep.headline}") is not None for run in sweep.runs):
        entries.append("There is no validation split: nothing was chosen on one.")
    return entries
