"""A process that has server keys and forgot server mode is told the line that is missing."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Text, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    LockedError,
    NotEnrolledError,
    ServerKeyring,
)
from tests.orm.conftest import Started

LINE = "envelope.server_mode(reason=...).everywhere()"


class Base(DeclarativeBase):
    """A base of this file's own."""


class Customer(KeyOwner, Base):
    """An owner with a value of its own."""

    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(Text))


class Vault(KeyOwner, Base, sole=True):
    """The one owner of what is nobody's."""

    __tablename__ = "vaults"
    id: Mapped[int] = mapped_column(primary_key=True)


class Credential(Base):
    """A row of the vault's."""

    __tablename__ = "credentials"
    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[str] = mapped_column(EncryptedType(Text, owner=Vault))


@pytest.fixture
def session(lite: Started) -> Iterator[Session]:
    """A database of customers."""
    Base.metadata.create_all(lite.engine)
    with lite.fresh() as session:
        yield session


def _envelope(**options: Any) -> Envelope:
    return Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), **options)


@pytest.mark.parametrize("has_keys", [True, False])
def test_what_is_locked_names_server_mode(session: Session, has_keys: bool) -> None:
    """With server keys, an error on a locked value or an owner without keys names server mode; without them,
    it does not."""
    keys = ServerKeyring.from_text(ServerKeyring.generate_key())
    envelope = _envelope(server_keys=keys) if has_keys else _envelope()
    with envelope.enroll(session, Customer(name="Ada"), secret="a secret"):
        session.commit()
    session.expunge_all()
    envelope.attach(session)
    customer = session.scalars(select(Customer)).one()
    with pytest.raises(LockedError) as reading:
        _ = customer.name
    customer.name = "Eve"
    with pytest.raises(LockedError) as writing:
        session.flush()
    session.rollback()
    session.add(Customer(name="Ben"))
    with pytest.raises(NotEnrolledError) as adding:
        session.flush()
    session.rollback()
    plain = Customer()
    session.add(plain)
    session.flush()
    with pytest.raises(NotEnrolledError) as unlocking:
        envelope.unlock(session, plain, secret="a secret")

    assert [has_keys] * 4 == [LINE in str(one.value) for one in (reading, writing, adding, unlocking)]


def test_server_mode_is_not_asked_for_twice(session: Session) -> None:
    """Where server mode is on, an owner that it does not hold is locked without that line."""
    envelope = _envelope(server_keys=ServerKeyring.from_text(ServerKeyring.generate_key()))
    with envelope.enroll(session, Customer(name="Ada"), secret="a secret"):
        session.commit()
    session.expunge_all()
    with envelope.server_mode(session, reason="test"), pytest.raises(LockedError) as reading:
        _ = session.scalars(select(Customer)).one().name

    assert LINE not in str(reading.value)


@pytest.mark.parametrize("has_keys", [True, False])
def test_a_sole_owner_that_is_not_there(session: Session, has_keys: bool) -> None:
    """In an empty database server mode is named first, which then makes the owner; a secret would keep it
    from the server. Without server keys it is the secret."""
    keys = ServerKeyring.from_text(ServerKeyring.generate_key())
    envelope = _envelope(server_keys=keys) if has_keys else _envelope()
    envelope.attach(session)
    session.add(Credential(token="t"))
    with pytest.raises(NotEnrolledError) as adding:
        session.flush()
    session.rollback()
    words = str(adding.value)
    if has_keys:
        with envelope.server_mode(session, reason="test"):
            session.add(Credential(token="t"))
            session.commit()

    assert has_keys == (0 < words.find(LINE) < words.find("envelope.enroll(session, Vault(), secret=...)"))
    assert has_keys or "Make it: `envelope.enroll(session, Vault(), secret=...)`." in words
