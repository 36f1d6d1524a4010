"""From the start of a run to its end: its directory locked, a checkpoint resumed, its status true whatever happens."""

from __future__ import annotations

import os
import re
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from engine.distributed import Ranks, lost_peer
from engine.files import remove_made, remove_unfinished
from engine.records import FAILED, RUNNING, STOPPED, RunFolder, RunLocked, same_data
from engine.signals import Stopped
from engine.state import TrainState

WAIT_SECONDS = 1.0
TRACES = re.compile(r"error(-rank\d+)?\.txt")
RESTARTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")


@contextmanager
def locked(folder: RunFolder, ranks: Ranks, fresh_since: float | None, wait: bool = False) -> Iterator[None]:
    """Lock the run directory for this process; with a fresh start, an earlier run in it is moved aside first.

    Args:
        folder: made if it is not there.
        ranks: the main one takes the lock; all raise if it could not.
        fresh_since: start over, if what is there is older than this (in seconds of `time.time`); None: go on.
        wait: until the process that has it is done, instead of raising.

    Raises:
        RunLocked: on all ranks, if another process works there.
        ValueError: on all ranks, if the folder cannot be written.
    """
    # A launcher that restarts its ranks or queues a job again repeats the command line: that is no fresh start.
    again = [count for count in RESTARTS if os.environ.get(count, "0") != "0"]
    if again and fresh_since is not None:
        fresh_since = None
        if ranks.is_main:
            print(f"note: fresh=true was for the first start; by {again[0]}={os.environ[again[0]]} this is another one")
    waits = False
    while True:
        lock, problem = None, None
        if ranks.is_main:
            try:
                lock = folder.take(fresh_since)
            except (RunLocked, ValueError) as error:
                problem = error
        problem = ranks.gather(problem)[0]
        if problem is None:
            break
        if not wait or not isinstance(problem, RunLocked):
            raise problem
        if ranks.is_main and not waits:
            print(f"{problem}; waiting for it", flush=True)
        waits = True
        time.sleep(WAIT_SECONDS)
    try:
        if lock is not None:
            remove_unfinished(folder.path)
        yield
    finally:
        if lock is not None:
            lock.close()


@contextmanager
def nothing_left(folder: RunFolder, made: Sequence[Path], ranks: Ranks) -> Iterator[None]:
    """Remove a run directory whose data cannot be opened, if it was made for this start; to be entered locked.

    Args:
        folder: of the run. It gets its `checkpoints` when the data are open.
        made: what was `absent` before it was locked.
        ranks: the main one removes it.
    """
    try:
        yield
    except (ValueError, FileNotFoundError):
        if ranks.is_main and not folder.checkpoints.exists():
            remove_made(made)
        raise


def differences(ours: Any, theirs: Any, key: str = "") -> list[str]:
    """Where two nested dictionaries differ, as text: 'recipe.lr=0.2 (there: 0.1)'."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(k for k in theirs if k not in ours)]
        return [d for k in keys for d in differences(ours.get(k), theirs.get(k), f"{key}.{k}" if key else str(k))]
    return [] if ours == theirs else [f"{key}={ours} (there: {theirs})"]


def require_equal(what: str, value: dict[str, Any], ranks: Ranks) -> None:
    """Check that `value` is equal on all ranks.

    Raises:
        ValueError: on every rank, naming the first that differs from rank 0, and where.
    """
    values = ranks.gather(value)
    for rank, other in enumerate(values):
        found = differences(other, values[0])
        if found:
            raise ValueError(f"rank {rank} has another {what} than rank 0: {', '.join(found[:4])}")


@contextmanager
def status_kept(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """RUNNING inside; afterwards STOPPED, or FAILED with the reason. Each rank's traceback goes to a file of its own.

    The caller sets DONE, when the result is written. A full disk does not hide the error that ended the run.
    """
    trace = folder.path / ("error.txt" if ranks.is_main else f"error-rank{ranks.rank}.txt")
    if ranks.is_main:
        for old in folder.path.glob("error*.txt"):  # of an earlier start
            if TRACES.fullmatch(old.name):
                old.unlink()
        folder.set_status(RUNNING)
    ranks.barrier()
    try:
        yield
    except Stopped as stopped:
        if ranks.is_main:
            with suppress(OSError):
                folder.set_status(STOPPED, reason=str(stopped))
        raise
    except BaseException as error:
        lost = lost_peer(error)
        with suppress(OSError):
            trace.write_text(traceback.format_exc())
            if ranks.is_main:
                folder.set_status(FAILED, reason=f"{type(error).__name__}: {error}"[:2000])
        if "TORCHELASTIC_ERROR_FILE" in os.environ:  # torchrun shows what stands there when the job ends
            from torch.distributed.elastic.multiprocessing.errors import get_error_handler

            get_error_handler().record_exception(error)
        if lost is not None:
            raise lost from error
        raise


def refuse_another(place: Path, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Two plans under one name.

    Raises:
        ValueError: if they differ; one line that names the keys.
    """
    found = differences(ours, theirs)
    if found:
        raise ValueError(f"{place} holds another run: {', '.join(found[:4])}; fresh=true moves it aside")


def resume(state: TrainState, saved: dict[str, Any], path: Path, identity: dict[str, Any], ranks: Ranks) -> None:
    """Put a checkpoint into the state of a run, if it is of this run.

    Raises:
        ValueError: if it was written by another run or with other data.
    """
    if not same_data(saved.get("fingerprint"), identity["fingerprint"]):
        raise ValueError(f"{path}: written with other data; give the same data, or fresh=true to start over")
    refuse_another(path, identity["plan"], saved.get("plan") or {})
    try:
        state.load_state_dict(saved, ranks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; fresh=true starts over") from error
