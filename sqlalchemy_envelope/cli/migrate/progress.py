"""The progress of a job: a bar on a terminal, a line now and then in a log, JSON lines for a program."""

import json
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from sqlalchemy_envelope.cli.migrate.signals import StopSignals
from sqlalchemy_envelope.cli.output import OutputError, ReaderGoneError, say
from sqlalchemy_envelope.migration.running.reports import Progress
from sqlalchemy_envelope.words import counted

LINE_SECONDS = 5.0
"""The seconds between two lines in a log."""


def display_for(console: Console, stop: StopSignals, *, as_json: bool) -> "Display":
    """The display that suits the target of standard output."""
    if as_json:
        return JsonLines(stop)
    return Bar(stop, console) if console.is_terminal else Lines(stop)


class Display:
    """Shows nothing. Each kind of display overrides the events that it shows.

    Args:
        stop: told to stop the job when the output cannot be written any more.
    """

    def __init__(self, stop: StopSignals) -> None:
        self._stop = stop

    def __enter__(self) -> "Display":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def started(self, column: str, job: str, workers: int) -> None:
        """A job begins on a column."""

    def progress(self, now: Progress) -> None:
        """The job has made this progress."""

    def finished(self, column: str, job: str, outcome: dict[str, Any], text: str) -> None:
        """The job ended, with this outcome: values for programs, and text for people."""
        self._say(text)

    def _say(self, text: str) -> None:
        # Do not raise: the caller is in the midst of a job, which stops after its chunk.
        if self._stop.unwritten is not None:
            return
        try:
            say(text)
        except (OutputError, ReaderGoneError) as error:
            self._stop.output_ended(error)


class Lines(Display):
    """A plain line every few seconds."""

    def __init__(self, stop: StopSignals) -> None:
        super().__init__(stop)
        self._last = time.monotonic()

    def started(self, column: str, job: str, workers: int) -> None:
        self._last = time.monotonic()
        side_by_side = f", {counted(workers, 'worker')}" if workers > 1 else ""
        self._say(f"{column}: {job} started{side_by_side}")

    def progress(self, now: Progress) -> None:
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self._say(f"{now.column}: {now.job}, {now.done:,} of {counted(now.total, 'row')}, {_rest(now)}")


class JsonLines(Display):
    """An event in each line, and nothing else."""

    def started(self, column: str, job: str, workers: int) -> None:
        self._event("started", {"column": column, "job": job, "workers": workers})

    def progress(self, now: Progress) -> None:
        self._event("progress", {**vars(now), "left": max(now.total - now.done, 0)})

    def finished(self, column: str, job: str, outcome: dict[str, Any], text: str) -> None:
        self._event("finished", {"column": column, "job": job, **outcome})

    def _event(self, name: str, values: dict[str, Any]) -> None:
        self._say(json.dumps({"event": name, **values}, default=str))


class Bar(Display):
    """A bar that moves."""

    def __init__(self, stop: StopSignals, console: Console) -> None:
        super().__init__(stop)
        text = TextColumn("{task.fields[column]}", markup=False)
        rest = TextColumn("{task.fields[rest]}", markup=False)
        self._bars = Bars(SpinnerColumn(), text, BarColumn(bar_width=24), rest, console=console)
        self._task: TaskID | None = None

    def __enter__(self) -> "Display":
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def started(self, column: str, job: str, workers: int) -> None:
        if self._task is not None:  # the last job was refused
            self._bars.remove_task(self._task)
        self._task = self._bars.add_task(job, total=None, column=column, rest=f"{job} starts")

    def progress(self, now: Progress) -> None:
        if self._task is not None:
            rest = f"{max(now.total - now.done, 0):,} left, {_rest(now)}"
            self._bars.update(self._task, total=now.total or None, completed=now.done, rest=rest)

    def finished(self, column: str, job: str, outcome: dict[str, Any], text: str) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None
        self._bars.console.print(text, markup=False, highlight=False)


def _rest(now: Progress) -> str:
    parts = [f"{now.rate:,.0f} rows/s"]
    if now.left_seconds is not None:
        parts.append(f"{duration(now.left_seconds)} to go")
    if now.late:
        parts.append(f"{now.late:,} late")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    whole = round(seconds)
    hours, minutes = whole // 3600, whole // 60 % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
