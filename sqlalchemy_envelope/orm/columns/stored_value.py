"""The shape of a stored value, in SQL: one definition for the CHECK of an encrypted column and for the guard
of a migration.

Format 0x01 is recognised by its first byte and its least length. That is no authentication: anybody who knows
the format can make bytes that pass. It stops programs that do not know the format and would store plaintext.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import CheckConstraint, Column, LargeBinary, MetaData, Table, TextClause
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.elements import conv

from sqlalchemy_envelope.crypto.aead import FORMAT_VALUE, OVERHEAD

_FIRST_BYTE, _NEXT_BYTE = f"{FORMAT_VALUE:02x}", f"{FORMAT_VALUE + 1:02x}"

# None of them can fail, whatever is stored: one that raises for the empty string would hide the CHECK's own
# error. In SQLite text and numbers are less than every blob, and comparing costs a third of asking typeof()
# and substr(). PostgreSQL's decode() needs no backslash, which its settings read in two ways.
_LOOKS_ENCRYPTED = {
    "sqlite": "{0} >= x'{2}' AND {0} < x'{3}' AND length({0}) >= {1}",
    "postgresql": "octet_length({0}) >= {1} AND substr({0}, 1, 1) = decode('{2}', 'hex')",
    "mysql": "length({0}) >= {1} AND left({0}, 1) = x'{2}'",
}
_LOOKS_ENCRYPTED["mariadb"] = _LOOKS_ENCRYPTED["mysql"]

# PostgreSQL cuts a name after 63 bytes, MySQL refuses one of more than 64 characters.
_NAME_SIZE = 63


def looks_encrypted(dialect_name: str, quoted: str) -> str | None:
    """The condition that a value is a stored value of this library; None on an unknown database.

    Args:
        quoted: the column as the statement writes it, `NEW."body"` in a trigger. It is not NULL.
    """
    condition = _LOOKS_ENCRYPTED.get(dialect_name)
    return None if condition is None else condition.format(quoted, OVERHEAD, _FIRST_BYTE, _NEXT_BYTE)


def check_condition(dialect_name: str, quoted: str) -> str | None:
    """The condition of a CHECK: NULL, or a stored value of this library."""
    condition = looks_encrypted(dialect_name, quoted)
    if dialect_name != "sqlite":
        return condition  # unknown of NULL, which a CHECK takes; to say so costs PostgreSQL twice as much
    return f"{quoted} IS NULL OR ({condition})"


def check_name(table: str, column: str, convention: Mapping[Any, Any] | None = None) -> str:
    """The name of an encrypted column's CHECK, the same in models and migrations.

    Args:
        convention: the `naming_convention` of the MetaData. As in SQLAlchemy, its rule for a CHECK counts if
            it asks for the constraint's name; that is then `<column>_ciphertext`.
    """
    rules: Any = convention or {}
    rule = rules.get("ck", rules.get(CheckConstraint))
    if isinstance(rule, str) and "constraint_name" in rule:
        held = Table(table, MetaData(naming_convention=rules), Column(column, LargeBinary))
        constraint = CheckConstraint(held.c[column].is_not(None), name=f"{column}_ciphertext")
        name = str(constraint.name)
    else:
        name = f"ck_{table}_{column}_ciphertext"
    whole = name.encode()
    if len(whole) <= _NAME_SIZE:
        return name
    digest = hashlib.sha256(whole).hexdigest()[:8]
    return f"{whole[: _NAME_SIZE - 9].decode(errors='ignore')}_{digest}"


def check_name_of(column: Column[Any], table: Table) -> str:
    """The name of the CHECK of a model's column."""
    return check_name(table.name, column.name, table.metadata.naming_convention)


class EncryptedCheck(CheckConstraint):
    """The CHECK of an encrypted column. It belongs to the column: SQLite drops a column together with its
    own CHECK, and refuses to drop one that a CHECK of the table names."""

    def __init__(self, column: Column[Any], table: Table) -> None:
        name = conv(check_name_of(column, table))
        # Bound to the type: a copy of the column gets a CHECK of its own when it joins its table.
        super().__init__(TextClause("is ciphertext"), name=name, _type_bound=True)
        self.column_name = column.name
        self.parent = column
        column.constraints.add(self)

    def __repr__(self) -> str:
        return f"EncryptedCheck({self.column_name!r}, name={str(self.name)!r})"


@compiles(EncryptedCheck)
def _compile_check(constraint: EncryptedCheck, compiler: Any, **_: Any) -> str:
    """The CHECK in a CREATE TABLE, after its column; nothing on an unknown database."""
    quote = compiler.preparer.quote
    clause = check_clause(compiler.dialect.name, str(constraint.name), constraint.column_name, quote)
    if clause is None:
        return ""
    # MariaDB gives no name to a column's own CHECK, and allows a CHECK of the table between columns.
    return f", {clause}" if compiler.dialect.name in ("mysql", "mariadb") else clause


def check_clause(dialect_name: str, name: str, column: str, quote: Callable[[str], str]) -> str | None:
    """`CONSTRAINT name CHECK (...)`; None on an unknown database."""
    condition = check_condition(dialect_name, quote(column))
    return None if condition is None else f"CONSTRAINT {quote(name)} CHECK ({condition})"


def attach_check(column: Column[Any], table: Table) -> None:
    """Give a column its CHECK, unless its type was declared with `check=False`."""
    if getattr(column.type, "check", None) is not False:
        EncryptedCheck(column, table)
