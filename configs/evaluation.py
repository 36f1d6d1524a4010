"""Measurements of a finished network beside the metrics of its task, as evaluate.py is asked for them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path

from configs.checking import UserError, one_of
from configs.command_line import read_values
from configs.schema import CORRUPTIONS

SHORT = {"temperature": "temperature=val", "corruption": "corruption=all"}


@dataclass
class EvaluationConfig:
    """Arguments of an evaluation, under their names on the command line.

    Args:
        split: test, val or train: the training images without augmentation.
        keep_prob, block_size: the metrics with DropBlock on, at every pair of these.
        column: the metrics of these columns of a FractalNet alone.
        temperature: the split that one temperature is fitted on; the metrics after it.
        samples: average the predictions over this many masks, of the network's own layers or of DropBlock as keep_prob
            and block_size say.
        corruption: names, or all: the metrics on corrupted images of the split (data/corruptions.py).
        severity: 1 to 5, of these; 1, 3 and 5 unless given.
        cifar10c: a directory with the files of CIFAR-10-C: the same on its images, for a network of CIFAR-10.
        ood: images that are of none of the classes, in a directory or in class folders below it: how well the network's
            uncertainty distinguishes them from the split's; by one prediction, and by the mean over `samples`.
        seed: decides masks and noise.
    """

    split: str = "test"
    keep_prob: list[float] = field(default_factory=list)
    block_size: list[int] = field(default_factory=list)
    column: list[int] = field(default_factory=list)
    temperature: str | None = None
    samples: int | None = None
    corruption: list[str] = field(default_factory=list)
    severity: list[int] = field(default_factory=list)
    cifar10c: str | None = None
    ood: str | None = None
    seed: int = 0

    def check(self) -> None:
        """Raise UserError for a value that cannot be meant; the message names the key."""
        one_of("split", self.split, ("test", "val", "train"))
        for keep_prob in self.keep_prob:
            if not 0.0 <= keep_prob <= 1.0:
                raise UserError(f"keep_prob={keep_prob}: must lie between 0 and 1")
        for block_size in self.block_size:
            if block_size < 1:
                raise UserError(f"block_size={block_size}: must be at least 1")
        if self.samples is not None and self.samples < 1:
            raise UserError(f"samples={self.samples}: must be at least 1")
        for name in self.corruption:
            one_of("corruption", name, ("all", *CORRUPTIONS))
        for severity in self.severity:
            if not 1 <= severity <= 5:
                raise UserError(f"severity={severity}: must lie between 1 and 5")
        if self.severity and not (self.corruption or self.cifar10c):
            raise UserError(f"severity={self.severity[0]}: of which corruption? corruption=all, or a name")
        for key, place in (("ood", self.ood), ("cifar10c", self.cifar10c)):
            if place is not None and not Path(place).is_dir():
                raise UserError(f"{key}={place}: no such directory")
        if self.temperature is not None:
            one_of("temperature", self.temperature, ("val",))
            if self.split == self.temperature:
                raise UserError(f"temperature={self.temperature}: would be fitted on the images that it is measured on")

    def check_task(self, task: str) -> None:
        """Raise UserError for a measurement that this task does not have."""
        for key, value in (("temperature", self.temperature), ("ood", self.ood)):
            if value is not None and task != "classification":
                raise UserError(f"{key}={value}: for classification, not for {task}")
        if self.samples is not None and task == "detection":
            raise UserError(f"samples={self.samples}: for classification and segmentation, not for detection")


def evaluation_of(text: str, task: str | None = None) -> EvaluationConfig:
    """An evaluation as a sweep names it: arguments of evaluate.py, "samples=20" or "ood=FOLDER samples=20".

    `temperature` stands for temperature=val, `corruption` for corruption=all. With `task` it is refused if that has no
    such measurement.

    Raises:
        UserError: one line that names the evaluation and the key.
    """
    try:
        wanted = read_values([SHORT.get(word, word) for word in shlex.split(text)], EvaluationConfig)
        wanted.check()
        if task is not None:
            wanted.check_task(task)
    except ValueError as error:
        raise UserError(f"evaluations: {text}: {error}") from error
    return wanted
