"""INSERT .. FROM SELECT, the UPDATE of one column of two, and statements with nothing encrypted in them."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, bindparam, insert, lambda_stmt, literal, null, select, text, union_all, update

from sqlalchemy_envelope import StatementRefusedError
from tests.orm.conftest import Started
from tests.orm.models import Note, User, unlock
from tests.orm.writing.gate.notes import bodies

pytestmark = pytest.mark.both_lines
PLAIN = "plaintext that must not be stored"
NOTES: Any = Note.__table__
OWNER = 1  # ada's


# INSERT .. FROM SELECT


@pytest.fixture
def copied(lite: Started) -> Started:
    """A note of Ada's and one of Ben's."""
    for owner in (lite.ada, lite.ben):
        with unlock(lite.session, owner):
            lite.session.add(Note(user_id=owner.id, body=f"{PLAIN} {owner.id}"))
            lite.session.commit()
    return lite


ONE, OTHER = NOTES.alias("one"), NOTES.alias("other")
SAME = select(NOTES.c.user_id, NOTES.c.body)
TYPED_TEXT = text(f"SELECT 1 AS user_id, '{PLAIN}' AS body").columns(NOTES.c.user_id, NOTES.c.body)
TWO_ROWS = select(ONE.c.user_id, OTHER.c.body).where(ONE.c.id != OTHER.c.id)
COPIES = {
    "a table": lambda: SAME,
    "an alias": lambda: select(ONE.c.user_id, ONE.c.body),
    "a subquery": lambda: select(SAME.subquery()),
    "a CTE of a subquery": lambda: select(select(SAME.subquery()).cte()),
    "a join": lambda: select(ONE.c.user_id, ONE.c.body).join_from(ONE, User, User.id == ONE.c.user_id),
    "a UNION ALL": lambda: union_all(SAME, SAME),
    "a UNION ALL in a subquery": lambda: select(
        union_all(SAME, select(ONE.c.user_id, ONE.c.body)).subquery()
    ),
    "entities": lambda: select(Note.user_id, Note.body),
}
NO_COPIES: dict[str, Callable[[], Any]] = {
    "a NULL that may be another value": lambda: select(NOTES.c.user_id, literal(None)),
    "text": lambda: TYPED_TEXT,
    "text in a subquery": lambda: select(TYPED_TEXT.subquery()),
    "text in a CTE": lambda: select(TYPED_TEXT.cte()),
    "text in a UNION ALL": lambda: union_all(SAME, TYPED_TEXT),
    "two aliases": lambda: TWO_ROWS,
    "two aliases in a subquery": lambda: select(TWO_ROWS.subquery()),
    "two copies of a subquery": lambda: (
        lambda a, b: select(a.c.user_id, b.c.body).where(a.c.user_id != b.c.user_id)
    )(SAME.subquery("a"), SAME.subquery("b")),
    "a CTE beside its alias": lambda: (lambda a: select(a.c.user_id, a.alias("b").c.body))(SAME.cte("a")),
    "an owner by itself": lambda: select(literal(1), NOTES.c.body),
    "an owner of a UNION ALL": lambda: select(union_all(SAME, select(literal(1), NOTES.c.body)).subquery()),
    "a literal in a UNION ALL": lambda: union_all(SAME, select(literal(1), literal(PLAIN))),
    "type_coerce": lambda: select(NOTES.c.user_id, sa.type_coerce(NOTES.c.title, NOTES.c.body.type)),
    "a UNION": lambda: sa.union(SAME, SAME),
}


@pytest.mark.parametrize("source", COPIES)
def test_copied(copied: Started, source: str) -> None:
    """Ciphertext is copied with its owner, and its owner reads it."""
    with unlock(copied.session, copied.ada):
        statement = insert(Note).from_select(["user_id", "body"], COPIES[source]())
        copied.session.execute(statement)
        mine = copied.session.scalars(select(Note.body).where(Note.user_id == copied.ada.id)).all()

        assert {f"{PLAIN} {copied.ada.id}"} == set(mine)
        assert len(mine) > 1


@pytest.mark.parametrize("source", NO_COPIES)
def test_not_copied(copied: Started, source: str) -> None:
    """What does not come with its owner, from one and the same row of a table, is refused."""
    before = bodies(copied.engine)
    with unlock(copied.session, copied.ada), pytest.raises(StatementRefusedError) as caught:
        copied.session.execute(insert(Note).from_select(["user_id", "body"], NO_COPIES[source]()))
    copied.session.rollback()

    assert PLAIN not in str(caught.value)
    assert before == bodies(copied.engine)


@pytest.mark.parametrize("nothing", [null(), null().label("body"), sa.cast(null(), sa.LargeBinary)])
def test_null_is_copied(copied: Started, nothing: Any) -> None:
    """A NULL belongs to every owner."""
    before = bodies(copied.engine)
    copied.session.execute(insert(Note).from_select(["user_id", "body"], select(NOTES.c.user_id, nothing)))
    copied.session.commit()

    assert before == bodies(copied.engine)
    assert copied.session.scalar(select(sa.func.count(Note.id))) == 4


@pytest.mark.skipif(not hasattr(sa.schema, "CreateTableAs"), reason="SQLAlchemy 2.1 has it")
@pytest.mark.parametrize(
    "source",
    [
        lambda: select(NOTES.c.body),
        lambda: select(Note.id, Note.body.label("words")),
        lambda: union_all(select(NOTES.c.title), select(sa.type_coerce(NOTES.c.body, sa.String))),
        lambda: select(SAME.subquery()),
    ],
)
def test_no_table_is_made_of_ciphertext(lite: Started, source: Callable[[], Any]) -> None:
    """CREATE TABLE AS is refused as INSERT .. FROM SELECT into a plain column is."""
    with pytest.raises(StatementRefusedError, match=r"into copies\.\w+, which is not encrypted"):
        lite.session.execute(sa.schema.CreateTableAs(source(), "copies"))
    lite.session.execute(sa.schema.CreateTableAs(select(NOTES.c.id, NOTES.c.title), "copies"))
    lite.session.execute(sa.schema.CreateView(select(NOTES.c.id, NOTES.c.body), "seen"))

    assert [one["name"] for one in sa.inspect(lite.session.connection()).get_columns("copies")] == [
        "id",
        "title",
    ]


PLAIN_TABLE = sa.Table("plain_notes", sa.MetaData(), sa.Column("data", sa.LargeBinary))
ALONE = select(NOTES.c.body).limit(1)
JOINED = PLAIN_TABLE.c.data == sa.cast(NOTES.c.title, sa.LargeBinary)
INTO_THE_CLEAR = {
    "from select": lambda: insert(PLAIN_TABLE).from_select(["data"], select(NOTES.c.body)),
    "from select of a title": lambda: insert(Note).from_select(
        ["user_id", "title"], select(NOTES.c.user_id, NOTES.c.body)
    ),
    "from a subquery": lambda: insert(PLAIN_TABLE).from_select(["data"], select(ALONE.subquery())),
    "by type_coerce": lambda: insert(PLAIN_TABLE).from_select(
        ["data"], select(sa.type_coerce(NOTES.c.body, sa.LargeBinary))
    ),
    "from a UNION ALL": lambda: insert(PLAIN_TABLE).from_select(
        ["data"], union_all(select(literal(b"x")), select(NOTES.c.body))
    ),
    "by value": lambda: insert(PLAIN_TABLE).values(data=ALONE.scalar_subquery()),
    "by multi-values": lambda: insert(PLAIN_TABLE).values([{"data": ALONE.scalar_subquery()}]),
    "by update": lambda: update(PLAIN_TABLE).where(JOINED).values(data=NOTES.c.body),
    "by update of type_coerce": lambda: (
        update(PLAIN_TABLE).where(JOINED).values(data=sa.type_coerce(NOTES.c.body, sa.LargeBinary))
    ),
    "by update of a subquery": lambda: update(PLAIN_TABLE).values(data=ALONE.scalar_subquery()),
}


@pytest.mark.parametrize("form", INTO_THE_CLEAR)
def test_ciphertext_stays_in_encrypted_columns(lite: Started, form: str) -> None:
    """A column that is not encrypted gets no ciphertext, by whatever type it goes."""
    PLAIN_TABLE.create(lite.engine)
    with pytest.raises(StatementRefusedError, match=r"plain_notes\.data|notes\.title|'data'"):
        lite.session.execute(INTO_THE_CLEAR[form]())


# UPDATE of one column of two


def test_update_of_one_column(lite: Started) -> None:
    """The error names the column that is written, and first the cure that works."""
    with unlock(lite.session, lite.ada), pytest.raises(StatementRefusedError) as caught:
        lite.session.execute(update(Note).where(Note.user_id == OWNER).values(size=4))

    said = str(caught.value)
    assert said.startswith("A statement writes notes.size and does not name")
    assert said.index("using(owner)") < said.index("load the objects")
    assert "in the values" not in said


PINNED = {
    "where": lambda: (update(Note).where(Note.user_id == OWNER).values(size=4, user_id=OWNER), {}),
    "the other way round": lambda: (
        update(NOTES).where(literal(OWNER) == NOTES.c.user_id).values(size=4, user_id=OWNER),
        {},
    ),
    "and": lambda: (
        update(Note)
        .where(sa.and_(Note.id > 0, sa.and_(Note.user_id == OWNER, Note.id < 9)))
        .values(size=4, user_id=OWNER),
        {},
    ),
    "a parameter": lambda: (
        update(NOTES).where(NOTES.c.user_id == bindparam("mine")).values(size=4, user_id=bindparam("mine")),
        {"mine": OWNER},
    ),
    "a lambda": lambda: (
        lambda_stmt(lambda: update(Note).where(Note.user_id == OWNER).values(size=4, user_id=OWNER)),
        {},
    ),
}


@pytest.mark.parametrize("form", PINNED)
def test_an_update_that_stays_with_its_owner(lite: Started, form: str) -> None:
    """`WHERE user_id = 1` with `user_id=1` among the values moves nothing."""
    with unlock(lite.session, lite.ada):
        lite.session.add(Note(user_id=OWNER, body=PLAIN))
        lite.session.commit()
        statement, parameters = PINNED[form]()
        lite.session.execute(statement, parameters, execution_options={"synchronize_session": False})
        lite.session.commit()

        assert list(lite.session.execute(select(Note.body, Note.size))) == [(PLAIN, 4)]


@pytest.mark.parametrize(
    "condition",
    [
        lambda: Note.user_id == 2,
        lambda: sa.or_(Note.user_id == OWNER, Note.id > 0),
        lambda: Note.user_id != OWNER,
        lambda: ~(Note.user_id == OWNER),
        lambda: Note.user_id.in_([OWNER]),
        lambda: ONE.c.user_id == OWNER,
    ],
)
def test_an_update_that_may_move(lite: Started, condition: Callable[[], Any]) -> None:
    """Whatever does not say that all rows are this owner's is a move, and refused."""
    with unlock(lite.session, lite.ada), pytest.raises(StatementRefusedError, match="moves rows"):
        lite.session.execute(
            update(Note).where(condition()).values(size=4, user_id=OWNER),
            execution_options={"synchronize_session": False},
        )


