"""One attempt at a run: its folder opened and held, its status kept true whatever happens."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from engine.distributed import Ranks
from engine.loop import Stopped
from engine.records import FAILED, RUNNING, STOPPED, RunFolder


def hold(folder: RunFolder, ranks: Ranks, fresh: bool) -> IO[str] | None:
    """Lock the folder for this job, an earlier run in it moved aside first if a fresh start is asked for.

    Raises:
        RunLocked: if another process works there.
    """
    lock = None
    if ranks.is_main:
        if fresh and folder.status():
            folder.lock().close()
            print(f"the earlier run is now {folder.move_aside()}")
        lock = folder.lock()
    ranks.barrier()
    return lock


def differences(ours: Any, theirs: Any, key: str = "") -> list[str]:
    """In words, where two nested dictionaries differ: 'recipe.lr=0.2 (there: 0.1)'."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(k for k in theirs if k not in ours)]
        return [d for k in keys for d in differences(ours.get(k), theirs.get(k), f"{key}.{k}" if key else str(k))]
    return [] if ours == theirs else [f"{key}={ours} (there: {theirs})"]


@contextmanager
def attempt(folder: RunFolder, ranks: Ranks) -> Iterator[None]:
    """RUNNING inside; afterwards STOPPED, or FAILED with the reason and the traceback in `error.txt`.

    The caller sets DONE, when the result is written. Only the main rank writes.
    """
    if ranks.is_main:
        folder.set_status(RUNNING)
    try:
        yield
    except Stopped as stopped:
        if ranks.is_main:
            folder.set_status(STOPPED, reason=str(stopped))
        raise
    except BaseException as error:
        if ranks.is_main:
            folder.set_status(FAILED, reason=f"{type(error).__name__}: {error}"[:2000])
            (folder.path / "error.txt").write_text(traceback.format_exc())
        raise
