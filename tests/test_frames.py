"""Whatever the library raises, an error tracker finds no secret, key or plaintext in its frames: not in their
local variables as these tests walk them, and not in what the Sentry SDK sends."""

import asyncio
import datetime as dt
import time
import traceback
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, Integer, String, Text, create_engine, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import sqlalchemy_envelope as envelopes
from sqlalchemy_envelope import (
    AsyncEnvelope,
    CampaignKeyFile,
    EncryptedType,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyGrant,
    KeyOwner,
    OfflineKey,
    PreviousColumn,
    ServerKeyring,
    enforce_foreign_keys,
    exceptions,
)
from sqlalchemy_envelope.crypto import argon2id
from sqlalchemy_envelope.crypto.aead import MAX_VALUE_SIZE, Field
from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.secret import Hidden
from sqlalchemy_envelope.migration import Campaign, Migrator
from sqlalchemy_envelope.orm.verbs.steps import Derivation
from tests.frames import Needles, leaks, sentry_event, sentry_frames
from tests.orm.models import unchecked

RIGHT = "needle-right cafe\u0301"  # not in the form in which it is prepared
WRONG = "needle-wrong cafe\u0301"
NEW = "needle-new cafe\u0301"
PLAIN = "needle-plaintext"
CHEAP = KdfProfile.unsafe_for_tests()
SERVER_KEY = b"server-key-of-thirty-two-bytes-1"


FAULTS: list[Exception] = []
"""What the application's default raises next."""


def no_size() -> None:
    """A default of the application's."""
    if FAULTS:
        raise FAULTS.pop()


class Base(DeclarativeBase):
    def __repr__(self) -> str:
        return f"{type(self).__name__}({vars(self)!r})"  # as many applications have it


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    body: Mapped[str | None] = mapped_column(EncryptedType(Text))
    size: Mapped[int | None] = mapped_column(EncryptedType(Integer), default=lambda: no_size())


class Group(KeyOwner, Base):
    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "memberships"

    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Nesting(KeyGrant, Base, of="outer_id", to="inner_id"):
    __tablename__ = "nestings"

    outer_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    inner_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)


class Moving(Base):
    """Its values stand in two columns."""

    __tablename__ = "moving"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    refused: Mapped[str | None] = mapped_column(
        "refused_encrypted", EncryptedType(Text, previous=PreviousColumn("refused", Text, "refuse"))
    )
    at: Mapped[dt.datetime | None] = mapped_column(
        "at_encrypted",
        EncryptedType(sa.DateTime(timezone=True), previous=PreviousColumn("at", sa.DateTime(timezone=True))),
    )
    text: Mapped[str | None] = mapped_column(
        "text_encrypted",
        EncryptedType(
            Text,
            previous=PreviousColumn(
                "text", EncryptedType(Text, owner="user_id", label="moving.text"), "both"
            ),
        ),
    )


class Kms:
    """A provider that behaves as it is told."""

    local = True
    reference = "kms"

    def __init__(self) -> None:
        self.keys: dict[bytes, bytes] = {}
        self.fails: Callable[[bytes], bytes] | None = None

    def wrap(self, key: bytes, context: Any) -> bytes:
        if self.fails is not None:
            self.fails(key)
        self.keys[b"number %d" % len(self.keys)] = key
        return list(self.keys)[-1]

    def unwrap(self, wrapped: bytes, context: Any) -> bytes:
        key = self.keys[wrapped]
        return key if self.fails is None else self.fails(key)


