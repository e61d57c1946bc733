"""The directive `drawn`: a diagram that is written as text and drawn as SVG when the pages are built.

A line of boxes is a row. An arrow leads from one box to another, and may have words beside it:

    [secret: the secret] [provider: a provider]
    [root! **root key**]
    secret -> root: Argon2id

`[name: text]` is a box, and `[name! text]` a box that stands out. Text between backticks is code. `[]` leaves
a place empty. The drawing is narrow: a telephone shows it without scrolling. Its colours are those of the
page around it, light or dark. Nothing is fetched: neither a font nor a script.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any, NamedTuple

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

WIDTH, SIZE, LINE, PADDING = 400, 13, 17, 8
GAP, LABELLED_GAP, BETWEEN, LANE = 24, 42, 26, 14
BOX = re.compile(r"\[(?:(\w+)([:!]) ?([^\]]+))?\]")
ARROW = re.compile(r"(\w+) -> (\w+)(?:: (.+))?")


HEAD = """\
<svg class="drawn" viewBox="0 0 {width} {height}" role="img" aria-label="{title}"
  xmlns="http://www.w3.org/2000/svg">
<defs><marker id="drawn-tip" viewBox="0 0 8 8" refX="7" refY="4"
  markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0L8 4L0 8z" class="drawn-tip"/></marker></defs>"""


class Box(NamedTuple):
    """A box and where it stands."""

    lines: list[str]
    stands_out: bool
    row: int
    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


class Arrow(NamedTuple):
    """An arrow between two boxes, by their names."""

    start: str
    end: str
    label: str


def draw(text: str, title: str) -> str:
    """The SVG of a diagram."""
    rows, arrows = parse(text)
    wide = any(abs(_row_of(rows, one.start) - _row_of(rows, one.end)) > 1 for one in arrows)
    boxes, height = place(rows, arrows, WIDTH - (LANE if wide else 0))
    parts = [HEAD.format(width=WIDTH, height=f"{height:g}", title=escape(title))]
    parts += [_arrow(boxes[one.start], boxes[one.end], one.label) for one in arrows]
    parts += [_box(one) for one in boxes.values()]
    return "\n".join([*parts, "</svg>"])


def parse(text: str) -> tuple[list[list[tuple[str, str, bool]]], list[Arrow]]:
    """The rows of boxes, each with its name, its text and whether it stands out; and the arrows."""
    rows: list[list[tuple[str, str, bool]]] = []
    arrows: list[Arrow] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        if arrow := ARROW.fullmatch(line):
            arrows.append(Arrow(arrow[1], arrow[2], arrow[3] or ""))
        elif line.startswith("[") and not BOX.sub("", line).strip():
            rows.append([(one[1] or "", one[3] or "", one[2] == "!") for one in BOX.finditer(line)])
        else:
            raise ValueError(f"neither boxes nor an arrow: {line}")
    names = {name for row in rows for name, _, _ in row}
    for arrow in arrows:
        if not {arrow.start, arrow.end} <= names:
            raise ValueError(f"an arrow to no box: {arrow.start} -> {arrow.end}")
    return rows, arrows


def place(
    rows: list[list[tuple[str, str, bool]]], arrows: list[Arrow], width: float
) -> tuple[dict[str, Box], float]:
    """Where each box stands, and how high the whole is."""
    labelled = {_row_of(rows, one.end) for one in arrows if one.label}
    reached = {_row_of(rows, one.end) for one in arrows}
    boxes: dict[str, Box] = {}
    top = 1.0
    for number, row in enumerate(rows):
        if number:
            top += LABELLED_GAP if number in labelled else GAP if number in reached else 0
        each = (width - 2 - BETWEEN * (len(row) - 1)) / len(row)
        texts = [wrap(text, each - 2 * PADDING) for _, text, _ in row]
        height = max(map(len, texts)) * LINE + 2 * PADDING - 3
        for at, ((name, _, stands_out), lines) in enumerate(zip(row, texts, strict=True)):
            if name:
                x = 1 + at * (each + BETWEEN)
                boxes[name] = Box(lines, stands_out, number, x, top, each, height)
        top += height
    return boxes, top + 1


