"""Objects that stand at several places of one row, are deleted, or are of several tables: they are read and
closed as all others are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, Select, String, null, select, text, union_all
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
    with_polymorphic,
)

from sqlalchemy_envelope import (
    DecryptionError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    PlaintextRefusedError,
    PreviousColumn,
)

pytestmark = pytest.mark.both_lines

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


class Base(DeclarativeBase):
    """The models of this file."""


class Reader(KeyOwner, Base):
    __tablename__ = "places_readers"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))
    pages: Mapped[list[Page]] = relationship(back_populates="reader", passive_deletes=True)


class Page(Base):
    __tablename__ = "places_pages"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    reader_id: Mapped[int] = mapped_column(ForeignKey("places_readers.id", ondelete="CASCADE"))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("places_pages.id"))
    kind: Mapped[str] = mapped_column(default="page")
    title: Mapped[str | None]
    body: Mapped[str | None] = mapped_column(EncryptedType(String))
    phone: Mapped[str | None] = mapped_column(
        "phone_enc", EncryptedType(String, previous=PreviousColumn("phone", String, policy="refuse"))
    )
    reader: Mapped[Reader] = relationship(back_populates="pages")
    parent: Mapped[Page | None] = relationship(remote_side="Page.id", back_populates="children")
    children: Mapped[list[Page]] = relationship(back_populates="parent")
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "page"}  # noqa: RUF012


class Second(Page):
    __tablename__ = "places_seconds"
    id: Mapped[int] = mapped_column(ForeignKey("places_pages.id"), primary_key=True, autoincrement=False)
    second: Mapped[str | None] = mapped_column(EncryptedType(String, owner="reader_id", bind="row"))
    __mapper_args__ = {"polymorphic_identity": "second"}  # noqa: RUF012


class Third(Second):
    __tablename__ = "places_thirds"
    id: Mapped[int] = mapped_column(ForeignKey("places_seconds.id"), primary_key=True, autoincrement=False)
    third: Mapped[str | None] = mapped_column(EncryptedType(String, owner="reader_id"))
    __mapper_args__ = {"polymorphic_identity": "third"}  # noqa: RUF012


@pytest.fixture
def engine(sqlite_engine: Engine) -> Engine:
    """Two readers with three pages each, the first of which is the parent of the others."""
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        for key in (1, 2):
            reader = Reader(id=key, phone=f"phone {key}")
            with envelope.enroll(session, reader, secret=f"secret {key}"):
                for number in range(3):
                    page = key * 10 + number
                    session.add(
                        Third(
                            id=page,
                            reader_id=key,
                            parent_id=key * 10 if number else None,
                            body=f"body {page}",
                            second=f"second {page}",
                            third=f"third {page}",
                        )
                    )
                session.commit()
    return sqlite_engine


@contextmanager
def unlocked(session: Session, *keys: int) -> Iterator[None]:
    with ExitStack() as stack:
        for key in keys:
            reader = session.get_one(Reader, key)
            stack.enter_context(envelope.unlock(session, reader, secret=f"secret {key}"))
        session.expunge_all()
        yield


def read(instance: Any, name: str) -> Any:
    try:
        return getattr(instance, name)
    except (LockedError, DecryptionError, PlaintextRefusedError) as error:
        return type(error)


BOTH = aliased(Page)
TWICE: dict[str, Select[Any]] = {
    "joined there and back": select(Reader).options(joinedload(Reader.pages).joinedload(Page.reader)),
    "a join of aliases": select(Page, BOTH).join(BOTH, Page.id == BOTH.id).order_by(Page.id),
    "the parent of another": select(Page).options(joinedload(Page.parent)).order_by(Page.id),
    "children": select(Page).options(joinedload(Page.children)).order_by(Page.id),
    "parts of each": select(Page)
    .options(
        load_only(Page.title),
        joinedload(Page.parent).load_only(Page.body),
        selectinload(Page.children).load_only(Page.body),
    )
    .order_by(Page.id),
}


@pytest.mark.parametrize("form", TWICE)
@pytest.mark.parametrize("here", [(), (1,), (1, 2)])
def test_an_object_at_two_places_of_a_row(engine: Engine, form: str, here: tuple[int, ...]) -> None:
    """It holds its values, or says that they are locked; never a `Sealed`. A later unlock opens them."""
    with Session(engine) as session, unlocked(session, *here):
        found = session.scalars(TWICE[form]).unique().all()
        name = "phone" if isinstance(found[0], Reader) else "body"
        got = {one.id: read(one, name) for one in found}
        held = [value for one in found for value in vars(one).values() if type(value).__name__ == "Sealed"]
        owners = {one.id: one.id if name == "phone" else one.id // 10 for one in found}
        with unlocked_again(session, 1):
            opened = {one.id: read(one, name) for one in found if owners[one.id] == 1}

    assert held == []
    assert got == {key: f"{name} {key}" if owners[key] in here else LockedError for key in got}
    assert opened == {key: f"{name} {key}" for key in opened}


@contextmanager
def unlocked_again(session: Session, key: int) -> Iterator[None]:
    with envelope.unlock(session, session.get_one(Reader, key), secret=f"secret {key}"):
        yield


@pytest.mark.parametrize("form", TWICE)
def test_a_moved_value_at_two_places(engine: Engine, form: str) -> None:
    """It is told as moved, wherever its object stands."""
    with engine.begin() as connection:
        for name in ("places_readers SET phone = (SELECT phone", "places_pages SET body = (SELECT body"):
            table = name.split()[0]
            other, mine = (2, 1) if table == "places_readers" else (20, 10)
            connection.execute(text(f"UPDATE {name} FROM {table} WHERE id = {other}) WHERE id = {mine}"))
    with Session(engine) as session, unlocked(session, 1, 2):
        found = session.scalars(TWICE[form]).unique().all()
        name, key = ("phone", 1) if isinstance(found[0], Reader) else ("body", 10)

        assert [read(one, name) for one in found if one.id == key] == [DecryptionError]


def test_a_previous_value_at_two_places(engine: Engine) -> None:
    """What stands in the previous column alone stays refused, and is in no object."""
    with engine.begin() as connection:
        connection.execute(text("UPDATE places_pages SET phone = 'plain', phone_enc = NULL WHERE id = 10"))
    with Session(engine) as session, unlocked(session, 1):
        (page,) = [one for one in session.scalars(TWICE["a join of aliases"]) if one.id == 10]

        assert read(page, "phone") is PlaintextRefusedError
        assert "plain" not in vars(page).values()


@pytest.mark.parametrize("back", [False, True])
def test_a_deleted_object_is_closed(engine: Engine, back: bool) -> None:
    """An object whose deletion was flushed is closed on leaving too, and so it is if a rollback brings it
    back."""
    with Session(engine) as session:
        with unlocked(session, 2):
            page = session.get_one(Third, 21)
            first = page.body
            savepoint = session.begin_nested()
            session.delete(page)
            session.flush()
        if back:
            savepoint.rollback()

        assert first == "body 21"
        assert "body 21" not in vars(page).values()


def test_columns_of_joined_tables(engine: Engine) -> None:
    """Owner and primary key of an entity count by whichever of its tables' columns they are selected."""
    whole = with_polymorphic(Page, "*")
    with Session(engine) as session, unlocked(session, 1, 2):
        statements = [
            select(Third.second, Third.id, Third.reader_id),
            select(Third.third, Third.reader_id),
            select(whole.Third.third, whole.reader_id),
            select(whole.Third.second, whole.id, whole.reader_id),
            select(whole.Third.third),
        ]
        found = [min(map(str, session.scalars(one))) for one in statements]

    assert found == ["second 10", "third 10", "third 10", "second 10", "third 10"]


def test_a_union_with_null(engine: Engine) -> None:
    """NULL mixes with every column."""
    statement = union_all(select(Page.id, Page.body), select(Page.id, null()))
    with Session(engine) as session, unlocked(session, 1):
        found = [row.body for row in session.execute(statement) if row.id == 10]

    assert sorted(found, key=str) == [None, "body 10"]
