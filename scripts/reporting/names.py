"""Names of regularizers, knobs and metrics in a report; label and colour of a regularizer are in its YAML.

Those of a layer that a script registered are in the record of its runs (`styles` in summary.json).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from configs.groups import declared

KNOBS = ("keep_prob", "block_size", "groups", "skip", "schedule")
ALWAYS_SHOWN = ("keep_prob", "block_size")  # the others where they tell rows apart
# Axis labels of runs that do not carry their own.
METRICS = {
    "top1": "top-1 accuracy (%)",
    "top5": "top-5 accuracy (%)",
    "miou": "mean IoU (%)",
    "pixel_accuracy": "pixel accuracy (%)",
    "ap": "AP (%)",
    "loss": "loss",
}


Styles = Mapping[str, Mapping[str, Any]]  # label and colour by the name of a regularizer, as a run recorded them


def _style_of(name: str, recorded: Styles | None) -> tuple[str, str | None]:
    """Label and colour; the name and none of a regularizer of which neither this process nor a record knows more."""
    own, kept = declared(name), (recorded or {}).get(name, {})
    return own.label or kept.get("label") or name, own.colour or kept.get("colour")


def label_of(regularizers: Sequence[str], recorded: Styles | None = None) -> str:
    """The label of a list of regularizers."""
    return " + ".join(_style_of(name, recorded)[0] for name in regularizers)


def colour_of(regularizers: Sequence[str], recorded: Styles | None = None) -> str | None:
    """The colour of a regularizer's rows; of several together, their mean made darker; None where one has none."""
    colours = [_style_of(name, recorded)[1] for name in regularizers]
    if None in colours or not colours:
        return None
    parts = [[int(str(colour)[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours]
    shade = 1.0 if len(parts) == 1 else 0.6
    return "#" + "".join(f"{round(shade * sum(channel) / len(parts)):02x}" for channel in zip(*parts, strict=True))


def metric_label(metric: str, summary: Mapping[str, Any]) -> str:
    """The axis label of a metric with its unit, from a run's own record where it has one."""
    return (summary.get("metric_labels") or {}).get(metric) or METRICS.get(metric, metric)


def knob_text(name: str, value: Any) -> str:
    """A value of a regularizer in a label, such as `block 7` or `groups 3+4`."""
    if name == "groups" and list(value) == ["head"]:
        return "head"
    if name == "groups":
        return f"group{'s' if len(value) > 1 else ''} {'+'.join(map(str, value))}"
    if name == "skip":
        return "conv+skip" if value else "conv"
    if name == "schedule":
        return "fixed keep_prob" if value == "constant" else f"{value} schedule"
    short = {"block_size": "block"}.get(name, name.replace("label_", "label "))
    return f"{short} {value:g}" if isinstance(value, int | float) else f"{short} {value}"
