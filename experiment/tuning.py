"""`tune=`: pilots of every row, the choice on val, then the rows with what was chosen. Imports no torch by itself.

Every row gets equally many pilots (`budget`): the values of its one knob, each at the learning rates of `tune.lr` if
there are any, each with the seeds of `tune.seeds`; a row with a shorter list gets further seeds. Pilots are ordinary
runs, so the same command again goes on with them, and comes to the same choice: it is a function of their records.

The knob of a row with several regularizers is that of the first of them that has a list, in the order layer, image,
batch, loss. The others get the values that were chosen where they stand alone in the same table, if they do; so a
combination is compared with its parts at the same values.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count, product
from pathlib import Path
from statistics import fmean
from typing import Any

from configs import tables
from configs.checking import UserError, nearest
from configs.compose import config_of, overrides_of
from configs.groups import declared
from configs.plan import Plan
from configs.resolve import resolve_composed
from configs.schema import LAYER_KNOBS, LayerConfig, TuneConfig
from engine.console import counted, table
from engine.files import write_json
from engine.run_directory import DONE, FAILED, RunDirectory
from engine.signals import interrupt_held
from experiment.outcome import Job

FILE = "tuning.json"  # in the folder of the sweep, for its report
RULE = (
    "The value with the best mean of the primary metric on val after the last epoch of its pilots, over the seeds that "
    "all values of the row have; of equal ones that nearest to the row's own (the paper's, where its file has that)."
)


@dataclass
class TunedRow:
    """One row of the table: its jobs, one a seed, and what is chosen for them.

    Args:
        jobs: those of the table.
        method, knob: the regularizer and its knob; "" where it has none.
        source: where the list of values comes from.
        candidates: values by the key of their override; empty for a row that is not tuned.
        parts: the rows whose choice its further regularizers have.
        pilots: the pilots of each candidate.
        chosen: one of the candidates.
        tuned: the plan of the first job with it.
        reason: why there is nothing to choose, or nothing chosen.
    """

    jobs: list[Job]
    method: str = ""
    knob: str = ""
    source: str = ""
    candidates: list[dict[str, Any]] = field(default_factory=list)
    parts: list[TunedRow] = field(default_factory=list)
    pilots: list[list[Job]] = field(default_factory=list)
    chosen: dict[str, Any] | None = None
    tuned: Plan | None = None
    reason: str = ""

    @property
    def plan(self) -> Plan:
        assert self.jobs[0].plan is not None
        return self.jobs[0].plan

    @property
    def name(self) -> str:
        return self.plan.experiment or "+".join(self.plan.regularizer)

    @property
    def overrides(self) -> list[str]:
        """Those of the row without a seed."""
        return [override for override in self.jobs[0].overrides if key_of(override) != "seed"]

    def key(self, method: str, knob: str) -> str:
        """The override that sets a knob: its short name where the layer is alone and the row's file uses it."""
        key, row = f"regularizer.{method}.{knob}", tables.rows()[self.plan.experiment] if self.plan.experiment else {}
        alone = knob in LAYER_KNOBS and knob not in declared(method).options and len(self.plan.layers) == 1
        return knob if alone and key not in row else key

    @property
    def own(self) -> dict[str, Any]:
        """The values of the row itself, by the keys of its candidates."""
        keys = self.candidates[0] if self.candidates else ()
        return {
            key: self.plan.recipe.lr if key == "lr" else value_of(self.plan, self.method, self.knob) for key in keys
        }

    @property
    def given(self) -> dict[str, Any]:
        """The values that its parts chose, by the keys that set them in this row."""
        chosen = [(part.method, part.knob, part) for part in self.parts if part.chosen is not None]
        return {self.key(method, knob): part.values[part.key(method, knob)] for method, knob, part in chosen}

    @property
    def values(self) -> dict[str, Any]:
        """Everything that was chosen for it, by the keys of the overrides."""
        return {**self.given, **(self.chosen or {})}

    @property
    def shared(self) -> int:
        """The number of pilots that every candidate has: their first, of the same seeds, are those that choose."""
        return min(map(len, self.pilots), default=0)


