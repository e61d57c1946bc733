"""SQLAlchemy-Continuum's version tables, which have no foreign keys: they take the path of the table they
copy."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from sqlalchemy import Engine, ForeignKey, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, configure_mappers, mapped_column
from sqlalchemy_continuum import make_versioned, remove_versioning, version_class, versioning_manager

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyOwner, LockedError

SECRET = "correct horse battery staple"
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


@pytest.fixture(scope="module")
def models() -> Iterator[Any]:
    """A versioned class, declared as Continuum's first page does."""
    make_versioned(user_cls=None)

    class Base(DeclarativeBase):
        pass

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Note(Base):
        __versioned__: ClassVar[dict[str, Any]] = {}
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
        body: Mapped[str] = mapped_column(EncryptedType(Text))

    configure_mappers()
    yield type("Models", (), {"Base": Base, "User": User, "Note": Note})
    remove_versioning()
    versioning_manager.reset()


def test_versions_are_under_their_owners_key(engine: Engine, models: Any) -> None:
    """Each version that Continuum writes is encrypted for the note's user, opens for that user and is locked
    for others."""
    models.Base.metadata.create_all(engine)
    with Session(engine) as session:
        ada, ben = models.User(), models.User()
        for owner in (ada, ben):
            envelope.enroll(session, owner, secret=SECRET)
        with envelope.unlock(session, ada, secret=SECRET):
            note = models.Note(user_id=ada.id, body="needle one")
            session.add(note)
            session.commit()
            note.body = "needle two"
            session.commit()

            assert [version.body for version in note.versions] == ["needle one", "needle two"]
        with engine.connect() as connection:
            blobs = connection.execute(text("SELECT body FROM notes_version")).scalars().all()
        with envelope.unlock(session, ben, secret=SECRET):
            version = session.query(version_class(models.Note)).first()

            with pytest.raises(LockedError):
                print(version.body)
    assert [b"needle" in bytes(blob) for blob in blobs] == [False, False]
