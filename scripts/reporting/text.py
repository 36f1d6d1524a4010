"""The sentences of a report, which its Markdown and its page share."""

from __future__ import annotations

from collections.abc import Sequence

from engine.console import counted
from scripts.reporting.comparison import Answer, Line, best_on_val
from scripts.reporting.names import metric_label
from scripts.reporting.statistics import POWER
from scripts.reporting.sweep import Row, Run, Sweep

SMALLEST_MEANS = (
    "*Smallest difference*: the true difference that n seeds with this spread would show to be significant with a "
    f"probability of {100 * POWER:.0f} % (before the correction)."
)
DROPPED_MEANS = (
    "*Dropped*: share of the units of each group, measured over the last epoch; in brackets what is expected from the "
    "mean of the schedule over the last epoch: while a schedule rises, less than the rate that it ends at. *Dropped "
    "over the run*: measured over all steps."
)
NOT_TUNED_MEANS = "*Not tuned*: keep_prob as the configuration has it, not chosen on a validation split."


def setting_text(sweep: Sweep) -> str:
    """What was run, on what, by which code."""
    runs = sweep.runs
    plan, environments = runs[0].plan, [e for run in runs for e in run.environments]
    commits = sorted({str(e["commit"])[:9] + ("+" if e["dirty"] else "") for e in environments})
    devices = sorted({f"{e['device']} ({e['processor']})" if "processor" in e else e["device"] for e in environments})
    width = plan["model"]["width"]  # a network of torchvision or timm has its own
    setting = (
        f"{plan['model']['name']}{'' if width is None else f' of width {width}'} on {data_text(runs[0])}, "
        f"{counted(plan['recipe']['epochs'], 'epoch')} of recipe `{plan['recipe']['name']}`"
    )
    if sweep.varied:
        how = "a row is compared within its own" if sweep.compared_to is None else "the differences are across settings"
        setting = f"Not all in one setting ({', '.join(sweep.varied)}): {how}"
    hours = sum(run.summary["train_seconds"] for run in runs) / 3600
    spent = f"{hours:.1f} hours" if hours >= 0.1 else f"{3600 * hours:.0f} seconds"
    seeds = sorted({run.seed for run in runs})
    text = (
        f"{counted(len(runs), 'run')} done{f', {len(sweep.lost)} not (listed below)' if sweep.lost else ''}. "
        f"{setting}; {'seeds' if len(seeds) > 1 else 'seed'} {', '.join(map(str, seeds))}; "
        f"{', '.join(devices)}, {spent} of training in all; "
        f"commit {', '.join(commits)}{' (+: with local changes)' if any('+' in c for c in commits) else ''}."
    )
    unread = {path for run in runs for path in run.summary.get("bad_images", {})}
    if unread:
        were = "was" if len(unread) == 1 else "were"
        text += (
            f" {counted(len(unread), 'image')} could not be used and {were} left out (`bad_images` of summary.json)."
        )
    if sweep.compared_to is not None:
        text += f" **Differences are to: {sweep.label(sweep.compared_to)}.**"
    if sweep.made_up:
        text = f"**Made-up images: these numbers say nothing of any method.** {text}"
    return text


def data_text(run: Run) -> str:
    """The data set, own data by their folder, and how many images each part of it has."""
    data, images = run.plan["data"], run.summary.get("images")
    subset = f"{data['train_subset']:,}" if data["train_subset"] else "all"
    counts = [f"{number:,} {split}" for split, number in (images or {}).items()]
    return f"{run.data_name}, {', '.join(counts) if counts else f'{subset} training'} images"


def legend(sweep: Sweep, lines: Sequence[Line]) -> list[str]:
    """What the columns mean, and by what rule the verdicts are given: one entry each."""
    entries = [text for shown, text in columns(sweep, lines) if shown]
    if any(row.same for row in sweep.rows):
        entries.append(
            "*Block n (= m)*: every feature map clamps both blocks alike: one computation, which is one row."
        )
    if sweep.study.headline:
        entries.append(f"Headline, as the sweep's file states it: {sweep.study.headline}.")
    if not any(row.by_seed("last", "val") for row in sweep.rows):
        entries.append("There is no validation split: nothing was chosen on one.")
    return entries