class Scene:
    """A database with an owner who has a secret, a provider's slot and a note, and what errors come from."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.kms = folder, Kms()
        self.engine = create_engine(f"sqlite:///{folder / 'scene.db'}")
        enforce_foreign_keys(self.engine)
        Base.metadata.create_all(self.engine)
        self.envelope = self.make_envelope(providers={"kms": self.kms})
        self.session = Session(self.engine)
        self.ada = User(phone=PLAIN)
        with self.envelope.enroll(self.session, self.ada, secret=RIGHT, provider="kms"):
            self.session.add(Note(user_id=self.ada.id, body=PLAIN, size=4711471147))
            self.session.commit()
        self.again()

    def make_envelope(self, **options: Any) -> Envelope:
        return Envelope(kdf_profile=CHEAP, **options)

    def again(self, **options: Any) -> None:
        """Another session, with nothing cached; another envelope, if it is to be one."""
        self.session.close()
        if options:
            self.envelope = self.make_envelope(**options)
        self.session = Session(self.engine)
        self.ada = self.session.get_one(User, 1)

    def unlock(self, secret: str = RIGHT, **options: Any) -> Any:
        return self.envelope.unlock(self.session, self.ada, secret=secret, **options)

    def planted(self, table: str, change: Callable[[bytes], bytes], column: str = "wrapped") -> None:
        """Change the stored bytes of a column in all rows of a table."""
        self.session.close()
        with self.engine.begin() as connection:
            unchecked(connection)
            found = connection.execute(
                sa.text(f"SELECT rowid, {column} FROM {table} WHERE {column} IS NOT NULL")
            )
            for row, data in found.all():
                connection.execute(
                    sa.text(f"UPDATE {table} SET {column} = :made WHERE rowid = :row"),
                    {"made": change(bytes(data)), "row": row},
                )
        self.again()

    def raw(self, statement: str, **values: Any) -> None:
        """SQL past the library."""
        with self.engine.begin() as connection:
            unchecked(connection)
            connection.execute(sa.text(statement), values)


def flipped(at: int) -> Callable[[bytes], bytes]:
    """One bit of bytes changed."""

    def change(data: bytes) -> bytes:
        altered = bytearray(data)
        altered[at] ^= 1
        return bytes(altered)

    return change


SCENES: list[tuple[type[EnvelopeError], Callable[[Scene], Any]]] = []


def raises(error: type[EnvelopeError]) -> Callable[[Callable[[Scene], Any]], Callable[[Scene], Any]]:
    def note(scene: Callable[[Scene], Any]) -> Callable[[Scene], Any]:
        SCENES.append((error, scene))
        return scene

    return note


# ------------------------------------------------------------------ secrets


@raises(exceptions.UnlockError)
def wrong_secret(at: Scene) -> None:
    at.unlock(WRONG)


@raises(exceptions.UnlockError)
def wrong_secret_of_bytes(at: Scene) -> None:
    at.unlock(WRONG.encode())  # type: ignore[arg-type]


@raises(exceptions.UnlockError)
def unknown_account(at: Scene) -> None:
    at.envelope.unlock_unknown(secret=RIGHT)


@raises(exceptions.UnlockError)
def wrong_old_secret(at: Scene) -> None:
    at.envelope.change_secret(at.session, at.ada, old=WRONG, new=NEW)


@raises(exceptions.UnlockError)
def wrong_secret_to_rebind(at: Scene) -> None:
    at.envelope.rebind(at.session, at.ada, secret=WRONG)


@raises(exceptions.TransactionConflictError)
def changed_by_two(at: Scene) -> None:
    waiting = ["UPDATE users_keyslot SET wrapped = x'00'"]

    def before(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("UPDATE users_keyslot") and waiting:
            at.raw(waiting.pop())

    sa.event.listen(at.engine, "before_cursor_execute", before)
    at.envelope.change_secret(at.session, at.ada, old=RIGHT, new=NEW)


@raises(exceptions.SecretError)
def control_character(at: Scene) -> None:
    at.unlock(RIGHT + "\n")


@raises(exceptions.SecretError)
def too_many_characters(at: Scene) -> None:
    at.unlock(RIGHT * 1000)


@raises(exceptions.SecretError)
def too_many_bytes(at: Scene) -> None:
    at.envelope.change_secret(at.session, at.ada, old=RIGHT, new=NEW + "\u6f22" * 400)


@raises(exceptions.SecretError)
def no_secret_at_all(at: Scene) -> None:
    at.envelope.unlock_unknown(secret=[RIGHT])  # type: ignore[arg-type]


@raises(exceptions.SecretError)
def unassigned_character(at: Scene) -> None:
    at.envelope.enroll(at.session, User(phone=PLAIN), secret=RIGHT + "\U000e0fff")


@raises(exceptions.SecretError)
def lone_surrogate(at: Scene) -> None:
    at.unlock(RIGHT + "\udc80", authenticated=True)


@raises(exceptions.UnlockBusyError)
def too_many_derivations(at: Scene) -> None:
    at.again(concurrent_derivations=1, derivation_wait=0.01)
    assert at.envelope.limit._slots.acquire(timeout=1)
    at.unlock()


@raises(exceptions.ConfigurationError)
def secret_and_provider(at: Scene) -> None:
    at.unlock(RIGHT, provider="kms")


@raises(exceptions.ConfigurationError)
def the_wrong_kind_of_session(at: Scene) -> None:
    at.envelope.unlock(AsyncSession(), at.ada, secret=RIGHT)  # type: ignore[arg-type]


@raises(exceptions.ConfigurationError)
def not_an_owner(at: Scene) -> None:
    at.envelope.enroll(at.session, Note(body=PLAIN), secret=RIGHT)


@raises(exceptions.NotEnrolledError)
def not_enrolled(at: Scene) -> None:
    at.raw("INSERT INTO users (id) VALUES (2)")
    at.envelope.unlock(at.session, at.session.get_one(User, 2), secret=RIGHT)


@raises(exceptions.NotEnrolledError)
def new_owner_with_values(at: Scene) -> None:
    at.session.add(User(phone=PLAIN))
    at.session.flush()


@raises(exceptions.AlreadyEnrolledError)
def enrolled_before(at: Scene) -> None:
    at.envelope.enroll(at.session, at.ada, secret=NEW)


@raises(exceptions.EnrollmentError)
def nothing_would_open_it(at: Scene) -> None:
    at.envelope.enroll(at.session, User(phone=PLAIN))


@raises(exceptions.UnclaimedError)
def unclaimed(at: Scene) -> None:
    key = CampaignKeyFile.generate(at.folder / "campaign.key")
    at.again(providers={"campaign": key})
    at.raw("INSERT INTO users (id) VALUES (2)")
    Campaign(at.engine, at.envelope, Base, provider="campaign").provide()
    at.envelope.unlock(at.session, at.session.get_one(User, 2), secret=RIGHT)


# ------------------------------------------------------------------ stored keys


@raises(exceptions.TamperedKeyError)
def slot_with_a_flipped_bit(at: Scene) -> None:
    at.planted("users_keyslot", flipped(-1))
    at.unlock()


@raises(exceptions.UnlockError)
def slot_with_another_commitment(at: Scene) -> None:
    at.planted("users_keyslot", flipped(30))
    at.unlock()


@raises(exceptions.TamperedKeyError)
def data_key_with_a_flipped_bit(at: Scene) -> None:
    at.planted("users_key", flipped(-1))
    at.unlock()


@raises(exceptions.TamperedKeyError)
def slot_with_anothers_public_key(at: Scene) -> None:
    at.planted("users_keyslot", flipped(3), "recipient_public_key")
    at.unlock()


@raises(exceptions.FormatError)
def slot_of_another_format(at: Scene) -> None:
    at.planted("users_keyslot", lambda data: b"\x7f" + data[1:])
    at.unlock()


@raises(exceptions.TruncatedError)
def slot_cut_short(at: Scene) -> None:
    at.planted("users_keyslot", lambda data: data[:50])
    at.unlock()


@raises(exceptions.KdfParametersError)
def weak_parameters(at: Scene) -> None:
    at.raw("UPDATE users_keyslot SET kdf = replace(kdf, 'm=64', 'm=32')")
    at.unlock()


@raises(exceptions.OwnerMismatchError)
def keys_of_another_owner(at: Scene) -> None:
    at.planted("users_key", flipped(-1), "owner_reference")
    at.unlock()


@raises(exceptions.KeyNotFoundError)
def no_slot(at: Scene) -> None:
    at.raw("DELETE FROM users_keyslot")
    at.unlock()


@raises(exceptions.RowSealError)
def no_row_seal(at: Scene) -> None:
    at.again(server_keys=ServerKeyring([SERVER_KEY]))
    at.unlock()


@raises(exceptions.GrantError)
def members_of_each_other(at: Scene) -> None:
    with at.unlock():
        groups = [Group(name=PLAIN), Group(name=PLAIN)]
        for group in groups:
            at.envelope.enroll(at.session, group)
            at.session.add(Membership(group_id=group.id, user_id=at.ada.id))
            at.session.flush()
        one, other = (group.id for group in groups)
        at.session.add_all([Nesting(outer_id=one, inner_id=other), Nesting(outer_id=other, inner_id=one)])
        at.session.flush()


# ------------------------------------------------------------------ providers


def by_provider(at: Scene) -> None:
    at.again(providers={"kms": at.kms})
    at.envelope.unlock(at.session, at.ada, provider="kms", reason="a test")


def failing(how: Callable[[bytes], bytes]) -> Callable[[Scene], None]:
    def scene(at: Scene) -> None:
        at.kms.fails = how
        by_provider(at)

    return scene


def printing(key: bytes) -> bytes:
    raise ValueError(f"this key: {key!r}, {key.hex()}")


class UnprintableError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no")


def unprintable(key: bytes) -> bytes:
    raise UnprintableError(key)


for how in (printing, unprintable, lambda key: key + b"\n", lambda key: [key], lambda key: key[::-1]):
    raises(exceptions.ProviderError)(failing(how))  # type: ignore[arg-type]


@raises(exceptions.ProviderError)
def key_not_wrapped(at: Scene) -> None:
    at.again(providers={"kms": at.kms})
    at.kms.fails = printing
    at.envelope.enroll(at.session, User(phone=PLAIN), secret=RIGHT, provider="kms")


@raises(exceptions.ProviderError)
def key_in_an_error_without_repr(at: Scene) -> None:
    at.again(providers={"kms": at.kms})
    at.kms.fails = unprintable
    at.envelope.enroll(at.session, User(phone=PLAIN), secret=RIGHT, provider="kms")


@raises(exceptions.ProviderTimeoutError)
def provider_too_slow(at: Scene) -> None:
    at.kms.local = False

    def slow(key: bytes) -> bytes:
        time.sleep(0.2)
        return key

    at.kms.fails = slow
    at.again(providers={"kms": at.kms}, provider_timeout=0.01, provider_retries=0)
    at.envelope.unlock(at.session, at.ada, provider="kms", reason="a test")


@raises(exceptions.ConfigurationError)
def unknown_provider(at: Scene) -> None:
    at.envelope.unlock(at.session, at.ada, provider="other", reason="a test")


@raises(exceptions.ConfigurationError)
def server_key_cut_short(at: Scene) -> None:
    ServerKeyring([SERVER_KEY, RIGHT.encode()])


@raises(exceptions.ConfigurationError)
def server_keys_as_one_text(at: Scene) -> None:
    ServerKeyring(RIGHT)  # type: ignore[arg-type]


@raises(exceptions.ConfigurationError)
def server_key_in_text(at: Scene) -> None:
    ServerKeyring([RIGHT])  # type: ignore[list-item]


@raises(exceptions.ConfigurationError)
def server_key_twice(at: Scene) -> None:
    ServerKeyring([SERVER_KEY, SERVER_KEY])


def _file_of(at: Scene, text: str) -> Path:
    path = at.folder / "keys"
    path.touch(0o600)
    path.write_text(text)
    return path


@raises(exceptions.ConfigurationError)
def file_with_something_else(at: Scene) -> None:
    good = ServerKeyring.generate_key()
    ServerKeyring.from_file(_file_of(at, f"{good}\n{RIGHT}\n"))


@raises(exceptions.ConfigurationError)
def campaign_file_with_something_else(at: Scene) -> None:
    CampaignKeyFile(_file_of(at, RIGHT))


@raises(exceptions.ConfigurationError)
def offline_key_cut_short(at: Scene) -> None:
    OfflineKey(RIGHT.encode())


# ------------------------------------------------------------------ writing


@raises(exceptions.LockedError)
def locked_write(at: Scene) -> None:
    at.session.add(Note(user_id=1, body=PLAIN))
    at.session.flush()


@raises(exceptions.LockedError)
def locked_bulk_write(at: Scene) -> None:
    at.session.execute(insert(Note), [{"user_id": 1, "body": PLAIN}] * 3)


@raises(exceptions.LockedError)
def locked_values_in_a_statement(at: Scene) -> None:
    at.session.execute(insert(Note).values([{"user_id": 1, "body": PLAIN}] * 2))


@raises(exceptions.StatementRefusedError)
def write_without_owner(at: Scene) -> None:
    with at.unlock():
        at.session.execute(update(Note).values(body=PLAIN))


@raises(exceptions.StatementRefusedError)
def written_in_an_expression(at: Scene) -> None:
    with at.unlock():
        at.session.execute(insert(Note).values(user_id=1, body=sa.func.upper(PLAIN)))


@raises(exceptions.StatementRefusedError)
def compared(at: Scene) -> None:
    with at.unlock():
        at.session.scalars(select(Note).where(Note.body == PLAIN))


@raises(exceptions.StatementRefusedError)
def compared_in_a_function(at: Scene) -> None:
    with at.unlock():
        at.session.scalars(select(Note).where(sa.func.lower(Note.body) == PLAIN))


@raises(exceptions.StatementRefusedError)
def written_through_another_type(at: Scene) -> None:
    with at.unlock():
        values = sa.bindparam("body", PLAIN, type_=Text)
        at.session.execute(insert(Note).values(user_id=1, body=values))


@raises(exceptions.ValueEncodingError)
def wrong_type(at: Scene) -> None:
    with at.unlock():
        at.session.add(Note(user_id=1, size=PLAIN, body=PLAIN))
        at.session.flush()


@raises(exceptions.ValueEncodingError)
def wrong_type_in_one_of_many_rows(at: Scene) -> None:
    with at.unlock():
        rows: list[Any] = [{"user_id": 1, "body": PLAIN, "size": 1} for _ in range(20)]
        rows[13]["size"] = PLAIN
        at.session.execute(insert(Note), rows)


@raises(exceptions.ValueTooLargeError)
def too_large(at: Scene) -> None:
    with at.unlock():
        at.session.execute(insert(Note).values(user_id=1, body=PLAIN * (MAX_VALUE_SIZE // len(PLAIN) + 1)))


@raises(exceptions.ValueTooLargeError)
def too_large_and_pending(at: Scene) -> None:
    large = PLAIN * (MAX_VALUE_SIZE // len(PLAIN) + 1)
    at.session.execute(insert(Moving).values(user_id=1, text=large))


@raises(exceptions.UnflushedError)
def unflushed(at: Scene) -> None:
    with at.unlock():
        at.session.add(Note(user_id=1, body=PLAIN))


@raises(exceptions.UnflushedError)
def locked_by_hand(at: Scene) -> None:
    with at.unlock() as unlocked:
        at.session.add(Note(user_id=1, body=PLAIN))
        unlocked.lock()


@raises(exceptions.NotEnrolledError)
def written_for_somebody_without_keys(at: Scene) -> None:
    at.raw("INSERT INTO users (id) VALUES (2)")
    with at.envelope.write_only(at.session):
        at.session.add(Note(user_id=2, body=PLAIN))
        at.session.flush()


# ------------------------------------------------------------------ reading


@raises(exceptions.LockedError)
def locked_read(at: Scene) -> None:
    note = at.session.get_one(Note, 1)
    sa.inspect(note).dict["title"] = PLAIN  # something else that the object has
    assert note.body is None


@raises(exceptions.LockedError)
def left_read(at: Scene) -> None:
    with at.unlock():
        note = at.session.get_one(Note, 1)
        assert note.body == PLAIN
    assert note.body is None


@raises(exceptions.SessionLeftError)
def entered_twice(at: Scene) -> None:
    unlocked = at.unlock()
    with unlocked:
        pass
    with unlocked:
        pass


@raises(exceptions.SessionForkedError)
def used_in_a_child(at: Scene) -> None:
    with at.unlock() as unlocked:
        unlocked.close_in_child()
        at.session.expire_all()
        assert at.session.get_one(Note, 1).body is None


@raises(exceptions.LockedError)
def using_somebody_else(at: Scene) -> None:
    at.raw("INSERT INTO users (id) VALUES (2)")
    with at.unlock() as unlocked, unlocked.using(at.session.get_one(User, 2)):
        pass


def reading(at: Scene, change: Callable[[bytes], bytes]) -> None:
    at.planted("notes", change, "body")
    with at.unlock():
        note = at.session.get_one(Note, 1)
        assert note.body is None


@raises(exceptions.DecryptionError)
def altered_value(at: Scene) -> None:
    reading(at, flipped(-1))


@raises(exceptions.FormatError)
def plaintext_where_ciphertext_belongs(at: Scene) -> None:
    reading(at, lambda data: b"not ours, and long enough to be taken for a value of ours")


@raises(exceptions.TruncatedError)
def value_cut_short(at: Scene) -> None:
    reading(at, lambda data: data[:30])


@raises(exceptions.FormatError)
def value_of_another_type(at: Scene) -> None:
    """It authenticates, and its bytes are not what the column's type makes."""
    with at.unlock() as unlocked:
        field = Field("notes.size", "int")
        cipher = unlocked.keyring.writer(next(iter(unlocked.keyring)), "", field)
        assert cipher is not None
        at.raw("UPDATE notes SET size = :blob", blob=cipher.encrypt(b"\0\0" + PLAIN.encode()))
        at.session.expire_all()
        note = at.session.get_one(Note, 1)
        assert note.size is None