class Tuning:
    """The tuning of all rows of a command.

    Args:
        tune: what the command and its table say.
        jobs: those of the table, as if nothing was tuned.

    Raises:
        UserError: for a comparison that would be unfair, and for what cannot be chosen, in one line.
    """

    def __init__(self, tune: TuneConfig, jobs: Sequence[Job]) -> None:
        self.tune, self.refused = tune, [job for job in jobs if job.plan is None]
        by_plan: dict[str, list[Job]] = {}
        for job in jobs:
            if job.plan is not None:
                by_plan.setdefault(job.plan.hash(), []).append(job)
        self.rows = [TunedRow(of_one) for of_one in by_plan.values()]
        self.numbers = count()
        compared = {row_job.plan.seed for row in self.rows for row_job in row.jobs if row_job.plan is not None}
        if both := sorted(compared & {*tune.seeds}):
            raise UserError(f"tune.seeds={both[0]}: the seed of a run that is compared; a pilot needs one of its own")

        for row in self.rows:
            self._find_knob(row)
        self._refuse_unfair()
        tuned = [row for row in self.rows if row.candidates]
        if not tuned:
            raise UserError("tune: no row has a knob to choose; tune.lr=[A,B,C] tries each row at learning rates")
        self.budget = len(tune.seeds) * max(len(row.candidates) for row in tuned)
        further = (seed for seed in count(max(tune.seeds) + 1) if seed not in compared)
        self.seeds = [*tune.seeds, *(next(further) for _ in range(self.budget))]
        require_val([row.plan for row in tuned])

        # A further regularizer has the value of the row in which it stands alone; other rows can have pilots now.
        for row in tuned:
            for other in row.plan.regularizer:
                alone = [of for of in tuned if of.plan.regularizer == [other] and setting(of.plan) == setting(row.plan)]
                if len(alone) == 1 and alone[0].method not in ("", row.method):
                    row.parts += alone
            if not row.parts:
                self._plan_pilots(row)

    # What is to be chosen.

    def _find_knob(self, row: TunedRow) -> None:
        """Decide the knob of a row and its candidates."""
        tune, axes = self.tune, dict[str, list[Any]]()
        for method in row.plan.regularizer:
            # Its knobs that have a list, each with its values and their source.
            if tune.knobs == "default":
                of = declared(method).tune
                lists = {} if of is None else {of.knob: (of.values, of.source)}
            else:
                asked = {key.removeprefix("regularizer."): values for key, values in tune.knobs.items()}
                found = {knob: asked.get(f"{method}.{knob}", asked.get(knob)) for knob in knobs_of(method)}
                lists = {knob: (of, "the command or the sweep's file") for knob, of in found.items() if of}
            if len(lists) > 1:
                raise UserError(f"tune: {' and '.join(lists)} are both of {method}; one knob of a row is tuned")
            if lists:
                ((row.knob, (values, row.source)),) = lists.items()
                row.method, axes[row.key(method, row.knob)] = method, values
                break
        if tune.lr:
            axes["lr"] = tune.lr
        typed = {key_of(override): override for override in row.jobs[0].overrides}
        for axis in axes:
            for spelling in {axis, f"regularizer.{row.method}.{row.knob}", f"recipe.{axis}"} & typed.keys():
                raise UserError(f"{typed[spelling]}: tune chooses it; leave one of the two out")
        if not axes:
            row.reason = "it has no knob with a list" if tune.knobs == "default" else "no knob of it is in the list"
            return
        row.candidates = [dict(zip(axes, of_one, strict=True)) for of_one in product(*axes.values())]
        own = row.own
        row.candidates.sort(key=lambda candidate: distance(candidate, own))

    def _refuse_unfair(self) -> None:
        """Refuse lists that no row has a knob for, and, unless allowed, those that leave a row with a knob untuned."""
        if self.tune.knobs == "default":
            return
        for key in self.tune.knobs:
            name = key.removeprefix("regularizer.")
            if not any(name in (row.knob, f"{row.method}.{row.knob}") for row in self.rows):
                known = {knob for row in self.rows for method in row.plan.regularizer for knob in knobs_of(method)}
                raise UserError(f"tune: {key}: no row has this knob{nearest(name, known)}")
        left = [row.name for row in self.rows if not row.knob and any(declared(of).tune for of in row.plan.regularizer)]
        if left and not self.tune.allow_untuned:
            raise UserError(
                f"tune: {', '.join(left)} would be compared untuned; add a knob of each to the list, or say "
                "tune.allow_untuned=true, and the report says so, too"
            )

    def _plan_pilots(self, row: TunedRow) -> None:
        """Compose the pilots of a row, `budget` of them; the nearest to the row's own come first.

        Raises:
            UserError: for a candidate that is no valid value.
        """
        epochs: dict[str, Any] = {} if self.tune.epochs is None else {"epochs": self.tune.epochs}
        common = {**row.given, **epochs, "pilot": True}
        row.pilots = [[] for _ in row.candidates]
        for i in range(self.budget):
            place, seed = i % len(row.candidates), self.seeds[i // len(row.candidates)]
            asked = {**common, **row.candidates[place], "seed": seed}
            overrides = [*(word for word in row.overrides if key_of(word) not in asked), *overrides_of(asked)]
            plan = composed(overrides)
            if row.parts and not row.given:  # shown before its parts have a choice
                plan = placed(plan, f"{row.name} {values_text(row.candidates[place])}, the rest as chosen")
            row.pilots[place].append(Job(next(self.numbers), overrides, plan))

    # What is run, and in which order.

    def stages(self, shown: bool = False) -> Iterator[list[Job]]:
        """The pilots that can be run now, until there are no more; between two of them the caller has run the first.

        Args:
            shown: for a preview or a price: what the second needs of the first may be missing.
        """
        tuned = [row for row in self.rows if row.candidates]
        alone, combined = [row for row in tuned if not row.parts], [row for row in tuned if row.parts]
        yield [job for row in alone for pilots in row.pilots for job in pilots]
        for row in alone:
            choose(row)
        for row in combined:
            if shown or all(part.chosen for part in row.parts):
                self._plan_pilots(row)
            else:
                row.reason = f"nothing is chosen for {', '.join(p.name for p in row.parts if not p.chosen)}"
        if combined:
            yield [job for row in combined for pilots in row.pilots for job in pilots]
            for row in combined:
                if row.pilots:
                    choose(row)

    def table(self, shown: bool = False) -> list[Job]:
        """The jobs of the table, with what was chosen; those of a row without a choice are refused.

        Args:
            shown: for a preview or a price: a row without a choice has its own values and a place that says so.
        """
        jobs = list(self.refused)
        for row in self.rows:
            if row.chosen is not None:
                row.tuned = composed([*row.overrides, *overrides_of(row.values)])
            for job in row.jobs:
                assert job.plan is not None
                number, plan = next(self.numbers), job.plan
                if not row.candidates:
                    jobs.append(Job(number, job.overrides, plan))
                elif row.tuned is not None:
                    overrides = [*job.overrides, *overrides_of(row.values)]
                    tuned = replace(row.tuned, seed=plan.seed).made_by(overrides, row.tuned.notes)
                    jobs.append(Job(number, overrides, tuned))
                elif shown:
                    what = f"{row.name}, {', '.join(map(short, row.candidates[0]))} as chosen"
                    jobs.append(Job(number, job.overrides, placed(plan, what)))
                else:
                    jobs.append(Job(number, job.overrides, refused=f"{row.name}: {row.reason}"))
        return jobs

    # What is said and kept of it.

    def text(self) -> str:
        """A line for each tuned row with val of every candidate, and the notes on values at the end of their list."""
        lines, notes = [], []
        for row in self.rows:
            if not row.candidates:
                continue
            found = {values_text(candidate): val_of(pilots[: row.shared]) for candidate, pilots in in_order(row)}
            shown = ", ".join(f"{name}: {'-' if val is None else f'{val:.4g}'}" for name, val in found.items())
            lines.append((row.name, shown, values_text(row.chosen) if row.chosen else row.reason))
            notes += [f"note: {row.name}: {end}"] if (end := end_of_list(row)) else []
        return "\n".join([table(("row", "on val", "chosen"), lines), *notes])

    def entries(self) -> list[dict[str, Any]]:
        """Plain values for the report, one entry a row."""
        found = []
        for row in self.rows:
            entry: dict[str, Any] = {
                "configuration": (row.tuned or row.plan).hash(),
                "name": row.name,
                "method": row.method,
                "knob": row.knob,
                "source": row.source,
                "own": row.own,
                "given": row.given,
                "chosen": row.chosen,
                "reason": row.reason,
                "end": end_of_list(row),
                "candidates": [],
            }
            for candidate, pilots in in_order(row) if row.pilots else ():
                summaries = [RunDirectory(job.run).summary() for job in pilots]
                entry["candidates"].append(
                    {
                        "values": candidate,
                        "val": val_of(pilots[: row.shared]),
                        "seeds": [job.plan.seed for job in pilots if job.plan is not None],
                        "runs": ["/".join(job.run.parts[-3:]) for job in pilots],
                        "seconds": sum(summary.get("train_seconds", 0.0) for summary in summaries),
                    }
                )
            found.append(entry)
        return found

    def write(self, sweep: Path) -> None:
        """Keep what was tried and chosen in the folder of the sweep."""
        tune = {"seeds": self.tune.seeds, "epochs": self.tune.epochs, "allow_untuned": self.tune.allow_untuned}
        kept = {"rule": RULE, "pilots_a_row": self.budget, **tune, "rows": self.entries()}
        write_json(sweep / FILE, kept)


def composed(overrides: Sequence[str]) -> Plan:
    """The plan of a job of a grid."""
    return resolve_composed(config_of(*overrides), overrides, grid=True)


# The choice.


def choose(row: TunedRow) -> None:
    """Choose among the candidates of a row by the records of its pilots; without a record of each, nothing.

    Raises:
        UserError: if the pilots have no val.
    """
    # A pilot that this command was refused, such as one on other data, may have left a finished run there before.
    every = [job for pilots in row.pilots for job in pilots]
    missing = [job for job in every if not trained(job) or (job.outcome is not None and job.outcome.status == FAILED)]
    if missing:
        row.reason = f"{counted(len(missing), 'pilot')} did not end, first {missing[0].run}"
        return
    summary = RunDirectory(row.pilots[0][0].run).summary()
    sign = -1.0 if summary["headline"] in summary.get("lower_is_better", ()) else 1.0
    # `candidates` are in the order of their distance from the row's own, and `max` takes the first of equal ones.
    found = [val_of(pilots[: row.shared]) for pilots in row.pilots]
    vals = [sign * val if val is not None and math.isfinite(val) else -math.inf for val in found]
    row.chosen = row.candidates[vals.index(max(vals))]


def val_of(pilots: Sequence[Job]) -> float | None:
    """The mean of the primary metric on val after the last epoch; nothing of test is read. None: not all are done."""
    values = []
    for job in pilots:
        if not trained(job):
            return None
        summary = RunDirectory(job.run).summary()
        value = summary["last"].get(f"val/{summary['headline']}")
        if value is None:
            raise UserError(f"{job.run}: has no val to choose on; data.val_fraction=0.1 holds a share of train out")
        values.append(float(value))
    return fmean(values) if values else None  # none were planned where a part of the row has no choice


def trained(job: Job) -> bool:
    return RunDirectory(job.run).status().get("status") == DONE


def end_of_list(row: TunedRow) -> str:
    """The note for a chosen number that is the first or last of its list, with what to add; "" for others."""
    notes = []
    for key, value in (row.chosen or {}).items():
        values = sorted({candidate[key] for candidate in row.candidates if is_number(candidate[key])})
        if not is_number(value) or value not in (values[0], values[-1]):
            continue
        beside = values[1] if value == values[0] else values[-2]
        least, most = limits_of(row, key)
        further = value + (value - beside)  # the next step; half of what is left where that would leave the range
        if not least + 1e-9 < further < most - 1e-9:
            further = (value + (least if value == values[0] else most)) / 2
        if isinstance(value, int):
            further = round(further)
        if abs(further - value) > 1e-9:
            listed = ", ".join(f"{of:g}" for of in values)
            notes.append(f"{short(key)}={value:g} is at the end of its list {listed}: add {further:.4g}")
    return "; ".join(notes)


def limits_of(row: TunedRow, key: str) -> tuple[float, float]:
    """The valid range of a knob; infinite where it has no end."""
    of = declared(row.method).options.get(row.knob) if key != "lr" else {"above": 0}
    if of is None:
        of = next(dict(f.metadata) for f in fields(LayerConfig) if f.name == row.knob)
    low = of.get("above") if of.get("least") is None else of["least"]
    return (float("-inf") if low is None else low), (float("inf") if of.get("most") is None else of["most"])


# Knobs.


def knobs_of(method: str) -> list[str]:
    """The knobs of a regularizer: the options that it declares, and those of its layer."""
    of = declared(method)
    layer = [] if of.layer is None else [knob for knob in LAYER_KNOBS if getattr(of.layer, knob) is not None]
    return [*of.options, *layer]


def value_of(plan: Plan, method: str, knob: str) -> Any:
    """The value of a knob in a plan."""
    layers = [name for name in plan.regularizer if declared(name).layer is not None]
    if method in layers:
        layer = plan.layers[layers.index(method)]
        return layer.options[knob] if knob in layer.options else getattr(layer, knob)
    options = next(of.options for of in plan.methods if of.name == method)
    return options.get(knob, declared(method).options[knob]["default"])


def setting(plan: Plan) -> str:
    """Equal for plans that differ in their regularizers alone."""
    of = plan.identity()
    return json.dumps([of["model"], of["data"], of["recipe"], of.get("headline")], sort_keys=True)


def placed(plan: Plan, what: str) -> Plan:
    """A plan that is shown before all of it is chosen, in a place that says so."""
    place = plan.run_dir().parent.parent / what / f"seed-{plan.seed}"
    return replace(plan, runtime=replace(plan.runtime, run_dir=str(place))).made_by(plan.overrides, plan.notes)


def key_of(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def values_text(values: dict[str, Any]) -> str:
    """Values by the last part of their key: `keep_prob 0.9, lr 0.1`."""
    return ", ".join(f"{short(key)} {f'{value:.12g}' if is_number(value) else value}" for key, value in values.items())


def short(key: str) -> str:
    """The last part of a key."""
    return key.rpartition(".")[2]


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def distance(candidate: dict[str, Any], own: dict[str, Any]) -> tuple[float, ...]:
    """The distance of a candidate from the row's own values, knob by knob; of what is no number 0 or 1."""
    return tuple(
        abs(value - own[key]) if is_number(value) and is_number(own[key]) else float(value != own[key])
        for key, value in candidate.items()
    )


def in_order(row: TunedRow) -> list[tuple[dict[str, Any], list[Job]]]:
    """The candidates with their pilots, by value."""
    pilots = row.pilots or [[] for _ in row.candidates]
    pairs = list(zip(row.candidates, pilots, strict=True))
    return sorted(pairs, key=lambda pair: [value if is_number(value) else 0 for value in pair[0].values()])


def require_val(plans: Sequence[Plan]) -> None:
    """Refuse data without val: a choice on test would not be a choice, and one on train no test of it.

    Raises:
        UserError: names the key that holds a share out.
    """
    asked = {}
    for plan in plans:
        # A share that is held out is a val; some data sets, and folders with val/ in them, have one of their own.
        if plan.data.val_fraction == 0:
            asked[json.dumps(plan.identity()["data"], sort_keys=True)] = plan
    for plan in asked.values():
        with interrupt_held():
            import torch

            from engine.distributed import Ranks
            from experiment.build import open_data
        if open_data(plan, torch.device("cpu"), Ranks()).val is None:
            raise UserError(
                f"tune: data={plan.data.name} has no val, and nothing is chosen on test; data.val_fraction=0.1 holds "
                "a share of train out"
            )
