"""Every way of reading, and what it gives: the table of docs/reference/reading.md.

`test_reading_table.py` holds each cell against the library. After a change here, write the page anew:

    python -m tests.orm.reading.reading_table > docs/reference/reading.md
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import (
    aliased,
    defer,
    immediateload,
    joinedload,
    load_only,
    selectinload,
    subqueryload,
    undefer,
)

from tests.orm.reading.reading_models import (
    ADDED,
    ADDS_OWNER,
    COLUMN,
    KEY_ALONE,
    NONE,
    ROW,
    SEALED,
    UNBOUND,
    UNPLACED,
    AsyncWay,
    Kind,
    Way,
)
from tests.orm.reading.reading_ways import (
    async_core,
    async_core_stream,
    async_execute,
    async_scalars,
    bundled,
    bundled_with_owner,
    by_fetchmany,
    by_parts,
    committed,
    contained,
    core,
    crossed,
    expired,
    frozen_entities,
    got,
    got_anew,
    in_label_style,
    in_text,
    inserted,
    inserted_by_core,
    inserted_many,
    inserted_objects,
    inserted_past_a_trigger,
    labelled_inside,
    load,
    merged,
    numbered,
    of_another,
    of_users,
    one_by_one,
    pair_columns,
    query_columns,
    ranked,
    read_again,
    read_beside,
    read_chosen,
    read_coerced,
    read_deleted,
    read_execute,
    read_frozen,
    read_lambda,
    read_lateral,
    read_literal_column,
    read_mappings,
    read_options,
    read_pairs,
    read_pickled,
    read_query,
    read_recursive,
    read_scalar_subquery,
    read_scalars,
    read_stream,
    read_stream_scalars,
    read_subquery,
    refreshed,
    text_columns,
    text_types,
    twice,
    two_owner_classes,
    two_tables,
    updated,
    updated_objects,
    updated_without,
    upserted,
    with_user,
    yielded,
)

OBJECTS = [
    Way("`select(Note)`", load(lambda kind: select(kind.model))),
    Way("an alias", load(lambda kind: select(aliased(kind.model)))),
    Way("a join of two aliases", read_pairs),
    Way("`joinedload`", of_users(joinedload)),
    Way("`selectinload`", of_users(selectinload)),
    Way("`subqueryload`", of_users(subqueryload)),
    Way("`immediateload`", of_users(immediateload)),
    Way("`contains_eager`", contained),
    Way("lazy loading", of_users(None)),
    Way("`session.get`", got),
    Way("`session.get(populate_existing=True)`", got_anew),
    Way("`session.merge`", merged),
    Way("a select of what the session has", read_again),
    Way(
        "the same, `populate_existing`",
        load(lambda kind: select(kind.model).execution_options(populate_existing=True)),
    ),
    Way("`defer`, then a touch", load(lambda kind: select(kind.model).options(defer(kind.model.body)))),
    Way("a `deferred` column, then a touch", load(lambda kind: select(kind.model), "later")),
    Way(
        "a `deferred` column, `undefer`",
        load(lambda kind: select(kind.model).options(undefer(kind.model.later)), "later"),
    ),
    Way(
        "`load_only` of the value",
        load(lambda kind: select(kind.model).options(load_only(kind.model.body))),
    ),
    Way(
        "`load_only` of another column, then a touch",
        load(lambda kind: select(kind.model).options(load_only(kind.model.place))),
    ),
    Way("`refresh`", refreshed()),
    Way("`refresh` of the value", refreshed("body")),
    Way("`expire`, then a touch", expired()),
    Way("`expire` of the value, then a touch", expired("body")),
    Way("`commit`, then a touch", committed),
    Way(
        "objects of a subquery",
        load(lambda kind: select(aliased(kind.model, select(kind.model).subquery()))),
    ),
    Way("objects of a CTE", load(lambda kind: select(aliased(kind.model, select(kind.model).cte())))),
    Way(
        "objects of a UNION",
        load(lambda kind: select(aliased(kind.model, twice(select(kind.model)).subquery()))),
    ),
    Way(
        "`from_statement` of a select",
        load(lambda kind: select(kind.model).from_statement(select(kind.model))),
    ),
    Way("`from_statement` of a text", load(lambda kind: select(kind.model).from_statement(in_text(kind)))),
    Way("the same, its columns named `notes_body`", load(in_label_style)),
    Way("a `synonym`", load(lambda kind: select(kind.model), "text")),
    Way("a `hybrid_property`", load(lambda kind: select(kind.model), "shown")),
    Way("objects, `yield_per`", yielded),
    Way("objects, `freeze`", frozen_entities),
    Way("objects that were pickled, and added to the session", read_pickled),
    Way("`session.query(Note)`", read_query),
]
COLUMNS = [
    Way("columns with the owner's", read_execute(lambda kind: select(*kind.parts))),
    Way("columns without it", read_execute(lambda kind: select(*kind.parts[:2])), ADDS_OWNER),
    Way("the value alone", read_scalars, ADDS_OWNER, UNBOUND),
    Way("columns of two aliases", pair_columns),
    Way("a column beside its object", read_beside),
    Way("a `Bundle` with the owner", bundled_with_owner),
    Way("a `Bundle` without it", bundled, UNPLACED, KEY_ALONE),
    Way(
        "a `hybrid_property` of the class",
        read_execute(lambda kind: select(kind.model.id, kind.model.shown)),
        ADDS_OWNER,
    ),
    Way("`mappings()`", read_mappings),
    Way(
        "labelled, with the owner",
        read_execute(
            lambda kind: select(kind.model.id, kind.model.body.label("x"), kind.model.user_id.label("y"))
        ),
    ),
    Way(
        "labelled, without it",
        read_execute(lambda kind: select(kind.model.id, kind.model.body.label("x"))),
        ADDS_OWNER,
    ),
    Way("columns without it, in a lambda", read_execute(read_lambda), UNPLACED, KEY_ALONE),
    Way("a join, the owner's key in place of the row's column", read_execute(with_user), ADDS_OWNER),
    Way("a join, the owner of another alias", read_execute(of_another), ADDS_OWNER),
    Way("GROUP BY with the owner", read_execute(lambda kind: select(*kind.parts).group_by(kind.model.id))),
    Way(
        "DISTINCT with the primary key and the owner",
        read_execute(lambda kind: select(*kind.parts).distinct()),
    ),
    Way(
        "DISTINCT with the primary key alone",
        read_execute(lambda kind: select(*kind.parts[:2]).distinct()),
        UNPLACED,
        KEY_ALONE,
    ),
    Way("a subquery with the owner", read_subquery(lambda inner: inner.subquery())),
    Way("a subquery of a subquery", read_subquery(lambda inner: select(inner.subquery()).subquery())),
    Way(
        "a subquery, the owner not selected from it",
        read_subquery(lambda inner: inner.subquery(), owner=False),
        UNPLACED,
        KEY_ALONE,
    ),
    Way("a subquery with the owner of another row", crossed, UNPLACED, KEY_ALONE),
    Way("a CTE", read_subquery(lambda inner: inner.cte())),
    Way("a recursive CTE", read_subquery(read_recursive)),
    Way("a UNION", read_execute(lambda kind: twice(select(*kind.parts)))),
    Way("a UNION in a subquery", read_subquery(lambda inner: twice(inner).subquery())),
    Way("a UNION of two tables", read_execute(two_tables), linked=UNPLACED),
    Way("a UNION of two classes of owners", read_execute(two_owner_classes), UNPLACED, KEY_ALONE),
    Way("a window function beside it", read_execute(numbered)),
    Way("a subquery with a window function", read_execute(ranked)),
    Way("a scalar subquery", read_execute(read_scalar_subquery), UNPLACED, UNBOUND),
    Way(
        "a `column_property` of a scalar subquery",
        load(lambda kind: select(kind.model), "copied"),
        UNPLACED,
        UNBOUND,
    ),
    Way("`query_expression`, `with_expression`", load(read_chosen, "chosen"), UNPLACED, UNBOUND),
    Way("`text().columns(Note.body, ...)`", read_execute(text_columns)),
    Way("`text().columns(body=EncryptedType(...))`", read_execute(text_types), UNPLACED, UNBOUND),
    Way("`literal_column` of that type", read_execute(read_literal_column), UNPLACED, UNBOUND),
    Way("`type_coerce` to that type", read_execute(read_coerced), UNPLACED, UNBOUND),
    Way("`session.query(Note.body, ...)`", query_columns),
    Way("`fetchone`", one_by_one),
    Way("`fetchmany`", by_fetchmany),
    Way("`yield_per`", read_options(yield_per=2)),
    Way("`partitions`", by_parts),
    Way("`stream_results`", read_options(stream_results=True)),
    Way("`freeze`", read_frozen),
]
RETURNED = [
    Way("`insert().returning(Note.body, ...)`", inserted, ADDED, ADDED),
    Way("`insert().returning(Note)` of many rows", inserted_objects, ADDED, ADDED),
    Way("the same, `sort_by_parameter_order`", inserted_many, ADDED, ADDED),
    Way("the same by Core", inserted_by_core, ADDED, ADDED),
    Way("`ON CONFLICT DO UPDATE .. RETURNING`", upserted),
    Way("`update().returning(Note.body, ...)`", updated),
    Way("`update().returning(Note)`", updated_objects),
    Way("`update().returning(..)` without the owner", updated_without, UNPLACED, KEY_ALONE),
    Way("`delete().returning(Note.body, ...)`", read_deleted),
]
CORE = [
    Way(
        "columns with the owner's, by Core",
        core(lambda kind: select(*kind.table.c["id", "body", "user_id"])),
    ),
    Way(
        "columns without it, by Core",
        core(lambda kind: select(*kind.table.c["id", "body"])),
        UNPLACED,
        KEY_ALONE,
    ),
    Way(
        "an alias, by Core",
        core(lambda kind: select(*kind.table.alias().c["id", "body", "user_id"])),
    ),
    Way("classes on a connection", core(lambda kind: select(*kind.parts))),
]
ASYNC: list[AsyncWay] = [
    AsyncWay("`AsyncSession.scalars`", async_scalars),
    AsyncWay("`AsyncSession.execute`", async_execute),
    AsyncWay("`AsyncSession.stream`", read_stream),
    AsyncWay("`AsyncSession.stream_scalars`", read_stream_scalars),
    AsyncWay("`AsyncConnection.execute`", async_core),
    AsyncWay("`AsyncConnection.stream`", async_core_stream),
]
POSTGRES = [
    Way("a server-side cursor", read_options(stream_results=True, max_row_buffer=2)),
    Way("`yield_per`, a server-side cursor", read_options(yield_per=2)),
    Way("LATERAL with the owner", read_execute(read_lateral)),
    Way("`insert().returning(..)`, a trigger has moved a value there", inserted_past_a_trigger),
]
WAYS: dict[str, Sequence[Way]] = {
    "Objects": OBJECTS,
    "Columns": COLUMNS,
    "RETURNING": RETURNED,
    "A Core connection": CORE,
    "asyncio": ASYNC,
    "PostgreSQL": POSTGRES,
}
TRACED_TWICE = Way("a subquery with the owner, its value labelled", read_execute(labelled_inside))
"""Not read as the table would say. A column that is labelled in a subquery is traced on two ways, by the label and
by what it labels, and the owner beside it on one. So the row is taken for nobody's."""
LATE = {
    "`session.merge`",
    "`defer`, then a touch",
    "a `deferred` column, then a touch",
    "`load_only` of another column, then a touch",
    "`refresh` of the value",
    "`expire` of the value, then a touch",
}
"""Not read as the table says, where other rows lead to the owner and one user is unlocked: where the session has not
loaded those rows, a value that is loaded by itself is taken for that user's."""