@raises(exceptions.DecryptionError)
def value_of_another_owner(at: Scene) -> None:
    ben = User(phone=PLAIN)
    at.envelope.enroll(at.session, ben, secret=NEW)
    at.session.commit()
    at.raw("UPDATE notes SET user_id = 2")
    with at.unlock(), at.envelope.unlock(at.session, ben, secret=NEW):
        assert [one.body for one in at.session.scalars(select(Note))]


@raises(exceptions.DecryptionError)
def value_of_another_owner_with_one_unlocked(at: Scene) -> None:
    ben = User(phone=PLAIN)
    at.envelope.enroll(at.session, ben, secret=NEW)
    at.session.commit()
    at.raw("UPDATE notes SET user_id = 2")
    with at.unlock():
        assert [one.body for one in at.session.scalars(select(Note))]


@raises(exceptions.PlaintextRefusedError)
def plaintext_refused(at: Scene) -> None:
    at.raw("INSERT INTO moving (id, user_id, refused) VALUES (1, 1, :plain)", plain=PLAIN)
    with at.unlock():
        assert at.session.get_one(Moving, 1).refused is None


@raises(exceptions.PlaintextRefusedError)
def plaintext_refused_in_a_column(at: Scene) -> None:
    at.raw("INSERT INTO moving (id, user_id, refused) VALUES (1, 1, :plain)", plain=PLAIN)
    with at.unlock():
        at.session.execute(select(Moving.refused)).all()


