"""An index under its owners' keys is filled by the engine, where its provider opens the owners."""

import sqlalchemy as sa
from sqlalchemy import Engine, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import BlindIndex, EncryptedType, Envelope, KdfProfile, KeyOwner, ServerKeyring
from sqlalchemy_envelope.migration import Migrator
from tests.prepared import tables_of

SECRET = "correct horse battery staple"


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str | None] = mapped_column(EncryptedType(String))
    title_index: Mapped[bytes | None] = mapped_column(BlindIndex("title"), index=True)


def test_rows_of_owners_whom_the_provider_opens_are_filled(engine: Engine) -> None:
    """Ada let the server in, and Ben did not: his rows count as locked, and stay as they are."""
    tables_of(Base.metadata, engine)
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(range(32))])
    )
    with Session(engine) as session:
        for name in ("ada", "ben"):
            user = User()
            with envelope.enroll(session, user, secret=SECRET):
                session.add_all([Note(user_id=user.id, title=f"title {n}") for n in range(3)])
                session.flush()
                if name == "ada":
                    envelope.add_provider(session, user, provider="server")
            session.commit()
        before = session.execute(sa.text("SELECT id, title_index FROM notes ORDER BY id")).all()
        session.execute(sa.text("UPDATE notes SET title_index = NULL WHERE id <> 5"))
        session.execute(sa.text("UPDATE notes SET title_index = NULL, title = NULL WHERE id = 3"))
        session.commit()
        moving = Migrator(engine, envelope, Base, provider="server")

        filled = moving.fill_index("notes.title_index")
        after = session.execute(sa.text("SELECT id, title_index FROM notes ORDER BY id")).all()
        checked = moving.verify_index("notes.title_index")

    assert (filled.bad, filled.locked, filled.pending, filled.is_clean) == (0, 2, 2, False)
    assert after[:2] == before[:2]
    assert [row[1] for row in after[2:]] == [None, None, before[4][1], None]
    assert (checked.rows, checked.bad, checked.pending, checked.locked) == (2, 0, 2, 3)
