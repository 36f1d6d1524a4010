"""Data sets, augmentation and loaders. Every draw is a function of (seed, epoch, sample): nothing random is carried."""

from data.build import DATASETS, build_data
from data.interface import Batch, ClassificationBatch, Data, DetectionBatch, Loader, Loading, SegmentationBatch

__all__ = [
    "DATASETS",
    "Batch",
    "ClassificationBatch",
    "Data",
    "DetectionBatch",
    "Loader",
    "Loading",
    "SegmentationBatch",
    "build_data",
]
