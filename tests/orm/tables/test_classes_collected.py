"""Models that are made and dropped, as by a test that declares its own, leave nothing behind."""

import gc
import os
import pickle
import weakref
from typing import Any

from sqlalchemy import JSON, Column, ForeignKey, Integer, MetaData, Table, Text, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    PreviousColumn,
    ServerKeyring,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.orm.tables.records import records_of_table

envelope = Envelope(
    kdf_profile=KdfProfile.unsafe_for_tests(),
    server_keys=ServerKeyring.from_text(ServerKeyring.generate_key()),
)

SETS = int(os.environ.get("ENVELOPE_MODEL_SETS", "2"))
"""How many sets of models are made and dropped; 100 take half a minute."""


def _make_use_and_drop() -> list[Any]:
    """Weak references to the classes and tables of a set of models that was used once."""

    class Base(DeclarativeBase):
        pass

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(Text))
        notes: Mapped[list[Any]] = relationship("Note", cascade="all, delete-orphan")

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
        body: Mapped[Any] = mapped_column(EncryptedType(JSON))
        title: Mapped[str | None] = mapped_column(
            "title_encrypted", EncryptedType(Text, previous=PreviousColumn("title", Text))
        )

    class Group(KeyOwner, Base):
        __tablename__ = "groups"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(Text))

    class Membership(KeyGrant, Base, of="group_id", to="user_id"):
        __tablename__ = "memberships"
        group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)

    engine = create_engine("sqlite://")
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        user = User(name="ada")
        with envelope.enroll(session, user, secret="a secret"):
            group = Group(name="circle")
            with envelope.enroll(session, group, secret="another"):
                session.add(Membership(group_id=group.id, user_id=user.id))
                user.notes.append(Note(title="title", body={"a": 1}))
                session.commit()
    with Session(engine) as session, envelope.unlock(session, session.get(User, 1), secret="a secret"):
        assert [(one.title, one.body) for one in session.scalars(select(Note))] == [("title", {"a": 1})]
        assert session.scalars(select(Group)).one().name == "circle"
    with Session(engine) as session, envelope.server_mode(session, reason="test"):
        session.add(User(name="ben"))
        session.commit()
    engine.dispose()
    generated = (User.__key_class__, User.__slot_class__, Membership.__grant_class__)
    known = (Base, User, Note, Group, Membership, *generated, *Base.metadata.tables.values())
    return [weakref.ref(one) for one in known]


def test_models_that_are_dropped_are_collected() -> None:
    """Owners, encrypted and moving columns, groups and grants that were used and dropped are gone, and the
    process holds as many objects as before."""
    references = [*_make_use_and_drop(), *_make_use_and_drop()]
    before = _living_objects()
    for _ in range(SETS):
        references += _make_use_and_drop()
    grown = (_living_objects() - before) / SETS - len(references) / (SETS + 2)
    alive = sum(reference() is not None for reference in references)
    print(f"{SETS} sets of models made and dropped: {grown:.1f} objects more for each, {alive} alive")

    assert alive == 0
    assert grown < 5  # a set has some ten thousand


def test_records_belong_to_one_table() -> None:
    """An annotated copy, as statements of the ORM have, shares the records of its table, be it older than
    they are; a table of another MetaData, copied or pickled, has its own."""
    table = Table("things", MetaData(), Column("id", Integer, primary_key=True))
    older = table._annotate({"one": 1})
    records = records_of_table(table)
    records["known"] = object()

    assert records is records_of_table(older)
    assert records is records_of_table(table._annotate({"two": 2}))
    assert records_of_table(table.to_metadata(MetaData())) == {}
    assert records_of_table(pickle.loads(pickle.dumps(table.metadata)).tables["things"]) == {}  # noqa: S301


def _living_objects() -> int:
    while gc.collect():
        pass  # what a finalizer lets go of is found by the next round
    return len(gc.get_objects())
