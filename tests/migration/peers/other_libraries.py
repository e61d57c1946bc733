"""Columns of other libraries, and databases that hold their values."""

import base64
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import sqlalchemy as sa
from cryptography.fernet import Fernet, MultiFernet
from sqlalchemy import Engine, ForeignKey, Integer, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy_utils import EncryptedType as UtilsEncryptedType
from sqlalchemy_utils import StringEncryptedType
from sqlalchemy_utils.types.encrypted.encrypted_type import AesEngine, AesGcmEngine, FernetEngine

from sqlalchemy_envelope import EncryptedType, Envelope, KeyOwner, PreviousColumn, ServerKeyring
from sqlalchemy_envelope.exceptions import PreviousValueError
from sqlalchemy_envelope.migration.foreign_types import FernetText
from sqlalchemy_envelope.migration.jobs import preflight
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.migration.running.runner import Pace

with warnings.catch_warnings():
    # It uses what SQLAlchemy 2.1 deprecates.
    warnings.simplefilter("ignore", DeprecationWarning)
    from advanced_alchemy.types.encrypted_string import (
        EncryptedString,
        EncryptedText,
        FernetBackend,
    )


TEXTS = ["", "a", "+49 30 901820", "Grüße, 世界 🌍", "x" * 15, "y" * 16, "z" * 17, "long " * 4000, "  ", "0"]
CANARY = "canary 5d1e73"
KEY, WRONG = "the application's old key", "some other key"


def envelope() -> Envelope:
    return Envelope(providers={"server": ServerKeyring([b"\x07" * 32])})


@dataclass
class Database:
    """The tables before the migration, as the other library's application has them, and after."""

    engine: Engine
    envelope: Envelope = field(default_factory=envelope)
    Base: Any = None
    Note: Any = None
    inner: Any = Text
    options: dict[str, Any] = field(default_factory=dict)

    def before(self, type_: Any, values: list[Any]) -> None:
        """Write these values through the other library's own type, its own way."""
        metadata = sa.MetaData()
        users = sa.Table("users", metadata, sa.Column("id", Integer, primary_key=True))
        notes = sa.Table(
            "notes",
            metadata,
            sa.Column("id", Integer, primary_key=True),
            sa.Column("user_id", ForeignKey("users.id", ondelete="CASCADE")),
            sa.Column("body", type_),
        )
        metadata.create_all(self.engine)
        with self.engine.begin() as connection:
            connection.execute(users.insert(), [{"id": 1}, {"id": 2}])
            for number, value in enumerate(values, start=1):
                connection.execute(notes.insert(), {"id": number, "user_id": number % 2 + 1, "body": value})

    def models(self, previous: Any, inner: Any = Text, policy: Any = "both", **options: Any) -> "Database":
        """The models of the application once it declares its previous column with this type; or none."""
        self.inner, self.options = inner, options
        moved = None if previous is None else PreviousColumn("body", previous, policy)

        class Base(DeclarativeBase):
            pass

        class User(KeyOwner, Base):
            __tablename__ = "users"

            id: Mapped[int] = mapped_column(primary_key=True)

        class Note(Base):
            __tablename__ = "notes"

            id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
            user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
            body: Mapped[Any] = mapped_column(
                "body_encrypted",
                EncryptedType(inner, owner="user_id", previous=moved, **options),
                nullable=True,
            )

        Base.metadata.create_all(self.engine)  # the key tables: the others are there
        self.Base, self.Note = Base, Note
        return self

    def our_own(self, options: dict[str, Any], values: list[Any], scope: str = "medical") -> None:
        """Write these values through a column of ours, into the column that will be the previous one."""

        class Base(DeclarativeBase):
            pass

        class User(KeyOwner, Base):
            __tablename__ = "users"

            id: Mapped[int] = mapped_column(primary_key=True)

        class Note(Base):
            __tablename__ = "notes"

            id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
            user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
            body: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id", **options))
            # For the sake of its scope: server mode makes no key of a new scope for owners who have keys.
            unused: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id", scope=scope))

        Base.metadata.create_all(self.engine)
        with self.serving() as session:
            session.add_all([User(id=1), User(id=2)])
            session.flush()
            for number, value in enumerate(values, start=1):
                session.add(Note(id=number, user_id=number % 2 + 1, body=value))
            session.commit()

    @contextmanager
    def serving(self) -> Iterator[Session]:
        """A session in which every owner's keys are at hand."""
        with (
            Session(self.engine) as session,
            self.envelope.server_mode(None, provider="server", reason="test"),
        ):
            yield session

    @property
    def migrator(self) -> Migrator:
        pace = Pace(smallest=2, largest=4, range_rows=5)
        return Migrator(self.engine, self.envelope, self.Base, provider="server", pace=pace)

    def sql(self, statement: str, **values: Any) -> list[Any]:
        with self.engine.begin() as connection:
            result = connection.execute(text(statement), values)
            return list(result.all()) if result.returns_rows else []

    def comes_over(self, expected: list[Any]) -> None:
        """The migration to its end; the values are read through the models at each of its steps."""
        migrator = self.migrator
        migrator.expand("notes.body")
        assert self.read() == expected
        report = migrator.run("notes.body")
        assert (report.finished, report.pending) == (True, 0)
        assert report.rows == sum(value is not None for value in expected)
        verified = migrator.verify("notes.body")
        assert (verified.is_clean, verified.mismatches, verified.locked) == (True, 0, 0)
        assert self.read() == expected
        migrator.cutover("notes.body")
        self.models(self.Note.__table__.c.body_encrypted__previous.type, self.inner, "refuse", **self.options)
        self.migrator.contract("notes.body", stopped=True)
        self.models(None, self.inner, **self.options)
        assert self.read() == expected
        assert [type(one) for one in self.read()] == [type(one) for one in expected]
        owners = {row[0] for row in self.sql("SELECT owner_id FROM users_key WHERE state = 'active'")}
        assert owners == {number % 2 + 1 for number, one in enumerate(expected, start=1) if one is not None}

    def read(self) -> list[Any]:
        """The values as the application reads them."""
        with (
            Session(self.engine) as session,
            self.envelope.server_mode(session, provider="server", reason="test"),
        ):
            return [note.body for note in session.scalars(sa.select(self.Note).order_by(self.Note.id))]

    def is_untouched(self) -> bool:
        """Whether nothing was encrypted: no column for it, or nothing in it."""
        names = {one["name"] for one in sa.inspect(self.engine).get_columns("notes")}
        if "body_encrypted" not in names:
            return True
        return self.sql("SELECT count(*) FROM notes WHERE body_encrypted IS NOT NULL")[0][0] == 0


