"""No secret, no key and no plaintext is found in the database, in what is logged, in errors, or in the
text of objects.

Each test plants canaries, goes through a whole life of an owner or makes one thing go wrong, and searches
everything
that came out of it.
"""

import base64
import copy
import datetime as dt
import enum
import json
import logging
import pickle
import re
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    URL,
    Boolean,
    Date,
    DateTime,
    Engine,
    Enum,
    Float,
    ForeignKey,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
    bindparam,
    create_engine,
    event,
    func,
    insert,
    literal,
    select,
    type_coerce,
    update,
)
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, aliased, mapped_column

from sqlalchemy_envelope import (
    EncryptedType,
    Envelope,
    EnvelopeError,
    KdfProfile,
    KeyOwner,
    LockedError,
    Sealed,
    UnlockError,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.crypto.aead import Field, ValueCipher
from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys import hierarchy
from sqlalchemy_envelope.keys.keyring import Keyring
from sqlalchemy_envelope.keys.model import OpenedKey, Purpose
from sqlalchemy_envelope.keys.providers import ServerKeyring
from sqlalchemy_envelope.keys.row_seals import RowSeals
from sqlalchemy_envelope.keys.slots import ProviderKek
from sqlalchemy_envelope.orm.columns.sealed import CIPHERTEXT
from sqlalchemy_envelope.orm.current.context import bound_to
from sqlalchemy_envelope.orm.verbs.steps import Derivation
from tests.conftest import LogCapture
from tests.prepared import tables_of

SECRET, NEW_SECRET, WRONG = "canary-first-secret", "canary-second-secret", "canary-wrong-secret"
PLAIN = "CanaryPlaintext"


class Colour(enum.Enum):
    CANARYRED = "canary-red"


class Upper(TypeDecorator[str]):
    """Refuses what is not upper case, and says what it was given."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value is not None and value != value.upper():
            raise ValueError(f"not upper case: {value!r}")
        return value


class Fails(TypeDecorator[str]):
    """A plain column whose bind processor fails on demand."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        if value == "fail":
            raise ValueError("the other column")
        return value


class Base(DeclarativeBase):
    pass


class Owner(KeyOwner, Base):
    __tablename__ = "canary_owners"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Everything(Base):
    __tablename__ = "canary_rows"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner_id: Mapped[int] = mapped_column(ForeignKey("canary_owners.id", ondelete="CASCADE"))
    unique: Mapped[str | None] = mapped_column(unique=True)
    fails: Mapped[str | None] = mapped_column(Fails)
    as_str: Mapped[Any] = mapped_column(EncryptedType(Text), nullable=True)
    as_bytes: Mapped[Any] = mapped_column(EncryptedType(LargeBinary), nullable=True)
    as_int: Mapped[Any] = mapped_column(EncryptedType(Integer), nullable=True)
    as_float: Mapped[Any] = mapped_column(EncryptedType(Float), nullable=True)
    as_decimal: Mapped[Any] = mapped_column(EncryptedType(Numeric), nullable=True)
    as_bool: Mapped[Any] = mapped_column(EncryptedType(Boolean), nullable=True)
    as_date: Mapped[Any] = mapped_column(EncryptedType(Date), nullable=True)
    as_time: Mapped[Any] = mapped_column(EncryptedType(Time), nullable=True)
    as_datetime: Mapped[Any] = mapped_column(EncryptedType(DateTime), nullable=True)
    as_zoned: Mapped[Any] = mapped_column(EncryptedType(DateTime(timezone=True)), nullable=True)
    as_interval: Mapped[Any] = mapped_column(EncryptedType(Interval), nullable=True)
    as_uuid: Mapped[Any] = mapped_column(EncryptedType(Uuid), nullable=True)
    as_enum: Mapped[Any] = mapped_column(EncryptedType(Enum(Colour)), nullable=True)
    as_json: Mapped[Any] = mapped_column(EncryptedType(JSON), nullable=True)
    as_upper: Mapped[Any] = mapped_column(EncryptedType(Upper), nullable=True)
    in_row: Mapped[Any] = mapped_column(EncryptedType(Text, bind="row"), nullable=True)


VALUES: dict[str, Any] = {
    "as_str": PLAIN + "-str",
    "as_bytes": PLAIN.encode() + b"-bytes",
    "as_int": 918_273_645_546_372_819,
    "as_float": 918273.6455463728,
    "as_decimal": Decimal("918273645546.372819918"),
    "as_bool": True,
    "as_date": dt.date(1918, 11, 9),
    "as_time": dt.time(19, 18, 27, 364554),
    "as_datetime": dt.datetime(1918, 11, 9, 19, 18, 27, 364554),
    "as_zoned": dt.datetime(1918, 11, 9, 19, 18, 27, 364554, dt.UTC),
    "as_interval": dt.timedelta(microseconds=918_273_645_546_372),
    "as_uuid": uuid.UUID("91827364-5546-4728-8191-827364554637"),
    "as_enum": Colour.CANARYRED,
    "as_json": {"CanaryMember": ["CanaryItem", 918_273_645]},
    "as_upper": "CANARYUPPER",
    "in_row": PLAIN + "-row",
}

PLAIN_CANARIES = [
    "CanaryPlaintext", "CanaryMember", "CanaryItem", "CANARYUPPER", "CANARYRED", "canary-red", "918273645",
    "918273.6455", "1918-11-09", "19:18:27", "1918, 11, 9", "19, 18, 27", "91827364-5546", "918273645546",
]  # fmt: skip
SECRET_CANARIES = [SECRET, NEW_SECRET, WRONG]


class Needles:
    """Everything that must not be found, in each spelling in which it could be."""

    def __init__(self) -> None:
        self.texts = [*PLAIN_CANARIES, *SECRET_CANARIES]
        number = (918_273_645_546_372_819).to_bytes(8, "big")
        self.raw = [text.encode() for text in self.texts] + [text.encode("utf-16-le") for text in self.texts]
        self.raw += [number, VALUES["as_uuid"].bytes]
        for one in (*SECRET_CANARIES, PLAIN):
            self.texts += [one.encode().hex(), base64.b64encode(one.encode()).decode()[:-4]]

    def add_key(self, key: bytes) -> None:
        """Raw, hexadecimal, base64, and as Python prints it."""
        self.raw.append(key)
        self.texts += [
            key.hex(),
            base64.b64encode(key).decode()[:40],
            base64.urlsafe_b64encode(key).decode()[:40],
        ]
        self.texts += [repr(key)[2:-1], repr(list(key))[1:-1]]

    def in_text(self, text: str) -> list[str]:
        lowered = text.lower()
        return [one for one in self.texts if one.lower() in lowered]

    def in_bytes(self, data: bytes) -> list[bytes]:
        texts = [one.encode() for one in self.texts]
        return [one for one in [*self.raw, *texts] if one in data or one.hex().encode() in data]


@pytest.fixture
def needles(monkeypatch: pytest.MonkeyPatch) -> Needles:
    """All canaries, and every key that is made or opened from here on: root, data, KEK and subkeys."""
    found = Needles()
    genuine = KeyBytes.__init__

    def noted(self: KeyBytes, data: bytes) -> None:
        genuine(self, data)
        found.add_key(bytes(data))

    monkeypatch.setattr(KeyBytes, "__init__", noted)
    return found


@pytest.fixture
def lite(sqlite_engine: Engine) -> Engine:
    """The tables, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return sqlite_engine


envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


def every_text_of(error: BaseException) -> str:
    """An error with all that hangs on it, as any handler might show it."""
    seen: list[str] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or len(seen) > 200:
            continue
        seen += [
            str(one),
            repr(one),
            repr(one.args),
            repr(vars(one)),
            "".join(traceback.format_exception(one)),
        ]
        for name in ("params", "statement", "orig", "detail", "hide_parameters"):
            seen.append(f"{getattr(one, name, None)} {getattr(one, name, None)!r}")
        waiting += [one.__cause__, one.__context__, getattr(one, "orig", None)]
    # The lines of this file that a traceback quotes hold no canary themselves: they name constants.
    return "\n".join(seen)


def live_a_life(engine: Engine) -> list[BaseException]:
    """Everything that the library does, and everything that commonly goes wrong."""
    caught: list[BaseException] = []

    def fails(work: Callable[[], Any]) -> None:
        with pytest.raises(Exception) as info:  # any error at all; its text is searched
            work()
        caught.append(info.value)

    with Session(engine) as session:
        owner = Owner(email="a@example.org", phone=PLAIN)
        with envelope.enroll(session, owner, secret=SECRET):
            row = Everything(owner_id=owner.id, unique="u", **VALUES)
            session.add(row)
            session.commit()
            assert [getattr(row, name) for name in VALUES] == list(VALUES.values())
        fails(lambda: row.as_str)
        fails(lambda: envelope.unlock(session, owner, secret=WRONG))
        with envelope.unlock(session, owner, secret=SECRET) as unlocked:
            session.expire_all()
            read = session.scalars(select(Everything)).one()
            assert [getattr(read, name) for name in VALUES] == list(VALUES.values())
            session.execute(select(Everything.as_str, Everything.as_json, Everything.in_row)).all()
            session.execute(select(Everything, Everything.as_str.label("again"))).all()
            assert session.execute(select(type_coerce(Everything.as_str, Everything.as_str.type))).scalar()
            assert session.scalars(select(select(Everything.as_str).scalar_subquery())).all()
            list(session.scalars(select(Everything).execution_options(yield_per=1)))
            read.as_str, read.as_json = PLAIN + "-changed", {"CanaryMember": "CanaryItem"}
            session.commit()
            made = session.scalars(
                insert(Everything).returning(Everything),
                [{"owner_id": owner.id, "as_str": PLAIN + str(n), "in_row": PLAIN} for n in range(3)],
            ).all()
            assert made[0].as_str == PLAIN + "0"
            with unlocked.using(owner):
                session.execute(update(Everything).where(Everything.owner_id == owner.id).values(as_int=5))
            session.commit()
            session.add(Everything(owner_id=owner.id, unique="u", **VALUES))
            fails(session.commit)
            session.rollback()
        envelope.change_secret(session, owner, old=SECRET, new=NEW_SECRET)
        session.commit()
        fails(lambda: envelope.unlock(session, owner, secret=SECRET))
        session.connection().exec_driver_sql("UPDATE canary_rows SET as_str = as_bytes")
        session.commit()
        session.expunge_all()
        owner = session.get_one(Owner, 1)
        with envelope.unlock(session, owner, secret=NEW_SECRET):
            fails(lambda: [one.as_str for one in session.scalars(select(Everything))])
            session.rollback()
        session.connection().exec_driver_sql("UPDATE canary_owners_keyslot SET kdf = 'x'")
        fails(lambda: envelope.unlock(session, owner, secret=NEW_SECRET))
        session.rollback()
        with envelope.unlock(session, owner, secret=NEW_SECRET):
            session.execute(update(Everything).values(as_str=None))
            owner.phone = PLAIN + "-again"
            session.commit()
    return caught


@pytest.mark.parametrize("echo", [True, "debug"])
def test_a_whole_life_leaves_nothing_on_sqlite(
    sqlite_url: URL, capture_logs: LogCapture, needles: Needles, echo: Any, caplog: Any
) -> None:
    """Neither in the file and its journals, before and after the owner is deleted, nor in the log, result
    rows and all."""
    engine = create_engine(sqlite_url, echo=echo)
    enforce_foreign_keys(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    Base.metadata.create_all(engine)
    errors = live_a_life(engine)

    def stored() -> bytes:
        path = Path(str(sqlite_url.database))
        return b"".join(one.read_bytes() for one in sorted(path.parent.glob(path.name + "*")))

    in_use = stored()
    with Session(engine) as session:
        session.delete(session.get_one(Owner, 1))
        session.commit()
    deleted = stored()
    engine.dispose()

    assert len(in_use) > 10_000
    assert b"canary_rows" in in_use
    assert needles.in_bytes(in_use) == []
    assert needles.in_bytes(deleted) == []
    assert len(capture_logs.text) > 10_000
    assert echo is True or "some encrypted: not shown" in capture_logs.text
    assert needles.in_text(capture_logs.text) == []
    assert needles.in_text(caplog.text) == []
    assert len(errors) == 6
    assert [needles.in_text(every_text_of(error)) for error in errors] == [[]] * 6


@pytest.mark.backend
def test_a_whole_life_leaves_nothing_on_postgres(
    postgres_url: URL, postgres_dump: Callable[[], str], capture_logs: LogCapture, needles: Needles
) -> None:
    """Neither in what pg_dump prints, its hexadecimal decoded too, nor in the log."""
    engine = create_engine(postgres_url.set(drivername="postgresql+psycopg"), echo="debug")
    Base.metadata.create_all(engine)
    errors = live_a_life(engine)
    engine.dispose()
    dump = postgres_dump()
    decoded = b"\n".join(bytes.fromhex(run) for run in re.findall(r"\\x((?:[0-9a-f]{2})+)", dump))

    assert len(decoded) > 1_000
    assert needles.in_text(dump) == []
    assert needles.in_bytes(dump.encode()) == []
    assert needles.in_bytes(decoded) == []
    assert "some encrypted: not shown" in capture_logs.text
    assert needles.in_text(capture_logs.text) == []
    assert [needles.in_text(every_text_of(error)) for error in errors] == [[]] * len(errors)


def test_the_search_finds_what_is_there(needles: Needles) -> None:
    """Each kind of needle, in each of its spellings: a search that finds nothing anywhere would prove
    nothing."""
    key = KeyBytes(bytes(range(200, 232)))
    data = bytes(key.buffer)

    for spelling in (
        data.hex(),
        base64.b64encode(data).decode(),
        repr(data),
        f"x{SECRET}x",
        PLAIN.encode().hex(),
    ):
        assert needles.in_text(spelling)
    for raw in (data, data.hex().encode(), PLAIN.encode(), SECRET.encode().hex().encode()):
        assert needles.in_bytes(b"<" + raw + b">")


def test_debug_echo_shows_rows_without_encrypted_columns_as_ever(
    lite: Engine, capture_logs: LogCapture
) -> None:
    """Only rows with an encrypted column are hidden, on every engine and with every way to switch the log
    on."""
    engine = create_engine(lite.url, echo="debug", logging_name="named")
    with Session(engine) as session:
        session.connection().exec_driver_sql(
            "INSERT INTO canary_owners (id, email) VALUES (1, 'a@example.org')"
        )
        session.execute(select(Owner.id, Owner.email)).all()
        shown = capture_logs.text
        session.execute(select(Owner)).all()
    engine.dispose()

    assert re.search(r"Row \(1, 'a@example.org'\)", shown)
    assert "some encrypted: not shown" not in shown
    assert "(3 columns, some encrypted: not shown)" in capture_logs.text


@pytest.mark.parametrize("how", ["level", "named", "options", "token"])
def test_no_way_to_switch_debug_on_shows_a_decrypted_row(
    lite: Engine, capture_logs: LogCapture, needles: Needles, how: str
) -> None:
    """By the logger's level, under a logging name, through an engine with options, with a logging token."""
    options: dict[str, Any] = {"named": {"echo": "debug", "logging_name": "x"}}.get(how, {})
    engine = create_engine(lite.url, **options)
    enforce_foreign_keys(engine)
    used = engine.execution_options(isolation_level="AUTOCOMMIT") if how == "options" else engine
    used = used.execution_options(logging_token="t") if how == "token" else used
    logging.getLogger("sqlalchemy.engine.Engine").setLevel(logging.DEBUG)

    with Session(used) as session:
        owner = Owner(email="a@example.org", phone=PLAIN)
        with envelope.enroll(session, owner, secret=SECRET):
            session.commit()
            assert owner.phone == PLAIN
            assert session.execute(select(Owner.phone)).all() == [(PLAIN,)]
    engine.dispose()

    assert "Row" in capture_logs.text
    assert needles.in_text(capture_logs.text) == []


def _insert(session: Session, **values: Any) -> None:
    session.add(Everything(owner_id=1, **values))
    session.flush()


TOO_LARGE = PLAIN * (17 * 2**20 // len(PLAIN))
UNENCODABLE = {
    "as_str": [PLAIN + "\ud800", 918_273_645, {PLAIN: 1}, [PLAIN], Colour.CANARYRED, PLAIN.encode()],
    "as_bytes": [PLAIN, 918_273_645],
    "as_int": [PLAIN, 918273.6455463728, True],
    "as_float": [PLAIN, Decimal("918273.6455"), 10**400 + 918_273_645],
    "as_decimal": [PLAIN, 918273.6455463728, Decimal("sNaN918273645")],
    "as_bool": [PLAIN, 918_273_645],
    "as_date": [PLAIN, dt.datetime(1918, 11, 9, 19, 18, 27), "1918-11-09"],
    "as_time": [PLAIN, dt.time(19, 18, 27, tzinfo=dt.UTC)],
    "as_datetime": [PLAIN, dt.datetime(1918, 11, 9, 19, 18, 27, tzinfo=dt.UTC)],
    "as_zoned": [PLAIN, dt.datetime(1918, 11, 9, 19, 18, 27)],
    "as_interval": [PLAIN, 918_273_645],
    "as_uuid": [PLAIN, "91827364-5546-4728-8191-827364554637"],
    "as_enum": [PLAIN, "canary-red"],
    "as_json": [{PLAIN: object()}, {PLAIN}, [PLAIN, float("nan")], {PLAIN: "\ud800"}, dt.date(1918, 11, 9)],
    "as_upper": ["CanaryPlaintext"],
    "in_row": [PLAIN + "\ud800", 918_273_645],
}


@pytest.fixture
def unlocked(lite: Engine) -> Iterator[Session]:
    """A session with its owner, number 1, unlocked and a row of it."""
    with Session(lite) as session:
        owner = Owner(id=1, email="a@example.org")
        with envelope.enroll(session, owner, secret=SECRET):
            session.add(Everything(id=uuid.UUID(int=1), owner_id=1, unique="taken", as_str="x"))
            session.commit()
            try:
                yield session
            finally:
                session.rollback()
                session.expunge_all()


@pytest.mark.parametrize("form", ["flush", "core", "literal", "many", "update", "bulk"])
@pytest.mark.parametrize("name", UNENCODABLE)
def test_a_value_that_cannot_be_stored_is_not_told(
    unlocked: Session, needles: Needles, capture_logs: LogCapture, name: str, form: str
) -> None:
    """A value of the wrong type, a lone surrogate, a member that is no JSON: the error names column and
    type alone."""
    for value in UNENCODABLE[name]:
        with pytest.raises(EnvelopeError) as caught:
            _write(unlocked, form, {name: value})
        unlocked.rollback()
        unlocked.expunge_all()

        assert needles.in_text(every_text_of(caught.value)) == []
    assert needles.in_text(capture_logs.text) == []


def _write(session: Session, form: str, values: dict[str, Any]) -> None:
    table = Everything.__table__
    if form == "flush":
        _insert(session, **values)
    elif form == "core":
        session.connection().execute(insert(table), {"owner_id": 1, **values})
    elif form == "literal":
        session.execute(insert(Everything).values(owner_id=1, **values))
    elif form == "many":
        session.execute(insert(Everything), [{"owner_id": 1}, {"owner_id": 1, **values}])
    elif form == "update":
        bound = bound_to(session) if hasattr(session, "info") else None
        with bound.using(session.get_one(Owner, 1)) if bound else nullcontext():
            # A row-bound value needs its row named, which an UPDATE of many does not.
            values = {key: value for key, value in values.items() if key != "in_row" or len(values) == 1}
            session.execute(update(Everything).where(Everything.unique == "taken").values(**values))
    else:
        session.bulk_save_objects([Everything(owner_id=1, **values)])


@pytest.mark.parametrize("form", ["flush", "core", "literal", "many", "update", "bulk"])
def test_a_value_that_is_too_large_is_not_told(unlocked: Session, needles: Needles, form: str) -> None:
    """Seventeen megabytes of canary: the error tells their number."""
    with pytest.raises(EnvelopeError) as caught:
        _write(unlocked, form, {"as_str": TOO_LARGE})

    assert needles.in_text(every_text_of(caught.value)) == []


@pytest.mark.parametrize("form", ["flush", "core", "literal", "many", "update", "bulk"])
def test_a_locked_write_does_not_tell_its_value(
    unlocked: Session, lite: Engine, needles: Needles, capture_logs: LogCapture, form: str
) -> None:
    """Nor does one for an owner that is not unlocked."""
    with Session(lite) as session:
        envelope.enroll(session, Owner(id=2, email="b@example.org"), secret=SECRET)
        session.commit()
        with pytest.raises(EnvelopeError) as caught:
            _write_for_two(session, form)

    assert needles.in_text(every_text_of(caught.value)) == []
    assert needles.in_text(capture_logs.text) == []


def _write_for_two(session: Session, form: str) -> None:
    if form in ("flush", "bulk"):
        row = Everything(owner_id=2, as_str=PLAIN)
        session.bulk_save_objects([row]) if form == "bulk" else session.add(row)
        session.flush()
    else:
        _write(_As(session, 2), form, {"as_str": PLAIN})  # type: ignore[arg-type]


class _As:
    """A session whose statements are for another owner than the one the helper writes for."""

    def __init__(self, session: Session, owner: int) -> None:
        self._session, self._owner = session, owner

    def connection(self) -> "_As":
        return self

    def execute(self, statement: Any, rows: Any = None) -> Any:
        if rows is None:
            return self._session.execute(statement.values(owner_id=self._owner))
        rows = [rows] if isinstance(rows, dict) else rows
        return self._session.execute(statement, [{**row, "owner_id": self._owner} for row in rows])


@pytest.mark.parametrize("form", ["flush", "core", "literal", "many", "update"])
def test_another_columns_failure_does_not_print_the_value(
    unlocked: Session, needles: Needles, capture_logs: LogCapture, form: str
) -> None:
    """SQLAlchemy prints a failing statement's parameters: they are ciphertext by then."""
    with pytest.raises(StatementError) as caught:
        _write(unlocked, form, {**VALUES, "fails": "fail"})

    assert "the other column" in str(caught.value)
    assert needles.in_text(every_text_of(caught.value)) == []
    assert needles.in_text(capture_logs.text) == []


@pytest.mark.parametrize("form", ["flush", "core", "literal", "many"])
def test_an_integrity_error_does_not_print_the_value(
    unlocked: Session, needles: Needles, capture_logs: LogCapture, form: str
) -> None:
    """Nor does the error of every later use of the session, which quotes it."""
    with pytest.raises(IntegrityError) as caught:
        _write(unlocked, form, {**VALUES, "unique": "taken"})
    later = None
    if form == "flush":
        with pytest.raises(Exception, match="rolled back") as info:
            unlocked.execute(select(Owner.id))
        later = info.value

    assert "UNIQUE" in str(caught.value)
    assert needles.in_text(every_text_of(caught.value)) == []
    assert later is None or needles.in_text(every_text_of(later)) == []
    assert needles.in_text(capture_logs.text) == []


REFUSED: dict[str, Callable[[Session], Any]] = {
    "func": lambda s: _insert(s, as_str=func.lower(PLAIN)),
    "expression in an update": lambda s: s.execute(
        update(Everything).values(owner_id=1, as_str=func.lower(PLAIN))
    ),
    "where": lambda s: s.execute(select(Everything).where(Everything.as_str == PLAIN)),
    "like": lambda s: s.execute(select(Everything).where(Everything.as_str.like(PLAIN))),
    "in": lambda s: s.execute(select(Everything).where(Everything.as_str.in_([PLAIN]))),
    "concat": lambda s: s.execute(select(Everything.as_str + PLAIN)),
    "typed literal": lambda s: s.execute(select(literal(PLAIN, Everything.as_str.type))),
    "typed bind": lambda s: s.execute(select(bindparam("p", type_=Everything.as_str.type)), {"p": PLAIN}),
    "from select of a literal": lambda s: s.execute(
        insert(Everything).from_select(["owner_id", "as_str"], select(literal(1), literal(PLAIN)))
    ),
    "from select of a typed literal": lambda s: s.execute(
        insert(Everything).from_select(
            ["id", "owner_id", "as_str"],
            select(literal(uuid.uuid4()), literal(1), literal(PLAIN, Everything.as_str.type)),
        )
    ),
    "an unnamed owner": lambda s: s.execute(update(Everything).values(as_str=PLAIN)),
    "a sealed value elsewhere": lambda s: _insert(
        s, as_bytes=Sealed(PLAIN.encode(), Everything.as_bytes.type.format)
    ),
    "a forged ciphertext": lambda s: _insert(s, as_bytes=(CIPHERTEXT, PLAIN.encode())),
    "an alias": lambda s: s.connection().execute(
        insert(aliased(Everything.__table__)),
        {"owner_id": 1, "as_str": PLAIN},  # type: ignore[type-var]
    ),
}


@pytest.mark.parametrize("which", REFUSED)
def test_a_refused_statement_does_not_tell_its_value(
    unlocked: Session, needles: Needles, capture_logs: LogCapture, which: str
) -> None:
    """Comparisons, expressions and literals: refused, and nothing of them is in the error or sent."""
    with pytest.raises(Exception) as caught:  # SQLAlchemy refuses some of them itself
        REFUSED[which](unlocked)
    unlocked.rollback()

    assert needles.in_text(every_text_of(caught.value)) == []
    assert needles.in_text(capture_logs.text) == []


def test_plaintext_of_a_plain_column_is_not_copied_under_an_encrypted_type(
    unlocked: Session, needles: Needles
) -> None:
    """`INSERT .. FROM SELECT` with a plain column that only says it is encrypted: it would be stored in
    the clear."""
    for lie in (
        type_coerce(Everything.unique, Everything.as_str.type),
        type_coerce(Everything.unique, Everything.as_str.type).label("as_str"),
        select(type_coerce(Everything.unique, Everything.as_str.type)).scalar_subquery(),
        select(type_coerce(Everything.unique, Everything.as_str.type).label("x")).subquery().c.x,
    ):
        source = select(literal(uuid.uuid4()), Everything.owner_id, lie)
        with pytest.raises(EnvelopeError):
            unlocked.execute(insert(Everything).from_select(["id", "owner_id", "as_str"], source))


def test_hooks_of_others_see_ciphertext(unlocked: Session, lite: Engine, needles: Needles) -> None:
    """Whoever listens to statements, as tracing does, is given no plaintext."""
    seen: list[str] = []

    def before(conn: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool) -> None:
        seen.append(f"{statement} {parameters!r} {context.compiled_parameters!r}")

    event.listen(lite, "before_cursor_execute", before)
    for form in ("flush", "core", "literal", "many", "update", "bulk"):
        _write(unlocked, form, dict(VALUES))
    event.remove(lite, "before_cursor_execute", before)

    assert len(seen) >= 6
    assert needles.in_text("\n".join(seen)) == []


def data_key(keyring: Keyring) -> OpenedKey:
    """The one data key that is open."""
    (opened,) = (one for one in keyring._opened.values() if one.stored.purpose is Purpose.DATA)
    return opened


def test_what_decryption_finds_is_not_told(unlocked: Session, needles: Needles) -> None:
    """A value that authenticates and cannot be decoded: the plaintext is in no error."""
    keyring: Keyring = bound_to(unlocked)._keyring
    opened = data_key(keyring)
    for name in ("as_json", "as_int", "as_decimal", "as_date", "as_enum", "as_uuid", "as_bool", "as_float"):
        field = Everything.__table__.c[name].type.field
        blob = ValueCipher(opened.key, opened.stored.key_id, field).encrypt(
            PLAIN.encode() + b'{"CanaryMember'
        )
        unlocked.connection().exec_driver_sql(f"UPDATE canary_rows SET {name} = ?", (blob,))
        for query in (select(Everything), select(Everything.__table__.c[name])):
            unlocked.expunge_all()
            with pytest.raises(EnvelopeError) if name != "as_int" else pytest.raises(BaseException) as caught:
                unlocked.execute(query).all()
                raise EnvelopeError("an integer is any bytes at all")

            assert needles.in_text(every_text_of(caught.value)) == []
        unlocked.connection().exec_driver_sql(f"UPDATE canary_rows SET {name} = NULL")


def _objects(session: Session) -> dict[str, Any]:
    unlocked = bound_to(session)
    keyring: Keyring = unlocked._keyring
    opened = data_key(keyring)
    type_ = Everything.__table__.c.as_str.type
    cipher = ValueCipher(opened.key, opened.stored.key_id, Field("t.c", "str"))
    salt = KdfSalt.generate(KdfProfile.unsafe_for_tests())
    seals = RowSeals(ServerKeyring([bytes(opened.key.buffer)]))
    seals.seal("users", [b"key"])
    return {
        "envelope": envelope,
        "unlocked": unlocked,
        "keyring": keyring,
        "opened": opened,
        "stored": opened.stored,
        "key": opened.key,
        "cipher": cipher,
        "field": cipher.field,
        "sealed": Sealed(cipher.encrypt(PLAIN.encode()), type_.format),
        "ciphertext": (CIPHERTEXT, cipher.encrypt(PLAIN.encode())),
        "type": type_,
        "salt": salt,
        "derivation": Derivation(SECRET.encode(), salt),
        "root": hierarchy.describe(KeyBytes.generate(), b"", opened.stored.purpose),
        "server keys": ServerKeyring([bytes(opened.key.buffer)]),
        "row seals": seals,
        "provider's kek": ProviderKek("server", b"wrapped", bytes(32), opened.key),
        "error": UnlockError("The key slot did not open."),
    }


MUST_NOT_BE_COPIED = [
    "unlocked", "keyring", "opened", "key", "cipher", "derivation", "root", "server keys", "row seals",
    "provider's kek",
]  # fmt: skip


def test_no_object_of_the_library_shows_what_it_holds(unlocked: Session, needles: Needles) -> None:
    """`repr`, `str`, `format`, `vars`, slots, `dir` and JSON: redacted, all of them, and what they hold
    likewise."""
    _write(unlocked, "flush", dict(VALUES))
    for name, one in _objects(unlocked).items():
        texts = [repr(one), f"{[one]!r}", f"{one!a}"]
        for show in (str, format):
            try:
                texts.append(show(one))
            except LockedError as refused:  # a `Sealed` is no text
                texts.append(f"{refused}")
        texts.append(repr(getattr(one, "__dict__", None)))
        if name not in (
            "key",
            "derivation",
        ):  # the buffer itself, and the pair: they have to hold what they hold
            texts += [repr(getattr(one, slot, None)) for slot in getattr(type(one), "__slots__", ())]
        try:
            texts.append(json.dumps(one, default=repr))
        except (TypeError, ValueError):
            pass
        if name == "derivation":
            texts.pop()

        assert needles.in_text("\n".join(texts)) == [], name


@pytest.mark.parametrize("name", MUST_NOT_BE_COPIED)
def test_what_holds_a_key_or_a_secret_is_not_copied_or_pickled(unlocked: Session, name: str) -> None:
    """No second holder that nobody wipes, and nothing for a cache or a queue to store."""
    _write(unlocked, "flush", {"as_str": PLAIN})
    one = _objects(unlocked)[name]

    copiers: list[Callable[[Any], Any]] = [copy.deepcopy]
    copiers += [lambda o, p=p: pickle.dumps(o, p) for p in range(pickle.HIGHEST_PROTOCOL + 1)]
    if name not in (
        "opened",
        "root",
        "provider's kek",
    ):  # frozen records of a key: a shallow copy shares it, and it is wiped with it
        copiers.append(copy.copy)
    for copier in copiers:
        with pytest.raises(TypeError):
            copier(one)


@pytest.mark.parametrize("name", ["sealed", "ciphertext", "type", "field", "stored", "salt", "error"])
def test_what_can_be_pickled_holds_nothing_in_the_clear(
    unlocked: Session, needles: Needles, name: str
) -> None:
    """A handle of ciphertext may go into a cache."""
    one = _objects(unlocked)[name]

    assert needles.in_bytes(pickle.dumps(one)) == []


def test_a_locked_object_pickles_without_plaintext(unlocked: Session, needles: Needles) -> None:
    """An object that was read while unlocked, and is pickled after that, holds no value any more."""
    _write(unlocked, "flush", {"id": uuid.UUID(int=7), **VALUES})
    unlocked.commit()
    row = unlocked.get_one(Everything, uuid.UUID(int=7))
    assert row.as_str == VALUES["as_str"]
    bound_to(unlocked).lock()

    assert needles.in_bytes(pickle.dumps(row)) == []
    assert needles.in_text(repr(vars(row)) + repr(row)) == []
