"""Tables of experiments: every configs/sweep/NAME.yaml, read once.

A table holds its rows, each a set of KEY: VALUE as on the command line. `experiment=PREFIX/ROW` is one of them;
`+sweep=NAME` trains all of them, or those that the table lists under `runs`, in its setting.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from configs.checking import UserError, check, load_yaml, nearest
from configs.schema import TuneConfig

FOLDER = Path(__file__).parent / "sweep"
CHOICES = ("data", "model", "recipe", "regularizer")  # keys of a row or setting that choose a file of a group
Row = dict[str, Any]
# The form of the keys of a table that hold more than one value.
FORMS: dict[str, type] = {
    "rows": dict,
    "runs": list,
    "setting": dict,
    "seed": list,
    "vary": dict,
    "tune": dict,
    "study": dict,
}


@dataclass(frozen=True)
class Table:
    """The content of one configs/sweep/NAME.yaml.

    Args:
        rows: by name; what each sets, as on the command line, and `paper`: its numbers, see `PaperConfig`.
        prefix: the first part of `experiment=PREFIX/ROW`; by default the name of the file.
        runs: the experiments that the sweep trains, of this table or others; None: all rows.
        setting: what the sweep sets for all its runs.
        seed: the seeds of the sweep, unless the command line has others.
        vary: further keys with the values that each experiment is trained with.
        tune: what `tune=default` means for its rows, see `TuneConfig`; {}: the lists of their regularizers.
        certainty: where the numbers of the rows were read that do not say it themselves.
        study: what the sweep declares for its report, see `StudyConfig`.
    """

    rows: dict[str, Row] = field(default_factory=dict)
    prefix: str = ""
    runs: list[str] | None = None
    setting: Row = field(default_factory=dict)
    seed: list[int] = field(default_factory=list)
    vary: dict[str, list[Any]] = field(default_factory=dict)
    tune: dict[str, Any] = field(default_factory=dict)
    certainty: str = ""
    study: dict[str, Any] = field(default_factory=dict)

    def axes(self) -> dict[str, str]:
        """The keys that the sweep varies, as on the command line of a grid; the first one changes slowest."""
        axes: dict[str, list[Any]] = {"seed": self.seed, "experiment": [*self.experiments()], **self.vary}
        return {
            key: ",".join("null" if of is None else str(of) for of in values) for key, values in axes.items() if values
        }

    def experiments(self) -> list[str]:
        """The experiments that the sweep trains, in its order."""
        return [f"{self.prefix}/{name}" for name in self.rows] if self.runs is None else self.runs


@cache
def table_of(name: str) -> Table:
    """The table of a sweep.

    Raises:
        UserError: for a file that is no table, in one line.
    """
    path = FOLDER / f"{name}.yaml"
    values = load_yaml(path)
    known = [f.name for f in fields(Table)]
    for key in values:
        if key in ("defaults", "hydra"):
            raise UserError(f"{path}: a table lists its rows under rows:, see 'A table of your own' in docs/EXTEND.md")
        if key not in known:
            raise UserError(f"{path}: unknown key '{key}'{nearest(key, known)}")
    for key, form in FORMS.items():
        if not isinstance(values.get(key, form()), form):
            raise UserError(f"{path}: {key}: expected {'a list' if form is list else 'keys with values'}")
    table = Table(**{"prefix": name, **values})
    for key, row in [*table.rows.items(), *table.vary.items()]:
        if not isinstance(row, dict if key in table.rows else list):
            raise UserError(f"{path}: {key}: expected {'keys with values' if key in table.rows else 'a list'}")
    check(table.tune, TuneConfig)
    for row in table.rows.values():
        paper = row.get("paper", {})
        if "metrics" in paper or "curve" in paper:
            paper.setdefault("certainty", table.certainty)
    return table


@cache
def rows() -> dict[str, Row]:
    """The rows of all tables by the name of their experiment.

    Raises:
        UserError: for a file of the form that experiments had before tables, in one line.
    """
    older = sorted((FOLDER.parent / "experiment").rglob("*.yaml"))
    if older:
        raise UserError(
            f"{older[0]}: an experiment is a row of a table: write its keys under rows: of configs/sweep/NAME.yaml, "
            "as 'A table of your own' in docs/EXTEND.md has it"
        )
    found: dict[str, Row] = {}
    for path in sorted(FOLDER.glob("*.yaml")):
        table = table_of(path.stem)
        for name, row in table.rows.items():
            experiment = f"{table.prefix}/{name}"
            if experiment in found:
                raise UserError(f"{path}: {experiment}: another table has a row of this name; give this one a prefix")
            found[experiment] = row
    return found


def sweeps() -> list[str]:
    """The names of the tables that can be trained as a whole."""
    names = sorted(path.stem for path in FOLDER.glob("*.yaml"))
    return [name for name in names if table_of(name).experiments()]


def study_of(sweep: str | None) -> dict[str, Any]:
    """The declarations of a sweep for its report; empty for one that is no table of this project."""
    return dict(table_of(sweep).study) if sweep is not None and sweep in sweeps() else {}