def refusal(database: Database) -> PreviousValueError:
    """The error with which a run is refused; nothing in its traceback shows a value or a key."""
    with pytest.raises(PreviousValueError) as raised:
        database.migrator.run("notes.body")
    shown = "".join(traceback.format_exception(raised.value))
    assert CANARY not in shown
    assert KEY not in shown
    assert WRONG not in shown
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    return raised.value


def utils(engine: Any, padding: str | None = None) -> Callable[[str], Any]:
    return lambda key: StringEncryptedType(Text, key, engine, padding)


class BinaryUtils(UtilsEncryptedType):
    """Its own class does not say that statements with it may be cached, of which SQLAlchemy warns."""

    cache_ok = True


def old_utils(key: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return BinaryUtils(Text, key, AesEngine, "pkcs5")


def fernet_of(key: str) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(key.encode().ljust(32, b"-")[:32]))


PEERS: dict[str, Callable[[str], Any]] = {
    "utils-cbc-naive": utils(AesEngine),
    "utils-cbc-pkcs5": utils(AesEngine, "pkcs5"),
    "utils-cbc-oneandzeroes": utils(AesEngine, "oneandzeroes"),
    "utils-cbc-zeroes": utils(AesEngine, "zeroes"),
    "utils-cbc-binary": old_utils,
    "utils-gcm": utils(AesGcmEngine),
    "utils-fernet": utils(FernetEngine),
    "fernet-text": lambda key: FernetText(fernet_of(key)),
    "fernet-binary": lambda key: FernetText(fernet_of(key), binary=True),
    "multifernet": lambda key: FernetText(MultiFernet([fernet_of(key), fernet_of("an older key")])),
    "advanced-string": lambda key: EncryptedString(key=key, backend=FernetBackend),
    "advanced-text": lambda key: EncryptedText(key=key, backend=FernetBackend),
}
every_peer = pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)


def stopped_in_the_middle(database: Database) -> PreviousValueError:
    """Let every row be pending again but the last ones, let the sample not see the bad one, and run."""
    database.sql("UPDATE notes SET body_encrypted = NULL")
    with pytest.MonkeyPatch.context() as patch:
        # The sample is of a thousand rows: without this the test would need a table of many thousands.
        patch.setattr(preflight, "FIRST_ROWS", 2)
        patch.setattr(preflight, "RANDOM_ROWS", 0)
        error = refusal(database)
    done = [
        row[0] for row in database.sql("SELECT id FROM notes WHERE body_encrypted IS NOT NULL ORDER BY id")
    ]
    assert done
    assert max(done) < 7
    assert database.sql("SELECT count(*) FROM notes WHERE body IS NOT NULL")[0][0] == 9
    return error
