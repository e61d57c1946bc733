"""Write migrations: encrypted columns with the type in the database, and this package's operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from alembic.autogenerate import render as alembic_render
from alembic.autogenerate import renderers
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Column, TypeDecorator
from sqlalchemy.engine import make_url
from sqlalchemy.types import TypeEngine

from sqlalchemy_envelope.alembic import ops
from sqlalchemy_envelope.migration.database.triggers import quoter
from sqlalchemy_envelope.orm.columns.column_notes import notes_of
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.stored_value import check_condition
from sqlalchemy_envelope.orm.indexes.blind_index import BlindIndex

_DIALECTS: tuple[str | tuple[str, ...], ...] = ("sqlite", "postgresql", ("mysql", "mariadb"))
"""The databases with a CHECK. Databases with the same spelling are in a tuple."""


def render_item(kind: str, item: Any, autogen_context: AutogenContext) -> str | Literal[False]:
    """Render an encrypted column's type, or a previous column; return False for everything else, as Alembic
    expects.

    Importing this package is enough under `alembic revision --autogenerate`. Call this function from a
    `render_item` of your own if you use `render_python_code()` without a comparison.
    """
    if kind == "type" and isinstance(item, EncryptedType):
        return f"{_prefix(autogen_context)}LargeBinary()"
    if kind == "type" and isinstance(item, BlindIndex):
        # MySQL indexes no BLOB as a whole.
        sa, size = _prefix(autogen_context), -(-item.bits // 8)
        return f"{sa}LargeBinary({size}).with_variant({sa}VARBINARY({size}), 'mysql', 'mariadb')"
    if kind != "column" or not isinstance(item, Column):
        return False
    notes = notes_of(item)
    if notes.check_name is not None:
        column = _column(item, item.type, autogen_context)
        return ",\n".join([column, *_checks(item.name, notes.check_name, autogen_context)])
    if notes.replaced_by is not None:
        type_ = stored_type(item.type)
        if type_ is not item.type:
            return _column(item, type_, autogen_context)
    return False


def _column(item: Column[Any], type_: TypeEngine[Any], autogen_context: AutogenContext) -> str:
    plain: Column[Any] = Column(item.name, type_, nullable=item.nullable, comment=item.comment)
    return alembic_render._render_column(plain, autogen_context)


def _checks(column: str, name: str, autogen_context: AutogenContext) -> Iterator[str]:
    """The CHECK as plain SQLAlchemy, in the spelling of each database, so that a migration that was written
    on any of them runs on the others."""
    prefix = autogen_context.opts.get("alembic_module_prefix") or ""
    named = f"{prefix}f({name!r})"
    for names in _DIALECTS:
        dialect = make_url(f"{names if isinstance(names, str) else names[0]}://").get_dialect()()
        condition = check_condition(dialect.name, quoter(dialect)(column)) or ""
        literal = condition.replace(":", "\\:")  # text() would take it for a parameter
        check = f"{_prefix(autogen_context)}CheckConstraint({literal!r}, name={named})"
        yield f"{check}.ddl_if(dialect={names!r})"


def stored_type(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """The stored type behind a type of another library. That type's own `repr` may show its key."""
    while isinstance(type_, TypeDecorator) and not isinstance(type_, EncryptedType):
        type_ = type_.impl_instance
    return type_


class AfterTheirs:
    """A `render_item` that asks the `render_item` of `env.py` first."""

    def __init__(self, theirs: Callable[..., Any] | None) -> None:
        self._theirs = theirs

    def __call__(self, kind: str, item: Any, autogen_context: AutogenContext) -> Any:
        rendered = self._theirs(kind, item, autogen_context) if self._theirs is not None else False
        return render_item(kind, item, autogen_context) if rendered is False else rendered


@renderers.dispatch_for(ops.ExpandEncryptedColumnOp)
@renderers.dispatch_for(ops.UndoExpandEncryptedColumnOp)
def _render_pair(autogen_context: AutogenContext, op: ops.PairOp) -> str:
    options = {"check": (op.check, True), "schema": (op.schema, None)}
    return _call(autogen_context, op.tag, _pair(op), options)


