"""The arguments of the command line, read and checked before Hydra sees them.

Three things Hydra would do are not wanted here: it accepts `+typo=1`; it calls what a `hydra.callbacks...._target_`
names before our code runs; and beside `seed=1,2,3` it blames the commas for a misspelt name.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar, get_origin, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from configs.checking import UserError, all_keys, check, load_yaml, nearest
from configs.groups import CONFIGS, choices, option_of
from configs.help import GROUPS
from configs.plan import LONGEST_FOLDER, MADE_DATA, OWN_DATA, own_title, shortened
from configs.schema import LAYER_KNOBS, Config, RunOptions, TuneConfig
from configs.tables import table_of

# Flags, and those that take a value with the values they take: of Hydra's own those that show something.
FLAGS = ("-m", "--multirun", "-h", "--help", "--resolve")
SHOWING = {
    "--cfg": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--shell-completion": (),
}
SHORT_FLAGS = {"-c": "--cfg", "-i": "--info", "-sc": "--shell-completion"}
LAUNCHER = ("hydra/launcher", "hydra.launcher")
# The launcher and its numbers are all of Hydra that may be set: what it imports or calls is fixed.
HYDRA_KEYS = re.compile(r"hydra/launcher|hydra\.launcher\.[a-z_]+")
RUN_ONLY = {f.name for f in fields(RunOptions)} | {"estimate", "plan", "jobs", "num_cpus", "num_gpus"}
NO = ("false", "no", "off", "0", "null")


@dataclass(frozen=True)
class Arguments:
    """A command line, taken apart once.

    Args:
        flags: those given, `-m` or `--cfg=job`.
        overrides: KEY=VALUE as given, in their order.
        given: the values by key, without quotes and without the + of a new key.
    """

    flags: list[str]
    overrides: list[str]
    given: dict[str, str]

    @property
    def shows(self) -> str:
        """The flag that shows something instead of running (`--cfg=job`), or ""."""
        return next((flag for flag in self.flags if flag.partition("=")[0] in SHOWING), "")

    @property
    def is_grid(self) -> bool:
        """True for many runs: `-m`, or a sweep file."""
        return "-m" in self.flags or "--multirun" in self.flags or "sweep" in self.given

    @property
    def launcher(self) -> str:
        """The name of the launcher asked for, or ""."""
        return self.given.get("hydra/launcher", "")

    def asks_for(self, key: str) -> bool:
        """True if `plan` or `estimate` is set; an invalid value is refused later."""
        return self.given.get(key, "false").lower() not in NO

    @property
    def varied(self) -> dict[str, str]:
        """The overrides that the table of a sweep varies: key and Hydra's list of values."""
        return table_of(self.given["sweep"]).axes() if "sweep" in self.given else {}

    @property
    def sweep_folder(self) -> Path | None:
        """The directory of the sweep that these arguments start; None for a single run."""
        if not self.is_grid:
            return None
        root = self.given.get("output_root", Config().output_root)
        return Path(os.path.expanduser(root), "sweeps", sweep_name(self.given))


def tune_of(arguments: Arguments) -> TuneConfig | None:
    """The `tune=` of a command, completed by the `tune:` of its table; None where nothing is tuned.

    Raises:
        UserError: one line that names the key.
    """
    words = {
        "knobs" if key == "tune" else key[5:]: text
        for key, text in arguments.given.items()
        if key == "tune" or key.startswith("tune.")
    }
    if not words or ("knobs" in words and words["knobs"].lower() in NO):
        return None
    if not arguments.is_grid:
        raise UserError("tune: chooses among the rows of a grid; it needs -m or +sweep=NAME")
    if "knobs" not in words:
        raise UserError(f"tune.{min(words)}: only beside tune=default or tune={{KNOB:[A,B,C]}}")
    table = table_of(arguments.given["sweep"]).tune if "sweep" in arguments.given else {}
    values = {"knobs": "default", **table}
    for key, text in words.items():
        if (key, text) == ("knobs", "default"):
            continue
        try:  # {keep_prob:[0.8,0.9]}, as the shell's user writes it, is YAML with a space after each colon
            read = OmegaConf.to_container(OmegaConf.create(f"value: {re.sub(r':(?! )', ': ', text)}"))
        except Exception as error:
            raise UserError(f"tune.{key}={text}: write {{KNOB:[A,B,C]}}, or a list [A,B,C]") from error
        assert isinstance(read, dict)
        values[key] = (
            [read["value"]] if key in ("lr", "seeds") and isinstance(read["value"], int | float) else read["value"]
        )
    try:
        tune = check(values, TuneConfig)
    except UserError as error:
        raise UserError(f"tune.{error}") from None
    lists = {"lr": tune.lr} if tune.lr else {}
    if tune.knobs != "default":
        if not isinstance(tune.knobs, dict) or not tune.knobs:
            raise UserError(f"tune={tune.knobs}: write tune=default or tune={{KNOB:[A,B,C]}}")
        if "lr" in tune.knobs:
            raise UserError("tune: the learning rates of all rows are tune.lr=[A,B,C]")
        lists |= tune.knobs
    for knob, candidates in lists.items():
        if not isinstance(candidates, list) or len({*map(str, candidates)}) != len(candidates) or len(candidates) < 2:
            raise UserError(f"tune: {knob}: give two or more different values, {knob}:[A,B,C]")
    if not tune.seeds or len({*tune.seeds}) != len(tune.seeds) or min(tune.seeds) < 0:
        raise UserError(f"tune.seeds={tune.seeds}: one or more different seeds")
    if tune.epochs is not None and tune.epochs < 1:
        raise UserError(f"tune.epochs={tune.epochs}: must be at least 1")
    return tune


