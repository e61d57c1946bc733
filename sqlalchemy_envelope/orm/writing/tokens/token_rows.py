"""Token indexes kept in step: a statement that writes a text is followed by one that writes its tags.

The tags are made before the text is encrypted, and written when the statement has been sent: a new row has
its primary key from then on. What a connection has to write meanwhile is kept here, for one statement at
a time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, Insert, Update, event
from sqlalchemy.orm import FromStatement
from sqlalchemy.sql.elements import Null

from sqlalchemy_envelope.crypto.frames import empty_frames
from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import tokenized_of_table
from sqlalchemy_envelope.orm.writing.forms import is_null, parts_of, plain, target_of
from sqlalchemy_envelope.orm.writing.tokens.tags import (
    Tagger,
    add_tags,
    make_tags,
    replace_tags,
    require_tags_to_go,
)
from sqlalchemy_envelope.orm.writing.tokens.targets import targets_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sqlalchemy import Connection

    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn
    from sqlalchemy_envelope.orm.writing.index_tags import Hashers
    from sqlalchemy_envelope.orm.writing.rows import WrittenRows

_pending: WeakKeyDictionary[Connection, TokenRows] = WeakKeyDictionary()
"""By connection: what the statement that is being sent on it writes."""


def listen() -> None:
    """Write the tags of a statement when it has been sent. Registered with the first token index."""
    if not event.contains(Engine, "after_execute", _after_execute):
        event.listen(Engine, "after_execute", _after_execute)


def _after_execute(
    connection: Connection, statement: Any, multiparams: object, params: object, options: object, result: Any
) -> None:
    if isinstance(statement, FromStatement):
        statement = plain(statement.element)
    if not isinstance(statement, (Insert, Update)):
        return
    table = target_of(statement)
    if not tokenized_of_table(table):
        return
    rows = _pending.pop(connection, None)
    if rows is None:
        raise StatementRefusedError(
            f"A statement wrote {table.name}, which has a token index, by a way that leaves the index as it "
            "was. Roll the transaction back, and write through the ORM, or a plain insert() or update()."
        )
    try:
        rows.write(result)
    except BaseException as error:
        empty_frames(error)
        raise


def forget(connection: Connection) -> None:
    """Forget a statement that failed: its tags are not written."""
    _pending.pop(connection, None)


def refuse_in_cte(connection: Connection) -> None:
    """Refuse an INSERT or UPDATE in a CTE that writes texts of a token index: nothing tells which rows it
    wrote.

    Raises:
        StatementRefusedError: the statement that was looked at last does.
    """
    rows = _pending.pop(connection, None)
    if rows is not None and rows.is_needed:
        raise StatementRefusedError(
            f"An INSERT or UPDATE in a CTE writes {rows.name}, which has a token index. Send it as a "
            "statement of its own."
        )


class TokenRows:
    """The tags of one statement's rows."""

    __slots__ = ("_indexes", "_places", "_rows", "_tagger", "_tags", "_targets")

    def __init__(self, rows: WrittenRows, options: Any) -> None:
        self._rows = rows
        self._indexes = tokenized_of_table(rows.plan.table)
        self._tagger = Tagger(rows.connection, options)
        self._tags: dict[TokenizedColumn, list[Sequence[bytes]]] = {}
        self._places: dict[int, int] = {}  # of rows that are being encrypted
        self._targets = targets_of(rows)

    @property
    def name(self) -> str:
        """The table and the columns that the statement writes, for an error."""
        columns = {index.text.key for index in self._tags}
        return f"{self._rows.plan.table.name}.{' and '.join(sorted(columns))}"

    @property
    def is_needed(self) -> bool:
        """Whether the statement writes a text of an index."""
        return bool(self._tags)

    def add(self, rows: Sequence[dict[str, Any]]) -> None:
        """Make the tags of these rows' texts, which are not encrypted yet.

        Raises:
            StatementRefusedError: a text has too many tokens.
            ValueEncodingError: a value is no text.
        """
        for index in self._indexes:
            if self._is_written(index, rows[0]):
                name, tags = self._rows.parameter(index.text.key), self._tagger.tags
                made = self._tags.setdefault(index, [])
                if index.scope == "server":
                    for row in rows:
                        made.append(tags(index, row.get(name)))
                    continue
                # Until `add_owned` makes tags under the owner's key.
                self._places.update((id(row), at) for at, row in enumerate(rows, len(made)))
                made += [()] * len(rows)
        if self._tags:
            self._targets.add(rows)

    def add_owned(self, rows: Sequence[dict[str, Any]], hashers: Hashers) -> None:
        """Make the tags of the rows of an owner, under the owner's index key. Without the key the rows get
        none, and are pending.

        Raises:
            StatementRefusedError: a text has too many tokens.
            ValueEncodingError: a value is no text.
        """
        for indexed, hasher in hashers:
            index: Any = indexed
            made = self._tags.get(index)
            if made is None or hasher is None:
                continue
            name = self._rows.parameter(index.text.key)
            for row in rows:
                made[self._places[id(row)]] = make_tags(index, row.get(name), hasher)

    def _is_written(self, index: TokenizedColumn, row: Mapping[str, Any]) -> bool:
        key = index.text.key
        return self._rows.parameter(key) in row or isinstance(self._rows.assignments.clauses.get(key), Null)

    def sending(self, statement: Any) -> Any:
        """The statement, so that it tells which rows it writes. Their tags are written when it has been sent.

        Raises:
            StatementRefusedError: it cannot tell.
            ConfigurationError: the database would leave the tags of deleted rows behind.
        """
        if not self._indexes:
            return statement
        if self._tags:
            require_tags_to_go(self._rows.connection)
            indexed = list(dict.fromkeys(index.text.key for index in self._tags))
            statement = self._targets.told_by(statement, indexed)
        elif self._rows.inserts:
            self._refuse_copies(statement)
        _pending[self._rows.connection] = self
        return statement

    def _refuse_copies(self, statement: Any) -> None:
        """Refuse an INSERT .. FROM SELECT that copies texts: their tags would stay behind."""
        names: list[str] = list(statement._select_names or ())
        for part in () if statement.select is None else parts_of(statement.select):
            copied = dict(zip(names, part.selected_columns, strict=False))
            for index in self._indexes:
                source = copied.get(index.text.key)
                if source is not None and not is_null(source):
                    raise StatementRefusedError(
                        f"This copies texts into {self._rows.plan.table.name}.{index.text.key}, which has "
                        "a token index, and leaves their tags behind; nothing was sent. Load the rows and "
                        "add them as objects."
                    )

    def write(self, result: Any) -> None:
        """Write the tags.

        Raises:
            StatementRefusedError: the statement wrote other rows than it was to write.
        """
        if not self._tags:
            return
        keys = self._targets.written(result)
        for index, made in self._tags.items():
            by_key = {key: made[at] for key, at in keys.items()}
            write = add_tags if self._targets.are_new else replace_tags
            write(self._rows.connection, index, by_key)
