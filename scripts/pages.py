"""Fill the marked places of README.md and docs/: python -m scripts.pages

A place is <!-- KIND:NAME --> ... <!-- end -->, within a line or over several:

    value:RESULT/ROW/NAME        a number of docs/results/values.json; NAME,NAME: several, as cells of a table
    table:RESULT/FILE.md         the first table of a committed page, or with #HEADING that below a heading
    configuration:SECTION        keys of the schema, or with names/GROUP the names of a group
    command:NAME                 a command line with a path that the configuration decides
    regularizer:NAME             what a regularizer's YAML file says

Every regularizer has a page in docs/regularizers; one without a page gets it.

A test compares. Prose between the places is free.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from configs.command_line import sweep_name, values_given
from configs.compose import plan_of
from configs.groups import CONFIGS, choices, declared
from configs.help import OPTIONS, PARTS, key_text, keys_of
from dropblock.kinds import LAYERS
from scripts.values import VALUES, values_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
REGULARIZERS = ROOT / "docs" / "regularizers"
PLACE = re.compile(r"<!-- (?P<kind>\w+):(?P<name>\S+) -->(?P<text>.*?)<!-- end -->", re.DOTALL)
ESCAPED = str.maketrans({"*": "\\*", "<": "&lt;", "|": "\\|"})


def pages() -> list[Path]:
    """Every page that may have places."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(REGULARIZERS.glob("*.md"))]


def fill_all() -> None:
    """Compute the values from the committed results, then fill every page; says which ones changed."""
    values = json.dumps(values_of(RESULTS), indent=1, ensure_ascii=False)
    (RESULTS / VALUES).write_text(values + "\n")
    for name in choices("regularizer"):
        page = REGULARIZERS / f"{name}.md"
        if name != "none" and not page.exists():
            page.write_text(f"# {declared(name).label or name}\n\n<!-- regularizer:{name} -->\n<!-- end -->\n")
    for page in pages():
        before = page.read_text()
        after = filled(before)
        if after != before:
            page.write_text(after)
            print(f"filled {page.relative_to(ROOT)}")


def filled(text: str) -> str:
    """The text of a page with every place filled anew.

    Raises:
        ValueError: for a place that nothing fills.
    """

    kinds = {"value": value, "table": table, "configuration": configuration}
    kinds |= {"command": command, "regularizer": regularizer}

    def fill(place: re.Match[str]) -> str:
        kind, name, old = place.groups()
        try:
            new = kinds[kind](name)
        except (KeyError, OSError, ValueError) as error:
            raise ValueError(f"nothing fills the place '{kind}:{name}'") from error
        space = "\n" if old.startswith("\n") else ""
        return f"<!-- {kind}:{name} -->{space}{new}{space}<!-- end -->"

    return PLACE.sub(fill, text)


def value(path: str) -> str:
    """A number of values.json; several names after the last slash become the cells of a row."""
    *groups, names = path.split("/")
    found: Any = json.loads((RESULTS / VALUES).read_text())
    for group in groups:
        found = found[group]
    return " | ".join(found[name] for name in names.split(","))


def table(place: str) -> str:
    """The first table of a page, or of one of its sections (FILE.md#HEADING, with _ for spaces)."""
    file, _, heading = place.partition("#")
    text = (RESULTS / file).read_text()
    if heading:
        text = text[text.index(f"\n## {heading.replace('_', ' ')}\n") :]
    found = re.search(r"^\|[^\n]*(\n\|[^\n]*)*", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"no table in {place}")
    return found[0]