def read_arguments(words: Sequence[str]) -> Arguments:
    """Take a command line apart: a flag and its value become one (`--cfg=job`), wherever they stand."""
    flags: list[str] = []
    overrides: list[str] = []
    for word in words:
        if flags and flags[-1] in ("--cfg", "--info") and not word.startswith("-"):
            flags[-1] = f"{flags[-1]}={word}"
        elif word.startswith("-"):
            name, equals, value = word.partition("=")
            flags.append(f"{SHORT_FLAGS.get(name, name)}{equals}{value}")
        else:
            overrides.append(word)
    flags = ["--info=all" if flag == "--info" else flag for flag in flags]
    return Arguments(flags, overrides, values_given(overrides))


def check_arguments(words: Sequence[str]) -> Arguments:
    """Take a command line apart, and refuse unknown keys, groups, names and flags, and keys that reach into Hydra.

    Raises:
        UserError: one line that names the argument, and the nearest valid one.
    """
    arguments = read_arguments(words)
    _check_flags(arguments)
    if arguments.shows == "--shell-completion":  # query=bash and the like are Hydra's
        return arguments
    keys = all_keys(Config)
    for override in arguments.overrides:
        _check_override(override, keys)
    counts = Counter(override.partition("=")[0].lstrip("+") for override in arguments.overrides)
    twice = next((key for key, count in counts.items() if count > 1), None)
    if twice:
        raise UserError(f"{twice}: given twice; several values are a grid: -m {twice}=A,B")
    if not arguments.is_grid and any(key.startswith(LAUNCHER) for key in counts):
        raise UserError("hydra/launcher: a launcher starts the runs of a grid; it needs -m or +sweep=NAME")
    _check_sweep(arguments)
    # Images of one's own beside a data set that reads none: the run would be of that one.
    data, root = arguments.given.get("data") or _data_of(arguments.given.get("sweep")), arguments.given.get("data.root")
    if root not in (None, "null") and {*re.findall(r"\w+", data)} <= {*MADE_DATA}:
        raise UserError(
            f"data.root={root}: data={data} reads no files; class folders are data=folder, images with masks "
            f"data=segmentation_folder, with boxes data=voc_detection or data=coco; --help lists the others"
        )
    tune_of(arguments)
    return arguments


def _check_flags(arguments: Arguments) -> None:
    for flag in arguments.flags:
        name, _, value = flag.partition("=")
        if flag not in FLAGS and name not in SHOWING:
            raise UserError(f"{flag}: not a flag of this program{nearest(flag, (*FLAGS, *SHOWING))}; see --help")
        if name in SHOWING and value not in (SHOWING[name] or ("",)):
            raise UserError(f"{flag}: write {name}{' ' if SHOWING[name] else ''}{' | '.join(SHOWING[name])}")
    if "--resolve" in arguments.flags and not arguments.shows.startswith("--cfg"):
        raise UserError("--resolve: only beside --cfg job")
    if arguments.shows and {"-m", "--multirun"} & {*arguments.flags}:
        raise UserError(f"{arguments.shows}: shows one configuration; omit -m")


