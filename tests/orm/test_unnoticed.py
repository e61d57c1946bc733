"""What has nothing encrypted in it never notices the library: what SQLAlchemy's own suites (`nox -s suites`)
have found otherwise."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    delete,
    lambda_stmt,
    select,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    defaultload,
    joinedload,
    mapped_column,
    registry,
    relationship,
)

from sqlalchemy_envelope import EncryptedType, KeyOwner

pytestmark = pytest.mark.both_lines


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Tag(Base):
    """Nothing in it is encrypted."""

    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    age: Mapped[int]
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("tags.id"))
    children: Mapped[list["Tag"]] = relationship()


@pytest.fixture
def session(sqlite_engine: Engine) -> Iterator[Session]:
    """A session with a tag, in which nobody is unlocked."""
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        session.add(Tag(id=1, age=40))
        session.commit()
        yield session


OPTIONS = {
    "defaultload": lambda: defaultload(Tag.children).load_only(Tag.age),
    "joinedload of two": lambda: joinedload(Tag.children, Tag.children),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_without_a_strategy(session: Session, option: str) -> None:
    """`defaultload` says nothing of how to load; a list of attributes begins with it."""
    assert [tag.id for tag in session.scalars(select(Tag).options(OPTIONS[option]())).unique()] == [1]


def test_an_update_in_a_lambda(session: Session) -> None:
    """Objects in the session learn by RETURNING, or a SELECT, what an UPDATE in a lambda has changed."""
    tag = session.get_one(Tag, 1)
    statement: Any = lambda_stmt(lambda: update(Tag).where(Tag.age > 29).values({"age": Tag.age - 1}))
    session.execute(statement, execution_options={"synchronize_session": "fetch"})

    assert tag.age == 39


def test_a_delete_in_a_lambda(session: Session) -> None:
    """And what a DELETE in a lambda has deleted is not in the session any more."""
    tag = session.get_one(Tag, 1)
    statement: Any = lambda_stmt(lambda: delete(Tag).where(Tag.age > 29))
    session.execute(statement, execution_options={"synchronize_session": "fetch"})

    assert tag not in session


def test_a_mapped_column_gets_no_info() -> None:
    """`Column.info` makes a dictionary when it is read: mapping a column that is not encrypted reads none."""
    table = Table("things", MetaData(), Column("id", Integer, primary_key=True), Column("name", String))
    registry().map_imperatively(type("Thing", (), {}), table)

    assert [column.name for column in table.columns if "info" in column.__dict__] == []
