"""The triggers on PostgreSQL: a function, and the trigger that calls it."""

from __future__ import annotations

from sqlalchemy_envelope.migration.database.triggers.common import Triggers, events


class PostgresqlTriggers(Triggers):
    """On PostgreSQL."""

    same = "IS NOT DISTINCT FROM"

    def track(self, *, kept: bool = False) -> list[str]:
        """As `Triggers.track`."""
        stale = f"({self._stale()}) AND NEW.{self.previous} IS NOT NULL" if kept else self._stale()
        return [
            self._function("track", f"NEW.{self.encrypted} := NULL; RETURN NEW;"),
            self._trigger("track", "UPDATE", stale, "track"),
        ]

    def _keep(self, outdated: str, text: str) -> list[str]:
        body = (
            f"IF NEW.{self.previous} IS NULL THEN RAISE EXCEPTION '{text.replace('%', '%%')}'; END IF; "
            f"NEW.{self.previous} := NULL; RETURN NEW;"
        )
        return [
            *self.track(kept=True),
            self._function("keep", body),
            self._trigger("keep", "UPDATE", f"({self._emptied()}) OR ({outdated})", "keep"),
        ]

    def _guard(self, changed: str, pending: str, text: str) -> list[str]:
        return [
            self._function("guard", f"RAISE EXCEPTION '{text.replace('%', '%%')}';"),
            self._trigger("guard", "UPDATE", changed, "guard"),
            self._trigger("guardi", "INSERT", pending, "guard"),
        ]

    def _drop(self, kind: str) -> list[str]:
        dropped = [f"DROP TRIGGER IF EXISTS {self._bare(one)} ON {self.table}" for one in events(kind)]
        return [*dropped, f"DROP FUNCTION IF EXISTS {self._name(kind)}()"]

    def _function(self, kind: str, body: str) -> str:
        head = f"CREATE OR REPLACE FUNCTION {self._name(kind)}() RETURNS trigger LANGUAGE plpgsql"
        return f"{head} AS $$ BEGIN {body} END $$"

    def _trigger(self, kind: str, event: str, when: str, function: str) -> str:
        return (
            f"CREATE OR REPLACE TRIGGER {self._bare(kind)} BEFORE {event} ON {self.table} FOR EACH ROW "
            f"WHEN ({when}) EXECUTE FUNCTION {self._name(function)}()"
        )

    def _changed(self, name: str) -> str:
        new, old = f"NEW.{self._quote(name)}", f"OLD.{self._quote(name)}"
        # Compare the bytes as they are stored. As text, a collation may take "Ada" for "ada", and a session's
        # settings may make two numbers equal.
        return f"pg_catalog.record_image_ne(ROW({new}), ROW({old}))"