def _check_sweep(arguments: Arguments) -> None:
    """Refuse overrides of keys that the sweep varies: they would silently apply to every row.

    The numbers that a figure is drawn over may be others: `+sweep=fig3_keep_prob keep_prob=0.8,0.9`.
    """
    sweep = arguments.given.get("sweep")
    if sweep is None:
        return
    if "," in sweep:
        raise UserError(f"sweep={sweep}: one sweep at a time, each has a folder of its own")
    fixed = {"experiment", "regularizer", "paper", "label_smoothing", *LAYER_KNOBS} - table_of(sweep).vary.keys()
    for key, value in arguments.given.items():
        if key.lstrip("~").split(".")[0] in fixed:
            raise UserError(f"{key}={value}: +sweep={sweep} sets this itself, run by run; leave it out")


def _check_override(argument: str, keys: list[str]) -> None:
    if "=" not in argument and not argument.startswith("~"):
        raise UserError(f"{argument}: expected KEY=VALUE")
    key, _, value = argument.partition("=")
    sign = re.match(r"[+~]*", key)
    key, plus = key.lstrip("+~"), sign[0] if sign else ""

    # Hydra imports and calls what its own keys name.
    if key.startswith("hydra"):
        if not HYDRA_KEYS.fullmatch(key) or "_target_" in argument:
            raise UserError(f"{key}: Hydra's own settings are fixed here")
        if key == "hydra/launcher":
            _check_names(key, value)
        return

    # Values that Hydra would read as something else than they are meant.
    _check_spelling(argument, key, value)
    if key == "seed" and re.fullmatch(r"\d+-\d+", value):
        raise UserError(f"{argument}: seeds are listed, with -m: seed=1,2,3")
    if value in ("", "???") and not plus.startswith("~"):
        raise UserError(f"{argument}: give {key} a value, or leave it out")
    if "${" in value:
        raise UserError(f"{argument}: a reference to another key is not for the command line; write the value")
    if "_target_" in argument:
        raise UserError(
            f"{argument}: nothing is called by its dotted path here; choose a regularizer or a model by name"
        )

    # Keys: a group's name, a value of one regularizer, or one of the schema, which `+typo=1` would extend.
    if key in GROUPS:
        if plus not in (("+", "++") if key == "sweep" else ("",)):
            raise UserError(f"{argument}: write {'+' if key == 'sweep' else ''}{key}=NAME")
        _check_names(key, value)
        return
    if key.startswith("regularizer."):
        option_of(key)
        return
    if key not in keys and not key.startswith("model.options."):
        tails = {k.rpartition(".")[2]: k for k in keys}
        hint = nearest(key, [*keys, *GROUPS]) or (f" (did you mean '{tails[key]}'?)" if key in tails else "")
        raise UserError(f"unknown key '{key}'{hint}")
    if plus and key in keys:
        raise UserError(f"{argument}: write {key}={value}, without {plus}")


def _check_names(group: str, value: str) -> None:
    """Refuse an unknown name in a choice such as a, [a,b], a,b, choice(a,b) or glob(a*)."""
    known = choices(group)
    function = re.fullmatch(r"(choice|shuffle|sort|glob)\((.*)\)", value)
    for name in filter(None, (part.strip("[]()'\" ") for part in (function[2] if function else value).split(","))):
        if function and function[1] == "glob":
            if not fnmatch.filter(known, name):
                raise UserError(f"{group}={value}: no such name; choose of {', '.join(known)}")
        elif name not in known:
            if group == "data" and os.path.isdir(name):
                raise UserError(f"data={name}: a folder of one's own is data=folder data.root={name}")
            raise UserError(f"{group}={name}: unknown{nearest(name, known)}; choose one of {', '.join(known) or '-'}")


def _check_spelling(argument: str, key: str, value: str) -> None:
    """Refuse values that Hydra's grammar cannot read, with the spelling that it can."""
    if value.startswith("("):
        raise UserError(f"{argument}: a list is written {key}=[{value.strip('()')}]")
    if value.startswith("~"):
        raise UserError(f"{argument}: a value that begins with ~ stands in quotes: \"{key}='{value}'\"")
    odd = next((character for character in value if not character.isascii()), None)
    if odd is not None and "'" not in value and '"' not in value:
        if odd in "\u2212\u2013\u2014":
            raise UserError(f"{argument}: '{odd}' is no minus sign; write {key}={value.replace(odd, '-')}")
        raise UserError(f"{argument}: a value with '{odd}' stands in quotes: \"{key}='{value}'\"")


def values_given(arguments: Sequence[str]) -> dict[str, str]:
    """The values of KEY=VALUE arguments by key, without the + of a new key; of a key that occurs twice the last."""
    given = (argument for argument in arguments if "=" in argument and not argument.startswith("-"))
    pairs = (argument.lstrip("+").split("=", 1) for argument in given)
    return {key: unquoted(value) for key, value in pairs}


