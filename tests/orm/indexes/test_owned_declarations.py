"""Indexes under owners' keys that could not keep their promise are refused when mappers are configured."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import ForeignKey, Integer, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_envelope import (
    BlindIndex,
    ConfigurationError,
    EncryptedType,
    KeyGrant,
    KeyOwner,
    StatementRefusedError,
)


class Models:
    """A user, a group of users, and a note with the columns that a test gives."""

    def __init__(self, *, history: str = "shared", **columns: Any) -> None:
        class Base(DeclarativeBase):
            pass

        class User(KeyOwner, Base):
            __tablename__ = "users"
            id: Mapped[int] = mapped_column(primary_key=True)

        class Group(KeyOwner, Base):
            __tablename__ = "groups"
            id: Mapped[int] = mapped_column(primary_key=True)

        class Member(KeyGrant, Base, of="group_id", to="user_id", history=history):
            __tablename__ = "members"
            group_id: Mapped[int] = mapped_column(
                ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True
            )
            user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)

        fixed = {"__tablename__": "notes", "__module__": __name__, "id": key()}
        self.Base, self.User, self.Group, self.Member = Base, User, Group, Member
        self.Note = type("Note", (Base,), fixed | columns)
        self.configure: Callable[[], None] = Base.registry.configure


def user_id() -> Any:
    return mapped_column("user_id", ForeignKey("users.id", ondelete="CASCADE"))


def group_id() -> Any:
    return mapped_column("group_id", ForeignKey("groups.id", ondelete="CASCADE"))


def key() -> Any:
    return mapped_column("id", Integer, primary_key=True)


def text(owner: str = "user_id", **options: Any) -> Any:
    return mapped_column(EncryptedType(String, owner=owner, **options))


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        (
            {"user_id": user_id, "a": text, "i": lambda: mapped_column(BlindIndex("a"), unique=True)},
            r"UniqueConstraint\('user_id', 'i'\)",
        ),
        (
            {
                "group_id": group_id,
                "a": lambda: text("group_id"),
                "i": lambda: mapped_column(BlindIndex("a", scope="group")),
                "__table_args__": lambda: (UniqueConstraint("group_id", "i"),),
            },
            r"when a member leaves.*scope='server'",
        ),
        (
            {"user_id": user_id, "a": text, "i": lambda: mapped_column(BlindIndex("a", scope="group"))},
            "no class of grants gives the key of a User",
        ),
        (
            {
                "user_id": user_id,
                "group_id": group_id,
                "a": text,
                "b": lambda: text("group_id"),
                "i": lambda: mapped_column(BlindIndex(("a", "b"))),
            },
            "keys of two owners",
        ),
        (
            {
                "user_id": user_id,
                "a": text,
                "b": lambda: text(scope="more"),
                "i": lambda: mapped_column(BlindIndex(("a", "b"))),
            },
            "two scopes",
        ),
        (
            {"user_id": user_id, "a": text, "i": lambda: mapped_column(BlindIndex("nothing"))},
            "no encrypted column",
        ),
    ],
)
def test_an_index_that_cannot_keep_its_promise_is_refused(
    columns: dict[str, Callable[[], Any]], match: str
) -> None:
    """The error says why, and shows the line to write."""
    models = Models(**{name: make() for name, make in columns.items()})

    with pytest.raises(ConfigurationError, match=match):
        models.configure()


def test_a_unique_index_of_an_owners_own_column_is_refused() -> None:
    """An owner has one row: a unique index under its key would compare nothing."""

    class Base(DeclarativeBase):
        pass

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        email: Mapped[str] = mapped_column(EncryptedType(String))
        email_index: Mapped[bytes] = mapped_column(BlindIndex("email"), unique=True)

    with pytest.raises(ConfigurationError, match="has one row"):
        Base.registry.configure()


def test_other_values_are_not_asked_for_where_earlier_ones_are_locked() -> None:
    """Who joins a group of the history "from_join" cannot ask for other values: earlier ones would count."""
    models = Models(
        history="from_join",
        group_id=group_id(),
        a=text("group_id"),
        i=mapped_column(BlindIndex("a", scope="group")),
    )
    models.configure()

    with pytest.raises(StatementRefusedError, match="who joins"):
        models.Note.a != "x"  # noqa: B015 - it is refused where it is built
