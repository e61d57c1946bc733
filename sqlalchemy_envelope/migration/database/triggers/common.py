"""The parts that the triggers of every database share: names, conditions and messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from sqlalchemy_envelope.migration.database.triggers.tracked import quoter
from sqlalchemy_envelope.orm.columns.stored_value import looks_encrypted

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

    from sqlalchemy_envelope.migration.database.triggers.tracked import Tracked


class Triggers(ABC):
    """The triggers of two columns, as statements; each list works whatever triggers existed before.

    Attributes:
        same: the operator that takes NULL for equal to NULL.
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
        """Create the tracking trigger anew; after the cut-over (`kept`), for values other than NULL alone."""

    def keep(self, *, guarded: bool = False) -> list[str]:
        """Create the triggers for after the cut-over, when the encrypted value counts alone.

        A release that no longer knows the previous column changes the encrypted value and leaves the previous
        value as it was. The trigger then empties the previous value. A write that empties the previous column
        alone no longer means NULL, and is refused. Otherwise a clean-up of the plaintext would drop every
        encrypted value, and nothing would be left.

        Args:
            guarded: a write that sets the encrypted column to NULL means NULL. Until then such a write may
                come from a program with the policy "both" and a locked owner, which writes the previous value
                that was there: the row is pending.
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
        """Create the guarding triggers, which refuse plaintext. A program with the policy "both" would write
        it beside the ciphertext.

        Args:
            back: for the way back: refuse a value in the encrypted column alone, since that column is to be
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
        """Drop triggers of these kinds, if they exist: "track", "keep", "guard"."""
        return [statement for kind in kinds for statement in self._drop(kind)]

    def _drop(self, kind: str) -> list[str]:
        return [f"DROP TRIGGER IF EXISTS {self._name(one)}" for one in events(kind)]

    # ------------------------------------------------------------------ the conditions

    def _stale(self) -> str:
        """The encrypted value did not change, but the previous value or a column that it is bound to did.

        Values are compared to the byte. A row with an encrypted value alone is left when it moves: there is
        no plaintext to encrypt again, and a read tells that the row was moved.
        """
        changed = self._changed(self._columns.previous)
        moved = " OR ".join(self._changed(name) for name in self._columns.bound)
        if moved:
            changed = f"({changed} OR (NEW.{self.previous} IS NOT NULL AND ({moved})))"
        new, old = f"NEW.{self.encrypted}", f"OLD.{self.encrypted}"
        return f"{changed} AND {new} {self.same} {old}"

    @abstractmethod
    def _changed(self, name: str) -> str:
        """A column changed, compared to the byte."""

    def _emptied(self) -> str:
        """The previous value was set to NULL, and the encrypted value was there and did not change."""
        there = f"NEW.{self.previous} IS NULL AND OLD.{self.encrypted} IS NOT NULL"
        return f"{there} AND {self._changed(self._columns.previous)} AND NOT ({self._encrypted_changed()})"

    def _outdated(self) -> str:
        """The encrypted value was there and changed, and the previous value is there and did not change."""
        there = f"NEW.{self.previous} IS NOT NULL AND OLD.{self.encrypted} IS NOT NULL"
        return f"{there} AND NOT ({self._changed(self._columns.previous)}) AND {self._encrypted_changed()}"

    def _writes_plaintext(self) -> str:
        """The write stores a new previous value, or would make a row with a previous value pending."""
        return (
            f"NEW.{self.previous} IS NOT NULL AND "
            f"(({self._changed(self._columns.previous)}) OR ({self._stale()}))"
        )

    def _is_foreign(self) -> str:
        """The encrypted column holds a value that is not ciphertext."""
        new = f"NEW.{self.encrypted}"
        return f"{new} IS NOT NULL AND NOT ({looks_encrypted(self._dialect.name, new)})"

    def _becomes_foreign(self) -> str:
        """The write stores a value that is not ciphertext; a value that was there before does not count."""
        return f"{self._encrypted_changed()} AND {self._is_foreign()}"

    def _encrypted_changed(self) -> str:
        new, old = f"NEW.{self.encrypted}", f"OLD.{self.encrypted}"
        return f"NOT ({new} {self.same} {old})"


def events(kind: str) -> tuple[str, ...]:
    """The triggers of a kind: a guard has a trigger for UPDATE and a trigger for INSERT."""
    return ("guard", "guardi") if kind == "guard" else (kind,)
