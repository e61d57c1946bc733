"""What a token costs: `python -m benchmarks.tokens [URL]`.

Rows of twenty random words each are inserted in bulk, by turns into a table without a token index and into
one with it. A part of the difference is what a plain INSERT of as many tags takes, which is measured beside
it. The figures are processor time of this process; on PostgreSQL the server's work comes on top.
"""

import gc
import random
import sys
from collections.abc import Callable
from statistics import median
from time import process_time
from typing import Any

from sqlalchemy import ForeignKey, Text, create_engine, delete, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    ServerKeyring,
    enforce_foreign_keys,
    token_index,
)

ROWS, WORDS, ROUNDS = 1_000, 20, 9
SECRET = "correct horse battery staple"


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Plain(Base):
    __tablename__ = "bare_notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(Text))


class Indexed(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(Text))
    body_words = token_index("body", scope="server")


def _timed(act: Callable[[], Any]) -> float:
    gc.collect()
    gc.disable()
    began = process_time()
    act()
    spent = process_time() - began
    gc.enable()
    return spent


def main(url: str) -> None:
    """Measure, and print microseconds."""
    engine = create_engine(url)
    enforce_foreign_keys(engine)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    chosen, vocabulary = random.Random(1), [f"word{number}" for number in range(5_000)]
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(range(32))])
    )
    spent: dict[str, list[float]] = {"without": [], "with": [], "tags alone": []}
    tags = Indexed.body_words.table
    with Session(engine) as session:
        user = User()
        envelope.enroll(session, user, secret=SECRET)
        session.commit()
        with envelope.unlock(session, user, secret=SECRET):
            for first in range(1, ROWS * ROUNDS, ROWS):
                texts = [" ".join(chosen.sample(vocabulary, WORDS)) for _ in range(ROWS)]
                rows = [{"id": first + at, "user_id": user.id, "body": text} for at, text in enumerate(texts)]
                spent["without"].append(_timed(lambda: session.execute(insert(Plain), rows)))  # noqa: B023
                spent["with"].append(_timed(lambda: session.execute(insert(Indexed), rows)))  # noqa: B023
                made = [
                    dict(row)
                    for row in session.execute(select(tags).where(tags.c.row_id >= first)).mappings()
                ]
                session.execute(delete(tags).where(tags.c.row_id >= first))
                spent["tags alone"].append(_timed(lambda: session.connection().execute(insert(tags), made)))  # noqa: B023
                session.commit()
    each = ROWS * (WORDS + 1) / 1e6
    without, whole, alone = (median(spent[name]) for name in spent)
    print(f"a token: {(whole - without) / each:.2f} µs, of which inserting its tag {alone / each:.2f} µs")
    row, bare = whole / ROWS * 1e6, without / ROWS * 1e6
    print(f"a row of {WORDS} words: {row:.0f} µs; without the index {bare:.1f} µs")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "sqlite://")