# ------------------------------------------------------------------ migrating


def migrator(at: Scene) -> Migrator:
    return Migrator(at.engine, at.envelope, Base, provider="kms")


@raises(exceptions.MigrationStoppedError)
def value_that_does_not_fit(at: Scene) -> None:
    job = migrator(at)
    job.expand("moving.at")
    at.raw("INSERT INTO moving (id, user_id, at, text) VALUES (1, 1, '2020-01-01', :plain)", plain=PLAIN)
    job.run("moving.at")


@raises(exceptions.PreviousValueError)
def previous_value_altered(at: Scene) -> None:
    with at.unlock():
        at.session.add(Moving(id=1, user_id=1, text=PLAIN))
        at.session.commit()
    job = migrator(at)
    job.expand("moving.text")
    at.planted("moving", flipped(-1), "text")
    at.raw("UPDATE moving SET text_encrypted = NULL")
    job.run("moving.text")


@raises(exceptions.MigrationRefusedError)
def step_that_is_not_due(at: Scene) -> None:
    at.raw("INSERT INTO moving (id, user_id, at) VALUES (1, 1, '2020-01-01')")
    job = migrator(at)
    job.expand("moving.at")
    job.contract("moving.at")


NOT_RAISED = {
    exceptions.EnvelopeError: "what every error is; none is no more than that",
    exceptions.MigrationError: "what every error of a migration is; none is no more than that",
}


