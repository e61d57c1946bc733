"""The statement hook: values are encrypted in `before_execute`, where a row's parameters are known.

It runs before the execution context is built, so that an error raised here reaches the caller as itself, and
whatever SQLAlchemy prints later holds ciphertext. It covers flushes, ORM bulk statements and Core alike. What
it does not understand it leaves alone and unmarked, and the gate refuses it.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import Insert, Select, Update, insert, update
from sqlalchemy.orm import FromStatement
from sqlalchemy.orm.attributes import instance_state
from sqlalchemy.sql.compiler import Compiled
from sqlalchemy.sql.elements import BindParameter, ClauseElement, Null
from sqlalchemy.types import NullType
from sqlalchemy.util import immutabledict

from sqlalchemy_envelope.crypto.aead import MAX_VALUE_SIZE, NO_ROW, OVERHEAD, Batch, row_tail, row_tails
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import (
    LockedError,
    NotEnrolledError,
    StatementRefusedError,
    ValueEncodingError,
    ValueTooLargeError,
)
from sqlalchemy_envelope.orm.columns.codecs import MAX_LIST_DEPTH
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import plan_of_table
from sqlalchemy_envelope.orm.columns.sealed import CIPHERTEXT, Sealed, is_ciphertext
from sqlalchemy_envelope.orm.columns.state import holds_nothing, owner_values, stays
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.tables.connections import session_of
from sqlalchemy_envelope.orm.tables.key_types import mistyped_for
from sqlalchemy_envelope.orm.tables.owner_paths import SolePath
from sqlalchemy_envelope.orm.writing.copies import check_from_select, check_upsert, upsert_previous
from sqlalchemy_envelope.orm.writing.flushes import (
    ENROLLING_OWNER,
    client_default,
    enrolling_owner,
    enrolling_row,
    notes_of,
)
from sqlalchemy_envelope.orm.writing.forms import (
    WRITE_IN_CTES,
    assigned_by,
    changed_by,
    column_key,
    equalities,
    in_from_statement,
    may_hold_ctes,
    plain,
    rows_of,
    target_of,
    with_ctes,
)
from sqlalchemy_envelope.orm.writing.gate import check_compiled
from sqlalchemy_envelope.orm.writing.marks import is_marked, mark, mark_lasting
from sqlalchemy_envelope.orm.writing.missing_owner import (
    moved_late,
    names_of,
    new_owner,
    not_set,
    unnamed_owner,
)
from sqlalchemy_envelope.orm.writing.moves import check_moves
from sqlalchemy_envelope.orm.writing.owner_columns import (
    default_beside,
    has_python_default,
    left_out_by_the_first,
    why_unknown,
)
from sqlalchemy_envelope.orm.writing.owner_seek import OwnerSeek
from sqlalchemy_envelope.orm.writing.sole_owners import check_sole
from sqlalchemy_envelope.orm.writing.twins import check_twin, is_twin
from sqlalchemy_envelope.orm.writing.using_rows import of_owner

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection
    from sqlalchemy.orm import InstanceState

    from sqlalchemy_envelope.crypto.aead import BoundCipher, ValueCipher
    from sqlalchemy_envelope.keys.keyring import OwnerId
    from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn, TablePlan
    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath
    from sqlalchemy_envelope.orm.tables.owners import OwnerClass
    from sqlalchemy_envelope.orm.writing.flushes import Enrolling

    Row = Mapping[str, Any]
    Options = Mapping[str, Any]


def encrypt(
    connection: Connection, statement: Any, multiparams: Any, params: Any, options: Options
) -> tuple[Any, Any, Any]:
    """Encrypt what an INSERT or UPDATE writes into encrypted columns, and mark it."""
    if isinstance(statement, (Insert, Update)) and not may_hold_ctes(statement):  # first what comes most
        return _encrypt_alone(connection, statement, multiparams, params, options)
    if isinstance(statement, Select) and connection.dialect.name not in WRITE_IN_CTES:
        return statement, multiparams, params
    if isinstance(statement, FromStatement):
        inner = plain(statement.element)
        inner, multiparams, params = encrypt(connection, inner, multiparams, params, options)
        if inner is not statement.element:
            statement = in_from_statement(statement, inner)
        return statement, multiparams, params
    if isinstance(statement, Compiled):
        check_compiled(connection, statement, options)
        return statement, multiparams, params
    if connection.dialect.name in WRITE_IN_CTES and may_hold_ctes(statement):
        # The values stand in the CTEs themselves, or in the parameters of the statement around them.
        def encrypt_inner(inner: Any) -> Any:
            nonlocal params
            inner, _, params = _encrypt_alone(connection, inner, (), params, options)
            return inner

        statement = with_ctes(statement, encrypt_inner)
    if isinstance(statement, (Insert, Update)):
        return _encrypt_alone(connection, statement, multiparams, params, options)
    return statement, multiparams, params


def _encrypt_alone(
    connection: Connection, statement: Any, multiparams: Any, params: Any, options: Options
) -> tuple[Any, Any, Any]:
    target = target_of(statement)
    check_sole(connection, statement, target, multiparams, params)
    moves = check_moves(connection, statement, target, multiparams, params, options)
    plan = plan_of_table(target)
    if plan is None:
        unseen = is_twin(target) and not is_marked(statement)  # the migration marks what it encrypted itself
        if unseen and check_twin(connection, target, statement, multiparams, params, options):
            statement = mark(statement)
        return mark_lasting(statement) if moves else statement, multiparams, params
    _check_schema(plan, connection, options)
    writer = _StatementWriter(plan, connection, statement, options)
    encrypted, multiparams, params = writer.write(multiparams, params)
    marked = mark_lasting(statement) if encrypted is statement else mark(encrypted)
    return marked, multiparams, params


def _check_schema(plan: TablePlan, connection: Connection, options: Options) -> None:
    """Keys are looked for where the connection looks for tables: one statement cannot go to another
    schema."""
    name = "schema_translate_map"
    if options.get(name) != connection.get_execution_options().get(name):
        raise StatementRefusedError(
            f"A statement writes {plan.table.name} with a {name} of its own, and its rows' keys would be "
            f"looked for in another schema. Give the {name} to the engine or the connection: "
            f"`session.connection(execution_options={{'{name}': ...}})`."
        )


_CHUNK = 256
"""Rows that are encrypted at a time: what they take fits into the processor's cache."""
_FEW = 4
"""So many rows of one owner are encrypted row by row: columns have a cost of their own."""


