"""The triggers that keep both columns of a migration true to each other, as SQL of each database.

`track`: whoever changes the previous column and leaves the encrypted one as it was, makes the row pending:
the encrypted value is set to NULL. So a program that knows nothing of the migration may go on writing, and
what it writes is found. `guard`, for the moment of the contract: such a write is refused, and so is one that
puts into the encrypted column what is no ciphertext, as its CHECK has it where there is one.

Values are compared as bytes, not by the column's collation: "Ada" for "ada" is a change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass

from sqlalchemy.engine import Dialect

from sqlalchemy_envelope.crypto.aead import FORMAT_VALUE, OVERHEAD
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.columns.stored_value import looks_encrypted


@dataclass(frozen=True)
class Tracked:
    """The two columns of a table, by name.

    Attributes:
        keys: the columns of the primary key; SQLite's trigger finds the row by them, or by its rowid.
        bound: the columns that a ciphertext depends on: those that name the owner, and the primary key where
            values are bound to their rows. Who changes one of them alone makes the row pending too.
        check: the name of the encrypted column's CHECK; None if it is to have none.
    """

    table: str
    previous: str
    encrypted: str
    schema: str | None = None
    keys: Sequence[str] = ()
    bound: Sequence[str] = ()
    check: str | None = None

    def trigger(self, kind: str) -> str:
        """The name of a trigger. PostgreSQL runs triggers in the order of their names: ours come last."""
        digest = hashlib.sha256(f"{self.table}\0{self.previous}\0{self.encrypted}".encode()).hexdigest()[:8]
        # PostgreSQL's names end after 63 bytes, and two that are cut to the same would be one.
        table = self.table.encode()[:24].decode(errors="ignore")
        return f"zz_envelope_{kind}_{table}_{digest}"


def quoter(dialect: Dialect) -> Callable[[str], str]:
    """What quotes a name for a statement that is sent without parameters: a `%` in it stays one."""
    preparer = copy(dialect.identifier_preparer)
    preparer._double_percents, preparer._strings = False, {}  # what it has quoted before is kept there
    quote: Callable[[str], str] = preparer.quote
    return quote


def create_track(dialect: Dialect, columns: Tracked, *, kept: bool = False) -> list[str]:
    """Statements that create the tracking trigger anew; after the cut-over (`kept`), for values alone."""
    sql = _Sql(dialect, columns)
    name = sql.name("track")
    stale = f"({sql.stale()}) AND NEW.{sql.previous} IS NOT NULL" if kept else sql.stale()
    if dialect.name == "postgresql":
        return [
            (
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"NEW.{sql.encrypted} := NULL; RETURN NEW; END $$"
            ),
            (
                f"CREATE OR REPLACE TRIGGER {sql.bare('track')} BEFORE UPDATE ON {sql.table} FOR EACH ROW "
                f"WHEN ({stale}) EXECUTE FUNCTION {name}()"
            ),
        ]
    if dialect.name == "sqlite":
        return [
            f"DROP TRIGGER IF EXISTS {name}",
            (
                f"CREATE TRIGGER {name} AFTER UPDATE OF {sql.watched()} ON {sql.bare_table} FOR EACH "
                f"ROW WHEN {stale} BEGIN {sql.by_a_mark() if kept else ''}UPDATE {sql.bare_table} "
                f"SET {sql.encrypted} = NULL WHERE {sql.this_row()}; END"
            ),
        ]
    return [
        f"DROP TRIGGER IF EXISTS {name}",
        (
            f"CREATE TRIGGER {name} BEFORE UPDATE ON {sql.table} FOR EACH ROW "
            f"SET NEW.{sql.encrypted} = IF({stale}, NULL, NEW.{sql.encrypted})"
        ),
    ]


def create_keep(dialect: Dialect, columns: Tracked, *, guarded: bool = False) -> list[str]:
    """Statements for after the cut-over, when the encrypted value counts alone.

    Who changes it and leaves the previous one as it was, as a release does that knows nothing of that any
    more, has the previous one emptied. To empty the previous column alone no longer means NULL, and is
    refused: who cleans the plaintext up would have every encrypted value dropped, and nothing left.

    Args:
        guarded: who sets it to NULL means NULL. Until then it may be a program with the policy "both" whose
            owner is locked, and which writes the previous value that was there: the row is pending.
    """
    sql = _Sql(dialect, columns)
    outdated = sql.outdated() if guarded else f"NEW.{sql.encrypted} IS NOT NULL AND {sql.outdated()}"
    name, due = sql.name("keep"), f"({sql.emptied()}) OR ({outdated})"
    text = (
        f"{columns.table}.{columns.previous} is encrypted in {columns.encrypted} since the cut-over, "
        "and is not emptied alone"
    ).replace("'", "''")
    if dialect.name == "postgresql":
        return [
            *create_track(dialect, columns, kept=True),
            (
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"IF NEW.{sql.previous} IS NULL THEN RAISE EXCEPTION '{text.replace('%', '%%')}'; END IF; "
                f"NEW.{sql.previous} := NULL; RETURN NEW; END $$"
            ),
            (
                f"CREATE OR REPLACE TRIGGER {sql.bare('keep')} BEFORE UPDATE ON {sql.table} FOR EACH ROW "
                f"WHEN ({due}) EXECUTE FUNCTION {name}()"
            ),
        ]
    if dialect.name == "sqlite":
        # One trigger for both: its own UPDATE does not fire it again.
        return [
            *create_track(dialect, columns, kept=True),
            f"DROP TRIGGER IF EXISTS {name}",
            (
                f"CREATE TRIGGER {name} AFTER UPDATE OF {sql.previous}, {sql.encrypted} ON {sql.bare_table} "
                f"FOR EACH ROW WHEN {due} BEGIN SELECT RAISE(ABORT, '{text}') WHERE NEW.{sql.previous} IS "
                "NULL; "
                f"UPDATE {sql.bare_table} SET {sql.previous} = NULL WHERE {sql.this_row()}; END"
            ),
        ]
    track = sql.name("track")
    refuse = f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{text[:120]}'"
    return [
        f"DROP TRIGGER IF EXISTS {track}",
        (
            f"CREATE TRIGGER {track} BEFORE UPDATE ON {sql.table} FOR EACH ROW IF {sql.emptied()} THEN "
            f"{refuse}; "
            f"ELSEIF {outdated} THEN SET NEW.{sql.previous} = NULL; "
            f"ELSEIF {sql.stale()} AND NEW.{sql.previous} IS NOT NULL THEN SET NEW.{sql.encrypted} = NULL; "
            "END IF"
        ),
    ]


def create_guard(dialect: Dialect, columns: Tracked, *, back: bool = False) -> list[str]:
    """Statements that create the guarding triggers, which refuse plaintext: a program with the policy "both"
    writes it beside the ciphertext.

    Args:
        back: on the way back: refuse what would stand in the encrypted column alone, which is to be dropped.
    """
    sql = _Sql(dialect, columns)
    name = sql.name("guard")
    if back:
        pending = f"NEW.{sql.previous} IS NULL AND NEW.{sql.encrypted} IS NOT NULL"
        changed = pending
        text = f"{columns.table}.{columns.encrypted} is given up, and this program writes to it alone"
    else:
        pending = f"NEW.{sql.previous} IS NOT NULL OR ({sql.is_foreign()})"
        changed = f"({sql.writes_plaintext()}) OR ({sql.becomes_foreign()})"
        text = f"{columns.table}.{columns.previous} is encrypted now, and this program writes plaintext"
    text = text.replace("'", "''")
    if dialect.name == "postgresql":
        return [
            (
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
                f"RAISE EXCEPTION '{text.replace('%', '%%')}'; END $$"
            ),
            (
                f"CREATE OR REPLACE TRIGGER {sql.bare('guard')} BEFORE UPDATE ON {sql.table} FOR EACH ROW "
                f"WHEN ({changed}) EXECUTE FUNCTION {name}()"
            ),
            (
                f"CREATE OR REPLACE TRIGGER {sql.bare('guardi')} BEFORE INSERT ON {sql.table} FOR EACH ROW "
                f"WHEN ({pending}) EXECUTE FUNCTION {name}()"
            ),
        ]
    if dialect.name == "sqlite":
        return [
            f"DROP TRIGGER IF EXISTS {name}",
            f"DROP TRIGGER IF EXISTS {sql.name('guardi')}",
            (
                f"CREATE TRIGGER {name} BEFORE UPDATE ON {sql.bare_table} FOR EACH ROW WHEN {changed} "
                f"BEGIN SELECT RAISE(ABORT, '{text}'); END"
            ),
            (
                f"CREATE TRIGGER {sql.name('guardi')} BEFORE INSERT ON {sql.bare_table} FOR EACH ROW "
                f"WHEN {pending} BEGIN SELECT RAISE(ABORT, '{text}'); END"
            ),
        ]
    refuse = f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{text[:120]}'"
    return [
        f"DROP TRIGGER IF EXISTS {name}",
        f"DROP TRIGGER IF EXISTS {sql.name('guardi')}",
        (
            f"CREATE TRIGGER {name} BEFORE UPDATE ON {sql.table} FOR EACH ROW "
            f"IF {changed} THEN {refuse}; END IF"
        ),
        (
            f"CREATE TRIGGER {sql.name('guardi')} BEFORE INSERT ON {sql.table} FOR EACH ROW "
            f"IF {pending} THEN {refuse}; END IF"
        ),
    ]


def drop_triggers(dialect: Dialect, columns: Tracked, *kinds: str) -> list[str]:
    """Statements that drop triggers of these kinds, there or not: "track", "keep", "guard"."""
    sql = _Sql(dialect, columns)
    statements = []
    for kind in kinds:
        names = ("guard", "guardi") if kind == "guard" else (kind,)
        for name in names:
            if dialect.name == "postgresql":
                statements.append(f"DROP TRIGGER IF EXISTS {sql.bare(name)} ON {sql.table}")
            else:
                statements.append(f"DROP TRIGGER IF EXISTS {sql.name(name)}")
        if dialect.name == "postgresql":
            statements.append(f"DROP FUNCTION IF EXISTS {sql.name(kind)}()")
    return statements


# It passes the CHECK, and no key has the id zero.
_MARK = f"x'{FORMAT_VALUE:02x}{'00' * (OVERHEAD - 1)}'"


class _Sql:
    """Quoted names, and the condition that a write leaves a stale value."""

    def __init__(self, dialect: Dialect, columns: Tracked) -> None:
        if dialect.name not in ("postgresql", "sqlite", "mysql", "mariadb"):
            raise ConfigurationError(
                f"Columns cannot be tracked on {dialect.name}: PostgreSQL, SQLite, MySQL and MariaDB can."
            )
        self._dialect, self._columns = dialect, columns
        self._quote = quoter(dialect)
        self.previous, self.encrypted = self._quote(columns.previous), self._quote(columns.encrypted)
        self.bare_table = self._quote(columns.table)
        self.table = self._in_schema(columns.table)

    def _in_schema(self, name: str) -> str:
        schema = self._columns.schema
        return f"{self._quote(schema)}.{self._quote(name)}" if schema else self._quote(name)

    def bare(self, kind: str) -> str:
        """A trigger's name without the schema."""
        return self._quote(self._columns.trigger(kind))

    def name(self, kind: str) -> str:
        """A trigger's name with the schema."""
        return self._in_schema(self._columns.trigger(kind))

    def stale(self) -> str:
        """The previous value changed, to the byte, or what the encrypted one depends on; and that did not.

        A row that has an encrypted value alone is left when it moves: there is nothing to encrypt it from,
        and reading it tells that it was moved.
        """
        changed = self._changed(self._columns.previous)
        moved = " OR ".join(self._changed(name) for name in self._columns.bound)
        if moved:
            changed = f"({changed} OR (NEW.{self.previous} IS NOT NULL AND ({moved})))"
        new, old = f"NEW.{self.encrypted}", f"OLD.{self.encrypted}"
        same = {"postgresql": "IS NOT DISTINCT FROM", "sqlite": "IS"}.get(self._dialect.name, "<=>")
        return f"{changed} AND {new} {same} {old}"

    def _changed(self, name: str) -> str:
        new, old = f"NEW.{self._quote(name)}", f"OLD.{self._quote(name)}"
        if self._dialect.name == "postgresql":
            # The bytes as they are stored: as text, a collation may take "Ada" for "ada", and a session's
            # settings two numbers for one.
            return f"pg_catalog.record_image_ne(ROW({new}), ROW({old}))"
        if self._dialect.name == "sqlite":
            return f"({new} COLLATE BINARY IS NOT {old} OR typeof({new}) IS NOT typeof({old}))"
        return f"NOT (CAST({new} AS BINARY) <=> CAST({old} AS BINARY))"

    def watched(self) -> str:
        """The columns whose change may make a row pending."""
        names = dict.fromkeys((self._columns.previous, *self._columns.bound))
        return ", ".join(self._quote(name) for name in names)

    def emptied(self) -> str:
        """The previous value was set to NULL, and the encrypted one is there and did not change."""
        there = f"NEW.{self.previous} IS NULL AND OLD.{self.encrypted} IS NOT NULL"
        return f"{there} AND {self._changed(self._columns.previous)} AND NOT ({self._encrypted_changed()})"

    def outdated(self) -> str:
        """The encrypted value changed, and the previous one is there and did not."""
        there = f"NEW.{self.previous} IS NOT NULL AND OLD.{self.encrypted} IS NOT NULL"
        outdated = (
            f"{there} AND NOT ({self._changed(self._columns.previous)}) AND {self._encrypted_changed()}"
        )
        if self._dialect.name != "sqlite":
            return outdated
        return f"{outdated} AND NEW.{self.encrypted} IS NOT {_MARK} AND OLD.{self.encrypted} IS NOT {_MARK}"

    def writes_plaintext(self) -> str:
        """The write puts a previous value there, beside an encrypted one too; or would leave one alone."""
        return (
            f"NEW.{self.previous} IS NOT NULL AND "
            f"(({self._changed(self._columns.previous)}) OR ({self.stale()}))"
        )

    def is_foreign(self) -> str:
        """The encrypted column holds what is no ciphertext."""
        new = f"NEW.{self.encrypted}"
        return f"{new} IS NOT NULL AND NOT ({looks_encrypted(self._dialect.name, new)})"

    def becomes_foreign(self) -> str:
        """The write puts there what is no ciphertext; what stood there before is not its fault."""
        return f"{self._encrypted_changed()} AND {self.is_foreign()}"

    def _encrypted_changed(self) -> str:
        new, old = f"NEW.{self.encrypted}", f"OLD.{self.encrypted}"
        same = {"postgresql": "IS NOT DISTINCT FROM", "sqlite": "IS"}.get(self._dialect.name, "<=>")
        return f"NOT ({new} {same} {old})"

    def by_a_mark(self) -> str:
        """SQLite: a step between a value and NULL, so that the other trigger tells this from a program that
        writes NULL."""
        return f"UPDATE {self.bare_table} SET {self.encrypted} = {_MARK} WHERE {self.this_row()}; "

    def this_row(self) -> str:
        """SQLite's row, found again."""
        if not self._columns.keys:
            return "rowid = NEW.rowid"
        keys = [self._quote(key) for key in self._columns.keys]
        return " AND ".join(f"{key} IS NEW.{key}" for key in keys)
