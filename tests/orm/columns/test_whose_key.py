"""Whose key encrypts a column: every way of saying so, on every way of writing and reading (declare.md)."""

import uuid
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    DecryptionError,
    Envelope,
    KdfProfile,
    LockedError,
    NotEnrolledError,
    ServerKeyring,
    StatementRefusedError,
)
from sqlalchemy_envelope.migration.migrator import Migrator
from tests.orm.columns.whose_models import KINDS, Kind, models
from tests.prepared import prepared

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]

M = models()
MOVING = models(previous=True)
ROW = 100


@dataclass
class Application:
    """Three users, teams and branches, orders and items of theirs, and server mode."""

    engine: Engine
    envelope: Envelope

    def serving(self, session: Session) -> Any:
        return self.envelope.server_mode(session, reason="test")

    def owner_of_stored(self, kind: Kind, key: int) -> Any:
        """The last part of the primary key of the owner whose key a stored value names, read past the
        library."""
        table, owner = getattr(M, kind.model).__table__, getattr(M, kind.owner)
        keys = M.Base.metadata.tables[f"{owner.__tablename__}_key"]
        with self.engine.connect() as connection:
            raw = sa.table(table.name, sa.column("id"), sa.column("text", sa.LargeBinary))
            blob = connection.scalar(select(raw.c.text).where(raw.c.id == key))
            key_id = uuid.UUID(bytes=bytes(blob)[1:17])
            names = [one for one in keys.columns if one.foreign_keys and one.name != "wrapping_key_id"]
            return connection.execute(select(*names).where(keys.c.key_id == key_id)).one()[-1]


def _start(engine: Engine, using: Any) -> Application:
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))
    prepared(engine, using.Base.metadata, lambda: _fill(engine, using, envelope))
    return Application(engine, envelope)


def _fill(engine: Engine, using: Any, envelope: Envelope) -> None:
    using.Base.metadata.create_all(engine)
    with Session(engine) as session, envelope.server_mode(session, reason="test"):
        for number in (1, 2, 3):
            session.add_all(
                [using.User(id=number), using.Team(id=number), using.Branch(region="eu", number=number)]
            )
        session.flush()
        session.add_all([using.Order(id=number, customer_id=number) for number in (1, 2, 3)])
        session.flush()
        session.add_all([using.Item(id=number, order_id=number) for number in (1, 2, 3)])
        session.add_all([using.Document(id=number, user_id=number) for number in (1, 2, 3)])
        session.add_all([using.Document(id=10 + number, team_id=number) for number in (1, 2, 3)])
        session.commit()


@pytest.fixture
def app(engine: Engine) -> Application:
    return _start(engine, M)


@pytest.fixture
def lite(sqlite_engine: Engine) -> Application:
    return _start(sqlite_engine, M)


def row(kind: Kind, owner: int, text: str, key: int = ROW) -> dict[str, Any]:
    return {"id": key, **kind.names(owner), "text": text}


def key_of(kind: Kind, owner: int, key: int = ROW) -> int:
    return int(kind.names(owner).get("id", key))


def expected(kind: Kind, owner: int) -> int:
    """The last part of the owner's primary key."""
    return {"Vault": 1, "User": key_of(kind, owner) if kind.model == "User" else owner}.get(kind.owner, owner)


every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@every_kind
def test_an_object_is_encrypted_for_its_owner_and_read_back(app: Application, kind: Kind) -> None:
    """A flush finds the owner of an object, however it is named, and a load opens the value again."""
    model = getattr(M, kind.model)
    with Session(app.engine) as session, app.serving(session):
        session.add(model(**row(kind, 2, "second")))
        session.commit()
        loaded = session.get_one(model, key_of(kind, 2))

        assert loaded.text == "second"
    assert app.owner_of_stored(kind, key_of(kind, 2)) == expected(kind, 2)


@every_kind
def test_many_rows_are_encrypted_each_for_its_own(app: Application, kind: Kind) -> None:
    """A bulk INSERT of several owners' rows asks once for the batch and mixes none of them up."""
    if kind.model == "User":
        pytest.skip("a bulk INSERT of new owners in server mode is refused: their keys do not exist yet")
    model = getattr(M, kind.model)
    owners = [1, 2, 1, 3]
    rows = [row(kind, owner, f"of {owner}", ROW + at) for at, owner in enumerate(owners)]
    asked: list[str] = []

    def note(_: Any, cursor: Any, statement: str, *rest: Any) -> None:
        # Keys are another matter, and so is the schema, which is asked for once for each connection.
        if statement.startswith("SELECT") and "_key" not in statement and "pg_catalog" not in statement:
            asked.append(statement)

    with Session(app.engine) as session, app.serving(session):
        sa.event.listen(app.engine, "before_cursor_execute", note)
        session.execute(insert(model), rows)
        sa.event.remove(app.engine, "before_cursor_execute", note)
        session.commit()
        read = session.execute(select(model.text).order_by(model.id)).scalars().all()

    assert [f"of {owner}" for owner in owners] == [one for one in read if one is not None][-4:]
    assert [expected(kind, owner) for owner in owners] == [
        app.owner_of_stored(kind, ROW + at) for at in range(len(owners))
    ]
    # The sole owner is looked for and made, and looked for again: another process may have been first.
    assert (3 if kind.owner == "Vault" else 1) >= len(asked), asked