def nothing_to_compare(sweep: Sweep) -> str:
    """Why no row has a difference."""
    if any(sweep.baseline_of(row) not in (None, row) for row in sweep.rows):
        return "No seed that two rows have"
    return "No row without a regularizer in the same setting"


def columns(sweep: Sweep, lines: Sequence[Line]) -> list[tuple[object, str]]:
    """For each column, whether there is anything in it, and what it means."""
    recipe, trained = sweep.runs[0].plan["recipe"], metric_label(sweep.trained_metric, sweep.runs[0].summary)
    evaluations = counted(-(-recipe["epochs"] // recipe["eval_every"]), "evaluation")
    test = "made-up test images" if sweep.made_up else "the test set"
    differences = [line.difference for line in lines if line.difference]
    intervals = any(of.interval for of in differences)
    ends = ", with its 95 % Student t interval (n - 1 degrees of freedom)" if intervals else ""
    unequal = len({tuple(row.seeds) for row in sweep.rows}) > 1
    shared = "; the rows have different seeds: over those that both rows have" if unequal else ""
    tested = sum(line.adjusted is not None for line in lines)
    start = f"*Last epoch*, the headline: {sweep.metric} on {test}, mean ± sample standard deviation over n seeds"
    by_rule = (
        "*Verdict*: better or worse where Holm p is below .05; equivalent where it is not and the interval lies within "
        f"±{sweep.study.margin:g} points; not resolved otherwise, and where the differences of all seeds are "
        "the same number (no test). Only p is corrected: an interval may exclude 0 where Holm p does not reach .05."
    )
    gap = f"{trained} of the training batches of the last epoch, as trained, less test"
    return [
        (True, f"{start} (none for n = 1)."),
        (differences, f"*Difference*: to the baseline, within seeds{ends}{shared}."),
        (len(sweep.rows) > 1 and not differences, f"{nothing_to_compare(sweep)}: no differences."),
        (tested, f"*Holm p*: of the paired t test, corrected for the comparisons of this table ({tested})."),
        (differences, by_rule if tested else "*Verdict*: not resolved, where there is no test."),
        (intervals, SMALLEST_MEANS),
        (any(line.gap for line in lines), f"*Train - test*: {gap}."),
        (
            True,
            f"*Peak*: the highest of the {evaluations} of a run on test, as the paper reports; for comparison only.",
        ),
        (any(row.runs[0].summary["drop_last_epoch"] for row in sweep.rows), DROPPED_MEANS),
        (any("not tuned" in choice_of_keep_prob(sweep, row) for row in sweep.rows), NOT_TUNED_MEANS),
    ]


def choice_of_keep_prob(sweep: Sweep, row: Row) -> str:
    """How a row came by its keep_prob."""
    own, study = row.knob("keep_prob"), sweep.study
    if own is None:
        return ""
    if not study.keep_prob or study.pilot_seed is None:
        varied = any(row in rows for rows in sweep.lines("keep_prob"))
        return f"{own:g}, varied here" if varied else f"{own:g}, not tuned"
    candidates = ", ".join(f"{value:g}" for value in study.keep_prob)
    alike = [pilot for pilot in sweep.pilots if alike_but_for_keep_prob(pilot, row)]
    if own not in study.keep_prob:
        return f"{own:g}, as the sweep has it"
    if not sweep.pilots:
        return f"{own:g} of {candidates}; the runs that chose are not here"
    if not alike:
        return f"{own:g}, without a pilot of its own"
    best = best_on_val(alike)
    text = f"{own:g}, on val from {candidates} (seed {study.pilot_seed})"
    if best is not None and len(alike) > 1 and best.knob("keep_prob") != own:
        text += f"; val prefers {best.knob('keep_prob'):g}"
    return text


def alike_but_for_keep_prob(one: Row, other: Row) -> bool:
    of = [{**row.tried, "keep_prob": None} for row in (one, other)]
    return of[0] == of[1] and one.plan["regularizer"] == other.plan["regularizer"] and one.setting == other.setting


def answer_cells(answer: Answer, p_value: str) -> list[object]:
    """A claim as the cells of a table: difference, n, cells and their signs, p-value, verdict."""
    positive = sum(cell > 0 for cell in answer.cells)
    n = len(answer.difference.values) if answer.difference else 0
    shown = "" if answer.difference is None else str(answer.difference)
    return [answer.claim.says, shown, n, len(answer.cells), positive, p_value, answer.word or "no such rows"]
