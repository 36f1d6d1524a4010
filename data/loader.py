"""The loader of every split whose samples are read one by one: from files, or from arrays of several sizes.

A worker process reads samples, runs them through a list of steps (`data.pipelines`) and sends whole batches of bytes;
this process moves them to the device and normalizes there.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from configs.schema import DataConfig
from data.decode import require_few, unreadable, why
from data.draws import MOST, Draws, uniforms
from data.interface import Loading
from data.pipelines import RegularizerError
from data.samples import Sample, Samples, Step
from data.splits import Batches, Indices

MAX_BAD_IN_A_ROW = 16
ON_CPU = ("scales", "image_ids")  # fields of a batch that only the evaluation reads
log = logging.getLogger(__name__)

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel, in [0, 1]
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Made(NamedTuple):
    """One batch as a worker sends it.

    fields: (B, ...) tensors by name, images as (B, S, S, 3) bytes.
    asked, taken: (B,) the samples asked for and those taken for them.
    bad: path and reason of the samples met that cannot be used.
    """

    fields: dict[str, Tensor]
    asked: Tensor
    taken: Tensor
    bad: list[tuple[str, str]]


class BatchReader(Dataset[Made]):
    """A data set whose keys are (epoch, sample positions) and whose items are whole batches.

    Args:
        samples: the split.
        steps: from what `samples.read` returns to the fields of a batch.
        seed: seed of the augmentation.
        training: draw an augmentation.
        skip: go on without the samples that cannot be used.
    """

    def __init__(self, samples: Samples, steps: Sequence[Step], seed: int, training: bool, skip: bool) -> None:
        self.samples, self.steps, self.seed, self.training, self.skip = samples, steps, seed, training, skip

    def __getitem__(self, key: tuple[int, Indices]) -> Made:
        epoch, wanted = key
        drawn = uniforms(self.seed, epoch, wanted, 0, MOST)
        rows: list[Sample] = []
        pairs: list[tuple[int, int]] = []
        bad: list[tuple[str, str]] = []
        for index, numbers in zip(wanted.tolist(), drawn, strict=True):
            draws = Draws(numbers, self.seed, epoch, index) if self.training else None
            # A bad training sample gives way to the next good one. In evaluation it is left out: a sample counted twice
            # would be a wrong number.
            for offset in range(MAX_BAD_IN_A_ROW if self.skip and self.training else 1):
                position = (index + offset) % len(self.samples)
                try:
                    rows.append(self.example(position, draws))
                    pairs.append((index, position))
                    break
                except RegularizerError:  # a mistake in a class, not in the image
                    raise
                except Exception as error:  # decoders raise nearly anything on damaged files
                    bad.append((self.samples.name(position), why(error)))
        fields = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in (rows[0] if rows else ())}
        asked, taken = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
        return Made(fields, asked, taken, bad)

    def example(self, position: int, draws: Draws | None) -> Sample:
        """One sample, read and run through the steps."""
        sample = self.samples.read(self.samples.row(position))
        for step in self.steps:
            sample = step(sample, draws)
        return sample


class FileLoader:
    """Batches of a split.

    Args:
        samples: the split.
        batches: which samples make up which batch; a shuffled split is augmented.
        steps: see `BatchReader`.
        to_batch: images, further fields and positions to a batch.
        statistics: mean and standard deviation of each channel, of values in [0, 1].
        data: its size of images, and what happens at an unusable sample: `error`, or `skip` up to a small share of an
            epoch.
        loading: workers (0: this process), device, memory format, regularizers.
    """

    def __init__(
        self,
        samples: Samples,
        batches: Batches,
        steps: Sequence[Step],
        to_batch: Callable[..., Any],
        statistics: Statistics,
        data: DataConfig,
        loading: Loading,
    ) -> None:
        self.samples, self.batches, self.to_batch = samples, batches, to_batch
        self.reader = BatchReader(samples, steps, batches.seed, batches.shuffled, data.on_bad_image == "skip")
        self.to_network = ToNetwork(statistics, data.image_size, loading, training=batches.shuffled)
        # Starting workers takes longer than placing some hundred images that are in memory.
        self.workers, self.device = 0 if samples.in_memory else loading.workers, loading.device
        self.num_samples = len(samples)
        self.bad_images: dict[str, str] = {}  # path -> reason, over all epochs
        self._kept: tuple[DataLoader[Made], list[Any]] | None = None  # the workers of earlier epochs, and their keys

    def __len__(self) -> int:
        return len(self.batches)

    @cached_property
    def truth(self) -> dict[str, Any]:
        """A split with boxes in COCO's format, in pixels of the original images."""
        return self.samples.truth()

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """See `Loader.epoch`.

        Raises:
            ValueError: at a sample that cannot be used; with `skip` when they are more than a few.
            RuntimeError: if a worker dies; in the middle of a message that shows as a broken connection.
        """
        # The workers of an epoch that was read to its end stay for the next: their draws depend on the key alone.
        keys = [(epoch, share) for share in self.batches.epoch(epoch, start)]
        (loader, wanted), self._kept = self._kept or self._started(), None
        wanted[:] = keys
        left = deque(keys)
        try:
            yield from self._batches(iter(loader), left)
        finally:
            if not left:  # also where nobody asks for more than the last batch
                self._kept = loader, wanted

    def _started(self) -> tuple[DataLoader[Made], list[Any]]:
        """Workers, and the list that the keys of an epoch go into."""
        keys: list[Any] = []
        loader = DataLoader(
            self.reader,
            sampler=keys,
            batch_size=None,  # an item is a batch
            collate_fn=_as_it_is,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=_leave_signals_to_the_parent,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # else it would draw from the global one, for seeds that nothing here uses
        )
        return loader, keys

    def _batches(self, made: Iterator[Made], left: deque[tuple[int, Indices]]) -> Iterator[Any]:
        """The batches of one epoch, on the device; `left` are the keys of those to come."""
        bad: set[str] = set()
        while left:
            try:
                fields, asked, taken, met = next(made)
            except (OSError, EOFError) as error:
                # The signal of the worker's end may follow the broken connection. Torch raises at it: here, with the
                # cause, and not in the middle of what the caller does to clean up.
                time.sleep(1)
                reason = " ".join(str(error).split()) or type(error).__name__
                what = f"a loader worker exited in the middle of a batch ({reason})"
                raise RuntimeError(f"{what}; was it killed?") from error
            epoch, share = left.popleft()
            # Unusable samples end the run or are counted; a training batch is full, as its learning rate expects.
            self._account(met, bad)
            if self.batches.shuffled and len(taken) < len(share):
                path, reason = met[-1]
                raise ValueError(f"{path}: the last of {MAX_BAD_IN_A_ROW} unusable images in a row ({reason})")
            if not len(taken):  # in evaluation, where all of a batch are left out
                continue
            # On the device: bytes are a quarter of the numbers that they become.
            fields = {k: v if k in ON_CPU else v.to(self.device, non_blocking=True) for k, v in fields.items()}
            images = self.to_network(fields.pop("images"), epoch, asked.numpy(), fields.pop("seen", None))
            yield self.to_batch(images=images, **fields, indices=taken)

    def _account(self, met: Sequence[tuple[str, str]], bad: set[str]) -> None:
        """Add the (path, reason) of a batch to `bad_images`, and its paths to those of the epoch, `bad`.

        Raises:
            ValueError: without `skip` for any; with it when they are more than a few.
        """
        if met and not self.reader.skip:
            raise ValueError(unreadable(met))
        for path, reason in met:
            if path not in self.bad_images:
                log.warning("%s: left out, not a usable image (%s)", path, reason)
            self.bad_images[path] = reason
            bad.add(path)
        require_few({path: self.bad_images[path] for path in bad}, self.batches.of_this_rank)