@every_kind
def test_core_statements_find_the_owner(app: Application, kind: Kind) -> None:
    """INSERT and UPDATE through a connection, without a session, encrypt for the owner of the row."""
    if kind.model == "User":
        pytest.skip("a new owner is enrolled, not inserted by Core")
    table = getattr(M, kind.model).__table__
    with app.envelope.server_mode(reason="test"), Session(app.engine) as session:
        connection = session.connection()
        connection.execute(insert(table).values(row(kind, 2, "core")))
        session.commit()
        found = session.execute(select(*table.columns).where(table.c.id == ROW)).mappings().one()

    assert found["text"] == "core"
    assert app.owner_of_stored(kind, ROW) == expected(kind, 2)


@every_kind
def test_an_update_that_names_no_owner_takes_using(app: Application, kind: Kind) -> None:
    """A Core UPDATE of the value alone is written for the owner that `using` names, and refused without
    it."""
    model, owner_class = getattr(M, kind.model), getattr(M, kind.owner)
    with Session(app.engine) as session, app.serving(session) as server:
        session.add(model(**row(kind, 2, "first")))
        session.commit()
        key = key_of(kind, 2)
        owner = session.get_one(owner_class, ("eu", 2) if kind.owner == "Branch" else expected(kind, 2))
        statement = update(model.__table__).where(model.__table__.c.id == key).values(text="second")
        if kind.model not in ("User", "Credential"):
            with pytest.raises(StatementRefusedError):
                session.execute(statement)
        with server.using(owner):
            session.execute(statement)
        session.commit()

        assert session.get_one(model, key).text == "second"
    assert app.owner_of_stored(kind, key) == expected(kind, 2)


@pytest.mark.parametrize("kind", [one for one in KINDS.values() if one.others], ids=lambda one: one.model)
def test_using_takes_no_row_of_others(app: Application, kind: Kind) -> None:
    """An UPDATE under `using` whose WHERE takes another owner's row as well is refused, as one of that row
    alone is; the row of the owner itself is written."""
    model, owner_class = getattr(M, kind.model), getattr(M, kind.owner)
    table = model.__table__
    with Session(app.engine) as session, app.serving(session) as server:
        session.add_all([model(**row(kind, 1, "of 1")), model(**row(kind, 2, "of 2", ROW + 1))])
        session.commit()
        owner = session.get_one(owner_class, ("eu", 2) if kind.owner == "Branch" else 2)
        both = update(table).where(table.c.id >= ROW).values(text="taken")
        other = update(table).where(table.c.id == sa.bindparam("at")).values(text=sa.bindparam("new"))
        with server.using(owner):
            for statement, rows in (
                (both, None),
                (other, {"at": ROW, "new": "taken"}),
                (other, [{"at": ROW + 1, "new": "mine"}, {"at": ROW, "new": "taken"}]),
                (update(model), [{"id": ROW + 1, "text": "mine"}, {"id": ROW, "text": "taken"}]),
            ):
                with pytest.raises(StatementRefusedError, match="rows of others"):
                    session.execute(statement, rows)
            session.execute(other, [{"at": ROW + 1, "new": "theirs"}])
            alias = table.alias()
            session.execute(update(alias).where(alias.c.id == ROW + 1).values(text="mine"))
        session.commit()
        read = session.execute(select(model.text).where(model.id >= ROW).order_by(model.id)).scalars().all()

        assert read == ["of 1", "mine"]


