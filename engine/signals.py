"""Preemption: the first signal asks the run to finish its step and write; a second interrupt ends it at once."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

ASKING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopRequest:
    """While active, `received` tells which signal asked the run to stop (None: nobody did).

    `exit_code` is what a scheduler expects of a process that a signal ended: 130 for an interrupt, 143 otherwise.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._ask) for number in ASKING}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT and number == signal.SIGINT:
            os._exit(130)
        self.received = signal.Signals(number)

    @property
    def exit_code(self) -> int:
        return 130 if self.received == signal.SIGINT else 143