@pytest.fixture
def needles(monkeypatch: pytest.MonkeyPatch) -> Needles:
    return Needles(monkeypatch)


@pytest.fixture
def scene(tmp_path: Path, needles: Needles) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.session.close()
    made.engine.dispose()


def test_every_error_is_raised_here() -> None:
    """No class of errors is left out without a reason."""
    every = {one for one in vars(exceptions).values() if isinstance(one, type)}
    every = {one for one in every if issubclass(one, EnvelopeError)}

    assert every == {error for error, _ in SCENES} | NOT_RAISED.keys()
    assert envelopes.EnvelopeError is EnvelopeError


@pytest.mark.parametrize(
    ("error", "how"),
    SCENES,
    ids=[f"{one.__name__}-{how.__name__}-{i}" for i, (one, how) in enumerate(SCENES)],
)
def test_no_frame_of_an_error_holds_a_needle(
    scene: Scene, needles: Needles, error: type[EnvelopeError], how: Callable[[Scene], Any]
) -> None:
    """Neither the frames themselves nor what the Sentry SDK makes of them, with its defaults, show a secret,
    a key or a plaintext; and no key and no secret is in a frame of another library."""
    with pytest.raises(error) as caught:
        how(scene)
    found, count = leaks(caught.value, needles)
    event = sentry_event(caught.value)
    ours = sentry_frames(event, "sqlalchemy_envelope")
    print(f"{error.__name__}: {count} frames walked, {len(ours)} sent, {len(needles.keys)} keys")

    assert type(caught.value) is error
    assert count > 0
    assert ours
    assert found == []
    assert [frame["function"] for frame in ours if needles.in_text(str(frame.get("vars")))] == []
    others = [one for one in sentry_frames(event, "") if not (one.get("module") or "").startswith("tests.")]
    assert [
        frame["function"] for frame in others if needles.in_text(str(frame.get("vars")), plaintext=False)
    ] == []