@pytest.mark.parametrize("kind", [one for one in KINDS.values() if one.others], ids=lambda one: one.model)
def test_another_table_object_moves_no_row(app: Application, kind: Kind) -> None:
    """What leads to the owner is not changed through another `Table` object while the value stays: by an
    UPDATE with its values or with parameters, alone or with other columns, by `onupdate=`, or an upsert."""
    model = getattr(M, kind.model)
    with Session(app.engine) as session, app.serving(session):
        session.add(model(**row(kind, 2, "stays")))
        session.commit()
    to = {name: value for name, value in kind.names(1).items() if value != kind.names(2)[name]}
    first = next(iter(to))
    light = sa.table(model.__tablename__, *(sa.column(one.name) for one in model.__table__.columns))
    reflected = sa.Table(model.__tablename__, sa.MetaData(), autoload_with=app.engine)
    made = sa.Table(
        model.__tablename__,
        sa.MetaData(),
        *(sa.Column(name, onupdate=value) for name, value in to.items()),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("other", sa.Text, key="text_key"),
    )
    dialect: Any = sqlite if app.engine.dialect.name == "sqlite" else postgresql
    upsert = dialect.insert(light).values({"id": ROW, **kind.names(2)})
    statements: list[tuple[Any, Any]] = [
        (update(light).where(light.c.id == ROW).values(to), None),
        (update(light).where(light.c.id == sa.bindparam("at")), {"at": ROW, **to}),
        (update(light).where(light.c.id == sa.bindparam("at")), [{"at": ROW, **to}, {"at": 1, **to}]),
        (update(reflected).values({first: reflected.c.id}), None),
        (update(reflected.alias()).values(to), None),
        (update(made).values(text_key="new"), None),
        (upsert.on_conflict_do_update(index_elements=["id"], set_={first: to[first]}), None),
    ]
    for statement, parameters in statements:
        with (
            app.engine.begin() as connection,
            pytest.raises(StatementRefusedError, match=r"Table object|not looked at"),
        ):
            connection.execute(statement, parameters)

    assert app.owner_of_stored(kind, ROW) == expected(kind, 2)
    if kind.model in ("Item", "Document"):  # these lead to owners of other rows as well
        return
    with app.engine.begin() as connection:  # with its value it is a copy, as of a whole row
        connection.execute(update(light).where(light.c.id == ROW).values(**to, text=None))


@pytest.mark.parametrize("kind", [one for one in KINDS.values() if one.others], ids=lambda one: one.model)
def test_rows_of_which_the_first_leaves_something_out(app: Application, kind: Kind) -> None:
    """SQLAlchemy writes in no row what the first one does not name: what leads to the owner, and in an UPDATE
    the value, is refused then, in a list of rows and in `values([...])`."""
    model, at = getattr(M, kind.model), sa.bindparam("at")
    table = model.__table__
    first = next(name for name, value in kind.names(2).items() if value is not None)
    with Session(app.engine) as session, app.serving(session):
        session.add(model(**row(kind, 2, "stays", ROW + 9)))
        session.commit()
        moved = {"at": ROW + 9, **kind.names(2), "text": "of 2"}
        statements: list[tuple[Any, Any]] = [
            (update(table).where(table.c.id == at), [{"at": 1, "text": None}, moved]),
            (update(table).where(table.c.id == at), [{"at": 1, first: kind.names(1)[first]}, moved]),
        ]
        if table.c[first].nullable:
            rows = [{"id": ROW, "text": None}, row(kind, 2, "of 2", ROW + 1)]
            statements += [(insert(table), rows), (insert(table).values(rows), None)]
        for statement, parameters in statements:
            with pytest.raises(
                StatementRefusedError, match=r"do not all name|encrypted for the former owner or key"
            ):
                session.connection().execute(statement, parameters)
        session.rollback()

        assert session.scalar(select(model.text).where(model.id == ROW + 9)) == "stays"


@every_kind
def test_copies_of_the_tables(app: Application, kind: Kind) -> None:
    """What `to_metadata()` makes of the models' tables writes and reads as those do."""
    copied = sa.MetaData()
    for one in M.Base.metadata.sorted_tables:
        one.to_metadata(copied)
    model, owner_class = getattr(M, kind.model), getattr(M, kind.owner)
    table = copied.tables[model.__tablename__]
    with Session(app.engine) as session, app.serving(session) as server:
        session.add(model(**row(kind, 2, "by the model")))
        session.commit()
        owner = session.get_one(owner_class, ("eu", 2) if kind.owner == "Branch" else expected(kind, 2))
        found = session.execute(select(table).where(table.c.id == key_of(kind, 2))).mappings().one()
        assert found["text"] == "by the model"
        with server.using(owner):
            session.execute(update(table).where(table.c.id == key_of(kind, 2)).values(text="by the copy"))
        if kind.model != "User":
            session.execute(insert(table), [row(kind, 1, "new", ROW + 1)])
        session.commit()

        assert session.get_one(model, key_of(kind, 2)).text == "by the copy"
    assert app.owner_of_stored(kind, key_of(kind, 2)) == expected(kind, 2)
    if kind.model != "User":
        assert app.owner_of_stored(kind, ROW + 1) == expected(kind, 1)


