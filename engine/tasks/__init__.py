"""The tasks: what is predicted, by which loss, measured how. Each is one file and one entry here."""

from engine.tasks.classification import Classification
from engine.tasks.interface import Evaluator, Table, Task

TASKS: dict[str, type[Task]] = {"classification": Classification}

__all__ = ["TASKS", "Classification", "Evaluator", "Table", "Task"]