class _OwnedRows:
    """Rows of one owner, and what encrypts them."""

    __slots__ = ("ciphers", "rows")

    def __init__(self, ciphers: list[BoundCipher]) -> None:
        self.ciphers = ciphers
        self.rows: list[dict[str, Any]] = []


class _Group(NamedTuple):
    """Encrypted columns of one path to their owner.

    Attributes:
        owner_key: the parameter that says who it is, if a single one does.
        known: what it said so far, and what encrypts the rows that say so.
    """

    path: OwnerPath
    columns: Sequence[EncryptedColumn]
    owner_key: str | None
    known: dict[Any, _OwnedRows]


class _StatementWriter:
    """Encrypts the parameters of one statement."""

    def __init__(
        self, plan: TablePlan, connection: Connection, statement: Insert | Update, options: Mapping[str, Any]
    ) -> None:
        self._plan = plan
        self._connection = connection
        self._session = session_of(connection)
        notes = notes_of(connection)
        self._owners = OwnerSeek(self._session, connection, options, notes.links if notes else None)
        self._statement: Any = statement
        self._inserts = isinstance(statement, Insert)
        self._upserts = getattr(statement, "_post_values_clause", None) is not None
        clauses = assigned_by(statement)
        self._keys = {column_key(named): named for named in clauses}
        self._assigned = {column_key(named): clause for named, clause in clauses.items()}
        self._names = {
            key: clause.key for key, clause in self._assigned.items() if _is_placeholder(clause)
        }  # column -> parameter, for `values(body=bindparam("other"))`
        for key in self._names.keys() & plan.keys:
            # It would be bound by a type of its own, past the one that refuses plaintext.
            if not isinstance(self._assigned[key].type, (EncryptedType, NullType)):
                raise StatementRefusedError(
                    f"{plan.table.name}.{key} is encrypted: give its bindparam() neither a type nor a "
                    "default."
                )
        changed = () if self._inserts else changed_by(statement)
        self._changed = {column_key(named) for named in changed}
        self._told = True
        self._under_using: set[OwnerPath] = set()
        # What a literal for them may become: None.
        self._may_be_null = plan.dual.keys() | plan.converting.keys()
        self._key_names = [self._parameter(column.key) for column in plan.table.primary_key]
        self._groups = [
            _Group(
                path,
                columns,
                self._parameter(path.keys[0])
                if len(path.keys) == 1 and path.is_direct and plan.has(path)
                else None,
                {},
            )
            for path, columns in plan.groups
        ]

    def write(self, multiparams: Any, params: Any) -> tuple[Any, Any, Any]:
        """The statement and its parameters, encrypted."""
        statement = self._statement
        if self._inserts:
            check_from_select(self._plan, statement)
            if self._plan.dual:
                statement = self._statement = upsert_previous(self._plan, statement)
            check_upsert(self._plan, statement)
            if statement._multi_values:
                return self._write_multiple_values(multiparams), multiparams, params
        literals = self._literals()
        statement, multiparams, params = self._write_rows(multiparams, params, literals)
        using = context.USING.get()
        if self._under_using and using is not None:
            rows = multiparams or [params]
            statement = of_owner(self._connection, statement, rows, self._plan, self._under_using, using)
        return statement, multiparams, params

    def _write_rows(self, multiparams: Any, params: Any, literals: Row) -> tuple[Any, Any, Any]:
        statement = self._statement
        if multiparams:
            self._refuse_beside_rows(literals)
            return statement, self._rows(multiparams, literals), params
        if literals:
            before = {**literals, **params}
            (after,) = self._rows([before], {})
            new = {
                key: value
                for key, value in after.items()
                if key in literals and (is_ciphertext(value) or self._is_untyped_null(key, value))
            }
            made = {key: value for key, value in after.items() if key not in before}
            if new or made:
                statement = self._with_values(new | made)
            return statement, multiparams, {key: after[key] for key in params}
        if params or self._assigned:
            (params,) = self._rows([params], {})
        return statement, multiparams, params

    def _is_untyped_null(self, key: str, value: Any) -> bool:
        """Whether a NULL has to be given anew: its column is being moved, or it came with a type of its own,
        as a lambda's variable does."""
        if value is not None or key not in self._plan.keys:
            return False
        return key in self._may_be_null or not isinstance(self._assigned[key].type, EncryptedType)

    def _with_values(self, values: dict[str, Any]) -> Any:
        """The statement with these in place of its own, in its order and under the very keys that it has."""
        statement = self._statement._clone()
        new = {self._keys.get(key, key): value for key, value in values.items()}
        made: Any = (insert if self._inserts else update)(self._plan.table).values(new)._values
        if getattr(statement, "_ordered_values", None):
            statement._ordered_values = list({**dict(statement._ordered_values), **made}.items())
        else:
            statement._values = immutabledict({**(statement._values or {}), **made})
        return statement

    def _refuse_beside_rows(self, literals: Row) -> None:
        if self._plan.keys & literals.keys():
            raise StatementRefusedError(
                f"A literal for an encrypted column of {self._plan.table.name} beside a list of rows: "
                "put the value into each row instead."
            )

    def _write_multiple_values(self, multiparams: Any) -> Any:
        rows = [
            {column_key(named): _literal_value(value) for named, value in row.items()}
            for row in rows_of(self._statement)
        ]
        if multiparams:
            # SQLAlchemy refuses some of these, and its error prints the list.
            for row in rows:
                self._refuse_beside_rows(row)
        statement = self._statement._clone()
        statement._multi_values = ()
        # Columns: of a mapped class, `values()` takes text for the names of attributes.
        columns: Any = self._plan.table.columns
        return statement.values(
            [{columns.get(key, key): value for key, value in row.items()} for row in self._rows(rows, {})]
        )

    def _literals(self) -> dict[str, Any]:
        """Values that stand in the statement itself; expressions are refused for encrypted columns."""
        literals = {}
        for key, clause in self._assigned.items():
            if isinstance(clause, BindParameter) and key not in self._names:
                literals[key] = clause.effective_value
            elif key in self._plan.keys and not isinstance(clause, (BindParameter, Null)):
                raise StatementRefusedError(
                    f"An SQL expression is assigned to the encrypted column {self._plan.table.name}.{key}; "
                    "the database cannot compute on ciphertext. Compute the value in Python and assign that."
                )
        return literals

    def _prepare(self, rows: Sequence[Row], literals: Row) -> None:
        """Find the owners of all rows with one query for each path, and let sessions that fetch or make keys
        do so for all of them at once."""
        here = context.unlocked_sessions(self._session)
        on_demand = [one for one in here if one.on_demand or one.follows]
        for path, columns in self._plan.groups:
            if path.is_self and self._inserts:
                continue
            if not self._plan.has(path):
                keys = {self._identity(row) for row in rows if self._state(row) is None}
                self._owners.load_bases(self._plan.table, path, [key for key in keys if None not in key])
            if not on_demand and path.is_direct:
                continue
            named = {
                one
                for one in self._named(path, columns, rows, literals)
                if one is not None and path.mistyped(one) is None
            }
            if not path.is_direct:
                self._owners.load(path, named)
            by_class: dict[OwnerClass, set[tuple[Any, ...]]] = {}
            for values in named:
                found = path.find(values, self._owners)
                if found is not None and enrolling_owner(self._session, self._owners.owner(*found)) is None:
                    by_class.setdefault(found[0], set()).add(found[1])
            count = len(rows) * len(columns)
            for unlocked in on_demand:
                for owner_class, whole in by_class.items():
                    unlocked.prepare_write(self._session, owner_class, whole, count)

    def _named(
        self, path: OwnerPath, columns: Sequence[EncryptedColumn], rows: Sequence[Row], literals: Row
    ) -> set[tuple[Any, ...] | None]:
        """What the rows say of their owners, those for whom something is encrypted."""
        names = [self._parameter(one.key) for one in columns]
        if len(names) == 1:
            (only,) = names
            rows = [row for row in rows if row.get(only) is not None]
        else:
            rows = [row for row in rows if any([row.get(name) is not None for name in names])]  # noqa: C419
        only_key = len(path.keys) == 1 and path.is_direct and path.keys[0] not in literals
        if only_key and self._plan.has(path):
            name = self._parameter(path.keys[0])
            return {(row.get(name),) for row in rows}
        return {self._says(path, columns[0], row, literals) for row in rows}

    def _says(
        self, path: OwnerPath, column: EncryptedColumn, row: Row, literals: Row
    ) -> tuple[Any, ...] | None:
        """What a row, or the object behind it, says of its owner; None if nothing does."""
        if not path.keys:
            return ()
        if self._plan.has(path):
            given = self._given(path, row, literals)
            if why_unknown(path, given, inserts=self._inserts) is not None:
                return None
            values = tuple([given.get(key) for key in path.keys])
            # What an INSERT does not name is NULL: defaults are in the row by now. An UPDATE leaves what is
            # there.
            told = len(given) == len(path.keys)
            if None not in values or (not path.is_direct and (self._inserts or told)):
                return values
        state = self._state(row)
        if state is None and not self._plan.has(path):
            return self._owners.in_base(self._plan.table, path, self._identity(row))
        return None if state is None else owner_values(self._new_state(state), path, column.key)

    def _given(self, path: OwnerPath, row: Row, literals: Row) -> dict[str, Any]:
        """What the statement gives the owner's columns, as far as it names them."""
        given = {}
        for key in path.keys:
            name = self._parameter(key)
            if name in row:
                given[key] = _literal_value(row[name])
            elif key in literals:
                given[key] = literals[key]
            elif key in self._assigned:
                given[key] = _literal_value(self._assigned[key])
        return given

    def _rows(self, rows: Sequence[Row], literals: Row) -> list[dict[str, Any]]:
        if self._inserts and self._plan.has_defaults:
            rows = self._with_defaults(rows, literals)
        self._require_uniform(rows)
        notes = None if self._inserts else notes_of(self._connection)
        if notes is not None and notes.to_rewrite:
            notes.sent(self._plan.columns, [self._identity(row) for row in rows])
        if len(rows) > 1:
            self._prepare(rows, literals)
        else:
            self._told = False  # a single row's owner is told when it is known
        batch = Batch(len(rows) * len(self._plan.columns), CIPHERTEXT)
        encrypted: list[dict[str, Any]] = []
        for start in range(0, len(rows), _CHUNK):
            chunk = [dict(row) for row in rows[start : start + _CHUNK]]
            if not self._inserts or self._plan.dual or self._plan.converting:
                for row in chunk:
                    self._make_ready(row, literals)
            owned = [one for group in self._groups for one in self._by_owner(chunk, literals, group)]
            for mine in owned:
                self._encrypt(batch, mine, literals)
            encrypted += chunk
        return encrypted

    def _by_owner(self, rows: list[dict[str, Any]], literals: Row, group: _Group) -> list[_OwnedRows]:
        """The rows, by what encrypts them."""
        name = group.owner_key
        owners = [None if name is None else row.get(name) for row in rows]
        mine = group.known.get(owners[0])
        if mine is not None and owners.count(owners[0]) == len(owners):  # as most are
            mine.rows = rows
            return [mine]
        found: list[_OwnedRows] = []
        for row, owner in zip(rows, owners, strict=True):
            mine = group.known.get(owner) or self._owned_rows(row, literals, group)
            if mine is None:
                continue
            if not mine.rows:
                found.append(mine)
            mine.rows.append(row)
        return found

    def _make_ready(self, row: dict[str, Any], literals: Row) -> None:
        """What is done to a row, and looked at in it, before it is encrypted."""
        if self._plan.dual:
            self._add_previous(row)
        if self._plan.converting:
            self._convert(row)
        if not self._inserts:
            self._check_move(row, literals)

    def _owned_rows(self, row: dict[str, Any], literals: Row, group: _Group) -> _OwnedRows | None:
        """What encrypts a row and others of its owner; None if there is nothing in it."""
        columns = group.columns
        if all([row.get(self._parameter(one.key)) is None for one in columns]):  # noqa: C419
            return None
        if self._plan.dual:
            ciphers = self._ciphers_or_pending(row, literals, group.path, columns)
        else:
            ciphers = self._ciphers_for(row, literals, group.path, self._of_scopes(row, columns))
        mine = _OwnedRows(ciphers)
        # Rows of one owner stand together more often than not: its ciphers are kept for the statement.
        if len(ciphers) == len(columns) and group.owner_key is not None:
            owner = row.get(group.owner_key)
            if owner is not None:
                group.known[owner] = mine
        return mine

    def _encrypt(self, batch: Batch, mine: _OwnedRows, literals: Row) -> None:
        """Encrypt the rows of one owner, in place."""
        rows, mine.rows = mine.rows, []
        tails = self._tails(mine.ciphers, rows, literals)
        if len(rows) > _FEW and batch.encrypt_rows(rows, mine.ciphers, tails):
            return
        for row, tail in zip(rows, tails or repeat(NO_ROW), strict=False):
            failed = batch.encrypt(row, mine.ciphers, tail)
            if failed is not None:
                error = _unencodable(*failed)
                del rows, row, failed
                raise error

    def _tails(self, ciphers: list[BoundCipher], rows: list[dict[str, Any]], literals: Row) -> list[bytes]:
        """What the AADs of values that are bound to their rows end in; nothing if there are none."""
        bound = [one[0] for one in ciphers if one[5]]
        if not bound:
            return []
        if self._inserts and len(self._key_names) == 1:
            keys = [row.get(self._key_names[0]) for row in rows]
            if None not in keys:
                if set(map(type, keys)) != set(self._plan.key_kinds):
                    for key in keys:
                        self._require_as_read([key])
                return row_tails(keys)
        # An UPDATE that leaves row-bound columns alone needs no row named.
        return [
            row_tail(self._row_reference(row, literals))
            if any([row.get(name) is not None for name in bound])  # noqa: C419 - less than a generator costs
            else NO_ROW
            for row in rows
        ]

    def _add_previous(self, row: dict[str, Any]) -> None:
        """What the row's previous columns get: the same value while both are written, else nothing."""
        for key, (previous, both) in self._plan.dual.items():
            name, beside = self._parameter(key), self._parameter(previous)
            if name not in row and not isinstance(self._assigned.get(key), Null):
                continue
            value = row.get(name)
            if value is None and row.get(beside) is not None:
                continue  # written by itself, as by a program that knows nothing of the encrypted column
            row[beside] = value if both else None

    def _convert(self, row: dict[str, Any]) -> None:
        """Let the decorators among the inner types convert what is written, as in a plain column: from None
        and to None too. While values are moved None stays: NULL says that a value is in the previous one."""
        for key, column in self._plan.converting.items():
            name = self._parameter(key)
            value = row.get(name, _ABSENT)
            if value is _ABSENT or (value is None and key in self._plan.dual):
                continue
            if isinstance(value, ClauseElement):
                raise _unencodable(column, value, None)  # a decorator might take its text for a value
            try:
                row[name] = column.convert(value)  # type: ignore[misc]  # that is why it is among them
                continue
            except Exception:  # noqa: BLE001, S110 - told below, chained to nothing that holds the value
                pass
            raise _unencodable(column, value, None)

    def _ciphers_or_pending(
        self, row: dict[str, Any], literals: Row, path: OwnerPath, columns: Sequence[EncryptedColumn]
    ) -> list[BoundCipher]:
        """What encrypts the columns of a row's owner. Whose key is not here, or who is not known, keeps the
        values of columns with the policy "both" in the previous column for now: they are left out here."""
        try:
            if any(one.row_bound and row.get(self._parameter(one.key)) is not None for one in columns):
                self._row_reference(row, literals)
            return self._ciphers_for(row, literals, path, self._of_scopes(row, columns))
        except (LockedError, NotEnrolledError, StatementRefusedError):
            if not self._leave_pending(row, columns):
                raise
        left = [one for one in columns if row.get(self._parameter(one.key)) is not None]
        return self._ciphers_for(row, literals, path, left) if left else []

    def _leave_pending(self, row: dict[str, Any], columns: Sequence[EncryptedColumn]) -> bool:
        """Take out the values that the previous column holds as well; tells whether there are any."""
        found = False
        for one in columns:
            _, both = self._plan.dual.get(one.key, (None, False))
            name = self._parameter(one.key)
            value = row.get(name)
            if not both or value is None:
                continue
            try:
                size = len(one.encode_converted(value))
            except Exception:  # noqa: BLE001 - told below, chained to nothing that holds the value
                size = -1
            if size < 0:
                raise _unencodable(one, value, None)
            if size > MAX_VALUE_SIZE:
                raise _unencodable(one, value, bytes(size + OVERHEAD))
            row[name] = None
            found = True
        return found

    def _of_scopes(self, row: Row, columns: Sequence[EncryptedColumn]) -> Sequence[EncryptedColumn]:
        """The columns of the scopes that a row writes: the keys of the others may be held by others."""
        if all([one.scope == columns[0].scope for one in columns]):  # noqa: C419
            return columns
        scopes = {one.scope for one in columns if row.get(self._parameter(one.key)) is not None}
        return [one for one in columns if one.scope in scopes]

    def _parameter(self, key: str) -> str:
        """The parameter that a column is written from: `values(body=bindparam("other"))` names another."""
        name: str = self._names.get(key, key)
        return name

    def _value(self, key: str, row: Row, literals: Row) -> Any:
        """What a row's statement writes into a column, None if it does not say."""
        return row.get(self._parameter(key), literals.get(key))

    def _ciphers_for(
        self, row: Row, literals: Row, path: OwnerPath, columns: Sequence[EncryptedColumn]
    ) -> list[BoundCipher]:
        """What encrypts the columns of a row's owner."""
        if path.is_self and self._inserts:
            new = enrolling_row(self._session, path.owner_class, row, self._attributes())
            if new is not None:
                return [self._column_cipher(new, b"", column) for column in columns]
        column_here = self._written(row, columns)
        owner_class, key = self._owner(row, literals, path, column_here)
        owner = self._owners.owner(owner_class, key)
        new = enrolling_owner(self._session, owner)
        if new is None:
            if path.is_self and self._inserts and not self._upserts:
                raise new_owner(column_here)
            for unlocked in context.unlocked_sessions(self._session):
                unlocked.prepare_write(self._session, owner_class, [key], 0 if self._told else len(columns))
        try:
            return [self._column_cipher(new, owner, column) for column in columns]
        except LockedError:
            # While values are moved, many rows wait for their owner: asked of each, this would cost a query.
            # A connection without a session may be in no transaction, and the question would begin one.
            if self._plan.dual or self._session is None or self._owners.has_keys(owner_class, key):
                raise
        where = f"{self._plan.table.name}.{column_here.key}"
        raise context.no_keys(where, owner_class.name, self._session)

    def _written(self, row: Row, columns: Sequence[EncryptedColumn]) -> EncryptedColumn:
        """The column that an error about this row is to name."""
        return next((one for one in columns if row.get(self._parameter(one.key)) is not None), columns[0])

    def _attributes(self) -> dict[str, str]:
        """The attributes that columns are mapped by, which tell one new owner's row from another's."""
        shown = self._plan.attributes
        return {
            column.key: shown.get(column.key, column.key)
            for column in self._plan.table.columns
            if not column.primary_key and column.key not in self._plan.converting
        }

    def _column_cipher(self, new: Enrolling | None, owner: OwnerId, column: EncryptedColumn) -> BoundCipher:
        cipher = self._cipher(new, owner, column)
        # CPython's sqlite3 looks for an adapter for every `bytes`, and takes a bytearray
        # as it is: half the time.
        sqlite = self._connection.dialect.name == "sqlite"
        name = self._parameter(column.key)
        return cipher.bind(name, column.encode_converted, column, as_bytearray=sqlite)

    def _owner(
        self, row: Row, literals: Row, path: OwnerPath, column: EncryptedColumn
    ) -> tuple[OwnerClass, tuple[Any, ...]]:
        """Class and primary key of a row's owner."""
        values = self._says(path, column, row, literals)
        where = f"{self._plan.table.name}.{column.key}"
        wrong = None if values is None else path.mistyped(values)
        if wrong is not None:
            raise StatementRefusedError(f"{where}: the row's owner is not known, because {wrong}.")
        found = None if values is None else path.find(values, self._owners)
        if found is not None:
            return found
        using = None if self._decides_owner(path, row, literals) else context.USING.get()
        fits = using is not None and self._state(row) is None and using.owner_class in path.owner_classes
        if using is not None and fits and using.where == self._owners.where(using.owner_class):
            if not self._inserts:
                self._under_using.add(path)
            return using.owner_class, using.primary_key
        if isinstance(path, SolePath):
            raise context.no_sole(where, path.owner_class.name, self._session)
        if values is not None and not path.is_direct:
            why = path.why_none(values) + (default_beside(path) if self._inserts else "")
            raise StatementRefusedError(f"{where}: the row leads to no owner: {why}.")
        if self._plan.has(path):
            unknown = why_unknown(path, self._given(path, row, literals), inserts=self._inserts)
            if unknown is not None:
                raise StatementRefusedError(f"{where}: the row's owner is not known, because {unknown}.")
        raise self._unnamed_owner(path, column, row, literals)

    def _decides_owner(self, path: OwnerPath, row: Row, literals: Row) -> bool:
        """Whether the statement itself says whose the row will be: then `using` does not. A row that an
        INSERT gives no owner would be stored without the one that `using` names."""
        return self._plan.has(path) and (self._inserts or bool(self._given(path, row, literals)))

    def _unnamed_owner(
        self, path: OwnerPath, column: EncryptedColumn, row: Row, literals: Row
    ) -> StatementRefusedError:
        if path.is_self and self._inserts:
            return new_owner(column)
        new = self._new_object() if self._inserts else None
        if new is not None:
            return not_set(new, path, column)
        serves = any(one.makes_keys for one in context.unlocked_sessions(self._session))
        using = None if self._decides_owner(path, row, literals) else ("server" if serves else "unlocked")
        return unnamed_owner(path, column, inserts=self._inserts, using=using)

    def _new_object(self) -> InstanceState[Any] | None:
        """An object whose row a flush inserts here."""
        if self._session is None or not self._session._flushing:
            return None
        states = map(instance_state, self._session.new)
        return next((one for one in states if self._plan.table in one.mapper.tables), None)

    def _cipher(self, new: Enrolling | None, owner: OwnerId, column: EncryptedColumn) -> ValueCipher:
        field = column.type.field
        if new is not None:
            cipher = new.keyring.writer(ENROLLING_OWNER, column.scope, field)
        else:
            cipher = context.find_writer(self._session, owner, column.scope, field)
        if cipher is None:
            for owner_class in column.path.owner_classes:
                self._owners.require_here(owner_class.mapper)
            raise context.locked(
                f"{self._plan.table.name}.{column.key}, of this row's {names_of(column.path)},",
                self._session,
                column.path.owner_class,
                column.scope,
            )
        return cipher

    def _state(self, row: Row) -> InstanceState[Any] | None:
        """The object whose row this is, during a flush."""
        notes = notes_of(self._connection)
        return notes.find(self._plan.table, self._identity(row)) if notes is not None else None

    def _new_state(self, state: InstanceState[Any]) -> InstanceState[Any]:
        """The object that takes the row of another one over, if one does."""
        notes = notes_of(self._connection)
        return state if notes is None else notes.replacing.get(state, state)

    def _identity(self, row: Row) -> tuple[Any, ...]:
        """The row's primary key as the statement names it: an INSERT by column, a flush's
        UPDATE by `table_column`."""
        columns: Any = self._plan.table.primary_key.columns
        if self._inserts:
            return tuple(row.get(self._parameter(column.key)) for column in columns)
        return tuple(row.get(column._label) for column in columns)

    def _row_reference(self, row: Row, literals: Row) -> bytes:
        parts = [row.get(name) for name in self._key_names] if self._inserts else [None]
        if None not in parts:
            return self._encoded(parts)
        parts = []
        for column, now in zip(self._plan.table.primary_key.columns, self._identity(row), strict=True):
            part = now if self._inserts else row.get(self._parameter(column.key), now)
            part = literals.get(column.key) if part is None else part
            if part is None:
                raise StatementRefusedError(
                    f"A statement writes a row-bound column of {self._plan.table.name} and does not name the "
                    f"row's {column.key}. Load and change the objects instead."
                )
            parts.append(part)
        return self._encoded(parts)

    def _encoded(self, parts: Sequence[Any]) -> bytes:
        if tuple(map(type, parts)) != self._plan.key_kinds:
            self._require_as_read(parts)
        return encode_reference(parts)

    def _require_as_read(self, parts: Sequence[Any]) -> None:
        """Refuse a primary key in another form than it is read in: a value bound to that would never open.

        Raises:
            StatementRefusedError: the row's key is `"1"`, and its column has numbers.
        """
        columns: Any = self._plan.table.primary_key.columns
        wrong = mistyped_for(columns, self._plan.key_kinds, parts)
        if wrong is not None:
            raise StatementRefusedError(f"A row-bound value would never open again: {wrong}.")

    def _with_defaults(self, rows: Sequence[Row], literals: Row) -> list[dict[str, Any]]:
        """The rows with the Python-side defaults that a value depends on: its own, its owner's columns, and
        the row-bound primary key."""
        made = [dict(row) for row in rows]
        for row in made:
            self._make_defaults(row, literals)
        for path, columns in self._plan.groups:
            names = [self._parameter(one.key) for one in columns]
            if path.is_self or not self._plan.has(path):
                continue
            if all([row.get(name) is None for row in made for name in names]):  # noqa: C419
                continue
            for column in filter(has_python_default, path.columns):
                for row in made:  # in every one: SQLAlchemy takes the columns from the first
                    if column.key not in self._given(path, row, literals):
                        row[column.key] = client_default(column)
        return made

    def _require_uniform(self, rows: Sequence[Row]) -> None:
        """Refuse rows of which the first leaves out what a value is encrypted for, or, in an UPDATE, the
        value: SQLAlchemy writes in none of them what the first does not name."""
        if len(rows) < 2:
            return
        for _, columns in self._plan.groups:
            decided_by = {one.key for each in columns for one in self._plan.decided_by(each)}
            written = [self._parameter(one.key) for one in columns]
            names = [self._parameter(key) for key in decided_by if key not in self._assigned]
            names += [] if self._inserts else written
            left_out = left_out_by_the_first(names, rows)
            if not left_out:
                continue
            if self._inserts and all(row.get(name) is None for row in rows for name in written):
                continue
            raise StatementRefusedError(
                f"Rows for {self._plan.table.name} do not all name {', '.join(sorted(left_out))}, and the "
                "database gets no column that the first row leaves out: name the same columns in each of "
                "them."
            )

    def _make_defaults(self, row: dict[str, Any], literals: Row) -> None:
        for column in self._plan.columns:
            if column.column.default is not None and column.key not in row and column.key not in literals:
                row[column.key] = client_default(column.column)
        if self._plan.row_bound:
            for key in self._plan.table.primary_key.columns:
                if key.default is not None and row.get(key.key, literals.get(key.key)) is None:
                    row[key.key] = client_default(key)

    def _check_move(self, row: Row, literals: Row) -> None:
        """Refuse to give a row another owner, or a row-bound one another key, while its
        ciphertext stays behind."""
        for path, columns in self._plan.groups:
            moves = (
                not path.is_self
                and any(key in row or key in self._changed for key in path.keys)
                and not self._is_pinned(path, row, literals)
            )
            in_base = not (path.is_self or self._plan.has(path))
            for column in columns:
                # A joined subclass's key leads to the row that says whose it is. A flush moves both.
                rekeys = (column.row_bound or (in_base and self._state(row) is None)) and any(
                    k.key in row or k.key in self._changed for k in self._plan.table.primary_key
                )
                name = self._parameter(column.key)
                if not (moves or rekeys) or name in row or name in literals:
                    continue
                state = self._state(row)
                if state is not None:
                    if holds_nothing(state, column.key):
                        continue
                    values = [self._value(key, row, literals) for key in path.keys]
                    if not rekeys and stays(state, path, column.key, values):
                        continue
                    primary = tuple(one.key for one in self._plan.table.primary_key)
                    raise moved_late(state, path.keys if moves else primary, column.key)
                named = ", ".join(path.keys)
                raise StatementRefusedError(
                    f"An UPDATE moves rows of {self._plan.table.name} to another owner or key and leaves "
                    f"{column.key} encrypted for where it was. Load the objects and change them."
                    + (
                        f" If the rows stay with their owner, leave {named} out of the values and say "
                        "whose they are: `with unlocked.using(owner): ...`."
                        if moves
                        else ""
                    )
                )

    def _is_pinned(self, path: OwnerPath, row: Row, literals: Row) -> bool:
        """Whether the WHERE takes only rows that have the very owner that the values name."""
        pinned = dict(equalities(self._statement, self._statement.table, row))
        return all(
            column in pinned
            and pinned[column] is not None
            and pinned[column] == self._value(key, row, literals)
            for key, column in zip(path.keys, path.columns, strict=True)
        )


