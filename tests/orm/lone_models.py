"""Models of names that no other test module uses.

Where tables of other models have the same name, the database is asked once which of them it has: a test that
counts statements would depend on the modules that were imported before it.
"""

from sqlalchemy import ForeignKey, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyOwner, UnlockedSession

SECRET = "correct horse battery staple"

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


class Base(DeclarativeBase):
    pass


class Hermit(KeyOwner, Base):
    __tablename__ = "hermits"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str]


class Saying(Base):
    __tablename__ = "sayings"

    id: Mapped[int] = mapped_column(primary_key=True)
    hermit_id: Mapped[int] = mapped_column(ForeignKey("hermits.id", ondelete="CASCADE"))
    body: Mapped[str | None] = mapped_column(EncryptedType(Text))


def new_hermit(session: Session, email: str = "ada@example.org") -> Hermit:
    """An enrolled owner, committed and locked."""
    hermit = Hermit(email=email)
    envelope.enroll(session, hermit, secret=SECRET)
    session.commit()
    return hermit


def unlock(session: Session, hermit: Hermit) -> UnlockedSession:
    """Unlock with the secret that all of them have."""
    return envelope.unlock(session, hermit, secret=SECRET)
