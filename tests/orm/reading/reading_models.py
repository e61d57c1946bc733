"""The models of the table of reading, and what a way of reading may give."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ForeignKey, String, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    attribute_keyed_dict,
    column_property,
    deferred,
    mapped_column,
    query_expression,
    relationship,
    synonym,
)

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyOwner, ServerKeyring

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(32)]))
LABEL = {"column": "notes.body", "row": "pages.body"}


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    notes: Mapped[list[Note]] = relationship(back_populates="user", order_by="Note.id")
    pages: Mapped[list[Page]] = relationship(back_populates="user", order_by="Page.id")
    lines: Mapped[list[Line]] = relationship(
        primaryjoin="User.id == foreign(Line.user_id)", order_by="Line.id", viewonly=True
    )
    by_body: Mapped[dict[str, Note]] = relationship(
        collection_class=attribute_keyed_dict("body"), viewonly=True
    )
    by_id: Mapped[dict[int, Note]] = relationship(collection_class=attribute_keyed_dict("id"), viewonly=True)
    chosen: Mapped[str | None] = query_expression()


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship(back_populates="notes")
    place: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(EncryptedType(String))
    later: Mapped[str | None] = deferred(mapped_column(EncryptedType(String, label="notes.body")))
    text = synonym("body")
    chosen: Mapped[str | None] = query_expression()

    @hybrid_property
    def shown(self) -> str:
        return self.body


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship(back_populates="pages")
    place: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(EncryptedType(String, bind="row"))
    later: Mapped[str | None] = deferred(mapped_column(EncryptedType(String, bind="row", label="pages.body")))
    text = synonym("body")
    chosen: Mapped[str | None] = query_expression()

    @hybrid_property
    def shown(self) -> str:
        return self.body


class Sheet(Base):
    __tablename__ = "sheets"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship()


class Line(Base):
    """Its owner is that of its sheet; in these tests each user has one, of the same number."""

    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("sheets.id", ondelete="CASCADE"))
    sheet: Mapped[Sheet] = relationship()
    place: Mapped[int] = mapped_column(default=0)
    body: Mapped[str] = mapped_column(EncryptedType(String, owner="sheet.user"))
    later: Mapped[str | None] = deferred(
        mapped_column(EncryptedType(String, owner="sheet.user", label="lines.body"))
    )
    text = synonym("body")
    chosen: Mapped[str | None] = query_expression()

    @hybrid_property
    def shown(self) -> str:
        return self.body


class Memo(Base):
    __tablename__ = "memos"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(String, label="notes.body"))


class Leaf(Base):
    __tablename__ = "leaves"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(String, bind="row", label="pages.body"))


class Entry(Base):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("sheets.id", ondelete="CASCADE"))
    sheet: Mapped[Sheet] = relationship()
    body: Mapped[str] = mapped_column(EncryptedType(String, owner="sheet.user", label="lines.body"))


class Team(KeyOwner, Base):
    __tablename__ = "teams"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    motto: Mapped[str] = mapped_column(EncryptedType(String, label="notes.body"))
    song: Mapped[str] = mapped_column(EncryptedType(String, label="lines.body"))
    crest: Mapped[str] = mapped_column(EncryptedType(String, bind="row", label="pages.body"))


@dataclass(frozen=True)
class Kind:
    """What is read: a table, and beside it what a way needs of others.

    Attributes:
        model: the class whose rows they are.
        other: another class, whose values have the same label.
        team: the column of another class of owners with the same label.
        many: the attribute of a user who has these rows.
    """

    name: str
    model: Any
    other: Any
    team: Any
    many: str

    @property
    def table(self) -> Any:
        """What Core reads."""
        return self.model.__table__

    @property
    def parts(self) -> tuple[Any, Any, Any]:
        """The columns with which a row says all about its value."""
        return self.model.id, self.model.body, self.model.user_id

    def of_user(self, user: User) -> list[Any]:
        """The rows of a user."""
        found: list[Any] = getattr(user, self.many)
        return found


MOVED_PLACE = 7
"""The `place` of a row whose value was moved there."""
COLUMN = Kind("column", Note, Memo, Team.motto, "notes")
ROW = Kind("row", Page, Leaf, Team.crest, "pages")
LINKED = Kind("linked", Line, Entry, Team.song, "lines")
KINDS = (COLUMN, ROW, LINKED)


def by_itself(kind: Kind) -> Any:
    """The value of a row, as a scalar subquery of another alias of its table."""
    one = kind.table.alias()
    return select(one.c.body).where(one.c.id == kind.model.id).correlate_except(one).scalar_subquery()


for _kind in KINDS:
    _kind.model.copied = column_property(by_itself(_kind), deferred=True)


User.latest = column_property(  # type: ignore[attr-defined]
    select(Note.body).where(Note.user_id == User.id).limit(1).correlate_except(Note).scalar_subquery(),
    deferred=True,
)

Read = tuple[int, Callable[[], Any]]
"""The number of a row, and what reads its value."""
Reader = Callable[[Session, Kind], Iterable[Read]]
AsyncReader = Callable[[AsyncSession, Kind], Awaitable[Iterable[Read]]]


# What a way gives


@dataclass(frozen=True)
class Outcome:
    """What is read, by who is unlocked. With nobody unlocked every value is sealed.

    Attributes:
        one, several, server: of a genuine value, of one that was moved there from another owner's row, and
            of one that was moved there from another row of the same owner.
    """

    one: tuple[str, str, str]
    several: tuple[str, str, str]
    server: tuple[str, str, str]

    def of(self, mode: str) -> tuple[str, str, str]:
        """What is read in a mode."""
        found: tuple[str, str, str] = getattr(self, mode)
        return found


VALUE, SEALED, REFUSED, OWN, NONE = "value", "sealed", "refused", "own value", "-"
_OPEN, _SHUT = (VALUE, REFUSED, VALUE), (SEALED, SEALED, SEALED)
_BOUND = (VALUE, REFUSED, REFUSED)
COMPARED = Outcome(_OPEN, _OPEN, _OPEN)
"""The row says whose it is."""
UNPLACED = Outcome((VALUE, OWN, VALUE), _SHUT, _SHUT)
"""It does not; a value opens for the only owner who is unlocked."""
ADDS_OWNER = Outcome((VALUE, OWN, VALUE), _OPEN, _OPEN)
"""It does not; the ORM reads the owner too, where several owners are unlocked."""
BOUND = Outcome(_BOUND, _BOUND, _BOUND)
"""The row says whose it is, and which."""
KEY_ALONE = Outcome(_BOUND, _SHUT, _SHUT)
"""It says which it is."""
UNBOUND = Outcome(_SHUT, _SHUT, _SHUT)
"""It does not say which it is."""
ADDED = Outcome((VALUE, NONE, NONE), (VALUE, NONE, NONE), (VALUE, NONE, NONE))
"""The row is new, and nothing can have been moved there."""


@dataclass(frozen=True)
class Way:
    """A way of reading.

    Attributes:
        name: as in the documentation.
        read: reads a table's rows in that way.
        column, row: what it gives for a value that is bound to its column, and to its row.
        linked: for one whose owner other rows lead to, if that is not the same as `column`.
    """

    name: str
    read: Reader
    column: Outcome = COMPARED
    row: Outcome = BOUND
    linked: Outcome | None = None

    def outcome(self, kind: Kind) -> Outcome:
        """What it gives for this kind of value."""
        if kind is LINKED and self.linked is not None:
            return self.linked
        return self.row if kind is ROW else self.column


@dataclass(frozen=True)
class AsyncWay(Way):
    """A way of reading under asyncio."""

    read: Any  # an AsyncReader
