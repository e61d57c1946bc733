"""The life of a secret on MariaDB, where `ENVELOPE_MARIADB_URL` names a server
(`mysql+pymysql://root@127.0.0.1/`)."""

import uuid
from datetime import timedelta

import pytest
from sqlalchemy import Column, Engine, LargeBinary, MetaData, String, Table, update
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    EscrowKey,
    KdfProfile,
    KeyOwner,
    OpenedEscrowKey,
    ServerKeyring,
    UnlockError,
)
from sqlalchemy_envelope.keys.model import SlotKind, StoredSlot
from sqlalchemy_envelope.orm.tables.owners import KEY_UUID
from sqlalchemy_envelope.orm.tables.slot_rows import _by_slot

ESCROW = OpenedEscrowKey.generate()


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


@pytest.fixture
def mariadb(mariadb_engine: Engine) -> Engine:
    """A database of MariaDB with the tables."""
    Base.metadata.create_all(mariadb_engine)
    return mariadb_engine


def test_a_slot_is_named_by_a_parameter_of_its_columns_type() -> None:
    """MariaDB stores ids as text without dashes: each id that a CASE compares has the type of its column."""
    table = Table("slots", MetaData(), Column("slot_id", KEY_UUID), Column("wrapped", LargeBinary))
    slot = StoredSlot(uuid.uuid4(), uuid.uuid4(), SlotKind.SECRET, "", b"old")
    statement = update(table).values(wrapped=_by_slot(table.c, table.c.wrapped, [(slot, b"new")]))
    compiled = statement.compile(dialect=mysql.dialect())
    ids = [bind for bind in compiled.binds.values() if bind.value == slot.slot_id]

    assert {KEY_UUID} == {bind.type for bind in ids}


def test_each_way_in_is_added_used_and_replaced(mariadb: Engine) -> None:
    """Secrets, codes, tickets and escrow open the owner; a reset, a rotation and a shredding do what they do
    elsewhere."""
    first = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=ServerKeyring([bytes(range(32))]),
        escrow=EscrowKey(ESCROW.public_key, everyone=True),
    )
    with Session(mariadb) as session:
        user = User(phone="1234")
        with first.enroll(session, user, secret="first") as unlocked:
            code = str(unlocked.add_recovery_code(user))
            unlocked.add_secret(user, "second", label="phone")
            session.commit()
            ticket = str(unlocked.issue_ticket(user, lifetime=timedelta(days=1), idle=timedelta(hours=1)))
            session.commit()
        ways = [{"secret": "first"}, {"secret": "second"}, {"recovery_code": code}, {"ticket": ticket}]
        for way in [*ways, {"escrow_key": ESCROW, "reason": "a test"}]:
            with first.unlock(session, user, **way):  # type: ignore[arg-type]  # a way each
                assert user.phone == "1234"
        with pytest.raises(UnlockError):
            first.unlock(session, user, secret="wrong")
        first.reset_secret(session, user, recovery_code=code, new="third")
        session.commit()
        with first.unlock(session, user, secret="third") as unlocked:
            unlocked.rotate(user)
            user.phone = "5678"
            session.commit()
        first.change_secret(session, user, old="third", new="fourth")
        session.commit()
        with first.unlock(session, user, secret="fourth"):
            assert user.phone == "5678"
        receipt = first.shred(session, user, reason="a test")
        session.commit()

    assert "3 keys" in repr(receipt)
