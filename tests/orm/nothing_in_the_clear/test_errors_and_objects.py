"""No error tells a value, and no object of the library shows what it holds."""

import copy
import datetime as dt
import json
import pickle
import uuid
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import Engine, bindparam, event, func, insert, literal, select, type_coerce, update
from sqlalchemy.exc import IntegrityError, StatementError
from sqlalchemy.orm import Session, aliased

from sqlalchemy_envelope import Envelope, EnvelopeError, KdfProfile, LockedError, Sealed, UnlockError
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
from tests.orm.nothing_in_the_clear.canaries import VALUES, Colour, Everything, Needles, Owner, every_text_of

SECRET, NEW_SECRET, WRONG = "canary-first-secret", "canary-second-secret", "canary-wrong-secret"
PLAIN = "CanaryPlaintext"
envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


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
