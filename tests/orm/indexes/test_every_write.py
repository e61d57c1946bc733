"""Whatever writes a value writes its tag: no statement that the library lets pass leaves an index stale."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, String, bindparam, insert, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, make_transient, mapped_column

from sqlalchemy_envelope import BlindIndex, EncryptedType, KeyOwner, StatementRefusedError
from sqlalchemy_envelope.orm.writing.index_copies import upsert_indexes
from tests.orm.indexes.agreement import out_of_step
from tests.orm.indexes.server_models import SECRET, Note, User, enroll, new_envelope

NOTES: Any = Note.__table__
TWIN = sa.Table(
    "notes",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    *(
        sa.Column("user_id", sa.Integer),
        sa.Column("title", sa.LargeBinary),
        sa.Column("title_index", sa.LargeBinary),
    ),
)


@dataclass
class Scene:
    """Ada, unlocked, with two notes, and Ben, locked."""

    session: Session
    ada: int
    ben: int
    notes: list[int]

    def upsert(self) -> Any:
        make: Any = (
            postgresql.insert if self.session.get_bind().dialect.name == "postgresql" else sqlite.insert
        )
        return make(Note).values(id=self.notes[0], user_id=self.ada, title="upserted")

    def titles(self) -> list[Any]:
        return sorted(self.session.scalars(select(Note.title)).all(), key=str)


@contextmanager
def scene_on(engine: Engine) -> Iterator[Scene]:
    """The scene, in a database."""
    envelope = new_envelope()
    ada, ben = enroll(engine, envelope, "ada@example.org", "ben@example.org")
    with Session(engine) as session, envelope.unlock(session, session.get_one(User, ada), secret=SECRET):
        notes = [Note(user_id=ada, title=title) for title in ("one", "two")]
        session.add_all(notes)
        session.commit()
        yield Scene(session, ada, ben, [one.id for one in notes])


@pytest.fixture
def scene(sqlite_engine: Engine) -> Iterator[Scene]:
    """The scene on SQLite."""
    with scene_on(sqlite_engine) as made:
        yield made


def _insert_tuple(s: Scene) -> Any:
    return insert(NOTES).values((100, s.ada, "tuple", None))


def _copies(s: Scene) -> Any:
    copied = select(NOTES.c.user_id, NOTES.c.title, NOTES.c.title_index)
    return insert(Note).from_select(["user_id", "title", "title_index"], copied)


def _rows(s: Scene) -> Any:
    return select(NOTES.c.user_id, NOTES.c.title, NOTES.c.title_index).where(NOTES.c.user_id == s.ada)


def _copy(selected: Any) -> Any:
    return insert(NOTES).from_select(["user_id", "title", "title_index"], selected)


def _lambda(s: Scene) -> Any:
    owner, title = s.ada, "lambda"
    return sa.lambda_stmt(lambda: insert(Note).values(user_id=owner, title=title))


def _twin(s: Scene) -> Any:
    stored = s.session.execute(select(TWIN.c.title, TWIN.c.title_index).limit(1)).one()
    return insert(TWIN).values(user_id=s.ada, title=stored[0], title_index=stored[1])


def _upsert(s: Scene) -> Any:
    made = s.upsert()
    return made.on_conflict_do_update(
        index_elements=["id"], set_={"title": made.excluded.title, "user_id": made.excluded.user_id}
    )


WRITES: dict[str, Callable[[Scene], Any]] = {
    "insert": lambda s: insert(Note).values(user_id=s.ada, title="three"),
    "insert of NULL": lambda s: insert(Note).values(user_id=s.ada, title=None),
    "tuple": _insert_tuple,
    "values([...])": lambda s: insert(Note).values(
        [{"user_id": s.ada, "title": t} for t in ("a", None, "b")]
    ),
    "update": lambda s: update(Note).where(Note.user_id == s.ada).values(user_id=s.ada, title="changed"),
    "update to NULL": lambda s: update(Note).where(Note.user_id == s.ada).values(title=None),
    "update to null()": lambda s: update(Note).where(Note.user_id == s.ada).values(title=sa.null()),
    "update beside NULL": lambda s: (
        update(Note).where(Note.user_id == s.ada).values(user_id=s.ada, title="x", title_index=None)
    ),
    "ordered values": lambda s: (
        update(NOTES)
        .where(NOTES.c.user_id == s.ada)
        .ordered_values((NOTES.c.user_id, s.ada), (NOTES.c.title, "ordered"))
    ),
    "upsert": _upsert,
    "upsert that does nothing": lambda s: s.upsert().on_conflict_do_nothing(),
    "from_select with its index": _copies,
    "from_select of a subquery": lambda s: _copy(select(_rows(s).subquery())),
    "from_select of a CTE": lambda s: _copy(select(_rows(s).cte("c"))),
    "from_select of a union": lambda s: _copy(sa.union_all(_rows(s), _rows(s))),
    "from_select of NULL": lambda s: insert(Note).from_select(
        ["user_id", "title"], select(NOTES.c.user_id, sa.null())
    ),
    "from_select of other columns": lambda s: insert(Note).from_select(["user_id"], select(NOTES.c.user_id)),
    "lambda": _lambda,
    "twin that copies both": _twin,
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_keeps_the_index_in_step(scene: Scene, name: str) -> None:
    """After each form of a statement every row has the tag of its value."""
    scene.session.execute(WRITES[name](scene))

    assert out_of_step(scene.session, Note) == []


@pytest.mark.backend
def test_each_write_on_postgresql(postgres_engine: Engine) -> None:
    """The same on PostgreSQL, one after the other."""
    with scene_on(postgres_engine) as scene:
        for name, write in WRITES.items():
            scene.session.execute(write(scene))

            assert out_of_step(scene.session, Note) == [], name
            scene.session.rollback()


PARAMETERS: dict[str, tuple[Callable[[Scene], Any], Any]] = {
    "many rows": (lambda s: insert(Note), [{"title": "m"}, {"title": None}]),
    "a row": (lambda s: insert(NOTES), {"title": "p"}),
    "a named parameter": (lambda s: insert(NOTES).values(title=bindparam("words")), {"words": "w"}),
    "update by key": (lambda s: update(Note), [{"title": "by key"}]),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_keep_the_index_in_step(scene: Scene, name: str) -> None:
    """Values that come as parameters have their tags too."""
    make, parameters = PARAMETERS[name]
    whole = {"user_id": scene.ada, **({"id": scene.notes[0]} if "update" in name else {})}
    rows = [whole | row for row in parameters] if isinstance(parameters, list) else whole | parameters
    scene.session.execute(make(scene), rows)

    assert out_of_step(scene.session, Note) == []


@pytest.mark.backend
def test_a_write_in_a_cte_keeps_the_index_in_step(postgres_engine: Engine) -> None:
    """PostgreSQL takes a write in a CTE: its parameters are those of the statement around it."""
    envelope = new_envelope()
    (ada,) = enroll(postgres_engine, envelope, "ada@example.org")
    with (
        Session(postgres_engine) as session,
        envelope.unlock(session, session.get_one(User, ada), secret=SECRET),
    ):
        for value in ("literal", bindparam("words")):
            made = insert(NOTES).values(user_id=ada, title=value).returning(NOTES.c.id)
            session.execute(select(made.cte("c")), {"words": "parameter"}).close()

        tagged = select(sa.func.count()).select_from(NOTES).where(NOTES.c.title_index.is_not(None))

        assert out_of_step(session, Note) == []
        assert session.scalar(tagged) == 2


def _set_index(**values: Any) -> Callable[[Scene], Any]:
    return lambda s: update(Note).where(Note.user_id == s.ada).values(**values)


def _upsert_setting(**sets: str) -> Callable[[Scene], Any]:
    def made(s: Scene) -> Any:
        one = s.upsert()
        owner = {"user_id": one.excluded.user_id}
        return one.on_conflict_do_update(
            index_elements=["id"], set_=owner | {key: one.excluded[name] for key, name in sets.items()}
        )

    return made


REFUSED: dict[str, Callable[[Scene], Any]] = {
    "a tag": _set_index(title_index=b"x" * 16),
    "a tag beside the value": _set_index(title="v", title_index=b"x" * 16),
    "NULL alone": _set_index(title_index=None),
    "null() alone": _set_index(title_index=sa.null()),
    "an expression": _set_index(title_index=sa.func.randomblob(16)),
    "another row's tag": lambda s: update(Note).values(
        title_index=select(NOTES.c.title_index).scalar_subquery()
    ),
    "a tag in a row": lambda s: insert(Note).values([{"user_id": s.ada, "title": "v", "title_index": b"x"}]),
    "a value without its tag": lambda s: insert(Note).from_select(
        ["user_id", "title"], select(NOTES.c.user_id, NOTES.c.title)
    ),
    "a tag without its value": lambda s: insert(Note).from_select(
        ["user_id", "title_index"], select(NOTES.c.user_id, NOTES.c.title_index)
    ),
    "the tag of another row": lambda s: insert(Note).from_select(
        ["user_id", "title", "title_index"],
        select(NOTES.c.user_id, NOTES.c.title, (other := NOTES.alias()).c.title_index).join_from(
            NOTES, other, sa.true()
        ),
    ),
    "a union with another row's tag": lambda s: _copy(
        sa.union_all(_rows(s), select(NOTES.c.user_id, NOTES.c.title, sa.null()))
    ),
    "an upsert of the tag alone": _upsert_setting(title="title", title_index="title"),
    "a twin's stored value": lambda s: update(TWIN).values(
        title=select(NOTES.c.title).limit(1).scalar_subquery()
    ),
    "a twin's NULL": lambda s: update(TWIN).values(title=None),
    "a twin's tag": lambda s: update(TWIN).values(title_index=b"x"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_leave_an_index_stale_is_refused(scene: Scene, name: str) -> None:
    """A statement that writes a value without its tag, or a tag without its value, is not sent."""
    before = scene.titles()
    with pytest.raises(StatementRefusedError, match="index"):
        scene.session.execute(REFUSED[name](scene))

    assert before == scene.titles()


def test_objects_are_never_out_of_step(scene: Scene) -> None:
    """Flush, bulk, merge, a move to another value and back: the row and the attribute follow."""
    session = scene.session
    made = Note(user_id=scene.ada, title="made", title_index=None)
    session.add(made)
    session.flush()
    first = made.title_index
    assert first is not None
    made.title = "other"
    session.flush()
    assert made.title_index not in (None, first)
    session.execute(update(Note).where(Note.id == made.id).values(user_id=scene.ada, title="made"))
    assert first == made.title_index
    session.execute(update(Note), [{"id": made.id, "user_id": scene.ada, "title": "again"}])
    assert first != made.title_index
    made.title = None
    session.flush()
    assert made.title_index is None
    session.bulk_insert_mappings(sa.inspect(Note), [{"user_id": scene.ada, "title": "bulk"}])
    session.bulk_save_objects([Note(user_id=scene.ada, title="saved")])
    session.bulk_update_mappings(sa.inspect(Note), [{"id": made.id, "user_id": scene.ada, "title": "mapped"}])
    session.merge(Note(id=made.id, user_id=scene.ada, title="merged"))
    session.flush()

    assert out_of_step(session, Note) == []


def test_an_object_that_is_older_than_its_row_brings_no_tag_back(scene: Scene) -> None:
    """`merge()` of a detached object takes its value over, and makes the tag anew."""
    session = scene.session
    note = session.get_one(Note, scene.notes[0])
    assert note.title_index
    copy = Note(id=note.id, user_id=note.user_id, title="older", title_index=note.title_index)
    note.title = "newer"
    session.commit()
    session.merge(copy)
    session.commit()
    note.title_index = b"planted"
    session.commit()

    assert note.title == "older"
    assert out_of_step(session, Note) == []


def test_values_for_somebody_who_is_away_have_their_tags(scene: Scene) -> None:
    """An index of the server's scope needs the server's key alone: who writes for a locked owner has it."""
    session, envelope = scene.session, new_envelope()
    with envelope.write_only(session):
        session.add(Note(user_id=scene.ben, title="sealed"))
        session.execute(insert(Note), [{"user_id": scene.ben, "title": "sealed"}])
        session.commit()
        found = session.scalars(select(Note.user_id).where(Note.title == "sealed")).all()

    assert found == [scene.ben, scene.ben]


def test_a_note_that_moves_to_another_owner_keeps_its_tag(sqlite_engine: Engine) -> None:
    """The value is encrypted anew, and so is its tag made."""
    envelope = new_envelope()
    ada, ben = enroll(sqlite_engine, envelope, "ada@example.org", "ben@example.org")
    with Session(sqlite_engine) as session, ExitStack() as stack:
        for owner in (ada, ben):
            stack.enter_context(envelope.unlock(session, session.get_one(User, owner), secret=SECRET))
        note = Note(user_id=ada, title="moves")
        session.add(note)
        session.commit()
        note.user_id = ben
        session.commit()

        assert out_of_step(session, Note) == []
        assert session.scalars(select(Note.user_id).where(Note.title == "moves")).all() == [ben]


def test_an_upsert_of_mysql_takes_the_tag_from_the_proposed_row() -> None:
    """Its form is another, and its rule the same."""
    made = mysql.insert(NOTES).values(id=1, user_id=1, title="t")
    made = made.on_duplicate_key_update(title=made.inserted.title)
    sql = str(upsert_indexes(NOTES, made).compile(dialect=mysql.dialect()))

    assert "title_index = VALUES(title_index)" in sql


def test_two_tables_with_indexes_of_one_label_have_keys_of_their_own(sqlite_engine: Engine) -> None:
    """Each finds its rows, whichever was asked first; a join of the two is refused."""

    class Own(DeclarativeBase):
        pass

    class Person(KeyOwner, Own):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(String))
        name_index: Mapped[bytes | None] = mapped_column(BlindIndex("name", scope="server", label="name"))

    class Pet(KeyOwner, Own):
        __tablename__ = "pets"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(String))
        name_index: Mapped[bytes | None] = mapped_column(BlindIndex("name", scope="server", label="name"))

    Own.metadata.create_all(sqlite_engine)
    for envelope in (new_envelope(), new_envelope()):
        with Session(sqlite_engine) as session:
            envelope.attach(session)
            for cls in (Person, Pet):
                envelope.enroll(session, cls(name="Ada"), secret=SECRET)
            session.commit()
    with Session(sqlite_engine) as session:
        envelope.attach(session)

        assert session.scalars(select(Pet.id).where(Pet.name == "Ada")).all() == [1, 2]
        assert session.scalars(select(Person.id).where(Person.name == "Ada")).all() == [1, 2]
        with pytest.raises(StatementRefusedError):
            session.execute(select(Pet.id).join(Person, Person.name == Pet.name))


def test_copies_of_objects_bring_no_tags(scene: Scene) -> None:
    """What becomes another row, by `make_transient`, or by `merge` where its row is gone, may hold the tag
    that it was read with: its row gets a tag of its own."""
    session = scene.session
    copy, gone = (session.get_one(Note, one) for one in scene.notes)
    assert copy.title_index
    assert gone.title_index
    make_transient(copy)
    del copy.id
    copy.title = "copied"
    session.add(copy)
    session.expunge(gone)
    session.execute(sa.delete(Note).where(Note.id == gone.id))
    session.merge(gone)
    session.commit()

    assert len(session.scalars(select(Note.id).where(Note.title.in_(["copied", "two"]))).all()) == 2
    assert out_of_step(session, Note) == []