@every_kind
def test_a_changed_object_stays_its_owners(app: Application, kind: Kind) -> None:
    """An UPDATE of the value alone, which names no owner in SQL, is encrypted for the object's owner."""
    model = getattr(M, kind.model)
    with Session(app.engine) as session, app.serving(session):
        session.add(model(**row(kind, 2, "first")))
        session.commit()
    with Session(app.engine) as session, app.serving(session):
        session.get_one(model, key_of(kind, 2)).text = "second"
        session.commit()
    with Session(app.engine) as session, app.serving(session):
        assert session.get_one(model, key_of(kind, 2)).text == "second"
    assert app.owner_of_stored(kind, key_of(kind, 2)) == expected(kind, 2)


@pytest.mark.parametrize("kind", [one for one in KINDS.values() if one.others], ids=lambda one: one.model)
def test_a_row_that_moves_is_encrypted_anew(lite: Application, kind: Kind) -> None:
    """An object that is given to another owner is re-encrypted for that owner in the same flush."""
    model = getattr(M, kind.model)
    with Session(lite.engine) as session, lite.serving(session):
        session.add(model(**row(kind, 2, "moving")))
        session.commit()
        loaded = session.get_one(model, ROW)
        for name, value in kind.names(1).items():
            setattr(loaded, name, value)
        session.commit()

        assert loaded.text == "moving"
    assert lite.owner_of_stored(kind, ROW) == 1


@pytest.mark.parametrize("kind", [one for one in KINDS.values() if one.others], ids=lambda one: one.model)
def test_another_owners_value_is_refused(lite: Application, kind: Kind) -> None:
    """A ciphertext that was copied into a row of another owner is an error where the owner is at hand."""
    model = getattr(M, kind.model)
    with Session(lite.engine) as session, lite.serving(session):
        session.add_all([model(**row(kind, 1, "of 1", ROW)), model(**row(kind, 2, "of 2", ROW + 1))])
        session.commit()
    with lite.engine.begin() as connection:
        name = model.__tablename__
        connection.exec_driver_sql(
            f"UPDATE {name} SET text = (SELECT text FROM {name} WHERE id = {ROW}) WHERE id = {ROW + 1}"
        )
    with Session(lite.engine) as session, lite.serving(session):
        kept = [
            one
            for each in (M.Order, M.Item, M.Document)
            for one in session.scalars(select(each).where(each.id < ROW))
        ]
        with pytest.raises(DecryptionError):
            print(session.get_one(model, ROW + 1).text, len(kept))


@every_kind
def test_without_the_key_nothing_is_stored(lite: Application, kind: Kind) -> None:
    """Nobody is unlocked: a flush and a bulk INSERT are refused, and the table stays empty."""
    if kind.model == "User":
        pytest.skip("a new owner without keys: test_bad_input")
    model = getattr(M, kind.model)
    with Session(lite.engine) as session:
        session.add(model(**row(kind, 2, "needle")))
        why = NotEnrolledError if kind.owner == "Vault" else LockedError  # nobody has made the sole owner yet
        with pytest.raises(why) as refused:
            session.flush()
        session.rollback()
        with pytest.raises(why):
            session.execute(insert(model), [row(kind, 2, "needle"), row(kind, 1, "needle", ROW + 1)])
        session.rollback()

        assert "needle" not in str(refused.value)
        assert (
            session.scalar(select(sa.func.count()).select_from(model.__table__).where(model.id >= ROW)) == 0
        )


@every_kind
def test_previous_values_move_to_their_owners(sqlite_engine: Engine, kind: Kind) -> None:
    """A migration encrypts what a plain column holds for the owner of each row, and verifies it."""
    app, model = _start(sqlite_engine, MOVING), getattr(MOVING, kind.model)
    table = model.__table__
    with sqlite_engine.begin() as connection:
        old = sa.table(table.name, *(sa.column(one.name) for one in table.columns))
        for owner in (1, 2):
            values = {"id": ROW + owner, **kind.names(owner)}
            if kind.model == "User":
                values["id"] = owner
                statement: Any = sa.update(old).where(old.c.id == owner).values(text=f"of {owner}")
            else:
                statement = sa.insert(old).values(**values, text=f"of {owner}")
            connection.execute(statement)
    name = f"{table.name}.text"
    migrator = Migrator(sqlite_engine, app.envelope, MOVING.Base, provider="server")
    migrator.expand(name)
    migrator.run(name)
    report = migrator.verify(name)

    assert report.is_clean
    with Session(sqlite_engine) as session, app.serving(session):
        for owner in (1, 2):
            key = owner if kind.model == "User" else ROW + owner
            assert session.get_one(model, key).text == f"of {owner}"