class OwnError(Exception):
    """An application's."""


def enrolled_twice_in_the_database(at: Scene) -> None:
    at.session.expunge_all()
    at.envelope.enroll(at.session, User(id=1, phone=PLAIN), secret=RIGHT)


def raised_by_a_default(at: Scene) -> None:
    FAULTS.append(OwnError())
    with at.unlock():
        at.session.execute(insert(Note), [{"user_id": 1, "body": PLAIN}] * 2)


def raised_inside(at: Scene) -> None:
    with at.unlock() as unlocked, unlocked.using(at.ada):
        raise OwnError(at.session.get_one(Note, 1).id)


@pytest.mark.parametrize("how", [enrolled_twice_in_the_database, raised_by_a_default, raised_inside])
def test_no_frame_of_another_error_holds_a_needle(
    scene: Scene, needles: Needles, how: Callable[[Scene], None]
) -> None:
    """The same of errors that are not the library's and come through its frames."""
    with pytest.raises((OwnError, sa.exc.IntegrityError)) as caught:
        how(scene)
    found, _ = leaks(caught.value, needles)
    ours = sentry_frames(sentry_event(caught.value), "sqlalchemy_envelope")

    assert found == []
    assert not needles.in_text(str([frame.get("vars") for frame in ours]))


def test_no_frame_of_an_asynchronous_error_holds_a_needle(scene: Scene, needles: Needles) -> None:
    """The same of errors that come through threads and greenlets."""
    url = scene.engine.url.set(drivername="sqlite+aiosqlite")

    async def wrong(verb: Callable[[AsyncEnvelope, AsyncSession, User], Any]) -> BaseException:
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session:
            with pytest.raises(EnvelopeError) as caught:
                await verb(AsyncEnvelope(scene.envelope), session, await session.get_one(User, 1))
        await engine.dispose()
        return caught.value

    verbs: list[Callable[[AsyncEnvelope, AsyncSession, User], Any]] = [
        lambda envelope, session, ada: envelope.unlock(session, ada, secret=WRONG),
        lambda envelope, session, ada: envelope.enroll(session, ada, secret=WRONG),
        lambda envelope, session, ada: envelope.change_secret(session, ada, old=WRONG, new=NEW),
        lambda envelope, session, ada: envelope.rebind(session, ada, secret=RIGHT + "\t"),
        lambda envelope, session, ada: envelope.unlock_unknown(secret=RIGHT),
    ]
    for verb in verbs:
        error = asyncio.run(wrong(verb))
        found, count = leaks(error, needles)

        assert count > 0
        assert found == []
        for frame in sentry_frames(sentry_event(error), "sqlalchemy_envelope"):
            assert not needles.in_text(str(frame.get("vars")))