class ToNetwork:
    """Images of bytes to what the network takes: normalized, regularized in training, in the memory format.

    Args:
        statistics: mean and standard deviation of each channel, of values in [0, 1].
        width: pixels of a row of an image.
        loading: device, memory format; the regularizers with an `on_batch` change the normalized images of training.
    """

    def __init__(self, statistics: Statistics, width: int, loading: Loading, training: bool) -> None:
        self.normalize = Normalize(*statistics, width, loading.device)
        self.seed, self.channels_last = loading.seed, loading.channels_last
        regularizers = loading.regularizers if training else ()
        self.changes = [change.on_batch for change in regularizers if hasattr(change, "on_batch")]

    def __call__(self, images: Tensor, epoch: int, indices: Indices, seen: Tensor | None = None) -> Tensor:
        """(B, H, W, C) uint8 to (B, C, H, W) float32.

        Args:
            epoch, indices: the key of the draws.
            seen: (B, 2) int64, rows and columns that show an image; the rest is padding.
        """
        images = self.normalize(images)
        for change in self.changes:
            images = change(images, self.seed, epoch, indices)
        if seen is not None:
            images = zero_padding(images, seen)
        images = images.permute(0, 3, 1, 2)
        return images if self.channels_last else images.contiguous()


class Normalize:
    """Bytes to float32 with mean 0 and standard deviation 1.

    Args:
        mean, std: a number for each channel, of values in [0, 1].
        width: pixels of a row of an image.
        device: where the images are.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], width: int, device: torch.device) -> None:
        # One constant for each number of an image's row: three would be too few to fill a vector register.
        self.shift = (-255.0 * torch.tensor(mean, dtype=torch.float64)).float().repeat(width).to(device)
        self.scale = (1.0 / (255.0 * torch.tensor(std, dtype=torch.float64))).float().repeat(width).to(device)

    def __call__(self, images: Tensor) -> Tensor:
        """(B, H, W, C) uint8 -> float32."""
        return images.flatten(2).float().add_(self.shift).mul_(self.scale).view(images.shape)


def statistics_given(data: DataConfig) -> Statistics | None:
    """`data.mean` and `data.std`, or None without them.

    Raises:
        ValueError: for one without the other, or values outside [0, 1].
    """
    mean, std = data.mean, data.std
    if (mean is None) != (std is None):
        raise ValueError("data.mean and data.std belong together: give both or none")
    if mean is None or std is None:
        return None
    if len(mean) != len(std) or not all(0 <= m <= 1 for m in mean) or not all(0 < s <= 1 for s in std):
        raise ValueError(f"data.mean={list(mean)} data.std={list(std)}: one number in [0, 1] for each channel")
    return tuple(mean), tuple(std)


def channel_statistics(images: NDArray[np.uint8]) -> Statistics:
    """Mean and standard deviation of each channel, of values in [0, 1], exactly, from counts of the 256 levels.

    A channel without variation gets a standard deviation of one level, as one divides by it.

    Args:
        images: (N, C, ...).
    """
    level = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        levels = torch.from_numpy(images[:, channel]).flatten()
        share = torch.bincount(levels, minlength=256).double() / levels.numel()
        mean = float((share * level).sum())
        means.append(mean)
        stds.append(max(float((share * (level - mean) ** 2).sum().sqrt()), 1 / 255))
    return tuple(means), tuple(stds)


def zero_padding(images: Tensor, seen: Tensor) -> Tensor:
    """Set what lies right of or below the image to 0, the mean colour, in place.

    Args:
        images: (B, H, W, C), normalized.
        seen: (B, 2) int64, rows and columns that show the image.
    """
    _, height, width, channels = images.shape
    rows = torch.arange(height, device=images.device) >= seen[:, :1]
    columns = torch.arange(width * channels, device=images.device) // channels >= seen[:, 1:]
    images.flatten(2).masked_fill_(rows[:, :, None] | columns[:, None, :], 0.0)
    return images


def _as_it_is(made: Any) -> Any:
    return made


def _leave_signals_to_the_parent(_: int) -> None:
    """Ctrl-C and a scheduler's signal go to the whole process group; the parent finishes its step and ends us."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Kill the workers of an epoch that something still refers to when Python ends, an exception's traceback, say.

    multiprocessing would send them SIGTERM, which they ignore, and wait for ever.
    """
    workers = [process for process in multiprocessing.active_children() if process.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # at which torch raises
    for worker in workers:
        worker.kill()