def test_bulk_update_of_one_column(lite: Started) -> None:
    """By primary key as well: the column that is written, and `using` first."""
    with unlock(lite.session, lite.ada) as unlocked:
        note = Note(user_id=OWNER, body=PLAIN, size=1)
        lite.session.add(note)
        lite.session.commit()
        with pytest.raises(
            StatementRefusedError, match=r"writes notes\.size and does not name the row's owner"
        ):
            lite.session.execute(update(Note), [{"id": note.id, "size": 4}])
        with pytest.raises(StatementRefusedError, match=r"leave user_id out of the values"):
            lite.session.execute(update(Note), [{"id": note.id, "size": 4, "user_id": OWNER}])
        with unlocked.using(lite.ada):
            lite.session.execute(update(Note), [{"id": note.id, "size": 4}])
        lite.session.commit()

        assert list(lite.session.execute(select(Note.body, Note.size))) == [(PLAIN, 4)]


# Statements with nothing encrypted in them


TAGS = sa.Table(
    "tags", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String)
)
NAMES = union_all(select(TAGS.c.name), select(literal("untagged"))).subquery()
INNOCENT = {
    "distinct over a union": lambda: select(NAMES).distinct(),
    "union of a union": lambda: sa.union(select(NAMES), select(null())),
    "except": lambda: sa.except_(select(TAGS.c.name), select(sa.func.lower("A"))),
    "order by a union": lambda: select(NAMES).order_by(NAMES.c.name),
    "distinct of text": lambda: select(text("name")).select_from(TAGS).distinct(),
    "lambda": lambda: lambda_stmt(lambda: select(TAGS.c.name)),
    "insert from select": lambda: insert(TAGS).from_select(["name"], select(NAMES)),
    "multi-values": lambda: insert(TAGS).values([{"name": sa.func.lower("A")}, {"name": "b"}]),
    "a function without arguments": lambda: select(sa.func.current_timestamp()),
    "update": lambda: update(TAGS).values(name=select(NAMES.c.name).limit(1).scalar_subquery()),
}


