"""The output and the claims of a step of the demo. Each claim is computed while the demo runs."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from sqlalchemy_envelope import EnvelopeError


@dataclass
class Report:
    """A numbered panel: the output, then each claim with its outcome."""

    title: str
    shown: list[RenderableType] = field(default_factory=list)
    claims: list[tuple[bool, str]] = field(default_factory=list)
    unfinished: bool = False

    def show(self, *what: RenderableType) -> None:
        """Add output."""
        self.shown += what

    def claim(self, held: object, text: str) -> None:
        """Add a claim, with its outcome."""
        self.claims.append((bool(held), text))

    @property
    def held(self) -> bool:
        """Whether every claim held. A report without a claim has proved nothing, so it has not held."""
        return bool(self.claims) and all(held for held, _ in self.claims)

    def panel(self, number: int, console: Console) -> Panel:
        """The report as it is printed. Colour only repeats the words."""
        good, bad = ("✓", "✗ FAILED:") if (console.encoding or "").startswith("utf") else ("ok", "FAILED:")
        verdicts = Table.grid(padding=(0, 1))
        for held, text in self.claims:
            mark, style = (good, "green") if held else (bad, "bold red")
            verdicts.add_row(Text(mark, style=style), Text(text, style=style))
        parts = [part for shown in self.shown for part in (shown, Text())]
        title = Text(f" {number}  {self.title} ", style="bold")
        return Panel(
            Group(*parts, verdicts),
            title=title,
            title_align="left",
            border_style="cyan" if self.held else "red",
        )


def listing(*columns: str, rows: Iterable[Sequence[Any]], fixed: Sequence[str] = ()) -> Table:
    """A plain table. Columns named in `fixed` are never wrapped; the other columns share the rest."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="dim", show_edge=False)
    for name in columns:
        table.add_column(name, no_wrap=name in fixed, overflow="fold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return table


def attempt(action: Callable[[], Any]) -> tuple[EnvelopeError | None, float]:
    """Try an action that may be refused: return this library's error, or None, and the seconds it took."""
    started = perf_counter()
    try:
        action()
    except EnvelopeError as error:
        return error, perf_counter() - started
    return None, perf_counter() - started


def quoted(error: EnvelopeError | None) -> Text:
    """An error as the last line of a traceback, or a note that there was no error."""
    if error is None:
        return Text("no error", style="red")
    return Text.assemble((type(error).__name__, "bold yellow"), f": {error}")


def milliseconds(seconds: float) -> str:
    """A measured time."""
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


def hex_dump(data: bytes, offset: int, parts: Sequence[tuple[int, str]]) -> Text:
    """Sixteen bytes a line, coloured by part: (size, style) in order."""
    styles = [style for size, style in parts for _ in range(size)]
    styles += [""] * (len(data) - len(styles))
    return Text("\n").join(_dump_lines(data, offset, styles))


def _dump_lines(data: bytes, offset: int, styles: Sequence[str]) -> Iterator[Text]:
    for start in range(0, len(data), 16):
        row = range(start, min(start + 16, len(data)))
        line = Text.assemble((f"{offset + start:06x} ", "dim"))
        for i in row:
            line.append(f" {data[i]:02x}", style=styles[i])
        line.append("   " * (16 - len(row)) + "  ")
        for i in row:
            line.append(chr(data[i]) if 32 <= data[i] < 127 else ".", style=styles[i])
        yield line
