"""With several owners unlocked at once, honest rows open however they are loaded, and moved values do not.

What moved values meet is in test_attackers.py; here it is proved that nothing honest is refused.
"""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Boolean, Engine, ForeignKey, Integer, String, create_engine, select
from sqlalchemy import text as sql_text
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
)

from sqlalchemy_envelope import (
    DecryptionError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    enforce_foreign_keys,
)

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    posts: Mapped[list["Post"]] = relationship(back_populates="user", order_by="Post.id")


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    user: Mapped[User] = relationship(back_populates="posts")
    text: Mapped[str] = mapped_column(EncryptedType(String))
    seen: Mapped[bool] = mapped_column(EncryptedType(Boolean))
    stars: Mapped[int] = mapped_column(EncryptedType(Integer))


def values(post: Post) -> tuple[str, bool, int]:
    return post.text, post.seen, post.stars


def written(number: int) -> tuple[str, bool, int]:
    """Texts that repeat and are empty at times, and values that Python shares between rows."""
    return ("" if number % 3 == 0 else f"text {number % 7}"), number % 2 == 0, number % 5


@pytest.fixture
def session() -> Iterator[Session]:
    """Two owners unlocked, with 300 posts that alternate between them."""
    engine: Engine = create_engine("sqlite://")
    enforce_foreign_keys(engine)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        ada, ben = User(), User()
        with envelope.enroll(session, ada, secret="a"), envelope.enroll(session, ben, secret="b"):
            for number in range(300):
                text, seen, stars = written(number)
                session.add(Post(id=number, user=(ada, ben)[number % 2], text=text, seen=seen, stars=stars))
            session.commit()
            session.expunge_all()
            yield session
    engine.dispose()


LOADS: dict[str, Any] = {
    "entities": lambda session: session.scalars(select(Post).order_by(Post.id)),
    "in chunks": lambda session: session.scalars(
        select(Post).order_by(Post.id).execution_options(yield_per=7)
    ),
    "with its user": lambda session: session.scalars(
        select(Post).order_by(Post.id).options(joinedload(Post.user))
    ),
    "one by one": lambda session: (session.get_one(Post, number) for number in range(300)),
    "columns beside": lambda session: (
        row[0] for row in session.execute(select(Post, Post.text, Post.seen).order_by(Post.id))
    ),
    "through select-in": lambda session: sorted(
        (
            post
            for user in session.scalars(select(User).options(selectinload(User.posts)))
            for post in user.posts
        ),
        key=lambda post: post.id,
    ),
    "some columns first": lambda session: session.scalars(
        select(Post).order_by(Post.id).options(load_only(Post.user_id, Post.seen))
    ),
    "SQL in text": lambda session: session.scalars(
        select(Post).from_statement(sql_text("SELECT * FROM posts ORDER BY id"))
    ),
}


@pytest.mark.parametrize("load", LOADS)
def test_honest_rows_of_two_owners_open(session: Session, load: str) -> None:
    """Each form of load gives every value of both owners as it was written."""
    session.scalars(select(Post.stars)).all()  # noted, and asked for by no row

    assert [values(post) for post in LOADS[load](session)] == [written(number) for number in range(300)]


@pytest.mark.parametrize(
    "columns", ["*", "id, user_id, text", "text, user_id, id", "posts.text AS text, id, user_id"]
)
def test_a_moved_value_in_sql_in_text_is_refused(session: Session, columns: str) -> None:
    """Columns of SQL in text are found by their names, and compared with their rows' owners all the same."""
    session.execute(sql_text("UPDATE posts SET text = (SELECT text FROM posts WHERE id = 1) WHERE id = 2"))

    posts = session.scalars(select(Post).from_statement(sql_text(f"SELECT {columns} FROM posts"))).all()
    with pytest.raises(DecryptionError, match="moved here"):
        _ = posts[2].text

    assert written(1)[0] == posts[1].text


def test_rows_that_are_here_already_are_read_anew(session: Session) -> None:
    """Refresh, expire and `populate_existing` on loaded objects refuse nothing."""
    posts = session.scalars(select(Post).order_by(Post.id)).all()
    session.expire(posts[0], ["text"])
    session.expire(posts[1])
    session.refresh(posts[2])
    session.refresh(posts[3], ["stars"])
    session.scalars(select(Post).execution_options(populate_existing=True)).all()
    posts[4].text = "changed"
    session.refresh(posts[4], ["seen"])
    session.commit()

    assert [values(post) for post in posts[:4]] == [written(number) for number in range(4)]
    assert posts[4].text == "changed"


def test_merged_objects_are_not_asked_where_they_come_from(session: Session) -> None:
    """`merge` copies values that were read before, from the database or not."""
    post = session.get_one(Post, 1)
    values(post)
    session.expunge(post)
    without_load = session.merge(post, load=False)
    session.expunge_all()
    with_load = session.merge(post)

    assert values(without_load) == values(with_load) == written(1)


FIRST_READ = """
from sqlalchemy import ForeignKey, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy_envelope import EncryptedType, Envelope, KeyOwner, ServerKeyring, enforce_foreign_keys

class Base(DeclarativeBase):
    pass

class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)

class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str] = mapped_column(EncryptedType(Text))

engine = create_engine("sqlite://")
enforce_foreign_keys(engine)
Base.metadata.create_all(engine)
Envelope(server_keys=ServerKeyring([bytes(32)])).server_mode(reason="a test").everywhere()
with Session(engine) as session:
    session.add(User(id=1))
    session.flush()
    note = Note(user_id=1, body="x")
    session.add(note)
    session.commit()
    note.body = "y"
    session.commit()
    print(note.body)
"""


def test_the_first_read_of_a_process_loads_no_value() -> None:
    """A process whose first read loads only the owner's column, to write a value, works as any other."""
    done = subprocess.run([sys.executable, "-c", FIRST_READ], capture_output=True, text=True, check=False)

    assert (done.stdout, done.returncode) == ("y\n", 0), done.stderr[-500:]
