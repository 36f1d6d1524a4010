"""Data sets, augmentation and loaders. Every draw is a function of (seed, epoch, sample): nothing random is carried."""

from data.build import DATASETS, build_data
from data.interface import Batch, ClassificationBatch, Data, DetectionBatch, Loader, SegmentationBatch
from data.options import Augment, Cut, Loading, Reading, Source

__all__ = [
    "DATASETS",
    "Augment",
    "Batch",
    "ClassificationBatch",
    "Cut",
    "Data",
    "DetectionBatch",
    "Loader",
    "Loading",
    "Reading",
    "SegmentationBatch",
    "Source",
    "build_data",
]
