"""Fetching a data set, so that what stands under its final name is always whole."""

from __future__ import annotations

import fcntl
import os
import socket
import tempfile
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path

PROBE_SECONDS, STALL_SECONDS = 4.0, 60.0


def default_root() -> Path:
    """The place of downloads when no root is given: `dropblock-repro` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dropblock-repro"


def fetch(name: str, url: str, root: Path, folder: str, get: Callable[[Path], object], otherwise: str) -> None:
    """Have `root/folder` filled by `get`, unless it is there when our turn comes.

    The download goes to a folder beside it and is renamed when it is complete; a lock lets one process of several
    (ranks, runs of a sweep) do the work. A killed download leaves nothing under the final name.

    Args:
        name: data set, for the message.
        url: what `get` will ask for; tried first, so that a missing network is answered in seconds.
        root, folder: the wanted place.
        get: fills a given folder so that it holds `folder`; checks what it fetches.
        otherwise: what to do without a network, for the message.

    Raises:
        FileNotFoundError: without a network, or if the download fails.
        ValueError: if `root` cannot be written.
    """
    _reach(name, url, root, otherwise)
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".download.lock").open("w")
    except OSError as error:
        raise ValueError(f"{name}: cannot write to {root} ({error.strerror}); {otherwise}") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / folder).exists():
            _fetch(name, url, root, folder, get, otherwise)


def _fetch(name: str, url: str, root: Path, folder: str, get: Callable[[Path], object], otherwise: str) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(STALL_SECONDS)  # torchvision sets none: a stalled connection would hang for ever
    try:
        with tempfile.TemporaryDirectory(prefix=".download-", dir=root, ignore_cleanup_errors=True) as aside:
            get(Path(aside))
            os.replace(Path(aside) / folder, root / folder)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; torchvision raises RuntimeError for md5
        raise FileNotFoundError(
            f"{name}: download of {url} into {root} failed ({_line(error)}); {otherwise}"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _reach(name: str, url: str, root: Path, otherwise: str) -> None:
    """Ask for the first bytes. In a thread, because looking up a host may block longer than any socket timeout."""
    answer: list[BaseException | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
            answer.append(None)
        except Exception as error:  # whatever it is, it is the reason to show
            answer.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    error = answer[0] if answer else TimeoutError(f"no answer in {PROBE_SECONDS:.0f} s")
    if error is not None:
        raise FileNotFoundError(
            f"{name}: not found in {root}, and {url} cannot be reached ({_line(error)}); {otherwise}"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
