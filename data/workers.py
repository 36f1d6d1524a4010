"""Loader processes, and what happens to images that cannot be read: for every loader that decodes files per batch."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from data.decode import unreadable

# Of an epoch's images may be left out before the run stops: 0.1 %, or five, of fewer than twenty a quarter, or one.
MAX_BAD_SHARE, MAX_BAD_ALWAYS, MAX_BAD_OF_FEW = 0.001, 5, 0.25
MAX_BAD_IN_A_ROW = 16
log = logging.getLogger(__name__)
Item = TypeVar("Item")


def produced(dataset: Dataset[Item], keys: Sequence[Any], workers: int, pin: bool) -> Iterator[Item]:
    """The items of these keys, in order, made by `workers` processes (0: by this one).

    Raises:
        RuntimeError: if a worker dies; in the middle of a message that shows as a broken connection.
    """
    loader = DataLoader(
        dataset,
        sampler=keys,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=_leave_signals_to_the_parent,
        pin_memory=pin,
        generator=torch.Generator(),  # else it would draw from the global one, for seeds that nothing here uses
    )
    try:
        yield from loader
    except (OSError, EOFError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RuntimeError(f"a loader worker exited in the middle of a batch ({reason}); was it killed?") from error


class BadImages:
    """The images of a split that could not be read.

    Args:
        num_samples: that this process reads in an epoch.
        skip: leave them out, up to a small share of an epoch; else any ends the run.
    """

    def __init__(self, num_samples: int, skip: bool) -> None:
        self.num_samples, self.skip = num_samples, skip
        self.reasons: dict[str, str] = {}  # path -> reason, over all epochs

    @property
    def allowed(self) -> int:
        """How many images of an epoch `skip` leaves out."""
        few = max(1, min(MAX_BAD_ALWAYS, int(MAX_BAD_OF_FEW * self.num_samples)))
        return max(few, int(MAX_BAD_SHARE * self.num_samples))

    def account(self, met: Sequence[tuple[str, str]], epoch: set[str]) -> None:
        """Add the (path, reason) of a batch to those of its epoch, which is changed in place.

        Raises:
            ValueError: without `skip` for any; with it when they are more than `allowed`.
        """
        if met and not self.skip:
            raise ValueError(unreadable(met))
        for path, reason in met:
            if path not in self.reasons:
                log.warning("%s: left out, not a usable image (%s)", path, reason)
            self.reasons[path] = reason
            epoch.add(path)
        if len(epoch) > self.allowed:
            path = min(epoch)
            raise ValueError(
                f"{len(epoch)} of {self.num_samples} images cannot be used, {self.allowed} may be left out; one is "
                f"{path} ({self.reasons[path]})"
            )


def _as_it_is(decoded: Any) -> Any:
    return decoded


def _leave_signals_to_the_parent(_: int) -> None:
    """Ctrl-C and a scheduler's signal go to the whole process group; the parent finishes its step and ends us."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
