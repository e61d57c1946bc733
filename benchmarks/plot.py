"""The picture in the documentation: ratio to bare AES-GCM by variant, on the way in and on the way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from benchmarks.operations import BULK_INSERT, ORM_LOAD
from benchmarks.report import Results
from benchmarks.sheets import DATABASE_NAMES
from benchmarks.variants import PLAINTEXT, PLAINTEXT_AGAIN

# Greys and colours that read on white and on black alike; the background stays transparent.
INK = "#7d8590"
OURS, PEERS = "#2f81f7", "#a0a8b2"


def plot(results: Results, path: Path) -> None:
    """Draw the figures with five columns of the first database."""
    inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings: Any = {"svg.hashsalt": "benchmarks", **dict.fromkeys(inked, INK)}
    with matplotlib.rc_context(settings):
        draw(results, path)


def draw(results: Results, path: Path) -> None:
    series = results.series[0]
    hidden = {PLAINTEXT, PLAINTEXT_AGAIN}
    shown = [v for v in results.variants if v.column_count == 5 and v.name not in hidden][::-1]
    figure = Figure(figsize=(9, 0.42 * len(shown) + 1.4))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, operation in zip(axes, (ORM_LOAD, BULK_INSERT), strict=True):
        ratios = [found.ratio if (found := series.figure(v, operation)) else 0.0 for v in shown]
        colours = [OURS if variant.name.startswith("ours") else PEERS for variant in shown]
        bars = axis.barh([variant.name for variant in shown], ratios, color=colours, height=0.66)
        axis.bar_label(bars, labels=[f"{ratio:.1f}×" for ratio in ratios], padding=4, color=INK)
        axis.axvline(1, color=INK, linewidth=0.8, linestyle=(0, (2, 2)))
        axis.set_title(operation, color=INK, fontsize=11, loc="left")
        axis.margins(x=0.14)
        axis.set_xlim(left=0)
        axis.spines[["top", "right", "bottom"]].set_visible(False)
        axis.tick_params(axis="x", length=0, labelbottom=False)
        axis.tick_params(axis="y", length=0)
    figure.text(
        0.01,
        0.01,
        f"Cost per value over a plaintext column, as a multiple of one bare AES-256-GCM call (dashed: 1×). "
        f"{DATABASE_NAMES[series.database]}, 5 columns, 20 characters.",
        fontsize=8,
        color=INK,
    )
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if path.suffix == ".svg" else None  # the same figures make the same file
    figure.savefig(path, transparent=True, metadata=metadata)