@renderers.dispatch_for(ops.AddEncryptedColumnOp)
def _render_add(autogen_context: AutogenContext, op: ops.AddEncryptedColumnOp) -> str:
    column = alembic_render._render_column(op.column, autogen_context)
    return _call(autogen_context, op.tag, [repr(op.table_name), column], {"schema": (op.schema, None)})


@renderers.dispatch_for(ops.DropEncryptedColumnOp)
def _render_drop(autogen_context: AutogenContext, op: ops.DropEncryptedColumnOp) -> str:
    names = [repr(op.table_name), repr(op.column_name)]
    return _call(autogen_context, op.tag, names, {"schema": (op.schema, None)})


@renderers.dispatch_for(ops.FillBlindIndexOp)
@renderers.dispatch_for(ops.EmptyBlindIndexOp)
def _render_index(autogen_context: AutogenContext, op: ops.BlindIndexOp) -> str:
    names = [repr(op.table_name), repr(op.column_name)]
    return _call(autogen_context, op.tag, names, {"schema": (op.schema, None)})


@renderers.dispatch_for(ops.CreateEncryptedCheckOp)
@renderers.dispatch_for(ops.DropEncryptedCheckOp)
def _render_check(autogen_context: AutogenContext, op: ops.CheckOp) -> str:
    validate = op.validate or isinstance(op, ops.DropEncryptedCheckOp)
    options = {"validate": (validate, True), "schema": (op.schema, None)}
    return _call(autogen_context, op.tag, [repr(op.table_name), repr(op.column_name)], options)


@renderers.dispatch_for(ops.ContractEncryptedColumnOp)
@renderers.dispatch_for(ops.UndoContractEncryptedColumnOp)
def _render_contract(autogen_context: AutogenContext, op: ops.ContractOp) -> str:
    arguments = _pair(op)
    if op.existing_type is not None:
        arguments.append(f"existing_type={_type(autogen_context, op.existing_type)}")
    accepted = {
        "unverified": (op.unverified, False),
        "accept_sample": (op.accept_sample, False),
        "accept_locked": (op.accept_locked, 0),
    }
    options = {
        **(accepted if isinstance(op, ops.ContractEncryptedColumnOp) else {}),
        "name": (op.name, None),
        "schema": (op.schema, None),
    }
    return _call(autogen_context, op.tag, arguments, options)


@renderers.dispatch_for(ops.EncryptColumnOp)
@renderers.dispatch_for(ops.DecryptColumnOp)
def _render_values(autogen_context: AutogenContext, op: ops.ValuesOp) -> str:
    arguments = [repr(op.table_name), repr(op.column_name), _type(autogen_context, op.type_)]
    options = {
        "owner": (op.owner, None),
        "label": (op.label, None),
        "bind": (op.bind, "column"),
        "scope": (op.scope, ""),
        "nullable": (op.nullable, True),
        "check": (op.check, True),
        "schema": (op.schema, None),
    }
    return _call(autogen_context, op.tag, arguments, options)


def _pair(op: ops.PairOp) -> list[str]:
    return [repr(op.table_name), repr(op.previous), repr(op.encrypted)]


def _call(
    autogen_context: AutogenContext, name: str, arguments: list[str], options: dict[str, tuple[Any, Any]]
) -> str:
    autogen_context.imports.add("import sqlalchemy_envelope.alembic")
    given = [f"{key}={value!r}" for key, (value, default) in options.items() if value != default]
    prefix = autogen_context.opts.get("alembic_module_prefix") or ""
    return f"{prefix}{name}({', '.join([*arguments, *given])})"


def _type(autogen_context: AutogenContext, type_: TypeEngine[Any]) -> str:
    return alembic_render._repr_type(stored_type(type_), autogen_context)


def _prefix(autogen_context: AutogenContext) -> str:
    return autogen_context.opts.get("sqlalchemy_module_prefix") or ""
