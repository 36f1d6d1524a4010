"""Evaluate a trained network: python evaluate.py outputs/digits-resnet50/.../seed-1

    FOLDER, run=FOLDER  the last checkpoint of a run; which=best takes the one chosen on val
    checkpoint=FILE     a checkpoint that train.py wrote
    split=test          test, val, or train: the training images without augmentation, for how far they are fitted
    keep_prob=0.9       put DropBlock on while evaluating, whatever the network was trained with (paper, Figure 5): at
                        all sites of the last two groups, in the first of them a quarter of the rate, with
                        block_size=7 or another; both take lists: keep_prob=[1,0.9,0.8] block_size=[1,7]
    samples=30          average the predictions over this many masks (Monte Carlo dropout, MC-DropBlock): of the layers
                        that the network was trained with, at their full rate, or of those that keep_prob= and
                        block_size= put on; adds predictive entropy and mutual information, in nats
    corruption=all      the metrics on corrupted images, at severity=1,3,5 or others: gaussian_noise, defocus_blur,
                        brightness, contrast, jpeg, of this project (not those of CIFAR-10-C)
    cifar10c=FOLDER     the same on the files of CIFAR-10-C, for a network of CIFAR-10
    ood=FOLDER          images of none of the classes, in class folders or not: how well max softmax, entropy and (with
                        samples=) mutual information distinguish them from the split's (classification)
    column=[1,2,3]      columns of a FractalNet alone, beside the whole network; 1 is the shallowest
    temperature=val     fit one temperature on val, and add the metrics of the split after it: label smoothing, mixup
                        and the like change how sure a network is, and with it loss and calibration (classification)
    json=FILE           write the result as JSON
    data.root=PATH      place of the data, if it is another one than in training (also data_root=PATH)
    device, workers, download: see train.py

Prints the metrics of the network's task, and those of every class. Exit codes as in train.py.
"""

from __future__ import annotations

import faulthandler
import json as json_format
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from configs.checking import UserError
from configs.command_line import read_values
from configs.evaluation import EvaluationConfig
from engine import cpu
from engine.console import metric_text, prepare_output, table, table_rows
from engine.signals import interrupt_held
from experiment.outcome import report_error
from experiment.source import NetworkSource

T = TypeVar("T")


@dataclass
class Request(EvaluationConfig, NetworkSource):
    """The arguments of this command."""

    device: str = "auto"
    json: str | None = None

    def part(self, of: type[T]) -> T:
        """The arguments of this dataclass among them."""
        return of(**{f.name: getattr(self, f.name) for f in fields(of)})  # type: ignore[arg-type]


def read_request(arguments: list[str]) -> Request:
    """The command line as a checked request; a single value stands for a list of one."""
    request = read_values(arguments, Request)
    request.part(NetworkSource).check()
    request.part(EvaluationConfig).check()
    if request.json is not None and not Path(request.json).parent.is_dir():
        raise UserError(f"json={request.json}: there is no directory {Path(request.json).parent}")
    return request


def result_text(result: dict[str, Any]) -> str:
    """The result as tables."""
    split, headline = result["split"], result["headline"]
    unit = result["metric_units"][headline]
    names = [name for name in result["metric_labels"] if name in result]
    rows = [(f"{split}/{name}", metric_text(result[name], result["metric_units"][name], places=4)) for name in names]
    parts = [f"checkpoint {result['checkpoint']}", table(("metric", f"of {result['samples']:,} images"), rows)]
    parts += [table(finer["header"], table_rows(finer["rows"])) for finer in result["tables"]]
    if result["temperature"]:
        of = result["temperature"]
        after = [(f"{split}/{name}", metric_text(of[name], result["metric_units"][name], places=4)) for name in names]
        head = f"at temperature {of['value']:.4f}, fitted on {of['images']:,} images of {of['fitted_on']}"
        parts.append(table(("metric", head), after))
    if result["under_drop"]:
        drops = [
            (row["block_size"], f"{row['keep_prob']:g}", *headline_and_loss(row, headline, unit))
            for row in result["under_drop"]
        ]
        parts.append(table(("block_size", "keep_prob", f"{headline} under drop", "loss"), drops))
    if result["sampled"]:
        metrics = [*dict.fromkeys((*names, "ece")), "entropy", "mutual_information"]
        units = {"ece": "%", **result["metric_units"], "entropy": "", "mutual_information": ""}
        sampled = [
            (layers_text(row), row["samples"], *(metric_text(row[name], units[name]) for name in metrics))
            for row in result["sampled"]
        ]
        parts.append(table(("mean over masks of", "samples", *metrics), sampled))
    if result["outside"]:
        outside = [
            (
                row["score"].replace("_", " "),
                layers_text(row) if row["layers"] else "none: one prediction",
                row["samples"],
                *(f"{row[name]:.2f}%" for name in ("auroc", "ap", "base_rate", "fpr95")),
            )
            for row in result["outside"]
        ]
        heads = ("out of distribution by", "masks of", "samples", "AUROC", "AP", "AP by chance", "FPR at 95 % TPR")
        parts.append(table(heads, outside))
    for source in dict.fromkeys(row["source"] for row in result["corrupted"]):
        # What the mean over all says of corruptions that were trained on is no robustness.
        alike = [row for row in result["corrupted"] if row["source"] == source]
        metrics = [headline, *(name for name in ("loss", "ece") if name in names and name != headline)]
        corrupted = [
            (
                f"{row['corruption']}{' (trained on)' if row['trained_on'] else ''}",
                row["severity"],
                *(metric_text(row[name], result["metric_units"][name]) for name in metrics),
            )
            for row in alike
        ]
        means = [sum(row[name] for row in alike) / len(alike) for name in metrics]
        mean = [metric_text(value, result["metric_units"][name]) for name, value in zip(metrics, means, strict=True)]
        head = f"corruption of {source}" if source else "corruption"
        parts.append(table((head, "severity", *metrics), [*corrupted, ("mean", "", *mean)]))
    if result["columns"]:
        alone = [(row["column"], *headline_and_loss(row, headline, unit)) for row in result["columns"]]
        parts.append(table(("column alone", headline, "loss"), alone))
    return "\n\n".join(parts)


def layers_text(row: dict[str, Any]) -> str:
    """The layers of a row as text."""
    block = f", block {row['block_size']}" if row["block_size"] else ""
    return f"{row['layers']}, keep_prob {row['keep_prob']:g}{block}"


def headline_and_loss(row: dict[str, Any], headline: str, unit: str) -> tuple[str, str]:
    """Headline and loss of one evaluation as text; "-" for detection, which is evaluated without a loss."""
    return metric_text(row[headline], unit), f"{row['loss']:.4f}" if "loss" in row else "-"


def main(arguments: list[str]) -> int:
    """Run the command of these arguments; returns its exit code."""
    cpu.configure_process()
    if not arguments or {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    try:
        request = read_request(arguments)
        with interrupt_held():  # imports torch: a typo is refused before that
            from experiment.evaluation import evaluate
        result = evaluate(request.part(NetworkSource), request.part(EvaluationConfig), request.device)
        print(result_text(result))
        if request.json is not None:
            Path(request.json).write_text(json_format.dumps(result, indent=2) + "\n")
    except BaseException as error:
        return report_error(error)[0]
    return 0


if __name__ == "__main__":
    faulthandler.enable()
    prepare_output()
    sys.exit(main(sys.argv[1:]))
