"""Two owners with values, and somebody who may write to the database and holds no secret."""

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from tests.orm.models import Base, Note, Page, User, envelope, unchecked
from tests.prepared import prepared

ADA, BEN = "the secret of ada", "another one, of ben"
BODY, TEXT, PHONE = "ada's diary", "ada's page", "+44 20 7946 0000"


class Writer:
    """Write access to the database, past the library and past foreign keys."""

    def __init__(self, engine: Engine) -> None:
        self.engine = create_engine(engine.url, poolclass=NullPool)
        self.connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        unchecked(self.connection)
        if engine.dialect.name == "postgresql":
            self.run("SET session_replication_role = replica")

    def run(self, sql: str, **values: Any) -> Any:
        return self.connection.execute(text(sql), values)

    def read(self, table: str, column: str, where: str, **values: Any) -> Any:
        found = self.run(f"SELECT {column} FROM {table} WHERE {where}", **values).scalar_one()
        return bytes(found) if isinstance(found, memoryview) else found

    @contextmanager
    def altered(self, table: str, column: str, where: str, new: Any) -> Iterator[None]:
        """One column of one row says something else inside."""
        before = self.read(table, column, where)
        self.run(f"UPDATE {table} SET {column} = :new WHERE {where}", new=new)
        try:
            yield
        finally:
            # By the old place in the table where the row's own name was altered.
            row = where if column not in where else f"{column} = :changed"
            values = {"changed": new} if column in where else {}
            self.run(f"UPDATE {table} SET {column} = :old WHERE {row}", old=before, **values)

    def close(self) -> None:
        self.connection.close()


@dataclass
class Scene:
    """Two owners with one row of everything, and somebody who writes."""

    engine: Engine
    writer: Writer

    @contextmanager
    def unlocked(self, *owners: tuple[int, str]) -> Iterator[Session]:
        with Session(self.engine) as session:
            entered = []
            try:
                for owner_id, secret in owners:
                    unlocked = envelope.unlock(session, session.get_one(User, owner_id), secret=secret)
                    entered.append(unlocked.__enter__())
                yield session
            finally:
                for unlocked in reversed(entered):
                    unlocked.__exit__(None, None, None)

    def read_everything(self, owner: int = 1, secret: str = ADA) -> list[Any]:
        """As the application does: unlock an owner and touch each of its values."""
        with self.unlocked((owner, secret)) as session:
            note = session.scalars(select(Note).where(Note.user_id == owner)).one()
            page = session.scalars(select(Page).where(Page.user_id == owner)).one()
            user = session.get_one(User, owner)
            return [note.body, note.size, note.tags, page.text, user.phone]

    def key_row(self, owner: int, purpose: str) -> str:
        """The condition that finds a key row."""
        key_id = self.writer.read("users_key", "key_id", f"owner_id = {owner} AND purpose = '{purpose}'")
        return f"key_id = '{key_id}'"

    def slot_row(self, owner: int) -> str:
        """The condition that finds an owner's slot."""
        root = self.key_row(owner, "root")
        return f"slot_id = '{self.writer.read('users_keyslot', 'slot_id', root)}'"


def make_scene(engine: Engine) -> Iterator[Scene]:
    def make() -> None:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            for owner_id, secret, whose in ((1, ADA, "ada's "), (2, BEN, "ben's ")):
                user = User(id=owner_id, email=f"{owner_id}@example.org", phone=PHONE)
                with envelope.enroll(session, user, secret=secret):
                    session.add(
                        Note(id=owner_id, user=user, title="t", body=whose + "diary", size=7, tags=[whose])
                    )
                    session.add(Page(id=uuid.UUID(int=owner_id), user=user, text=whose + "page"))
                    session.commit()

    prepared(engine, "attackers", make)
    writer = Writer(engine)
    yield Scene(engine, writer)
    writer.close()


def flip(data: bytes, position: int, mask: int = 0xFF) -> bytes:
    return data[:position] + bytes([data[position] ^ mask]) + data[position + 1 :]


def entity(model: Any, name: str) -> Callable[[Session], Any]:
    """Read a value of ada's row through its object."""

    def read(session: Session) -> Any:
        session.expunge_all()
        where = model.id == (uuid.UUID(int=1) if model is Page else 1)
        return getattr(session.scalars(select(model).where(where)).one(), name)

    return read


VALUES = {
    "text": (Note, "body", "notes", "id = 1"),
    "integer": (Note, "size", "notes", "id = 1"),
    "json": (Note, "tags", "notes", "id = 1"),
    "of the owner": (User, "phone", "users", "id = 1"),
    "row-bound": (Page, "text", "pages", "user_id = 1"),
}
