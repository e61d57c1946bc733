"""Each class for programs with an event loop has the methods of its twin, and they take the same."""

import inspect
from typing import Any

import pytest

from sqlalchemy_envelope import AsyncEnvelope, Envelope
from sqlalchemy_envelope.migration import AsyncMigrator, Migrator

STEPS = {name for name in dir(Envelope) if name.endswith("_steps")} | {
    "attempt",
    "perform",
    "run",
    "run_alone",
    "unknown",
}
"""The parts of a verb, for whoever carries them out in a way of their own."""
ALONE: dict[type[Any], set[str]] = {Envelope: STEPS | {"attach"}, Migrator: {"index", "worked_on"}}
"""Methods without a twin."""
CANCELLED = {"stop"}
"""What a task is cancelled for instead."""


def methods(cls: type[Any]) -> dict[str, Any]:
    """The public methods of a class."""
    return {name: member for name, member in inspect.getmembers(cls, callable) if not name.startswith("_")}


def parameters(method: Any) -> list[tuple[str, Any, Any]]:
    """Name, kind and default of what a method takes."""
    found = inspect.signature(method).parameters.values()
    return [(one.name, one.kind, one.default) for one in found if one.name not in CANCELLED]


@pytest.mark.parametrize(("twin", "other"), [(Envelope, AsyncEnvelope), (Migrator, AsyncMigrator)])
def test_an_asynchronous_twin_has_the_same_methods(twin: type[Any], other: type[Any]) -> None:
    """No method is missing, none is there besides, and names, kinds and defaults of parameters agree."""
    ours, theirs = methods(twin), methods(other)
    shared = ours.keys() - ALONE[twin]

    assert shared == theirs.keys() - ALONE[twin]
    assert {name: parameters(ours[name]) for name in shared} == {
        name: parameters(theirs[name]) for name in shared
    }
