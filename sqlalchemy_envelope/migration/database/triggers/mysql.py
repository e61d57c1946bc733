"""The triggers on MySQL and MariaDB: a trigger for each event of a table."""

from __future__ import annotations

from sqlalchemy_envelope.migration.database.triggers.common import Triggers


class MySqlTriggers(Triggers):
    """On MySQL and MariaDB."""

    same = "<=>"

    def track(self, *, kept: bool = False) -> list[str]:
        """As `Triggers.track`."""
        stale = f"({self._stale()}) AND NEW.{self.previous} IS NOT NULL" if kept else self._stale()
        return self._anew("track", f"SET NEW.{self.encrypted} = IF({stale}, NULL, NEW.{self.encrypted})")

    def _keep(self, outdated: str, text: str) -> list[str]:
        # This trigger takes the place of the tracking trigger, and does its work too.
        return self._anew(
            "track",
            f"IF {self._emptied()} THEN {_refuse(text)}; "
            f"ELSEIF {outdated} THEN SET NEW.{self.previous} = NULL; "
            f"ELSEIF {self._stale()} AND NEW.{self.previous} IS NOT NULL THEN "
            f"SET NEW.{self.encrypted} = NULL; END IF",
        )

    def _guard(self, changed: str, pending: str, text: str) -> list[str]:
        return [
            *self._drop("guard"),
            self._create("guard", "UPDATE", f"IF {changed} THEN {_refuse(text)}; END IF"),
            self._create("guardi", "INSERT", f"IF {pending} THEN {_refuse(text)}; END IF"),
        ]

    def _anew(self, kind: str, body: str) -> list[str]:
        return [*self._drop(kind), self._create(kind, "UPDATE", body)]

    def _create(self, kind: str, event: str, body: str) -> str:
        return f"CREATE TRIGGER {self._name(kind)} BEFORE {event} ON {self.table} FOR EACH ROW {body}"

    def _changed(self, name: str) -> str:
        new, old = f"NEW.{self._quote(name)}", f"OLD.{self._quote(name)}"
        return f"NOT (CAST({new} AS BINARY) <=> CAST({old} AS BINARY))"


def _refuse(text: str) -> str:
    return f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{text[:120]}'"
