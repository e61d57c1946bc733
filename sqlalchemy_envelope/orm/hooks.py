"""The hooks of the library into SQLAlchemy: public events only, registered with the first
encrypted column or owner.

A statement listener costs every other statement some microseconds, so importing this
package registers no statement listener.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Connection, Delete, Engine, Insert, Select, Update, event
from sqlalchemy.orm import FromStatement, Mapper, Session

from sqlalchemy_envelope.crypto.frames import empty_frames, emptying
from sqlalchemy_envelope.orm.columns import leaving
from sqlalchemy_envelope.orm.columns.attribute_marks import forget, on_pickle
from sqlalchemy_envelope.orm.columns.checks import check_mapper, declare_column
from sqlalchemy_envelope.orm.columns.dual_attributes import dual_attributes, map_previous
from sqlalchemy_envelope.orm.columns.plans import note_mapper, plan_of_table
from sqlalchemy_envelope.orm.current import context, sole_rows
from sqlalchemy_envelope.orm.current.locks import takes_locks
from sqlalchemy_envelope.orm.indexes import fresh_attributes, guards, owned
from sqlalchemy_envelope.orm.indexes.declaring import check_indexes, declare_index
from sqlalchemy_envelope.orm.indexes.owner_conditions import check_conditions
from sqlalchemy_envelope.orm.indexes.tokens.comparisons import refuse_negated
from sqlalchemy_envelope.orm.indexes.tokens.tables import check_groups, check_tokens, declare_tokens
from sqlalchemy_envelope.orm.reading import (
    candidates,
    destroyed,
    echo,
    objects,
    results,
    schema_maps,
    selected_columns,
    settling,
    two_columns,
)
from sqlalchemy_envelope.orm.sessions import server_flushes
from sqlalchemy_envelope.orm.sharing import deletions, following, grant_flushes, membership, reachable
from sqlalchemy_envelope.orm.tables import (
    connections,
    emergency_access,
    first_savepoints,
    key_grant,
    key_owner,
    retirements,
)
from sqlalchemy_envelope.orm.tables.connections import USE, Use, lent_session, session_of
from sqlalchemy_envelope.orm.tables.default_schema import on_statement
from sqlalchemy_envelope.orm.writing import (
    answers,
    deciders,
    flush_notes,
    flushes,
    forms,
    gate,
    namesakes,
    object_copies,
    refusals,
    sole_owners,
    statements,
)
from sqlalchemy_envelope.orm.writing.plain import is_plain
from sqlalchemy_envelope.orm.writing.tokens import token_rows


def register() -> None:
    """Listen for declarations. A declaration registers the other listeners."""
    event.listen(Column, "after_parent_attach", _on_column)
    guards.listen()
    event.listen(Mapper, "after_mapper_constructed", _on_mapper_constructed)
    event.listen(Mapper, "mapper_configured", _on_mapper_configured)
    event.listen(Mapper, "after_configured", key_grant.check_all)
    event.listen(Mapper, "after_configured", emergency_access.check_all)
    event.listen(Mapper, "after_configured", owned.check_all)
    event.listen(Mapper, "after_configured", check_groups)


def _on_column(column: Column[Any], table: Any) -> None:
    declare_index(column, table)
    if declare_column(column, table):
        namesakes.note_table(table)
        _install()


def _install() -> None:
    if event.contains(Engine, "engine_connect", echo.on_connect):
        return
    event.listen(Engine, "engine_connect", echo.on_connect)
    event.listen(Engine, "savepoint", first_savepoints.on_savepoint)
    event.listen(Engine, "before_execute", _before_execute, retval=True)
    event.listen(Engine, "before_cursor_execute", _before_cursor_execute, retval=True)
    event.listen(Engine, "after_cursor_execute", _after_cursor_execute)
    event.listen(Engine, "after_execute", results.after_execute)
    event.listen(Session, "do_orm_execute", emptying(selected_columns.do_orm_execute))
    event.listen(Session, "after_begin", connections.after_begin)
    event.listen(Session, "before_commit", retirements.before_commit)
    event.listen(Session, "after_flush", flush_notes.clear_notes)
    event.listen(Session, "after_soft_rollback", flush_notes.clear_notes)
    event.listen(Session, "after_attach", _on_attach)
    event.listen(Session, "persistent_to_deleted", leaving.note_deleted)
    event.listen(Session, "before_flush", emptying(_settle_before_flush))
    event.listen(Session, "before_flush", emptying(server_flushes.before_flush))
    event.listen(Session, "after_flush", emptying(server_flushes.after_flush))
    event.listen(Session, "after_soft_rollback", server_flushes.after_soft_rollback)
    event.listen(Session, "after_soft_rollback", membership.forget_looks)
    event.listen(Session, "after_soft_rollback", destroyed.forget)
    event.listen(Session, "after_soft_rollback", sole_rows.forget)


def _settle_before_flush(session: Session, *_: object) -> None:
    """Settle the pending work of the unlocks in this session before a flush that writes."""
    flush_notes.clear_notes(session)  # the notes of a flush whose rollback failed
    if not any(one.waits_in(session) for one in context.unlocked_sessions(session)):
        return
    if session.new or session.deleted or any(session.is_modified(one) for one in session.dirty):
        context.settle_unlocked(session)


def _before_execute(
    connection: Connection, statement: Any, multiparams: Any, params: Any, execution_options: Any
) -> tuple[Any, Any, Any]:
    """The steps before a statement, in this order. The last step encrypts the parameters."""
    use: Use | None = getattr(connection, USE, None)
    try:
        if is_plain(connection, statement):
            if use is not None:
                _note(use, statement)
            return statement, multiparams, params
        statement = forms.plain(statement)
        if use is not None:
            _note(use, statement)
        session = None if use is None else use.session()
        if session is not None:
            membership.on_statement(session, statement)
            deletions.on_statement(session, statement)
            sole_rows.on_statement(session, statement)
        elif _needs_a_session(connection, statement):
            if not connection.in_transaction():
                connection.begin()  # as the statement would: rows stored for it belong to its transaction
            with lent_session(connection):
                return statements.encrypt(connection, statement, multiparams, params, execution_options)
        return statements.encrypt(connection, statement, multiparams, params, execution_options)
    except BaseException as error:
        empty_frames(error)
        del statement, multiparams, params
        raise


def _note(use: Use, statement: Any) -> None:
    """The notes that every statement of a session leaves, whatever its table."""
    # A SELECT without FOR UPDATE, the most frequent statement, is not examined further.
    if (type(statement) is not Select or statement._for_update_arg is not None) and takes_locks(statement):
        use.holds_locks = True
    current = context.CURRENT.get()
    if current.is_open:
        current.begin_statement(use.session())


def _needs_a_session(connection: Connection, statement: Any) -> bool:
    """Whether a statement on a connection without a session needs a session.

    It does if it may write values with keys that are fetched or made on demand.
    """
    in_ctes = connection.dialect.name in forms.WRITE_IN_CTES and forms.may_hold_ctes(statement)
    if not in_ctes and isinstance(statement, (Insert, Update)):
        if plan_of_table(forms.target_of(statement)) is None:
            return False
    elif not in_ctes and not isinstance(statement, FromStatement):
        return False
    return any(one.on_demand for one in context.unlocked_sessions(None))


_PASSES = "_sqlalchemy_envelope_passes"
"""An attribute of a compiled statement that was checked: the check to repeat before each execution, or True
if there is none."""


def _before_cursor_execute(
    connection: Connection, cursor: object, sql: str, parameters: Any, execution: Any, executemany: bool
) -> tuple[str, Any]:
    """Refuse forbidden statements. Each compiled statement is checked once, because SQLAlchemy keeps it."""
    compiled = getattr(execution, "compiled", None)
    passes = getattr(compiled, _PASSES, _check)
    if passes is True:
        return sql, parameters
    try:
        passes(connection, sql, compiled, execution)
    except BaseException as error:
        empty_frames(error)
        del sql, parameters, execution, compiled
        raise
    return sql, parameters


def _check(connection: Connection, sql: str, compiled: Any, execution: Any) -> None:
    changes_schema = on_statement(connection, sql, compiled)
    changes_tables = answers.may_change_tables(sql, compiled)
    if changes_tables:
        answers.tables_change(connection)
    if compiled is None:
        session = session_of(connection)
        if session is not None:
            membership.on_text(session, sql)
        return
    candidates.check(connection, sql, compiled, execution)
    elements = list(forms.elements_in(*gate.statements_of(compiled)))
    again = gate.check_writes(connection, compiled, elements, execution.execution_options)
    refusals.check(compiled, elements)
    refuse_negated(elements)
    check_conditions(elements)
    writes_in_query = _looks_again(connection, compiled, elements)
    if again or changes_tables or writes_in_query:
        return
    if candidates.places_of(compiled):
        passes: Any = candidates.check
    elif changes_schema:
        passes = _follow
    elif schema_maps.labels_read(compiled):
        passes = schema_maps.check
    else:
        passes = True
    setattr(compiled, _PASSES, passes)


def _looks_again(connection: Connection, compiled: Any, elements: list[Any]) -> bool:
    """Whether a query has a CTE that deletes or updates. Then the members of groups are checked again."""
    if not isinstance(getattr(compiled, "statement", None), Select):
        return False
    if not any(isinstance(one, (Delete, Update)) for one in elements):
        return False
    session = session_of(connection)
    if session is not None:
        membership.forget_looks(session)
    return True


def _follow(connection: Connection, sql: str, compiled: Any, execution: Any) -> None:
    """Note a statement that may change the schema in which tables are found."""
    on_statement(connection, sql, compiled)
    schema_maps.check(connection, sql, compiled, execution)


_read = emptying(results.after_cursor_execute)


def _after_cursor_execute(
    connection: Connection, cursor: object, sql: str, parameters: object, execution: Any, executemany: bool
) -> None:
    """Open the rows of a statement that reads encrypted columns."""
    if getattr(getattr(execution, "compiled", None), _PASSES, None) is not True:
        _read(connection, cursor, sql, parameters, execution, executemany)


def _install_sharing() -> None:
    if not event.contains(Session, "after_flush", grant_flushes.after_flush):
        event.listen(Session, "before_flush", following.before_flush)
        event.listen(Session, "before_flush", grant_flushes.before_flush)
        event.listen(Session, "after_flush", grant_flushes.after_flush)
        reachable.listen()


def _on_mapper_constructed(mapper: Mapper[Any], cls: type[Any]) -> None:
    key_owner.on_mapper(mapper, cls)
    emergency_access.on_mapper(mapper, cls)
    if key_grant.on_mapper(mapper, cls):
        _install_sharing()
        event.listen(mapper, "before_insert", grant_flushes.before_insert, raw=True, propagate=True)
        event.listen(mapper, "before_delete", grant_flushes.before_delete, raw=True, propagate=True)
        event.listen(mapper, "before_delete", following.before_delete, raw=True, propagate=True)
        event.listen(mapper, "before_update", following.before_update, raw=True, propagate=True)
    if issubclass(cls, key_owner.KeyOwner):
        event.listen(mapper, "after_delete", deletions.after_delete, raw=True)
    if key_owner.is_sole(mapper):
        event.listen(mapper, "before_insert", sole_owners.before_insert, raw=True, propagate=True)
    note_mapper(mapper)
    if declare_tokens(mapper, cls):
        token_rows.listen()
    deciders.expect(mapper)
    map_previous(mapper)


def _on_mapper_configured(mapper: Mapper[Any], cls: type[Any]) -> None:
    key_grant.refuse_secondaries(mapper)
    if key_grant.grant_written_by(mapper) is not None:
        event.listen(mapper, "before_insert", grant_flushes.refuse_other_class, raw=True)
    plan = check_mapper(mapper)
    check_indexes(mapper)
    owned.check_mapper(mapper)
    check_tokens(mapper)
    if not plan:
        return
    for attribute in plan:
        replaces = attribute.type.shredded is not None
        objects.make_locked_aware(getattr(cls, attribute.key).impl, replaces=replaces)
        object_copies.make_carrying(mapper.get_property(attribute.key))
    deciders.watch(mapper, plan)
    listener = objects.load_listener(mapper)
    duals = dual_attributes(mapper)
    # insert: ahead of Mutable's own listener, which must not meet a Sealed. raw: an
    # object may be dead already.
    if duals:
        event.listen(cls, "load", listener, insert=True, raw=True)
    settling.make_settling(plan, mapper)
    # Where there is a previous column, a column that was left out may have to be read after all.
    event.listen(cls, "refresh", listener, insert=True, raw=True, restore_load_context=bool(duals))
    event.listen(cls, "expire", forget, raw=True)
    event.listen(cls, "pickle", on_pickle, raw=True)
    if duals:
        event.listen(cls, "expire", two_columns.expire_listener(duals), raw=True)
    event.listen(mapper, "before_insert", emptying(flushes.insert_listener(mapper)), raw=True)
    event.listen(mapper, "before_update", emptying(flushes.update_listener(mapper)), raw=True)
    fresh_attributes.watch_indexes(mapper)


def _on_attach(session: Session, instance: object) -> None:
    current = context.CURRENT.get()
    if current.is_open:
        current.saw(session)
