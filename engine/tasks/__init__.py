"""The tasks: what is predicted, by which loss, measured how. Each is one file and one entry here."""

from engine.tasks.classification import Classification
from engine.tasks.interface import Evaluator, Table, Task
from engine.tasks.segmentation import Segmentation

TASKS: dict[str, type[Task]] = {"classification": Classification, "segmentation": Segmentation}

__all__ = ["TASKS", "Classification", "Evaluator", "Segmentation", "Table", "Task"]
