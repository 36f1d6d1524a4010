"""Preemption: the first signal asks the run to finish its step and write; a second interrupt ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


def asking() -> tuple[signal.Signals, ...]:
    """Signals that ask to stop. A process started with nohup ignores SIGHUP, and goes on doing so."""
    ignores = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return tuple(number for number in ASKING if not (ignores and number == signal.SIGHUP))


@contextmanager
def interrupt_held() -> Iterator[None]:
    """Context for importing torch: Ctrl-C raises KeyboardInterrupt at its end, the second one ends the process.

    Raised in the middle of an import, the exception may be lost, and the program goes on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if came:
            os._exit(130)
        came.append(number)

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


class Stopped(Exception):
    """A signal asked the run to stop; what was done is written and the run can be resumed.

    `exit_code` is what a scheduler expects of a process that a signal ended: 130 for an interrupt, 143 otherwise.
    `done`: nothing was left to do.
    """

    def __init__(self, number: int, when: str, done: bool = False) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} {when}")
        self.done = done
        self.exit_code = 130 if number == signal.SIGINT else 143


class StopRequest:
    """Handles signals that ask to stop at the next step boundary, while it is entered.

    Until `defer()`, the first signal raises Stopped immediately. Afterwards its number is noted in `received` (0: none
    came) for the loop to look at. Python delivers signals to the main thread alone: a run on another thread leaves them
    as they are.
    """

    def __init__(self) -> None:
        self.received = 0
        self._deferring = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._before = {number: signal.signal(number, self._ask) for number in asking()}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def defer(self) -> None:
        self._deferring = True

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            os._exit(130)
        self.received = number
        if not self._deferring:
            raise Stopped(number, "before the first step")
