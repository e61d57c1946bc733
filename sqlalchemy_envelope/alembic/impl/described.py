"""The column of an operation, as a migration sees it: from the operation, the database and the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, MetaData, Table, inspect

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.migration.database.columns import MigratingColumn
from sqlalchemy_envelope.orm.columns.encrypted_type import EncryptedType
from sqlalchemy_envelope.orm.columns.plans import EncryptedColumn, plan_of_table
from sqlalchemy_envelope.orm.columns.previous import PreviousColumn, previous_of
from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath, path_through

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from sqlalchemy_envelope.alembic import ops
    from sqlalchemy_envelope.alembic.source import KeySource


class DescribedColumn:
    """A column with values to move. The operation says how they are encrypted. Their owner is named by the
    operation, by the foreign keys of the database, or by the models.

    Args:
        source: the source of keys, with the models.
    """

    def __init__(self, connection: Connection, source: KeySource, op: ops.ValuesOp) -> None:
        self._connection, self._source, self._op = connection, source, op

    def migrating(self, *, encrypted: str, previous: str) -> MigratingColumn:
        """The column with these names of its two columns.

        Raises:
            ConfigurationError: the table has no primary key, or its owners are not found.
        """
        op, inspector = self._op, inspect(self._connection)
        keys = inspector.get_pk_constraint(op.table_name, op.schema)["constrained_columns"]
        if not keys:
            raise ConfigurationError(f"{op.table_name} has no primary key, by which its rows could be found.")
        modelled = self._source.table(op.table_name, op.schema)
        declared_path = self._declared_path(modelled)
        if declared_path is None:
            owner_class, names, is_self = self._owner(keys)
        else:
            owner_class, is_self = self._with_keys(declared_path.owner_class), False
            names = [one.name for one in declared_path.columns]
        declared = {} if modelled is None else {one.name: one.type for one in modelled.columns}
        if op.bind == "row" and not set(keys) <= set(declared):
            raise ConfigurationError(
                f"Values of {op.table_name}.{op.column_name} are bound to their rows, and the types of the "
                "primary key are not known: the models of the KeySource have no such table."
            )
        types = {
            one["name"]: one["type"] for one in inspector.get_columns(op.table_name, op.schema)
        } | declared
        if declared_path is None:
            remote = zip(names, owner_class.primary_key, strict=True)
            types |= {name: one.type for name, one in remote}
        type_ = EncryptedType(
            op.type_,
            op.owner,
            op.label or f"{op.table_name}.{op.column_name}",
            op.bind,
            op.scope,
            PreviousColumn(previous, op.type_),
        )
        table = Table(
            op.table_name,
            MetaData(),
            *(
                Column(name, types[name], primary_key=name in keys, autoincrement=False)
                for name in dict.fromkeys([*keys, *names])
            ),
            Column(encrypted, type_),
            schema=op.schema,
        )
        column = table.c[encrypted]
        before = previous_of(column)
        assert before is not None  # noqa: S101 - the type names it
        columns = tuple(table.c[name] for name in names)
        path = declared_path.along(columns) if declared_path is not None else None
        path = path or OwnerPath(owner_class, columns, is_self=is_self)
        for one in path.owner_classes:
            one.scopes.add(op.scope)
        plan = EncryptedColumn(column, type_, path)
        key_columns = tuple(table.c[name] for name in keys)
        return MigratingColumn(owner_class.mapper, op.column_name, table, key_columns, column, before, plan)

    def _declared_path(self, modelled: Any) -> OwnerPath | None:
        """The models' path from a row to its owner, if no foreign key of the table itself leads there."""
        found = self._path_of_model(modelled) if self._op.owner is None else None
        return None if found is None or found.is_direct else found

    def _path_of_model(self, modelled: Any) -> OwnerPath | None:
        plan = None if modelled is None else plan_of_table(modelled)
        columns = () if plan is None else plan.columns
        return next((one.path for one in columns if one.column.name == self._op.column_name), None)

    def _named_by_model(self, wanted: list[str]) -> OwnerPath | None:
        """The path by which the models name the owners, without a foreign key in the database."""
        modelled = self._source.table(self._op.table_name, self._op.schema)
        path = self._path_of_model(modelled)
        if path is not None and path.is_direct and (not wanted or set(path.keys) == set(wanted)):
            return path
        columns = [] if modelled is None else [one for one in modelled.columns if one.name in wanted]
        return path_through(tuple(columns)) if columns else None

    def _owner(self, keys: list[str]) -> tuple[Any, list[str], bool]:
        """The class of the rows' owners, the columns that name the owners in the order of the class's key,
        and whether the rows are owners themselves."""
        op, classes = self._op, self._source.owner_classes()
        wanted = [op.owner] if isinstance(op.owner, str) else list(op.owner or ())
        own = classes.get((op.schema, op.table_name))
        if own is not None and set(wanted) in (set(), set(keys)):
            return self._with_keys(own), [one.name for one in own.primary_key], True
        found: list[tuple[Any, list[str]]] = []
        for key in inspect(self._connection).get_foreign_keys(op.table_name, op.schema):
            owner_class = classes.get((key["referred_schema"], key["referred_table"]))
            local = key["constrained_columns"]
            if owner_class is None or (wanted and set(wanted) != set(local)):
                continue
            primary = [one.name for one in owner_class.primary_key]
            remote = dict(zip(key["referred_columns"] or primary, local, strict=True))
            if set(remote) == set(primary):
                found.append((owner_class, [remote[name] for name in primary]))
        if len(found) != 1 and (path := self._named_by_model(wanted)) is not None:
            found = [(path.owner_class, [one.name for one in path.columns])]
        if len(found) != 1:
            raise ConfigurationError(
                f"Whose keys encrypt {op.table_name}.{op.column_name} is not clear: {len(found)} foreign "
                f"keys lead to a KeyOwner of the KeySource. Name the column that does: op.{op.tag}(..., "
                "owner='user_id')."
            )
        return self._with_keys(found[0][0]), found[0][1], False

    def _with_keys(self, owner_class: Any) -> Any:
        """Check that the key tables exist."""
        for model in (owner_class.key_class, owner_class.slot_class):
            table = None if model is None else model.__table__
            if table is None or not inspect(self._connection).has_table(table.name, table.schema):
                name = "A key table" if table is None else f"The key table {table.name!r}"
                raise ConfigurationError(
                    f"{name} of {owner_class.name} is not in the database: create it in an earlier revision, "
                    "or earlier in this one. `alembic revision --autogenerate` writes it."
                )
        return owner_class
