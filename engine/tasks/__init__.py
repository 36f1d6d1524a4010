"""The tasks: prediction, loss and metrics. Each is one file and one entry here."""

from collections.abc import Callable

from engine.tasks.classification import Classification
from engine.tasks.detection import Detection
from engine.tasks.interface import Evaluator, Metric, Table, Task, metrics_record
from engine.tasks.segmentation import Segmentation

# By the name that a data set gives; called with the names of the classes.
TASKS: dict[str, Callable[..., Task]] = {
    "classification": Classification,
    "segmentation": Segmentation,
    "detection": Detection,
}

__all__ = [
    "TASKS",
    "Classification",
    "Detection",
    "Evaluator",
    "Metric",
    "Segmentation",
    "Table",
    "Task",
    "metrics_record",
]
