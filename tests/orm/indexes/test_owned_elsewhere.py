"""Indexes under owners' keys with asyncio, in server mode, by a grant of one scope, and after a shred."""

import asyncio
from dataclasses import fields
from typing import Any

import pytest
from sqlalchemy import URL, Engine, ForeignKey, String, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    AsyncEnvelope,
    BlindIndex,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyGrant,
    KeyInUseError,
    KeyOwner,
    LockedError,
    ServerKeyring,
    TamperedKeyError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.hierarchy import describe, seal_to_root
from sqlalchemy_envelope.keys.model import KeyState, Purpose, StoredKey
from tests.orm.indexes import owner_models
from tests.orm.indexes.owner_models import SECRET, Note, User, found, tags, two_users, unlock
from tests.orm.indexes.test_found_by_a_group import new_group, post
from tests.prepared import tables_of

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(range(32))]))


class Base(DeclarativeBase):
    pass


class Patient(KeyOwner, Base):
    __tablename__ = "patients"
    id: Mapped[int] = mapped_column(primary_key=True)


class Finding(Base):
    __tablename__ = "findings"
    id: Mapped[int] = mapped_column(primary_key=True)
    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(String, scope="medical"))
    text_index: Mapped[bytes | None] = mapped_column(BlindIndex("text"))
    everywhere_index: Mapped[bytes | None] = mapped_column(BlindIndex("text", scope="server"))


class Doctor(KeyOwner, Base):
    __tablename__ = "doctors"
    id: Mapped[int] = mapped_column(primary_key=True)


class Treatment(KeyGrant, Base, of="patient_id", to="doctor_id", scope="medical"):
    __tablename__ = "treatments"
    patient_id: Mapped[int] = mapped_column(ForeignKey("patients.id", ondelete="CASCADE"), primary_key=True)
    doctor_id: Mapped[int] = mapped_column(ForeignKey("doctors.id", ondelete="CASCADE"), primary_key=True)


def test_async_sessions_find_and_fill(async_url: URL) -> None:
    """With asyncio, rows are found, pending rows counted and filled."""

    async def run() -> None:
        engine = create_async_engine(async_url)
        enforce_foreign_keys(engine)
        async with engine.begin() as connection:
            await connection.run_sync(owner_models.Base.metadata.create_all)
        asynchronous = AsyncEnvelope(owner_models.envelope)
        async with AsyncSession(engine) as session:
            user = User()
            async with asynchronous.enroll(session, user, secret=SECRET):
                session.add(Note(user_id=user.id, title="x"))
                await session.commit()
                await session.refresh(user)
            with asynchronous.write_only(session):
                session.add(Note(user_id=user.id, title="y"))
                await session.commit()
            await session.refresh(user)
            assert (await asynchronous.pending_index_rows(session, user))[0].rows == 1
            async with asynchronous.unlock(session, user, secret=SECRET):
                assert len((await session.scalars(select(Note.id).where(Note.title == "x"))).all()) == 1
                await asynchronous.settle(session)
                assert len((await session.scalars(select(Note.id).where(Note.title == "y"))).all()) == 1
        await engine.dispose()

    asyncio.run(run())


