"""Where the library hooks into SQLAlchemy: public events only, registered with the first
encrypted column or owner.

A statement listener costs every other statement some microseconds, so that importing
this package registers none.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Engine, event
from sqlalchemy.orm import Mapper, Session

from sqlalchemy_envelope.orm import (
    context,
    dual,
    dual_columns,
    echo,
    fetching,
    freshness,
    grants,
    loading,
    models,
    refusals,
    server_flushes,
    sharing,
    statements,
    writing,
)
from sqlalchemy_envelope.orm.binding import note_mapper
from sqlalchemy_envelope.orm.declaration import check_mapper, declare_column
from sqlalchemy_envelope.orm.previous import is_moving

_installed = False


def register() -> None:
    """Listen for declarations; everything else follows from them."""
    event.listen(Column, "after_parent_attach", _on_column)
    event.listen(Mapper, "after_mapper_constructed", _on_mapper_constructed)
    event.listen(Mapper, "mapper_configured", _on_mapper_configured)
    event.listen(Mapper, "after_configured", grants.check_all)


def _on_column(column: Column[Any], table: Any) -> None:
    if declare_column(column, table):
        _install()
        if is_moving(column):
            _install_dual()


def _install() -> None:
    global _installed
    if _installed:
        return
    _installed = True
    event.listen(Engine, "engine_connect", echo.on_connect)
    event.listen(Engine, "before_execute", statements.before_execute, retval=True)
    event.listen(Engine, "before_cursor_execute", refusals.before_cursor_execute)
    event.listen(Engine, "after_cursor_execute", fetching.after_cursor_execute)
    event.listen(Session, "after_begin", writing.after_begin)
    event.listen(Session, "after_flush", writing.clear_notes)
    event.listen(Session, "after_soft_rollback", writing.clear_notes)
    event.listen(Session, "after_attach", _on_attach)
    event.listen(Session, "before_flush", server_flushes.before_flush)
    event.listen(Session, "after_flush", server_flushes.after_flush)
    event.listen(Session, "after_soft_rollback", server_flushes.after_soft_rollback)


def _install_dual() -> None:
    if not event.contains(Session, "do_orm_execute", dual_columns.do_orm_execute):
        event.listen(Session, "do_orm_execute", dual_columns.do_orm_execute)


def _install_sharing() -> None:
    if not event.contains(Session, "after_flush", sharing.after_flush):
        event.listen(Session, "before_flush", sharing.before_flush)
        event.listen(Session, "after_flush", sharing.after_flush)
        event.listen(Session, "after_soft_rollback", freshness.forget_looks)


def _on_mapper_constructed(mapper: Mapper[Any], cls: type[Any]) -> None:
    models.on_mapper(mapper, cls)
    if grants.on_mapper(mapper, cls):
        _install_sharing()
        event.listen(mapper, "before_delete", sharing.before_delete, raw=True, propagate=True)
    note_mapper(mapper)
    dual.map_previous(mapper)


def _on_mapper_configured(mapper: Mapper[Any], cls: type[Any]) -> None:
    plan = check_mapper(mapper)
    if not plan:
        return
    for attribute in plan:
        instrumented = getattr(cls, attribute.key)
        loading.make_locked_aware(instrumented.impl)
        event.listen(
            instrumented, "set", _on_set, raw=True, retval=True
        )  # retval spares a wrapper for each value
    listener = loading.load_listener(mapper)
    duals = dual.dual_attributes(mapper)
    # insert: ahead of Mutable's own listener, which must not meet a Sealed. raw: an
    # object may be dead already.
    event.listen(cls, "load", listener, insert=True, raw=True)
    # Where there is a previous column, one that was left out may have to be read after all.
    event.listen(cls, "refresh", listener, insert=True, raw=True, restore_load_context=bool(duals))
    event.listen(cls, "expire", loading.forget, raw=True)
    if duals:
        event.listen(cls, "expire", dual.expire_listener(duals), raw=True)
    event.listen(mapper, "before_insert", writing.insert_listener(mapper), raw=True)
    event.listen(mapper, "before_update", writing.update_listener(mapper), raw=True)


# A session that was only written to counts too: leaving has to find the values that wait in it. One that is
# bound to its unlocked session is known there; the context's is told.


def _on_set(state: Any, value: Any, old: Any, initiator: Any) -> Any:
    if "info" in state.__dict__:
        loading.forget(state, (initiator.key,))
    current = context.CURRENT.get()
    if current.is_open:
        current.saw(state.session)
    return value


def _on_attach(session: Session, instance: object) -> None:
    current = context.CURRENT.get()
    if current.is_open:
        current.saw(session)
