"""What looks at an attribute without loading it finds nothing of a locked one and raises nothing, exactly as
with a deferred one; and a value that nobody can read here can be replaced."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import ForeignKey, Text, event, inspect, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    attributes,
    base,
    defer,
    deferred,
    mapped_column,
    validates,
)

from sqlalchemy_envelope import EncryptedType, KeyOwner, LockedError
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, User, envelope, unlock

pytestmark = pytest.mark.any_database


def _note(started: Started) -> int:
    """A committed note of the first owner, locked."""
    with started.fresh() as session, unlock(session, session.get_one(User, 1)):
        note = Note(user_id=1, title="t", body="diary", tags=["a"])
        session.add(note)
        session.commit()
        return note.id


LOOKS: dict[str, Callable[[Session, Any], Any]] = {
    "history": lambda session, note: inspect(note).attrs.body.history,
    "loaded_value": lambda session, note: inspect(note).attrs.body.loaded_value,
    "is_modified": lambda session, note: session.is_modified(note),
    "unloaded": lambda session, note: "body" in inspect(note).unloaded,
    "dict": lambda session, note: "body" in inspect(note).dict,
} | {
    name: lambda session, note, value=value: attributes.get_history(note, "body", value)  # type: ignore[misc]
    for name, value in vars(base).items()
    if name.startswith("PASSIVE_")
    and isinstance(value, type(base.PASSIVE_OFF))
    and not (value & base.SQL_OK and value & base.CALLABLES_OK)
}


@pytest.mark.parametrize("how", ["locked", "wiped"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_that_loads_nothing(lite: Started, look: str, how: str) -> None:
    """Each gives of a locked attribute, and of one that was forgotten on leaving, what it gives of a deferred
    one."""
    key = _note(lite)
    with lite.fresh() as session:
        plain = session.scalars(select(Note).options(defer(Note.body)).where(Note.id == key)).one()
        plain.title = "changed"
        expected = LOOKS[look](session, plain)
    with lite.fresh() as session:
        note = session.get_one(Note, key)
        if how == "wiped":
            with unlock(session, session.get_one(User, 1)):
                assert note.body == "diary"
        note.title = "changed"

        assert expected == LOOKS[look](session, note)
        with pytest.raises(LockedError):
            inspect(note).attrs.body.load_history()


def test_a_listener_that_keeps_a_journal(started: Started) -> None:
    """Going over every attribute's history before a flush lets a locked row be saved."""
    key = _note(started)
    with started.fresh() as session:
        seen = []

        @event.listens_for(session, "before_flush")
        def journal(session: Session, *_: Any) -> None:
            for changed in session.dirty:
                seen.extend(a.key for a in inspect(changed).attrs if a.history.has_changes())

        note = session.get_one(Note, key)
        note.title = "changed"
        session.commit()

        assert seen == ["title"]
    with started.fresh() as session, unlock(session, session.get_one(User, 1)):
        assert session.get_one(Note, key).body == "diary"


class Base(DeclarativeBase):
    pass


class Owner(KeyOwner, Base):
    __tablename__ = "owners"
    id: Mapped[int] = mapped_column(primary_key=True)


class Active(Base):
    __tablename__ = "active"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner_id: Mapped[int] = mapped_column(ForeignKey("owners.id", ondelete="CASCADE"))
    body: Mapped[str | None] = mapped_column(EncryptedType(Text), active_history=True)
    checked: Mapped[str | None] = mapped_column(EncryptedType(Text), active_history=True)
    late: Mapped[str | None] = deferred(mapped_column(EncryptedType(Text)), active_history=True)

    @validates("checked")
    def _check(self, key: str, value: str) -> str:
        if value == "bad":
            raise ValueError(value)
        self.body = value  # a second attribute is set while the first one is
        return value


@pytest.fixture
def active(started: Started) -> Started:
    """One owner with one row, whose attributes keep their old values."""
    Base.metadata.create_all(started.engine)
    with started.fresh() as session, envelope.enroll(session, Owner(id=1), secret=SECRET):
        session.add(Active(id=1, owner_id=1, body="old", checked="old", late="old"))
        session.commit()
    return started


@pytest.mark.parametrize("name", ["body", "checked", "late"])
@pytest.mark.parametrize("expired", [False, True])
def test_active_history_replaces_what_it_cannot_read(active: Started, name: str, expired: bool) -> None:
    """Under `write_only` a locked value is replaced; its owner reads the new one, and has the old one in the
    attribute's history."""
    with active.fresh() as session, envelope.write_only(session):
        row = session.get_one(Active, 1)
        if expired:
            session.expire(row)
        setattr(row, name, "new")

        assert attributes.get_history(row, name).deleted in ((), [])
        session.commit()
        with pytest.raises(LockedError):
            getattr(row, name)
    with active.fresh() as session, unlock(session, session.get_one(Owner, 1)):
        row = session.get_one(Active, 1)
        assert getattr(row, name) == "new"
        setattr(row, name, "newer")

        assert attributes.get_history(row, name).deleted == ["new"]
        session.rollback()


def test_a_refused_value_leaves_the_locked_one(active: Started) -> None:
    """A validator that raises leaves the attribute locked as it was, and its stored value alone."""
    with active.fresh() as session, envelope.write_only(session):
        row = session.get_one(Active, 1)
        with pytest.raises(ValueError, match="bad"):
            row.checked = "bad"
        for _ in range(2):
            with pytest.raises(LockedError):
                row.checked  # noqa: B018 - reading it is the point
        session.commit()
    with active.fresh() as session, unlock(session, session.get_one(Owner, 1)):
        assert session.get_one(Active, 1).checked == "old"
