"""SIGINT and SIGTERM: the first signal asks for a clean stop, the second signal ends everything at once. If
the output cannot be written any more, that counts as the first signal."""

import multiprocessing
import os
import signal
from types import FrameType, TracebackType
from typing import Any

from sqlalchemy_envelope.cli.output import PIPE_SIGNAL, OutputError, ReaderGoneError, silence

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """Catches both signals for the length of a `with` block. A call says whether a signal came.

    Args:
        at_once: interrupt the running work, for a step without chunks to stop after.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self._at_once = at_once
        self._before: dict[int, Any] = {}
        self.number: int | None = None
        self.unwritten: OutputError | ReaderGoneError | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __call__(self) -> bool:
        return self.number is not None

    @property
    def exit_code(self) -> int:
        """The exit code that a shell reports for a process that this signal ended."""
        return 128 + (self.number or 0)

    def output_ended(self, error: OutputError | ReaderGoneError) -> None:
        """The output cannot be written any more: stop, and print nothing more there."""
        self.unwritten = error
        self.number = self.number or PIPE_SIGNAL
        silence()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            # Chunks are transactions: the database rolls back a chunk that is cut off here.
            for worker in multiprocessing.active_children():
                worker.kill()
            os._exit(128 + number)
        self.number = number
        if self._at_once:
            raise KeyboardInterrupt
