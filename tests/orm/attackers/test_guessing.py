"""Somebody has a copy of the database and guesses a secret: what a guess can be compared with, with a pepper
and without. The guesser is written from the specification, and uses nothing of the library."""

import hmac
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring
from sqlalchemy_envelope.crypto.argon2id import KdfSalt, derive_kek
from sqlalchemy_envelope.keys.slots import waiting_slot
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.verbs.owner_keys import active_root, load_keys, locate
from tests.orm.models import Base, Note, User
from tests.orm.outsider import ctx, expand, kek_of, key_id, public, unseal, unwrap, wrap_context
from tests.prepared import tables_of

SECRET, WRONG = "hunter2", "hunter3"
PEPPER, SERVER = b"\x0a" * 32, b"\x51" * 32
KEYS, SLOTS = Base.metadata.tables["users_key"], Base.metadata.tables["users_keyslot"]


def fitting(rows: dict[Any, list[Any]], guess: str, server_key: bytes) -> set[str]:
    """What in a copy of all rows fits a guess, wherever in a column it may stand.

    Args:
        server_key: the guesser has it too; it opens the slots of no secret.
    """
    columns = [bytes(value) for found in rows.values() for row in found for value in row if _is_bytes(value)]
    secrets = [slot for slot in rows[SLOTS] if slot.kind == "secret"]
    return {name for slot in secrets for name in _fits(rows, columns, slot, guess, server_key)}


def _fits(
    rows: dict[Any, list[Any]], columns: list[bytes], slot: Any, guess: str, server_key: bytes
) -> Iterator[str]:
    kek = kek_of(guess, slot.kdf)
    (root,) = [key for key in rows[KEYS] if key.key_id == slot.key_id]
    if any(public(kek) in value for value in columns):
        yield "public key"
    row = (
        b"slot",
        slot.slot_id.bytes,
        slot.key_id.bytes,
        b"secret",
        slot.kdf.encode(),
        public(kek),
        *[b""] * 3,
    )
    mac_key = expand(server_key, ctx("row-seal", b"users", b""))
    if hmac.digest(mac_key, ctx("row", *row), "sha256") == slot.seal[16:]:
        yield "row seal of a waiting slot"
    wraps = wrap_context("secret", root, slot.kdf)
    seals = wrap_context("secret", root, slot.kdf, public(kek))
    for value in columns:
        for start in range(len(value)):
            with suppress(AssertionError, InvalidTag):
                unwrap(value[start : start + 105], kek, wraps, is_kek=True)
                yield "wrap"
            with suppress(AssertionError, InvalidTag):
                unseal(value[start : start + 81], kek, seals)
                yield "seal"


def _is_bytes(value: object) -> bool:
    return isinstance(value, (bytes, memoryview))


def without_pepper(slot: Any, pepper: bytes) -> bytes:
    """Section 10: what a slot holds, for somebody who stole the pepper as well."""
    if slot.wrapped[:17] != b"\x15" + key_id(pepper).bytes:
        return b""
    context = ctx("slot-pepper", slot.slot_id.bytes, slot.key_id.bytes, slot.kind.encode(), slot.kdf.encode())
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + slot.wrapped[17:41] + context
    okm = expand(expand(pepper, ctx("slot-pepper")), info, 76)
    assert hmac.compare_digest(okm[44:], slot.wrapped[41:73])
    return AESGCM(okm[:32]).decrypt(okm[32:44], slot.wrapped[73:], None)


def copied(engine: Engine, pepper: ServerKeyring | None) -> dict[Any, list[Any]]:
    """A copy of all rows. In them are a slot that its owner's secret wrapped, a slot that a new epoch sealed,
    and a slot that waits for custodians."""
    tables_of(Base.metadata, engine)
    keys, profile = ServerKeyring([SERVER]), KdfProfile.unsafe_for_tests()
    envelope = Envelope(kdf_profile=profile, server_keys=keys, pepper=pepper)
    with Session(engine) as session:
        user = User(email="ada")
        with envelope.enroll(session, user, secret=SECRET, provider="server"):
            session.add(Note(user=user, body="hello"))
            session.commit()
            envelope.remove_provider(session, user, provider="server")
            session.commit()
        located, salt = locate(Desk(session, envelope.policy), user), KdfSalt.generate(profile)
        root = active_root(located, load_keys(located))
        located.store.insert_slots([waiting_slot(root, derive_kek(SECRET.encode(), salt), salt)])
        session.commit()
    with engine.connect() as connection:
        return {table: list(connection.execute(select(table))) for table in Base.metadata.sorted_tables}


def test_without_a_pepper_a_copy_tests_guesses(sqlite_engine: Engine) -> None:
    """The guesser is a good one: the right secret is told from a wrong one in each of four ways."""
    rows = copied(sqlite_engine, None)

    assert fitting(rows, SECRET, SERVER) == {"public key", "wrap", "seal", "row seal of a waiting slot"}
    assert fitting(rows, WRONG, SERVER) == set()


def test_with_a_pepper_a_copy_tests_no_guess(engine: Engine) -> None:
    """The right secret fits nothing in the rows, for somebody with the server keys as well."""
    rows = copied(engine, ServerKeyring([PEPPER]))

    assert len([slot for slot in rows[SLOTS] if slot.kind == "secret"]) == 3
    assert fitting(rows, SECRET, SERVER) == set()


def test_with_a_stolen_pepper_a_copy_tests_guesses_again(sqlite_engine: Engine) -> None:
    """Copy and pepper together are a copy without a pepper: each guess still costs its derivation."""
    rows = copied(sqlite_engine, ServerKeyring([PEPPER]))
    peeled = rows | {None: [(without_pepper(slot, PEPPER),) for slot in rows[SLOTS]]}

    assert fitting(peeled, SECRET, SERVER) == {"public key", "wrap", "seal"}
    assert fitting(peeled, WRONG, SERVER) == set()