@pytest.mark.parametrize("form", INNOCENT)
def test_innocent(lite: Started, form: str) -> None:
    """What has no encrypted column in it never notices this library."""
    TAGS.create(lite.engine)
    lite.session.execute(INNOCENT[form]())


@pytest.mark.backend
def test_a_sequence(postgres_engine: Engine) -> None:
    """The next value of a sequence, alone and as a value beside an encrypted one."""
    from tests.orm.conftest import _start

    for started in _start(postgres_engine):
        sequence = sa.Sequence("numbers")
        with started.engine.begin() as connection:
            connection.execute(sa.schema.CreateSequence(sequence))
            assert connection.scalar(select(sequence.next_value())) == 1
            assert connection.scalar(sequence) == 2
        with unlock(started.session, started.ada):
            made = insert(NOTES).values(id=sequence.next_value(), user_id=OWNER, body=PLAIN)
            started.session.execute(made)

            assert list(started.session.execute(select(Note.id, Note.body))) == [(3, PLAIN)]


CONCRETE = """
import sys
from sqlalchemy import ForeignKey, Text, create_engine, select
from sqlalchemy.ext.declarative import AbstractConcreteBase
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, declared_attr, mapped_column
from sqlalchemy_envelope import EncryptedType, KeyOwner
class Base(DeclarativeBase): ...
class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
class Paper(AbstractConcreteBase, Base):
    id: Mapped[int] = mapped_column(primary_key=True)
    @declared_attr
    def user_id(cls) -> Mapped[int]: return mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
class Letter(Paper):
    __tablename__ = "letters"
    __mapper_args__ = {"polymorphic_identity": "letter", "concrete": True}
class Memo(Paper):
    __tablename__ = "memos"
    __mapper_args__ = {"polymorphic_identity": "memo", "concrete": True}
    text: Mapped[str] = mapped_column(EncryptedType(Text, owner="user_id"))
configure_mappers()
engine = create_engine("sqlite://")
Base.metadata.create_all(engine)
with Session(engine) as session:
    assert session.scalars(select(Paper)).all() == []
"""


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(one, marks=pytest.mark.thorough) for one in (2, 3))])
def test_a_column_that_one_concrete_subclass_alone_has(seed: int) -> None:
    """The application starts, and asks for all of them, in every process: whatever order a set has there."""
    done = subprocess.run(
        [sys.executable, "-c", CONCRETE], env={**os.environ, "PYTHONHASHSEED": str(seed)}, check=False
    )

    assert done.returncode == 0
