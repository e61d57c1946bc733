"""The statement hook: values are encrypted in `before_execute`, where a row's parameters are known.

It runs before the execution context is built, so that an error raised here reaches the caller as itself, and whatever
SQLAlchemy prints later holds ciphertext. It covers flushes, ORM bulk statements and Core alike. What it does not
understand it leaves alone, and the bind processor refuses it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Insert, Update
from sqlalchemy.sql.elements import BindParameter, ClauseElement, Null

from sqlalchemy_envelope.crypto.aead import MAX_VALUE_SIZE, check_size, fresh_nonces
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import StatementRefusedError, ValueEncodingError
from sqlalchemy_envelope.orm import context
from sqlalchemy_envelope.orm.binding import plan_of_table
from sqlalchemy_envelope.orm.sealed import Ciphertext, Sealed
from sqlalchemy_envelope.orm.types import EncryptedType
from sqlalchemy_envelope.orm.writing import (
    ENROLLING_OWNER,
    client_default,
    enrolling_in,
    holds_nothing,
    notes_of,
    owner_of_state,
    session_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.crypto.aead import ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.binding import EncryptedColumn, OwnerPath, TablePlan

    Row = Mapping[str, Any]


def before_execute(
    connection: Connection, statement: Any, multiparams: Any, params: Any, execution_options: Any
) -> tuple[Any, Any, Any]:
    """Encrypt what an INSERT or UPDATE writes into encrypted columns."""
    session = session_of(connection)
    current = context.CURRENT.get()
    if current.is_open and session is not None:
        current.saw(session)  # type: ignore[union-attr]  # only an UnlockedSession is open
    if isinstance(statement, (Insert, Update)):
        plan = plan_of_table(statement.table)
        if plan is not None:
            return _StatementWriter(plan, connection, statement).write(multiparams, params)
    return statement, multiparams, params


class _StatementWriter:
    """Encrypts the parameters of one statement."""

    def __init__(self, plan: TablePlan, connection: Connection, statement: Insert | Update) -> None:
        self._plan = plan
        self._connection = connection
        self._session = session_of(connection)
        self._statement: Any = statement
        self._inserts = isinstance(statement, Insert)
        self._assigned = {self._name(key): clause for key, clause in (statement._values or {}).items()}
        self._names = {
            key: clause.key for key, clause in self._assigned.items() if _is_placeholder(clause)
        }  # column -> parameter, for `values(body=bindparam("other"))`
        self._ciphers: dict[tuple[OwnerPath, tuple[Any, ...]], dict[str, ValueCipher]] = {}

    def write(self, multiparams: Any, params: Any) -> tuple[Any, Any, Any]:
        """The statement and its parameters, encrypted."""
        statement = self._statement
        if self._inserts:
            self._check_from_select()
            self._check_upsert()
            if statement._multi_values:
                return self._write_multiple_values(), multiparams, params
        literals = self._literals()
        if multiparams:
            if self._plan.keys & literals.keys():
                raise StatementRefusedError(
                    f"A literal for an encrypted column of {self._plan.table.name} beside a list of rows: put the value "
                    "into each row instead."
                )
            return statement, self._rows(multiparams, literals), params
        if literals:
            before = {**literals, **params}
            (after,) = self._rows([before], {})
            new = {key: value for key, value in after.items() if type(value) is Ciphertext and key in literals}
            made = {key: value for key, value in after.items() if key not in before}
            if new or made:
                statement = statement.values({self._plan.table.c[key]: value for key, value in (new | made).items()})
            return statement, multiparams, {key: after[key] for key in params}
        if params:
            (params,) = self._rows([params], {})
        return statement, multiparams, params

    def _write_multiple_values(self) -> Any:
        rows = [
            {self._name(key): _literal_value(value) for key, value in row.items()}
            for group in self._statement._multi_values
            for row in group
        ]
        statement = self._statement._clone()
        statement._multi_values = ()
        return statement.values(self._rows(rows, {}))

    def _name(self, key: Any) -> str:
        name = getattr(key, "key", key)
        return self._plan.names.get(name, name)

    def _literals(self) -> dict[str, Any]:
        """Values that stand in the statement itself; expressions are refused for encrypted columns."""
        literals = {}
        for key, clause in self._assigned.items():
            if isinstance(clause, BindParameter) and key not in self._names:
                literals[key] = clause.effective_value
            elif key in self._plan.keys and not isinstance(clause, (BindParameter, Null)):
                raise StatementRefusedError(
                    f"An SQL expression is assigned to the encrypted column {self._plan.table.name}.{key}; the database "
                    "cannot compute on ciphertext. Compute the value in Python and assign that."
                )
        return literals

    def _rows(self, rows: Sequence[Row], literals: Row) -> list[dict[str, Any]]:
        nonces = fresh_nonces(len(rows) * len(self._plan.columns))
        return [self._row(row, literals, nonces) for row in rows]

    def _row(self, row: Row, literals: Row, nonces: Iterator[bytes]) -> dict[str, Any]:
        encrypted = dict(row)
        if self._inserts:
            self._make_defaults(encrypted, literals)
        else:
            self._check_move(encrypted, literals)
        names = self._names
        for path, columns in self._plan.groups:
            ciphers = None
            for column in columns:
                name = names.get(column.key, column.key) if names else column.key
                value = encrypted.get(name)
                if value is None:
                    continue
                if ciphers is None:
                    ciphers = self._ciphers_for(encrypted, literals, path, columns)
                cipher = ciphers[column.key]
                plaintext = _encode(column, value)
                aad = cipher.aad
                if column.row_bound:
                    aad = cipher.aad_of(self._row_reference(encrypted, literals))
                nonce = next(nonces)
                encrypted[name] = Ciphertext((cipher.header + nonce + cipher.seal(nonce, plaintext, aad),))
        return encrypted

    def _ciphers_for(
        self, row: Row, literals: Row, path: OwnerPath, columns: Sequence[EncryptedColumn]
    ) -> dict[str, ValueCipher]:
        """The ciphers of a row's owner. Rows of one owner stand together more often than not: kept by owner."""
        values = tuple([row.get(key, literals.get(key)) for key in path.keys]) if self._plan.has(path) else ()
        found = self._ciphers.get((path, values)) if values else None
        if found is None:
            owner = self._owner(row, literals, path, columns[0], values)
            found = {column.key: self._cipher(owner, column) for column in columns}
            if values and None not in values:
                self._ciphers[path, values] = found
        return found

    def _owner(
        self, row: Row, literals: Row, path: OwnerPath, column: EncryptedColumn, values: tuple[Any, ...]
    ) -> OwnerId:
        owner = path.owner_id(values) if values else None
        current = enrolling_in(self._session)
        if current is not None and path.is_self and self._inserts and current.owner_class is path.owner_class:
            return ENROLLING_OWNER
        if owner is None:
            state = self._state(row)
            owner = owner_of_state(state, path, column.key) if state is not None else context.USING.get()
        if owner is None:
            raise StatementRefusedError(
                f"A statement writes {self._plan.table.name}.{column.key} and does not name the row's owner "
                f"({', '.join(path.keys)}). Name it in the values, load and change the objects, or say whose rows these "
                "are: `with unlocked.using(owner): ...`."
            )
        return owner

    def _cipher(self, owner: OwnerId, column: EncryptedColumn) -> ValueCipher:
        field = column.type.field
        current = enrolling_in(self._session)
        if owner == ENROLLING_OWNER and current is not None:
            cipher = current.keyring.writer(owner, field)
        else:
            cipher = context.find_writer(self._session, owner, field)
        if cipher is None:
            raise context.locked(f"{self._plan.table.name}.{column.key}, of this row's {column.path.owner_class.name},", self._session)
        return cipher

    def _state(self, row: Row) -> InstanceState[Any] | None:
        """The object whose row this is, during a flush."""
        notes = notes_of(self._connection)
        return notes.find(self._plan.table, self._identity(row)) if notes is not None else None

    def _identity(self, row: Row) -> tuple[Any, ...]:
        """The row's primary key as the statement names it: an INSERT by column, a flush's UPDATE by `table_column`."""
        columns = self._plan.table.primary_key.columns
        return tuple(row.get(column.key if self._inserts else column._label) for column in columns)

    def _row_reference(self, row: Row, literals: Row) -> bytes:
        parts = []
        for column, now in zip(self._plan.table.primary_key.columns, self._identity(row), strict=True):
            part = now if self._inserts else row.get(column.key, now)
            part = literals.get(column.key) if part is None else part
            if part is None:
                raise StatementRefusedError(
                    f"A statement writes a row-bound column of {self._plan.table.name} and does not name the row's "
                    f"{column.key}. Load and change the objects instead."
                )
            parts.append(part)
        return encode_reference(parts)

    def _make_defaults(self, row: dict[str, Any], literals: Row) -> None:
        """Evaluate Python-side defaults that a value depends on: its own, and the row-bound primary key."""
        for column in self._plan.columns:
            if column.column.default is not None and column.key not in row and column.key not in literals:
                row[column.key] = client_default(column.column)
        if self._plan.row_bound:
            for key in self._plan.table.primary_key.columns:
                if key.default is not None and row.get(key.key, literals.get(key.key)) is None:
                    row[key.key] = client_default(key)

    def _check_move(self, row: Row, literals: Row) -> None:
        """Refuse to give a row another owner, or a row-bound one another key, while its ciphertext stays behind."""
        for path, columns in self._plan.groups:
            moves = not path.is_self and any(key in row or key in literals for key in path.keys)
            for column in columns:
                rekeys = column.row_bound and any(k.key in row or k.key in literals for k in self._plan.table.primary_key)
                name = self._names.get(column.key, column.key)
                if not (moves or rekeys) or name in row or name in literals:
                    continue
                state = self._state(row)
                if state is not None and holds_nothing(state, column.key):
                    continue
                raise StatementRefusedError(
                    f"An UPDATE moves rows of {self._plan.table.name} to another owner or key and leaves "
                    f"{column.key} encrypted for where it was. Load the objects and change them."
                )

    def _check_from_select(self) -> None:
        """INSERT .. FROM SELECT may copy ciphertext between columns of one label, and nothing else."""
        statement = self._statement
        if statement.select is None:
            return
        names = [self._name(name) for name in statement._select_names or ()]
        for name, source in zip(names, statement.select.selected_columns, strict=False):
            target = next((one for one in self._plan.columns if one.key == name), None)
            if target is None:
                continue
            same = isinstance(source.type, EncryptedType) and source.type.field == target.type.field
            if not same or target.row_bound:
                raise StatementRefusedError(
                    f"INSERT .. FROM SELECT into {self._plan.table.name}.{name}: only a column of the same label can be "
                    "copied inside the database. Load the rows and add them as objects, or pin one label on both columns."
                )

    def _check_upsert(self) -> None:
        """An upsert may set `excluded.<same column>` only, and only where the row's owner is settled too."""
        clause = getattr(self._statement, "_post_values_clause", None)
        updates = getattr(clause, "update_values_to_set", None) or getattr(clause, "update", None)
        if not updates:
            return
        pairs = dict(updates.items() if hasattr(updates, "items") else updates)
        sets = {self._name(key): value for key, value in pairs.items()}
        targets = {self._name(one) for one in getattr(clause, "inferred_target_elements", None) or ()}
        for path, columns in self._plan.groups:
            for column in columns:
                if column.key not in sets:
                    continue
                value = sets[column.key]
                settled = set(path.keys) <= targets | sets.keys()
                key_known = targets == {key.key for key in self._plan.table.primary_key}
                if not _is_proposed(value, column) or not settled or (column.row_bound and not key_known):
                    raise StatementRefusedError(
                        f"This upsert sets {self._plan.table.name}.{column.key}, which is encrypted for the row that was to "
                        f"be inserted. Set it from `excluded.{column.key}` and {', '.join(path.keys)} with it"
                        + (", on the primary key alone." if column.row_bound else ".")
                    )


