"""Neither database gives a guess of a secret a test, and neither opens anything."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, MetaData
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.argon2id import KdfSalt, derive_kek
from sqlalchemy_envelope.crypto.key_share import KeyShare
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import EnvelopeError
from sqlalchemy_envelope.keys.slots import open_slot
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.tables.owners import require_owner_class
from tests.conftest import LogCapture
from tests.orm.two_databases.conftest import Two
from tests.orm.two_databases.split_models import CHEAP, NEW, SECRET, User, envelope, new_user


def everything_in(engine: Engine) -> bytes:
    """Every column of every row, as bytes and as text."""
    metadata, found = MetaData(), bytearray()
    metadata.reflect(engine)
    with engine.connect() as connection:
        for table in metadata.tables.values():
            raw = sa.table(table.name, *(sa.column(column.name) for column in table.columns))
            for row in connection.execute(sa.select(raw)):
                for value in row:
                    found += value if isinstance(value, (bytes, memoryview)) else str(value).encode()
                    found += b"\n"
    return bytes(found)


def traces_of(kek: KeyBytes) -> list[bytes]:
    """All that the library stores of a KEK in the clear: its public key, and what a commitment would be."""
    made = [kdf.x25519_public(kek), kdf.commitment(kek), kdf.key_id_of(kdf.commitment(kek)).bytes]
    return [*made, *(one.hex().encode() for one in made)]


def stored_slots(session: Session, owner: User) -> tuple[Any, Any]:
    """The first slot of an owner, and the root key that it opens."""
    store = Desk(session, envelope.policy).keys(require_owner_class(owner))
    keys = [one.stored for one in store.load([(owner.id,)])]
    root = next(key for key in keys if key.purpose == "root")
    return store.load_slots([root.key_id])[0], root


def test_the_first_database_tests_no_guess(two: Two) -> None:
    """With the right secret and all of the first database, nothing there is a function of what can be
    computed: no trace of a KEK without the share, or with another one; with the share, there is one."""
    with two.sessions() as session:
        ada, ben = new_user(session), new_user(session, "ben")
        (slot, root), (others, _) = stored_slots(session, ada), stored_slots(session, ben)
    salt = KdfSalt.parse(slot.kdf, policy=CHEAP)
    with two.second.connect() as connection:
        shares = {
            row[0]: KeyShare.read(row[0], row[1])
            for row in connection.execute(
                sa.select(User.__share_class__.share_id, User.__share_class__.share)
            )
        }
    assert salt.share_id is not None
    share = shares[salt.share_id]
    other = shares[KdfSalt.parse(others.kdf, policy=CHEAP).share_id or salt.share_id]
    dump = everything_in(two.first)
    right = derive_kek(SECRET.encode(), salt.with_share(share))
    wrong = [
        derive_kek(SECRET.encode(), KdfSalt(salt.profile, salt.salt)),
        derive_kek(SECRET.encode(), salt.with_share(other)),
        derive_kek(NEW.encode(), salt.with_share(share)),
    ]

    assert any(trace in dump for trace in traces_of(right))
    assert not any(trace in dump for kek in wrong for trace in traces_of(kek))
    assert bytes(share.buffer) not in dump
    assert bytes(open_slot(slot, root, right).key.buffer)
    for kek in wrong:
        assert not opens(slot, root, kek)


def opens(slot: Any, root: Any, kek: KeyBytes) -> bool:
    try:
        open_slot(slot, root, kek)
    except EnvelopeError:
        return False
    return True


def test_the_second_database_names_nobody(lite_two: Two) -> None:
    """It holds ids of shares, random bytes, a schema and times: nothing of a name, a primary key, a salt or a
    root key."""
    with lite_two.sessions() as session:
        ada = new_user(session, secret=SECRET, provider="server")
        slot, root = stored_slots(session, ada)
    with lite_two.second.connect() as connection:
        (row,) = connection.execute(sa.select(User.__share_class__.__table__)).all()

    assert set(row._mapping) == {"share_id", "share", "slot_schema", "created_at", "unused_since"}
    assert row.share_id == kdf.key_id_of(kdf.commitment(KeyBytes(row.share)))
    dump = everything_in(lite_two.second)
    for known in (slot.slot_id, slot.key_id, root.key_id):
        assert known.bytes not in dump
        assert known.hex.encode() not in dump


def test_a_changed_secret_leaves_no_test_of_the_old_one(lite_two: Two) -> None:
    """A changed secret leaves nothing of the old one in the first database that the new share would test."""
    with lite_two.sessions() as session:
        ada = new_user(session)
        before, _ = stored_slots(session, ada)
        session.rollback()
        envelope.change_secret(session, ada, old=SECRET, new=NEW)
        session.commit()
        after, _ = stored_slots(session, ada)

    assert before.kdf.encode() not in everything_in(lite_two.first)
    assert before.recipient_public_key != after.recipient_public_key


def test_a_share_does_not_show_itself(two: Two, capture_logs: LogCapture) -> None:
    """Neither a log of statements nor the driver's error holds a share that is written."""
    with two.sessions() as session:
        new_user(session)
        written = capture_logs.text
        (share,) = session.scalars(sa.select(User.__share_class__.share)).all()
        twice = KeyShare(share)
        with pytest.raises(IntegrityError) as refused:
            Desk(session, envelope.policy).shares(require_owner_class(User())).store([twice])

    assert "INSERT INTO users_keyshare" in written
    for text in (written, str(refused.value), repr(twice)):
        assert share.hex() not in text
        assert repr(share)[2:-1] not in text
        assert repr(share)[2:20] not in text