def configuration(section: str) -> str:
    """The keys of a section of the schema; or the names of a group, each with the opening of its YAML file."""
    if section.startswith("names/"):
        group = section.removeprefix("names/")
        shown = {name: f"`{name}`" for name in choices(group)}
        if group == "regularizer":
            pages_of = {page.stem for page in REGULARIZERS.glob("*.md")}
            shown |= {name: f"[`{name}`](regularizers/{name}.md)" for name in shown if name in pages_of}
        rows = [f"| {cell} | {opening(CONFIGS / group / f'{name}.yaml')} |" for name, cell in shown.items()]
        return "\n".join([f"| `{group}=` | what it is |", "| :-- | :-- |", *rows])
    prefix = PARTS[section][0] if section in PARTS else OPTIONS if section == "options" else ""
    lines = ["| key | default | valid | meaning |", "| :-- | :-- | :-- | :-- |"]
    for key in keys_of(section):
        cells = (f"`{prefix}{key.name}`", key.default, ", ".join(key.choices) or key.limits, key.meaning)
        lines.append("| " + " | ".join(cell.translate(ESCAPED) for cell in cells) + " |")
    return "\n".join(lines)


def opening(file: Path) -> str:
    """The first sentence of the comment that a YAML file opens with."""
    sentence = re.split(r"(?<!\bal)\. +(?=[A-Za-z\d])", comment_of(file))[0]
    return sentence.rstrip(".:").translate(ESCAPED)


def comment_of(file: Path) -> str:
    """The comment that a YAML file opens with, without its commands."""
    comment = []
    for line in file.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith(("# @package", "#   ")):
            comment.append(line.removeprefix("#").strip())
    return " ".join(comment)


def regularizer(name: str) -> str:
    """The comment of a regularizer's YAML file, a command line, and its knobs with the value that they have there."""
    file, declaration = CONFIGS / "regularizer" / f"{name}.yaml", declared(name)
    network = f" model={declaration.networks[0]}" if declaration.networks else ""
    acts = {"layer": "sites in the network", "image": "single images", "batch": "batches", "loss": "the loss"}
    parts = [comment_of(file).translate(ESCAPED), f"```\npython train.py{network} regularizer={name}\n```"]
    parts.append(f"Acts on {acts[declaration.kind]}. Tasks: {', '.join(declaration.tasks) or 'all'}.")
    if declaration.networks:
        parts[-1] += f" Networks: {', '.join(declaration.networks)}."

    # Its own value of the keys that every layer has, then the options that it declares. LayerControl refuses a second
    # rule of depth, and another schedule where the layer acts in evaluation.
    kind = LAYERS[declaration.layer.name] if declaration.layer else None
    one_value = {"schedule": kind and kind.in_evaluation, "depth_rule": kind and kind.own_depth}
    keys = [
        (key.name, given, given if one_value.get(key.name) else ", ".join(key.choices) or key.limits, key.meaning)
        for key in (keys_of("layer") if declaration.layer else [])
        if (given := key_text(getattr(declaration.layer, key.name))) != "null"
    ]
    for key in keys_of("options"):
        if key.name.startswith(f"{name}."):
            option = key.name.removeprefix(f"{name}.")
            keys.append((option, key.default, ", ".join(key.choices) or key.limits, key.meaning))
    if keys:
        lines = [f"| `regularizer.{name}.` | default | valid | meaning |", "| :-- | :-- | :-- | :-- |"]
        for option, *cells in keys:
            lines.append("| " + " | ".join([f"`{option}`", *(cell.translate(ESCAPED) for cell in cells)]) + " |")
        parts.append("\n".join(lines))
    if declaration.tune:
        values = ", ".join(map(key_text, declaration.tune.values))
        source = declaration.tune.source.translate(ESCAPED)
        parts.append(f"`tune=default` tries `{declaration.tune.knob}` at {values} ({source}).")
    return "\n\n".join(parts)


def command(name: str) -> str:
    """A command line with a path that the configuration decides."""
    if name == "evaluate":
        return f"`python evaluate.py run={plan_of().run_dir()}`"
    if name != "grid":
        raise ValueError(f"no command is called {name}")
    grid = "model=resnet18 model.width=8 epochs=3 regularizer=none,dropout,dropblock seed=1,2,3 tune=default"
    report = f"python scripts/report.py outputs/sweeps/{sweep_name(values_given(grid.split()))}"
    return f"```\npython train.py -m {grid}\n{report}\n```"


if __name__ == "__main__":
    fill_all()
