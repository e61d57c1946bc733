"""An indexed attribute where people use it: hybrids, synonyms, relationships, Query, SQLModel, asyncio."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    String,
    and_,
    bindparam,
    create_engine,
    event,
    exists,
    select,
    text,
    update,
)
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    foreign,
    joinedload,
    mapped_column,
    relationship,
    remote,
    selectinload,
    subqueryload,
    synonym,
    validates,
)

from sqlalchemy_envelope import (
    AsyncEnvelope,
    BlindIndex,
    EncryptedType,
    KeyOwner,
    StatementRefusedError,
    enforce_foreign_keys,
)
from tests.orm.indexes import server_models
from tests.orm.indexes.server_models import SECRET, enroll, new_envelope


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str | None] = mapped_column("email_enc", EncryptedType(String))
    email_index: Mapped[bytes | None] = mapped_column(BlindIndex("email", scope="server"))
    mail = synonym("email")
    namesakes: Mapped[list["User"]] = relationship(
        primaryjoin=lambda: foreign(User.email) == remote(User.email), viewonly=True, uselist=True
    )
    by_tags: Mapped[list["User"]] = relationship(
        primaryjoin=lambda: and_(foreign(User.email_index) == remote(User.email_index)),
        viewonly=True,
        uselist=True,
    )

    @validates("email")
    def lowered(self, key: str, value: str | None) -> str | None:
        return value and value.lower()

    @hybrid_property
    def address(self) -> str | None:
        return self.email


ADA, ALSO_ADA, NOBODY, EVE = 1, 2, 3, 4


@pytest.fixture(scope="module")
def users() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    envelope = new_envelope()
    with Session(engine) as session:
        for email in ("Ada@x.org", "ada@x.org", None, "eve@x.org"):
            envelope.enroll(session, User(email=email), secret=SECRET)
        session.commit()
    yield engine
    engine.dispose()


@pytest.fixture
def session(users: Engine) -> Iterator[Session]:
    with Session(users) as session:
        new_envelope().attach(session)
        yield session


def ids(found: Any) -> list[int]:
    return sorted(one.id for one in found)


def test_by_each_name_of_the_attribute(session: Session) -> None:
    """A hybrid property, a synonym, `filter_by` and `Query` find what the attribute finds; `validates` has
    changed what is stored."""
    email = "ada@x.org"

    for condition in (User.email == email, User.mail == email, User.address == email):
        assert ids(session.scalars(select(User).where(condition))) == [ADA, ALSO_ADA]
    assert ids(session.query(User).filter_by(mail="eve@x.org")) == [EVE]
    assert ids(session.scalars(select(User).filter_by(email="eve@x.org"))) == [EVE]
    assert session.query(User).filter(User.email == "Ada@x.org").one_or_none() is None
    assert session.query(User).filter(User.email == email).count() == 2
    assert session.scalar(select(exists().where(User.email == "eve@x.org")))
    assert session.scalars(select(User.id).where(User.__table__.c.email_enc == "eve@x.org")).all() == [EVE]


@pytest.mark.parametrize("name", ["namesakes", "by_tags"])
def test_relationships(session: Session, name: str) -> None:
    """A relationship over equal values, loaded when it is touched and in each eager way."""
    relation = getattr(User, name)
    wanted = {ADA: [ADA, ALSO_ADA], ALSO_ADA: [ADA, ALSO_ADA], NOBODY: [], EVE: [EVE]}

    def seen(*options: Any) -> dict[int, list[int]]:
        session.expunge_all()
        found = session.scalars(select(User).options(*options)).unique().all()
        return {one.id: ids(getattr(one, name)) for one in found}

    assert wanted == seen()
    for load in (selectinload, joinedload, subqueryload):
        assert wanted == seen(load(relation))
    some = select(User).where(relation.any(User.email == "eve@x.org"))
    assert ids(session.scalars(some)) == [EVE]


def test_an_object_gives_its_tag(session: Session) -> None:
    """Rows that have the value of an object are found by its tag, which cannot be written elsewhere."""
    ada = session.get_one(User, ADA)
    same = select(User).where(User.email_index == ada.email_index, User.id != ada.id)

    assert ids(session.scalars(same)) == [ALSO_ADA]
    for write in (
        update(User).where(User.id == EVE).values(email_index=ada.email_index),
        update(User.__table__).values(email_index=ada.email_index),
    ):
        with pytest.raises(StatementRefusedError, match="Leave it out"):
            session.execute(write)


def test_in_aliases_and_subqueries(session: Session) -> None:
    """The comparison stands beside the column, wherever that is: in an alias, a subquery or a CTE."""
    other, email = aliased(User), "eve@x.org"
    inner = select(User).subquery()
    of_inner = aliased(User, inner)
    in_cte = select(User.id, User.email, User.email_index).cte()

    for statement in (
        select(other.id).where(other.email == email),
        select(of_inner.id).where(of_inner.email == email),
        select(inner.c.id).where(inner.c.email_enc == email),
        select(in_cte.c.id).where(in_cte.c.email == email),
        select(User.id).where(User.id.in_(select(other.id).where(other.email == email))),
        select(User.id).join(other, (other.id == User.id) & (other.email == email)),
    ):
        assert session.scalars(statement).all() == [EVE]


def test_a_subquery_that_leaves_the_index_out(session: Session) -> None:
    """Tags that are not in the subquery cannot be compared: refused, with what to select."""
    inner = select(User.id, User.email).subquery()
    with pytest.raises(StatementRefusedError, match="email_index"):
        _ = inner.c.email == "eve@x.org"


async def test_with_asyncio(async_engine: AsyncEngine) -> None:
    """A log-in by email through `AsyncSession`."""
    envelope = AsyncEnvelope(new_envelope())
    async with async_engine.begin() as connection:
        await connection.run_sync(server_models.Base.metadata.create_all)
    async with AsyncSession(async_engine) as session:
        envelope.attach(session)
        nobody = await session.scalar(select(server_models.User).where(server_models.User.email == "a"))
        async with envelope.enroll(session, server_models.User(email="ada@x.org"), secret=SECRET):
            await session.commit()
        session.expunge_all()
        found = select(server_models.User).where(server_models.User.email == "ada@x.org")
        user = (await session.scalars(found)).one()
        async with envelope.unlock(session, user, secret=SECRET):
            seen = await session.scalar(select(server_models.User.email))

    assert nobody is None
    assert seen == "ada@x.org"


def test_sqlmodel(sqlite_engine: Engine) -> None:
    """A class of SQLModel declares an index, and `select` of SQLModel finds by it."""
    sqlmodel: Any = pytest.importorskip("sqlmodel")

    class Member(KeyOwner, sqlmodel.SQLModel, table=True):  # type: ignore[misc]
        __tablename__ = "members_with_email"
        id: int | None = sqlmodel.Field(default=None, primary_key=True)
        email: str | None = sqlmodel.Field(default=None, sa_type=EncryptedType(String))
        email_index: bytes | None = sqlmodel.Field(
            default=None, sa_type=BlindIndex("email", scope="server"), unique=True
        )

    tables = [one for one in Member.metadata.sorted_tables if one.name.startswith(Member.__tablename__)]
    Member.metadata.create_all(sqlite_engine, tables)
    envelope = new_envelope()
    with sqlmodel.Session(sqlite_engine) as session:
        envelope.enroll(session, Member(email="ada@x.org"), secret=SECRET)
        session.commit()
        session.expunge_all()
        found = session.exec(sqlmodel.select(Member).where(Member.email == "ada@x.org")).one()
        with envelope.unlock(session, found, secret=SECRET):
            assert found.email == "ada@x.org"


def plan_of(session: Session, statement: Any) -> str:
    """The plan of a statement as it is sent, with its tags."""
    sent: list[tuple[str, Any]] = []
    connection = session.connection()
    event.listen(connection, "before_cursor_execute", lambda *given: sent.append((given[2], given[3])))
    session.execute(statement).all()
    words = "EXPLAIN QUERY PLAN" if connection.dialect.name == "sqlite" else "EXPLAIN"
    return "\n".join(str(row) for row in connection.exec_driver_sql(f"{words} {sent[-1][0]}", sent[-1][1]))


def test_the_database_uses_the_index(engine: Engine) -> None:
    """The plan of a look-up searches the database's index on the tags, and reads no table as a whole."""
    enroll(engine, new_envelope(), "a@x.org", "b@x.org")
    user, note, other = server_models.User, server_models.Note, aliased(server_models.User)
    titled = select(note.user_id).where(note.title == "b")
    plans = {
        select(user.id).where(user.email == "b@x.org"): "email_index",
        select(user.id).where(user.email.in_(["a@x.org", "b@x.org"])): "email_index",
        select(user.id).where(user.email == bindparam("email", "b@x.org")): "email_index",
        select(user.id).where(user.id.in_(titled)): "title_index",
        select(user.id).join(other, other.email == user.email).where(other.id == 1): "email_index",
    }
    with Session(engine) as session:
        new_envelope().attach(session)
        if engine.dialect.name == "postgresql":  # unless told so, it reads a table of two rows as a whole
            session.execute(text("SET enable_seqscan = off"))
        for statement, index in plans.items():
            plan = plan_of(session, statement)

            assert index in plan
            assert "SCAN" not in plan
            assert "Seq Scan" not in plan