# The page


_PAGE = """\
# What each way of reading gives

Made by `python -m tests.orm.reading.reading_table`, from the table that the tests go through cell by cell. Two rules are
enough to use the library:

- **Select the row's owner beside the value**, or the entity. What stands in a row is compared with its owner
  wherever the row says who that is.
- **For a value with `bind="row"`, select the primary key too.** Nothing opens it without.

| word | what a reader gets |
|---|---|
| value | what was written in this row |
| sealed | `LockedError` from an attribute; in a row of columns a `Sealed`, which says what to do |
| refused | `DecryptionError` from an attribute; in a row of columns a `Sealed` that raises it when it is used |
| own value | a value of the reader's own that was moved here. The row does not say whose it is, and nobody else is unlocked |

A *moved* value is one that somebody with write access to the database copied there from another owner's row.
A *genuine* one stands where it was written; it is never refused, and an object that was loaded before the unlock
makes no difference to that. A value whose key is locked is sealed wherever it stands. With nobody unlocked that is
every value.

Not in the tables is what SQLAlchemy does not know to be an encrypted column: `text("SELECT ...")` without
`.columns(...)`, `exec_driver_sql`, a driver's own cursor and `type_coerce(Note.body, String)` give the stored bytes.
What would compute on those, as `func.max(Note.body)` or `case`, is [refused](errors.md#statement-refused) before it is sent.
So is what would compare them, DISTINCT or a UNION of values: with the primary key among the columns it compares rows.

## Bound to its column

`EncryptedType(String)`. Between two rows of one owner a value can be moved, and nothing tells.

Where other rows lead to the owner (`owner="order.customer"`) each line is the same, but for a UNION of two tables: the
ways to their owners are two, so that one user reads a value, and several and a server get it sealed.

{column_table}

## Bound to its row

`EncryptedType(String, bind="row")`. A value that was moved from another row of the same owner gives the same as one
from another owner's.

{row_table}
"""


def table(kind: Kind) -> str:
    """The table of one kind of value, in Markdown."""
    lines = [
        "| way | one user: genuine | moved | several: genuine | moved | server: genuine | moved | nobody |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group, ways in WAYS.items():
        lines.append(f"| **{group}** | | | | | | | |")
        for way in ways:
            outcome = way.outcome(kind)
            cells = [word for mode in ("one", "several", "server") for word in _two(outcome.of(mode), kind)]
            added = outcome is ADDED
            lines.append("| " + " | ".join([way.name, *cells, NONE if added else SEALED]) + " |")
    return "\n".join(lines)


def _two(words: tuple[str, str, str], kind: Kind) -> tuple[str, str]:
    """Of a genuine value and of one that was moved, from wherever that is told."""
    genuine, moved, within = words
    assert kind is COLUMN or moved == within
    return genuine, moved


def page() -> str:
    """The whole page."""
    return _PAGE.format(column_table=table(COLUMN), row_table=table(ROW))


if __name__ == "__main__":
    print(page(), end="")
