"""The picture of `leakage`: how often tags occur, and what somebody makes of it. Needs the extra `plot`."""

from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from sqlalchemy_envelope.orm.indexes.leakage.report import Leakage, percent

_INK, _FOUND, _EXPECTED = "#59636e", "#2f81f7", "#d29922"
"""Colours that read on white and on black alike; the background stays transparent."""


def plot(found: list[Leakage], path: Path) -> None:
    """Draw a line of two pictures for each index."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: Any = {"svg.hashsalt": "leakage", "font.size": 9, **dict.fromkeys(inked, _INK)}
    with mpl.rc_context(settings):
        figure = Figure(figsize=(9, 3.2 * max(1, len(found))), layout="constrained")
        lines = figure.subplots(max(1, len(found)), 2, squeeze=False)
        for one, (left, right) in zip(found, lines, strict=False):
            _draw_counts(left, one)
            _draw_attacks(right, one)
        metadata = {"Date": None} if path.suffix == ".svg" else None  # the same figures make the same file
        figure.savefig(path, transparent=path.suffix == ".svg", metadata=metadata, dpi=120)


def _draw_counts(axis: Any, leakage: Leakage) -> None:
    for points, name, colour, style in (
        (leakage.expected, "public figures", _EXPECTED, "--"),
        (leakage.found, "tags of this column", _FOUND, "-"),
    ):
        if points:
            ranks, shares = zip(*points, strict=True)
            axis.plot(ranks, shares, style, color=colour, label=name, marker="." if len(points) < 5 else "")
    axis.set(xscale="log", yscale="log", xlabel="tags, the commonest first", ylabel="share of rows")
    for one, text in ((axis.xaxis, "{:,.0f}"), (axis.yaxis, "{:.12g} %")):
        one.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=6))
        one.set_minor_formatter(NullFormatter())
        scale = 1 if one is axis.xaxis else 100
        one.set_major_formatter(FuncFormatter(partial(_label, text, scale)))
    axis.set_title(f"{leakage.index}: {leakage.rows:,} rows, {leakage.tags:,} tags", loc="left", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)


def _label(text: str, scale: int, value: float, _: object) -> str:
    return text.format(round(value * scale, 10))


def _draw_attacks(axis: Any, leakage: Leakage) -> None:
    simulated = leakage.recovered is not None
    bars = [
        ("without the index", leakage.guessed if simulated else leakage.most),
        ("with the database" if simulated else "at worst", leakage.recovered if simulated else leakage.exact),
        ("the same, on this column", leakage.measured),
        ("with database and key", leakage.with_key),
    ]
    shown = [(name, share) for name, share in bars if share is not None][::-1]
    names, shares = zip(*shown, strict=True)
    colours = [_EXPECTED if name == "without the index" else _FOUND for name in names]
    drawn = axis.barh(names, shares, color=colours, height=0.6)
    axis.bar_label(drawn, labels=[percent(share) for share in shares], padding=4, color=_INK)
    axis.set_xlim(0, 1.25)
    axis.set_title("Rows whose value somebody names", loc="left", fontsize=10)
    axis.spines[["top", "right", "bottom"]].set_visible(False)
    axis.tick_params(axis="x", length=0, labelbottom=False)
    axis.tick_params(axis="y", length=0)
