"""People with one letter each, and what each of them may see."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, String, Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyOwner, LockedError, UnlockedSession
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.orm.current import context

USERS = 24
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), concurrent_derivations=64, derivation_wait=60)


class Base(DeclarativeBase):
    pass


class Person(KeyOwner, Base):
    __tablename__ = "people"

    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Letter(Base):
    __tablename__ = "letters"

    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id", ondelete="CASCADE"), index=True)
    body: Mapped[str | None] = mapped_column(EncryptedType(Text))


def secret_of(person_id: int) -> str:
    return f"the secret of person {person_id}"


def body_of(person_id: int) -> str:
    return f"written by person {person_id}"


def populate(session: Session, people: int = USERS) -> None:
    """The people, each with a secret of its own and one letter, whose id is the person's."""
    for person_id in range(1, people + 1):
        person = Person(id=person_id, phone=f"phone of {person_id}")
        with envelope.enroll(session, person, secret=secret_of(person_id)):
            session.add(Letter(id=person_id, person_id=person_id, body=body_of(person_id)))
            session.commit()


def require_clean_context() -> None:
    """Nothing is left in this context of an unlocked session, open or closed."""
    assert context.CURRENT.get() is context.NOTHING
    assert context.USING.get() is None


LETTERS = select(Letter)


def require_locked(letters: list[Letter]) -> None:
    """Nobody's value shows."""
    for letter in letters:
        try:
            shown = letter.body
        except LockedError:
            continue
        pytest.fail(f"{shown!r} shows in a locked letter")


def require_every_row_under_its_owners_key(
    connection: sa.Connection, written: int, people: int = USERS
) -> None:
    """Each stored value, read past the library, names a key that its row's owner has, and nobody else."""
    raw = sa.table("letters", sa.column("person_id"), sa.column("body", sa.LargeBinary))
    keys: dict[int, set[bytes]] = {}
    for owner_id, key_id in connection.execute(
        select(Person.metadata.tables["people_key"].c.owner_id, Person.metadata.tables["people_key"].c.key_id)
    ):
        keys.setdefault(owner_id, set()).add(key_id.bytes)
    rows = connection.execute(select(raw.c.person_id, raw.c.body)).all()
    wrong = [person_id for person_id, body in rows if bytes(body)[1:17] not in keys[person_id]]

    assert people + written == len(rows)
    assert wrong == []
    assert len(set().union(*keys.values())) == 2 * people


@contextmanager
def no_key_remains() -> Iterator[None]:
    """No unlocked session that was opened inside is open at the end, and no key made
    inside holds anything."""
    # By exact type: `isinstance` asks a Protocol's metaclass about every object of the process.
    before = [one for one in gc.get_objects() if type(one) in (UnlockedSession, KeyBytes)]
    known = {id(one) for one in before}
    yield
    gc.collect()
    after = [one for one in gc.get_objects() if type(one) in (UnlockedSession, KeyBytes)]
    new = [one for one in after if id(one) not in known]

    assert [one for one in new if isinstance(one, UnlockedSession) and one.is_open] == []
    assert [one for one in new if isinstance(one, KeyBytes) and any(one.buffer)] == []