_ABSENT = object()


_IN_WORDS = {
    "datetime": "datetimes without a time zone (tzinfo)",
    "datetimetz": "datetimes with a time zone (tzinfo)",
    "time": "times without a time zone (tzinfo)",
    "timetz": "times with a time zone (tzinfo)",
    "json": "what JSON can hold (dict, list, str, int, float, bool and None, all the way down)",
}


def _unencodable(column: EncryptedColumn, value: Any, blob: bytes | bytearray | None) -> Exception:
    where = f"{column.column.table.name}.{column.key}"
    if blob is not None:
        return ValueTooLargeError(
            f"{where}: a value of {len(blob) - OVERHEAD} bytes is over {MAX_VALUE_SIZE} bytes."
        )
    if isinstance(value, Sealed) or is_ciphertext(value):
        return StatementRefusedError(
            f"{where}: a sealed value cannot be written elsewhere; unlock it and copy the plaintext."
        )
    if isinstance(value, BindParameter):
        return StatementRefusedError(
            f"{where} is encrypted, and its value is the parameter {value.key!r} inside of `values([...])`, "
            "which has none yet when the row is encrypted. Write the value itself in its place, or give the "
            "rows beside the statement: `execute(insert(...), [{...}, ...])`."
        )
    if isinstance(value, ClauseElement):
        return StatementRefusedError(f"{where} is encrypted: assign a Python value, not an SQL expression.")
    tag = column.type.codec.tag
    lists = f" (lists inside each other {MAX_LIST_DEPTH} deep at most)" if tag.startswith("list:") else ""
    holds = _IN_WORDS.get(tag, f"{tag!r} values{lists}")
    return ValueEncodingError(f"{where} holds {holds}; this {type(value).__name__} cannot be stored in it.")


def _is_placeholder(clause: Any) -> bool:
    # A value that stands in the statement itself is unique; `bindparam("name", "default")` is not.
    return isinstance(clause, BindParameter) and (clause.required or not clause.unique)


def _literal_value(value: Any) -> Any:
    if isinstance(value, Null):
        return None
    return value.effective_value if isinstance(value, BindParameter) and not _is_placeholder(value) else value
