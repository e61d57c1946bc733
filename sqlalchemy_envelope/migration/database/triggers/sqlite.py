"""The triggers on SQLite. They change a row after it was written."""

from __future__ import annotations

from sqlalchemy_envelope.crypto.aead import FORMAT_VALUE, OVERHEAD
from sqlalchemy_envelope.migration.database.triggers.common import Triggers

# The mark passes the CHECK, and no key has the id zero.
_MARK = f"x'{FORMAT_VALUE:02x}{'00' * (OVERHEAD - 1)}'"


class SqliteTriggers(Triggers):
    """On SQLite."""

    same = "IS"

    def track(self, *, kept: bool = False) -> list[str]:
        """As `Triggers.track`."""
        stale = f"({self._stale()}) AND NEW.{self.previous} IS NOT NULL" if kept else self._stale()
        name = self._name("track")
        return [
            f"DROP TRIGGER IF EXISTS {name}",
            (
                f"CREATE TRIGGER {name} AFTER UPDATE OF {self._watched()} ON {self.bare_table} FOR EACH "
                f"ROW WHEN {stale} BEGIN {self._by_a_mark() if kept else ''}UPDATE {self.bare_table} "
                f"SET {self.encrypted} = NULL WHERE {self._this_row()}; END"
            ),
        ]

    def _keep(self, outdated: str, text: str) -> list[str]:
        name, due = self._name("keep"), f"({self._emptied()}) OR ({outdated})"
        # Use the same trigger for both cases: its own UPDATE does not fire it again.
        return [
            *self.track(kept=True),
            f"DROP TRIGGER IF EXISTS {name}",
            (
                f"CREATE TRIGGER {name} AFTER UPDATE OF {self.previous}, {self.encrypted} ON "
                f"{self.bare_table} FOR EACH ROW WHEN {due} BEGIN "
                f"SELECT RAISE(ABORT, '{text}') WHERE NEW.{self.previous} IS NULL; "
                f"UPDATE {self.bare_table} SET {self.previous} = NULL WHERE {self._this_row()}; END"
            ),
        ]

    def _guard(self, changed: str, pending: str, text: str) -> list[str]:
        refuse = f"BEGIN SELECT RAISE(ABORT, '{text}'); END"
        return [
            *self._drop("guard"),
            (
                f"CREATE TRIGGER {self._name('guard')} BEFORE UPDATE ON {self.bare_table} FOR EACH ROW "
                f"WHEN {changed} {refuse}"
            ),
            (
                f"CREATE TRIGGER {self._name('guardi')} BEFORE INSERT ON {self.bare_table} FOR EACH ROW "
                f"WHEN {pending} {refuse}"
            ),
        ]

    def _changed(self, name: str) -> str:
        new, old = f"NEW.{self._quote(name)}", f"OLD.{self._quote(name)}"
        return f"({new} COLLATE BINARY IS NOT {old} OR typeof({new}) IS NOT typeof({old}))"

    def _outdated(self) -> str:
        outdated = super()._outdated()
        return f"{outdated} AND NEW.{self.encrypted} IS NOT {_MARK} AND OLD.{self.encrypted} IS NOT {_MARK}"

    def _watched(self) -> str:
        """The columns that may make a row pending when they change."""
        names = dict.fromkeys((self._columns.previous, *self._columns.bound))
        return ", ".join(self._quote(name) for name in names)

    def _by_a_mark(self) -> str:
        """Write a mark between the value and NULL. By the mark, the other trigger tells this UPDATE from a
        program that writes NULL."""
        return f"UPDATE {self.bare_table} SET {self.encrypted} = {_MARK} WHERE {self._this_row()}; "

    def _this_row(self) -> str:
        """The condition that finds the row again."""
        if not self._columns.keys:
            return "rowid = NEW.rowid"
        keys = [self._quote(key) for key in self._columns.keys]
        return " AND ".join(f"{key} IS NEW.{key}" for key in keys)