def test_the_frames_of_a_derivation_that_failed_are_dropped(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What argon2 raises, as for want of memory, comes without its frames: they hold the prepared secret."""

    def no_memory(secret: bytes, *_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(argon2id, "hash_secret_raw", no_memory)
    with pytest.raises(MemoryError) as caught:
        scene.unlock()
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(caught.value.__traceback__)]

    assert "derive_kek" in names
    assert "no_memory" not in names


def test_a_derivation_is_not_looked_into() -> None:
    """Neither its items, fields or attributes nor a copy of it show the secret."""
    derivation = Derivation(RIGHT.encode(), KdfSalt.generate(CHEAP))
    hidden = Hidden(RIGHT)

    assert not hasattr(derivation, "__dict__")
    assert not isinstance(derivation, tuple)
    assert RIGHT not in repr([derivation, hidden, derivation.secret])
    assert derivation.secret.reveal() == RIGHT.encode()
    for one in (derivation, hidden):
        for spread in (copy, vars, iter, len):
            with pytest.raises(TypeError):
                spread(one)  # type: ignore[operator]


def test_frames_of_sqlalchemy_are_sent_by_default_and_left_out_by_one_option(
    scene: Scene, needles: Needles
) -> None:
    """What the threat model says: SQLAlchemy's own frames hold the rows of a statement, unless the tracker is
    told to send no local variables."""
    with pytest.raises(exceptions.LockedError) as caught:
        locked_bulk_write(scene)
    by_default = sentry_event(caught.value)
    without = sentry_event(caught.value, include_local_variables=False)

    assert needles.in_text(str(sentry_frames(by_default, "sqlalchemy.")))
    assert not needles.in_text(str(without))
