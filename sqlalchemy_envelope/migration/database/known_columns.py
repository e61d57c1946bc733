"""The columns that a database moves: as the models declare them, and as the state table remembers them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column
from sqlalchemy.types import NullType

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.database.columns import column_named, encrypted_columns, migrating_columns
from sqlalchemy_envelope.migration.database.record import standings
from sqlalchemy_envelope.migration.database.state import Phase

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Engine

    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.database.record import Standing

_UNFINISHED = frozenset({Phase.TRACKING, Phase.BACKFILLED, Phase.VERIFIED, Phase.REVERSING})
"""Phases in which the application reads and writes both columns."""


class KnownColumns:
    """The columns of a declarative base, or registry, and where their migrations stand in a database."""

    def __init__(self, engine: Engine, base: Any) -> None:
        self._engine, self._base = engine, base

    @property
    def moving(self) -> list[MigratingColumn]:
        """The columns that have a `PreviousColumn`."""
        return migrating_columns(self._base)

    def named(self, name: str) -> MigratingColumn:
        """The column of `moving` or `leftovers` with this name.

        Raises:
            ConfigurationError: no column has this name; or the models dropped its `previous=` too early, and
                the error says so.
        """
        known = self.moving
        try:
            return column_named(known, name)
        except ConfigurationError:
            pass
        try:
            return column_named([*known, *self.leftovers()], name)
        except ConfigurationError:
            if name in self.forgotten():
                raise ConfigurationError(self.put_back([name])) from None
            raise

    def leftovers(self) -> list[MigratingColumn]:
        """Columns without `previous=` in the models, while the database still has the previous column."""
        known = self._standings()
        if not known:
            return []
        undeclared = [one for one in encrypted_columns(self._base) if one.previous is None]
        return [
            replace(column, previous=Column(standing.previous, NullType()))
            for column in undeclared
            if (standing := known.get(column.name)) is not None
            and standing.previous is not None
            and standing.phase in (Phase.CUT_OVER, Phase.GUARDED)
        ]

    def forgotten(self) -> list[str]:
        """The names of columns that lost `previous=` in the models before the migration allowed it."""
        undeclared = {one.name for one in encrypted_columns(self._base) if one.previous is None}
        return sorted(undeclared & self._unfinished().keys())

    def put_back(self, names: Iterable[str]) -> str:
        """What to do about columns of `forgotten`."""
        phases = self._unfinished()
        told = [f"{name} is in the phase {str(phases[name])!r}" for name in names]
        return (
            f"{', '.join(told)}, and the models have no `previous=` any more: put `previous=` back, finish "
            "the migration (cut over, guard), and remove `previous=` after that."
        )

    def _standings(self) -> dict[str, Standing]:
        with self._engine.connect() as connection:
            return standings(connection)

    def _unfinished(self) -> dict[str, Phase]:
        return {name: one.phase for name, one in self._standings().items() if one.phase in _UNFINISHED}
