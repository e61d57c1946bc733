"""What the triggers of every database have in common: their names, their conditions, and what they say."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from sqlalchemy_envelope.migration.database.triggers.tracked import quoter
from sqlalchemy_envelope.orm.columns.stored_value import looks_encrypted

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

    from sqlalchemy_envelope.migration.database.triggers.tracked import Tracked


class Triggers(ABC):
    """The triggers of two columns, as statements; each list leaves them as asked, whatever there was before.

    Attributes:
        same: the operator by which NULL is the same as NULL.
    """

    same: ClassVar[str]

    def __init__(self, dialect: Dialect, columns: Tracked) -> None:
        self._dialect, self._columns, self._quote = dialect, columns, quoter(dialect)
        self.previous, self.encrypted = self._quote(columns.previous), self._quote(columns.encrypted)
        self.bare_table, self.table = self._quote(columns.table), self._in_schema(columns.table)

    def _in_schema(self, name: str) -> str:
        schema = self._columns.schema
        return f"{self._quote(schema)}.{self._quote(name)}" if schema else self._quote(name)

    def _bare(self, kind: str) -> str:
        """A trigger's name without the schema."""
        return self._quote(self._columns.trigger(kind))

    def _name(self, kind: str) -> str:
        """A trigger's name with the schema."""
        return self._in_schema(self._columns.trigger(kind))

    # ------------------------------------------------------------------ the statements

    @abstractmethod
    def track(self, *, kept: bool = False) -> list[str]:
        """Create the tracking trigger anew; after the cut-over (`kept`), for values alone."""

    def keep(self, *, guarded: bool = False) -> list[str]:
        """Create the triggers for after the cut-over, when the encrypted value counts alone.

        Who changes it and leaves the previous one as it was, as a release does that knows nothing of that any
        more, has the previous one emptied. To empty the previous column alone no longer means NULL, and is
        refused: who cleans the plaintext up would have every encrypted value dropped, and nothing left.

        Args:
            guarded: who sets it to NULL means NULL. Until then it may be a program with the policy "both"
                whose owner is locked, and which writes the previous value that was there: the row is pending.
        """
        columns, outdated = self._columns, self._outdated()
        text = (
            f"{columns.table}.{columns.previous} is encrypted in {columns.encrypted} since the cut-over, "
            "and is not emptied alone"
        )
        if not guarded:
            outdated = f"NEW.{self.encrypted} IS NOT NULL AND {outdated}"
        return self._keep(outdated, text.replace("'", "''"))

    @abstractmethod
    def _keep(self, outdated: str, text: str) -> list[str]: ...

    def guard(self, *, back: bool = False) -> list[str]:
        """Create the guarding triggers, which refuse plaintext: a program with the policy "both" writes it
        beside the ciphertext.

        Args:
            back: on the way back: refuse what would stand in the encrypted column alone, which is to be
                dropped.
        """
        columns = self._columns
        if back:
            pending = f"NEW.{self.previous} IS NULL AND NEW.{self.encrypted} IS NOT NULL"
            changed = pending
            text = f"{columns.table}.{columns.encrypted} is given up, and this program writes to it alone"
        else:
            pending = f"NEW.{self.previous} IS NOT NULL OR ({self._is_foreign()})"
            changed = f"({self._writes_plaintext()}) OR ({self._becomes_foreign()})"
            text = f"{columns.table}.{columns.previous} is encrypted now, and this program writes plaintext"
        return self._guard(changed, pending, text.replace("'", "''"))

    @abstractmethod
    def _guard(self, changed: str, pending: str, text: str) -> list[str]: ...

    def drop(self, *kinds: str) -> list[str]:
        """Drop triggers of these kinds, there or not: "track", "keep", "guard"."""
        return [statement for kind in kinds for statement in self._drop(kind)]

    def _drop(self, kind: str) -> list[str]:
        return [f"DROP TRIGGER IF EXISTS {self._name(one)}" for one in events(kind)]

    # ------------------------------------------------------------------ the conditions

    def _stale(self) -> str:
        """The previous value changed, to the byte, or what the encrypted one depends on; and that did not.

        A row that has an encrypted value alone is left when it moves: there is nothing to encrypt it from,
        and reading it tells that it was moved.
        """
        changed = self._changed(self._columns.previous)
        moved = " OR ".join(self._changed(name) for name in self._columns.bound)
        if moved:
            changed = f"({changed} OR (NEW.{self.previous} IS NOT NULL AND ({moved})))"
        new, old = f"NEW.{self.encrypted}", f"OLD.{self.encrypted}"
        return f"{changed} AND {new} {self.same} {old}"

    @abstractmethod
    def _changed(self, name: str) -> str:
        """A column changed, to the byte."""

    def _emptied(self) -> str:
        """The previous value was set to NULL, and the encrypted one is there and did not change."""
        there = f"NEW.{self.previous} IS NULL AND OLD.{self.encrypted} IS NOT NULL"
        return f"{there} AND {self._changed(self._columns.previous)} AND NOT ({self._encrypted_changed()})"

    def _outdated(self) -> str:
        """The encrypted value changed, and the previous one is there and did not."""
        there = f"NEW.{self.previous} IS NOT NULL AND OLD.{self.encrypted} IS NOT NULL"
        return f"{there} AND NOT ({self._changed(self._columns.previous)}) AND {self._encrypted_changed()}"

    def _writes_plaintext(self) -> str:
        """The write puts a previous value there, beside an encrypted one too; or would leave one alone."""
        return (
            f"NEW.{self.previous} IS NOT NULL AND "
            f"(({self._changed(self._columns.previous)}) OR ({self._stale()}))"
        )

    def _is_foreign(self) -> str:
        """The encrypted column holds what is no ciphertext."""
        new = f"NEW.{self.encrypted}"
        return f"{new} IS NOT NULL AND NOT ({looks_encrypted(self._dialect.name, new)})"

    def _becomes_foreign(self) -> str:
        """The write puts there what is no ciphertext; what stood there before is not its fault."""
        return f"{self._encrypted_changed()} AND {self._is_foreign()}"

    def _encrypted_changed(self) -> str:
        new, old = f"NEW.{self.encrypted}", f"OLD.{self.encrypted}"
        return f"NOT ({new} {self.same} {old})"


def events(kind: str) -> tuple[str, ...]:
    """A guard is two triggers: one for UPDATE, one for INSERT."""
    return ("guard", "guardi") if kind == "guard" else (kind,)