def _encode(column: EncryptedColumn, value: Any) -> bytes:
    """The plaintext bytes of a value. What goes wrong is told by type; the value goes nowhere."""
    plaintext: bytes | None = None
    if type(value) is not Sealed and type(value) is not Ciphertext:
        try:
            plaintext = column.encode(value)
        except Exception:  # noqa: BLE001, S110 - raised below, where nothing that holds the value is chained to it
            pass
    if plaintext is None:
        raise _unencodable(column, value)
    if len(plaintext) > MAX_VALUE_SIZE:
        check_size(plaintext)
    return plaintext


def _unencodable(column: EncryptedColumn, value: Any) -> Exception:
    where = f"{column.column.table.name}.{column.key}"  # type: ignore[attr-defined]  # a Table has a name
    if isinstance(value, (Sealed, Ciphertext)):
        return StatementRefusedError(f"{where}: a sealed value cannot be written elsewhere; unlock it and copy the plaintext.")
    if isinstance(value, ClauseElement):
        return StatementRefusedError(f"{where} is encrypted: assign a Python value, not an SQL expression.")
    return ValueEncodingError(
        f"{where} holds {column.type.codec.tag!r} values; this {type(value).__name__} cannot be stored in it."
    )


def _is_placeholder(clause: Any) -> bool:
    return isinstance(clause, BindParameter) and clause.required


def _literal_value(value: Any) -> Any:
    return value.effective_value if isinstance(value, BindParameter) else value


def _is_proposed(value: Any, column: EncryptedColumn) -> bool:
    """Whether an upsert's value is the same column of the row that was to be inserted."""
    source = getattr(value, "table", None)
    named = getattr(source, "name", None) in ("excluded", "new") or getattr(source, "description", None) == "inserted"
    return named and getattr(value, "key", None) == column.key
