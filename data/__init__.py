"""Data sets, augmentation and loaders. Every draw is a function of (seed, epoch, sample): nothing random is carried."""

from data.build import DATASETS, build_data
from data.interface import Augment, Batch, ClassificationBatch, Data, Loader

__all__ = ["DATASETS", "Augment", "Batch", "ClassificationBatch", "Data", "Loader", "build_data"]
