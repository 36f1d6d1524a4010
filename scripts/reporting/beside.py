"""The numbers of a run's evaluations (evaluations.json) as columns of its record: EVALUATION/WHAT/METRIC."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from configs.groups import choices, declared

SCORES = {"max_softmax": "max softmax", "entropy": "entropy", "mutual_information": "mutual information"}
# Of what is measured here alone; other metrics are those of the task.
NAMES = {
    "value": "temperature",
    "entropy": "predictive entropy (nats)",
    "mutual_information": "mutual information (nats)",
    "auroc": "AUROC (%)",
    "ap": "average precision (%)",
    "fpr95": "FPR at 95 % TPR (%)",
}
UNITS = {"auroc": "%", "ap": "%", "fpr95": "%"}
UNDIRECTED = ("value", "entropy", "mutual_information")
CORRUPTED, ALL = "corrupted images", "all corruptions"


def columns_of(evaluations: Mapping[str, Mapping[str, Any]], headline: str) -> dict[str, float]:
    """The numbers by column; those of corruptions are means over severities.

    Args:
        evaluations: by their text, as `experiment.evaluation.evaluate_run` leaves them.
        headline: the metric that is shown of every corruption.
    """
    found: dict[str, float] = {}
    for text, result in evaluations.items():
        # Which metrics: the headline, and those that say how sure the network is and should be.
        metrics = [name for name in dict.fromkeys((headline, "top1", "loss", "brier", "ece")) if name in result]

        if tempered := result.get("temperature"):
            after = ("value", *(name for name in metrics if name not in ("top1", headline)))
            found |= {f"{text}/after temperature/{name}": tempered[name] for name in after}

        for row in result.get("sampled", ()):
            of = f"{text}/mean of {row['samples']} masks of {layers_text(row, text)}"
            found |= {f"{of}/{name}": row[name] for name in (*metrics, "entropy", "mutual_information")}

        # Severities and corruptions of two sources have no common mean.
        sources: dict[str, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
        for row in result.get("corrupted", ()):
            sources[source_of(row)][row["corruption"]].append(row)
        for source, by_name in sources.items():
            untrained = [rows for name, rows in by_name.items() if name not in trainable()]
            means = {ALL: by_name.values(), "those that no augmentation has": untrained}
            for what, lists in means.items():
                if lists and len(by_name) > 1:
                    for name in metrics:
                        found[f"{text}/{source}{what}/{name}"] = fmean(row[name] for rows in lists for row in rows)
            for corruption, rows in by_name.items():
                found[f"{text}/{source}{corruption}/{headline}"] = fmean(row[headline] for row in rows)

        for row in result.get("outside", ()):
            by = "one prediction" if row["samples"] == 1 else f"{row['samples']} masks of {layers_text(row, text)}"
            of = f"{text}/{outside_text(row, text)}: {SCORES[row['score']]} of {by}"
            found |= {f"{of}/{name}": row[name] for name in ("auroc", "ap", "fpr95")}
    return found


def kind_of(what: str) -> tuple[str, str]:
    """The kind of measurement that a column is of, and what else its line names: "other images (...)", "entropy"."""
    if what == "after temperature":
        return "after a temperature fitted on val", ""
    if what.startswith("mean of "):
        return what, ""
    kind, between, of = what.partition(": ")
    return (kind, of) if between else (CORRUPTED, what)


def trainable() -> set[str]:
    """The corruptions that some regularizer trains on."""
    return {corruption for name in choices("regularizer") for corruption in declared(name).corruptions}


def source_of(row: Mapping[str, Any]) -> str:
    """The prefix of the name of a corruption: "CIFAR-10-C ", "" for one of this project, as in older records."""
    return f"{row['source']} " if row.get("source") else ""


def layers_text(row: Mapping[str, Any], text: str) -> str:
    """The layers that masks are of: where the evaluation does not say them, every row has its own."""
    if "keep_prob=" not in text and "block_size=" not in text:
        return "the row's own layers"
    return f"DropBlock {row['block_size']} at keep_prob {row['keep_prob']:g}"


def outside_text(row: Mapping[str, Any], text: str) -> str:
    """The other images by the name of their directory, and their share, which average precision has by chance."""
    place = next(word.partition("=")[2] for word in shlex.split(text) if word.startswith("ood="))
    return f"other images ({Path(place).name}, {row['base_rate']:.1f} % of all)"


def trained_on(evaluations: Mapping[str, Mapping[str, Any]], what: str) -> bool:
    """True if a run trained on the operation of a corruption, or of one of those that are averaged."""
    rows = [row for result in evaluations.values() for row in result.get("corrupted", ())]
    return any(row["trained_on"] and what in (source_of(row) + row["corruption"], source_of(row) + ALL) for row in rows)