def unquoted(value: str) -> str:
    """A value without the quotes around it that Hydra's grammar asks for; before a quote, two backslashes are one."""
    inner = re.fullmatch(r"""(['"])((?:\\.|(?!\1)[^\\])*)\1""", value, re.DOTALL)
    if inner is None:
        return value
    return re.sub(rf"(\\+)(?={inner[1]}|$)", lambda found: found[1][: len(found[1]) // 2], inner[2])


def quoted(value: str) -> str:
    """The inverse: the value as Hydra's grammar reads it literally."""
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", value)
    return "'" + re.sub(r"(\\+)$", r"\1\1", escaped) + "'"


def sweep_name(given: dict[str, str]) -> str:
    """The folder of a sweep: its name, its data and all other choices but the seeds; of a grid a hash of them.

    Runs of other data or scale, which no table may mix, have different folders.

    Args:
        given: the values of the command line by key.
    """
    data = _titles(given.get("data", _data_of(given.get("sweep"))), given)
    aside = RUN_ONLY | {"seed", "data.root", "data.download", "data.title"}
    kept = {key: value for key, value in given.items() if key not in aside and not key.startswith("hydra")}

    # A grid has no name, so a hash distinguishes its folder; of a sweep the other choices are readable.
    if "sweep" not in given:
        text = " ".join(sorted(f"{key}={value}" for key, value in kept.items()))
        return f"grid-{data}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
    named = {key: value for key, value in kept.items() if key not in ("sweep", "data")}
    labels = [value if key in GROUPS else f"{key.rpartition('.')[2]}-{value}" for key, value in sorted(named.items())]
    name = "-".join(re.sub(r"[^\w.+-]+", "_", label).strip("_") for label in (given["sweep"], data, *labels))
    return shortened(name, LONGEST_FOLDER)


def _titles(names: str, given: dict[str, str]) -> str:
    """The data sets of a sweep for its folder's name: own data with their folder's name or their title."""
    roots, title = given.get("data.root", "null").split(","), given.get("data.title", "null")
    titles: list[str] = []
    for name in names.split(","):
        if title != "null":
            titles.append(f"{name}-{title}")
        elif name in OWN_DATA and roots != ["null"]:
            titles += [own_title(name, root) for root in roots]
        else:
            titles.append(name)
    return shortened(re.sub(r"[^\w.+-]+", "_", "+".join(titles)))


def _data_of(sweep: str | None) -> str:
    """The data set of a command that names none: the sweep's own, or else the default."""
    own = table_of(sweep).setting.get("data") if sweep else None
    defaults = load_yaml(CONFIGS / "config.yaml")["defaults"]
    return str(own or next(entry["data"] for entry in defaults if isinstance(entry, dict) and "data" in entry))


T = TypeVar("T")


def read_values(arguments: list[str], schema: type[T]) -> T:
    """Read KEY=VALUE arguments of a small program into its dataclass; a list is also written 1,3,5, and of one value 1.

    A directory without KEY= is the value of `run`, in a program that has this key.

    Raises:
        UserError: one line that names the argument.
    """
    hints = get_type_hints(schema)
    takes_run = "run" in hints
    arguments = [
        f"run={a}" if takes_run and a.partition("=")[0] not in hints and os.path.isdir(a) else a for a in arguments
    ]
    if "data_root" in hints:  # as train.py calls it
        arguments = [f"data_root={a[len('data.root=') :]}" if a.startswith("data.root=") else a for a in arguments]
    for argument in arguments:
        if "=" not in argument:
            raise UserError(f"{argument}: expected KEY=VALUE{' or a run directory' if takes_run else ''}; see --help")
    counts = Counter(argument.partition("=")[0] for argument in arguments)
    for key, count in counts.items():
        if count > 1:
            raise UserError(f"{key}: given twice; give it once")
    # Text stands as it is given: in YAML a path with ` #` or `: ` is something else.
    given = values_given(arguments)
    texts = {key: value for key, value in given.items() if hints.get(key) in (str, str | None)}
    try:
        config = OmegaConf.from_dotlist([a for a in arguments if a.partition("=")[0] not in texts])
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(" ".join(str(error).split())) from error
    for key, value in texts.items():
        if not value:
            raise UserError(f"{key}=: give {key} a value, or leave it out")
        config[key] = None if value == "null" else value
    for name, hint in hints.items():
        if get_origin(hint) is list and name in config and not OmegaConf.is_list(config[name]):
            config[name] = config[name].split(",") if isinstance(config[name], str) else [config[name]]
    return check(config, schema)
