"""The output of `migrate plan` and `migrate status`: plain values for programs, text for people."""

from collections.abc import Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from sqlalchemy_envelope.migration.database.state import Phase
from sqlalchemy_envelope.migration.inspection.findings import SEVERITIES, Finding
from sqlalchemy_envelope.migration.inspection.residue import Residue
from sqlalchemy_envelope.migration.running.reports import ColumnStatus, RunReport, VerifyReport
from sqlalchemy_envelope.words import counted

_SEVERITY: dict[str, tuple[str, str]] = {
    "stops": ("bold red", "deal with it before the migration starts"),
    "breaks": ("yellow", "the migration runs; this ceases to work on the way"),
    "note": ("cyan", "good to know"),
}
_STATE = {
    "holds plaintext": "bold red",
    "may hold plaintext": "yellow",
    "unknown": "yellow",
    "clean": "green",
}
_STATES = tuple(_STATE)


def show_findings(console: Console, column: str, findings: Sequence[Finding]) -> None:
    """Print the findings of a column, the worst first."""
    _heading(console, column, "nothing in the way" if not findings else "")
    ordered = sorted(findings, key=lambda one: SEVERITIES.index(one.severity))
    for severity, group in groupby(ordered, key=lambda one: one.severity):
        style, meaning = _SEVERITY[severity]
        console.print(Text(f"  {severity}: {meaning}", style=style))
        for one in group:
            _item(console, f"{one.object} ({one.code})", one.message)
    console.print()


def status_values(status: ColumnStatus, residues: Sequence[Residue]) -> dict[str, Any]:
    """The state of a column as plain values."""
    return {
        **asdict(status),
        "phase": status.phase.value,
        "verified_at": status.verified_at.isoformat() if status.verified_at is not None else None,
        "plaintext": [asdict(one) for one in residues],
    }


def show_status(console: Console, status: ColumnStatus, residues: Sequence[Residue], *, listed: bool) -> None:
    """Print the state of a column, and how much plaintext remains.

    Args:
        listed: whether to list every place where plaintext lies.
    """
    _heading(console, status.column, f"{status.phase.value}, policy {status.policy!r}")
    unowned = f" ({status.unowned:,} without an owner)" if status.unowned else ""
    late = f"; {counted(status.late, 'row')} had to be encrypted again so far" if status.late else ""
    _line(console, "to encrypt", f"{counted(status.pending, 'row')}{unowned}{late}")
    encrypted = (
        f"{counted(status.both, 'row')} in both columns, {status.encrypted:,} in the encrypted column alone"
    )
    _line(console, "encrypted", encrypted)
    _line(console, "verified", _verified(status))
    _show_plaintext(console, residues, listed=listed)


def show_undeclared(
    console: Console, column: str, phase: str, residues: Sequence[Residue], *, listed: bool
) -> None:
    """Print the same for a column without `previous=` in the models."""
    _heading(console, column, f"{phase}; no model declares a previous column")
    _show_plaintext(console, residues, listed=listed)


def _show_plaintext(console: Console, residues: Sequence[Residue], *, listed: bool) -> None:
    if listed:
        show_residues(console, residues)
        return
    states = [one.state for one in residues]
    holding, clean = states.count("holds plaintext"), states.count("clean")
    more = len(states) - holding - clean
    _line(
        console,
        "plaintext",
        f"in {counted(holding, 'place')}, perhaps in {more} more: migrate status --residue",
    )


def show_residues(console: Console, residues: Sequence[Residue]) -> None:
    """Print the places where plaintext lies, the surest first, and what to do about each place."""
    console.print(Text("  where plaintext lies"))
    for one in sorted(residues, key=lambda one: _STATES.index(one.state)):
        _indented(console, 4, Text.assemble((one.state, _STATE[one.state]), f": {one.place}"))
        _indented(console, 6, Text(one.known, style="dim"))
        if one.cure and one.state != "clean":
            _indented(console, 6, Text(f"-> {one.cure}"))
    console.print()


def _verified(status: ColumnStatus) -> str:
    if status.verified_at is None:
        return "no, or rows were encrypted since"
    share = "every value" if status.sample is None else f"a sample of {status.sample:.2%}"
    locked = f", {status.locked:,} that no key here opens" if status.locked else ""
    differing = counted(status.mismatches or 0, "differs", "differ")
    return f"{status.verified_at:%Y-%m-%d %H:%M}, {share}: {differing}{locked}"


def run_text(report: RunReport, *, interrupted: bool) -> str:
    """The result of a run in a line."""
    earlier = f" now, {report.earlier:,} by earlier runs" if report.earlier else ""
    late = f", {report.late:,} of {'all' if report.earlier else 'them'} late" if report.late else ""
    done = counted(report.rows - report.earlier, "row")
    text = f"{report.column}: {done} encrypted{earlier}{late}; "
    if report.finished:
        return f"{text}none left. Next: migrate verify"
    owners = f", {report.unowned:,} of them without an owner" if report.unowned else ""
    why = "Stopped; run it again to go on" if interrupted else _left_over(report)
    return f"{text}{report.pending:,} left{owners}. {why}"


def _left_over(report: RunReport) -> str:
    if report.unowned == report.pending:
        return "Give those rows an owner, or delete them"
    return "Their owners have no keys, or others still write them: run it again"


def reverse_text(report: RunReport, *, interrupted: bool, dropped: bool) -> str:
    """The result of a reverse in a line."""
    text = f"{report.column}: {counted(report.rows, 'value')} moved back; "
    if report.finished:
        return text + ("none left, and the encrypted column is dropped" if dropped else "none left")
    why = "Stopped; run it again to go on" if interrupted else "No key here opens them, or others still write"
    return f"{text}{counted(report.pending, 'value is', 'values are')} in the encrypted column alone. {why}"


_AFTER = {Phase.CUT_OVER: "guard", Phase.GUARDED: "contract"}
"""The next step after a clean verification. Before these phases, the next step is the cut-over."""


def verify_text(report: VerifyReport, phase: Phase, *, interrupted: bool) -> str:
    """The result of a verification in a line."""
    share = "" if report.sample is None else f" (a sample of {report.sample:.2%})"
    locked = f", {report.locked:,} that no key here opens" if report.locked else ""
    differing = counted(report.mismatches, "differs", "differ")
    text = f"{report.column}: {counted(report.rows, 'value')} compared{share}: {differing}{locked}"
    if interrupted:
        return f"{text}. Stopped before the end: it says nothing yet"
    if report.pending:
        due = counted(report.pending, "row is", "rows are")
        return f"{text}; {due} to be encrypted. Next: migrate run, and this again"
    if report.mismatches:
        rows = "; ".join(report.examples)
        return f"{text}, {rows} among them. See who wrote them; then migrate repair, run, and this again"
    return f"{text}. Next: migrate {_AFTER.get(phase, 'cutover')}"


def _indented(console: Console, indent: int, text: Text) -> None:
    for line in text.wrap(console, max(console.width - indent, 20)):
        console.print(Text(" " * indent) + line)


def _heading(console: Console, column: str, what: str) -> None:
    console.print(Text.assemble((column, "bold"), f": {what}" if what else ""))


def _line(console: Console, name: str, what: str) -> None:
    _indented(console, 2, Text(f"{name:<12}{what}"))


def _item(console: Console, name: str, what: str) -> None:
    _indented(console, 4, Text(name, style="bold"))
    _indented(console, 6, Text(what))