def test_server_mode_writes_tags_and_finds_the_rows_of_an_owner_it_is_told(engine: Engine) -> None:
    """In server mode rows get tags; a search says whose rows it looks for, or is an error."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session, envelope.server_mode(session, reason="test") as server:
        envelope.attach(session)
        ada, ben = Patient(), Patient()
        session.add_all([ada, ben])
        session.flush()
        mine = Finding(patient_id=ada.id, text="x")
        session.add_all([mine, Finding(patient_id=ben.id, text="x")])
        session.commit()
        assert list(envelope.pending_index_rows(session, Patient)) == []
        with pytest.raises(LockedError, match="using"):
            by_index(session, "x")
        with server.using(ada):
            assert [mine.id] == by_index(session, "x")
        session.add(Finding(patient_id=ada.id, text="y"))
        session.commit()
        with server.using(ada):
            assert len(by_index(session, "y")) == 1


def by_index(session: Session, text: str) -> list[int]:
    """Rows found by the index under the owners' keys, which stands before the server's."""
    return found(session, Finding.text == text, Finding.id)


def test_a_grant_of_one_scope_writes_pending_rows(engine: Engine) -> None:
    """Who holds one data key of an owner has no index key: it finds nothing, and its rows wait for the
    owner."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session:
        patient, doctor = Patient(), Doctor()
        envelope.enroll(session, [patient, doctor], secret={patient: SECRET, doctor: SECRET})
        with envelope.unlock(session, patient, secret=SECRET):
            session.add(Treatment(patient_id=patient.id, doctor_id=doctor.id))
            session.commit()
        with envelope.unlock(session, doctor, secret=SECRET):
            finding = Finding(patient_id=patient.id, text="x")
            session.add(finding)
            session.commit()
            with pytest.raises(LockedError):
                by_index(session, "x")
        assert list(envelope.pending_index_rows(session, patient)) == [("Finding.text_index", 1)]
        with envelope.unlock(session, patient, secret=SECRET):
            envelope.settle(session)
            assert [finding.id] == by_index(session, "x")


def test_a_shredded_owner_leaves_no_tag(engine: Engine) -> None:
    """A shred takes the tags of the owner's rows away, under its own key and under the server's."""
    tables_of(Base.metadata, engine)
    with Session(engine) as session:
        ada, ben = Patient(), Patient()
        for one in (ada, ben):
            with envelope.enroll(session, one, secret=SECRET):
                session.add(Finding(patient_id=one.id, text="x"))
                session.flush()
        session.commit()
        envelope.shred(session, ada, reason="test", keep_row=True)
        session.commit()

        assert [one is not None or None for _, one in sorted(tags(session, Finding.text_index).items())] == [
            None,
            True,
        ]
        assert sum(one is not None for one in tags(session, Finding.everywhere_index).values()) == 1


def test_an_index_key_with_tags_is_not_destroyed(sqlite_engine: Engine) -> None:
    """A tag does not tell its key: as long as the owner has tags, its retired index keys stay."""
    ada, ben = two_users(sqlite_engine)
    groups = owner_models.Base.metadata.tables["groups_key"].c
    with Session(sqlite_engine) as session:
        group = new_group(session, ada, ben)
        post(session, ada, group, "x")
        session.delete(session.get_one(owner_models.Membership, (group, ben)))
        session.commit()
        retired = session.scalars(
            select(groups.key_id).where(groups.purpose == Purpose.INDEX, groups.state == "retired")
        ).first()
        references = owner_models.envelope.key_references(session, owner_models.Base, retired)

        assert [(one.place, one.what, one.count) for one in references.needed] == [
            ("posts.text_index", "tag", 1)
        ]
        with pytest.raises(KeyInUseError, match="1 tag"):
            references.require_unused()


def test_a_planted_index_key_is_refused(sqlite_engine: Engine) -> None:
    """Anybody can seal a key to an owner: an index key that is sealed makes no tag, and is told."""
    ada, _ = two_users(sqlite_engine)
    keys = owner_models.Base.metadata.tables["users_key"]
    with Session(sqlite_engine) as session:
        rows = session.execute(select(keys).where(keys.c.owner_id == ada)).all()
        root = next(stored_root(row) for row in rows if row.purpose == Purpose.ROOT)
        old = next(row for row in rows if row.purpose == Purpose.INDEX)
        mine = describe(KeyBytes.generate(), root.owner_reference, Purpose.INDEX, epoch=2)
        planted = vars(seal_to_root(mine, root)) | {"owner_id": ada, "purpose": "index", "state": "active"}
        session.execute(update(keys).where(keys.c.key_id == old.key_id).values(state="retired"))
        session.execute(insert(keys).values(planted))
        session.commit()

        with pytest.raises(TamperedKeyError, match="planted"):
            unlock(session, ada)


def stored_root(row: Any) -> StoredKey:
    named = {one.name: getattr(row, one.name) for one in fields(StoredKey)}
    return StoredKey(**named | {"purpose": Purpose.ROOT, "state": KeyState.ACTIVE})