def wrap(text: str, width: float) -> list[str]:
    """The text in lines that fit."""
    lines: list[str] = []
    for word in re.findall(r"\S*`[^`]*`\S*|\S+", text):
        if lines and _length(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _length(text: str) -> float:
    """About as wide as the text is drawn."""
    parts = re.split(r"`([^`]*)`", text.replace("**", ""))
    return SIZE * (0.53 * sum(map(len, parts[::2])) + 0.56 * sum(map(len, parts[1::2])))


def _row_of(rows: list[list[tuple[str, str, bool]]], name: str) -> int:
    return next(number for number, row in enumerate(rows) if any(one == name for one, _, _ in row))


def _box(box: Box) -> str:
    rect = (
        f'<rect class="drawn-box{" drawn-key" if box.stands_out else ""}" x="{box.x:g}" y="{box.y:g}"'
        f' width="{box.width:g}" height="{box.height:g}" rx="5"/>'
    )
    first = box.y + (box.height - LINE * len(box.lines)) / 2 + SIZE
    texts = [
        f'<text x="{box.middle:g}" y="{first + LINE * number:g}">{_spans(line)}</text>'
        for number, line in enumerate(box.lines)
    ]
    return "".join([rect, *texts])


def _spans(line: str) -> str:
    line = re.sub(r"`([^`]*)`", r'<tspan class="drawn-code">\1</tspan>', escape(line))
    return re.sub(r"\*\*(.+?)\*\*", r'<tspan class="drawn-strong">\1</tspan>', line)


def _arrow(start: Box, end: Box, label: str) -> str:
    if start.row == end.row:
        ends = (start.x + start.width, end.x) if start.x < end.x else (start.x, end.x + end.width)
        middle = start.y + start.height / 2
        return _line(f"M{ends[0]:g} {middle:g}H{ends[1]:g}")
    if abs(end.row - start.row) > 1:
        side, out = start.x + start.width, WIDTH - 3
        return _line(
            f"M{side:g} {start.y + start.height / 2:g}H{out}V{end.y + end.height / 2:g}H{end.x + end.width:g}"
        )
    upwards = end.row < start.row
    one, other = (start.y, end.bottom) if upwards else (start.bottom, end.y)
    inside = end.x < start.middle < end.x + end.width  # a wide box is met straight on
    meets = start.middle if inside else end.middle
    leaves = end.middle if not inside and start.x < end.middle < start.x + start.width else start.middle
    bend = "" if leaves == meets else f"V{(one + other) / 2:g}H{meets:g}"
    words = ""
    if label:
        at, anchor = (meets + 7, "start") if meets < WIDTH * 0.7 else (meets - 7, "end")
        words = (
            f'<text class="drawn-label" x="{at:g}" y="{max(one, other) - LABELLED_GAP / 2 + 5:g}"'
            f' text-anchor="{anchor}">{_spans(label)}</text>'
        )
    return _line(f"M{leaves:g} {one:g}{bend}V{other:g}") + words


def _line(path: str) -> str:
    return f'<path class="drawn-line" d="{path}" marker-end="url(#drawn-tip)"/>'


class Drawn(SphinxDirective):
    """A figure with the diagram; its argument says what it shows."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        try:
            svg = draw("\n".join(self.content), self.arguments[0])
        except ValueError as error:
            raise self.error(f"drawn: {error}") from error
        figure = nodes.figure(classes=["drawn-figure"])
        figure += nodes.raw("", svg, format="html")
        figure += nodes.caption(self.arguments[0], self.arguments[0])
        return [figure]


def setup(app: Any) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("drawn", Drawn)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
