"""An owner's keys are destroyed: nobody reads its values again, and everything else stays as it was."""

import datetime as dt
import json
from typing import Any

import pytest
from sqlalchemy import Engine, func, select, update
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    AsyncEnvelope,
    ConfigurationError,
    Envelope,
    ErasureError,
    KdfProfile,
    KeyShreddedError,
    LockedError,
    LockReason,
    NotEnrolledError,
    ReceiptError,
    check_receipt,
)
from sqlalchemy_envelope.crypto.context import owner_reference
from tests.orm.models import statements_sent
from tests.orm.verbs.shredding.erasable_models import (
    Letter,
    Person,
    eraser,
    opened,
    person,
    receipt_key,
    secret_of,
    shred,
    start,
    told,
    unlock,
)
from tests.prepared import prepared


@pytest.fixture
def begun(engine: Engine) -> Engine:
    prepared(engine, "erasable", lambda: start(engine))
    told.clear()
    return engine


def test_a_report_a_shredding_and_a_receipt(begun: Engine) -> None:
    """The report says what is lost; then it is lost, and the receipt says so to whoever checks it."""
    with Session(begun) as session:
        ada = person(session, "ada")
        with statements_sent(begun) as sent:
            report = eraser.erasure_report(session, ada, backups_kept=dt.timedelta(days=30))
        receipt = eraser.shred(session, ada, reason="asked", backups_kept=dt.timedelta(days=30))
        with pytest.raises(ReceiptError, match="not committed"):
            receipt.to_json()
        session.commit()
    checked = check_receipt(receipt.to_json(), receipt_key.public_text)
    keys = Person.__key_class__
    with Session(begun) as session:
        rows = session.execute(
            select(keys.key_id, keys.state, keys.wrapped).where(keys.owner_id == ada_id(session))
        )
        stored = {row[0]: tuple(row[1:]) for row in rows}

    assert all(one.lstrip().startswith("SELECT") for one in sent), sent
    assert dict(report.values) == {"Letter.note": 1, "Letter.tags": 1, "Letter.text": 1, "Person.diary": 1}
    assert (report.slots, len(report.keys), report.readers) == ({"secret": 1}, 2, ())
    assert {"Letter", "Person", "Post"} >= {one.name for one in report.plaintext}
    backups = report.copies[-1]
    assert backups.until is not None
    assert 29 <= (backups.until - dt.datetime.now(dt.UTC)).days <= 30
    assert checked.body["counts"] == {
        "values": 4,
        "slots": 1,
        "tickets": 0,
        "grants_given": 0,
        "grants_received": 0,
    }
    assert set(receipt.key_ids) == {one.key_id for one in checked.keys} == set(stored)
    assert {("destroyed", None)} == set(stored.values())
    assert [(one.name, one.reason, one.owner_id, one.actor) for one in told] == [
        ("shredded", "asked", (1,), "desk")
    ]


def ada_id(session: Session) -> int:
    return person(session, "ada").id


def test_nobody_reads_it_again_and_others_read_theirs(begun: Engine) -> None:
    """The secret opens nothing; values read as shredded; another owner's values and plain columns stay."""
    shred(begun, "ada")
    with Session(begun) as session, pytest.raises(NotEnrolledError, match="were destroyed"):
        unlock(session, "ada")
    with opened(begun, "ben") as session:
        letters = {one.subject: one for one in session.scalars(select(Letter))}
        with pytest.raises(KeyShreddedError) as caught:
            _ = letters["ada"].text

        assert (
            letters["ben"].text,
            letters["ada"].note,
            letters["ada"].tags,
        ) == ("dear", "[erased]", ["erased"])
    assert LockReason.SHREDDED is caught.value.reason
    assert "Letter.text" in str(caught.value)


def test_a_rollback_takes_everything_back(begun: Engine) -> None:
    """After a rollback the secret opens the owner, here and at once, and there is no receipt."""
    with Session(begun) as session:
        with unlock(session, "ada"):
            letter = session.scalars(select(Letter).where(Letter.subject == "ada")).one()
            receipt = eraser.shred(session, person(session, "ada"), reason="asked")
            session.expire_all()
            with pytest.raises(KeyShreddedError):
                _ = letter.text
            session.rollback()

            assert letter.text == "dear"
            letter.text = "dearest"
            session.commit()
        with pytest.raises(ReceiptError, match="rolled back"):
            receipt.to_json()
    with opened(begun, "ada") as session:
        assert session.scalars(select(Letter.text).where(Letter.author_id == 1)).one() == "dearest"
    assert "shredded" not in [one.name for one in told]


def test_a_savepoint_takes_it_back(begun: Engine) -> None:
    """A shredding within a savepoint that is rolled back has not happened, and may be done again."""
    with Session(begun) as session, unlock(session, "ben"):
        session.execute(update(Letter.__table__).values(subject="a write before the savepoint"))
        nested = session.begin_nested()
        undone = eraser.shred(session, person(session, "ada"), reason="asked")
        assert session.scalars(select(Letter.note).where(Letter.author_id == 1)).one() == "[erased]"
        nested.rollback()
        with pytest.raises(LockedError) as caught:
            str(session.scalars(select(Letter.note).where(Letter.author_id == 1)).one())
        done = eraser.shred(session, person(session, "ada"), reason="asked")
        session.commit()

    assert not isinstance(caught.value, KeyShreddedError)
    with pytest.raises(ReceiptError, match="rolled back"):
        undone.to_json()
    assert len(check_receipt(done.to_json(), receipt_key.public_text).keys) == 2


def test_what_waits_is_flushed_and_lost(begun: Engine) -> None:
    """A value that waited for its flush is encrypted before the keys go, and nothing after."""
    with Session(begun) as session, unlock(session, "ada"):
        session.add(Letter(author_id=1, subject="late", text="last words"))
        eraser.shred(session, person(session, "ada"), reason="asked")
        session.add(Letter(author_id=1, subject="later", text="no more"))
        with pytest.raises(LockedError):
            session.flush()
        session.rollback()


def test_every_unlocked_session_of_the_process_forgets(begun: Engine) -> None:
    """An owner who is unlocked in another session of this process reads until the commit, and not after."""
    with Session(begun) as other, unlock(other, "ada") as unlocked:
        letter = other.scalars(select(Letter).where(Letter.author_id == 1)).one()
        before = letter.text
        other.commit()
        shred(begun, "ada")
        with pytest.raises(LockedError):
            _ = letter.text

        assert before == "dear"
        assert len(unlocked.keyring) == 0


def test_an_owner_enrolled_again_is_another_one(begun: Engine) -> None:
    """New keys have new ids and later epochs. Old values stay shredded, for the owner too, until set anew."""
    old = set(shred(begun, "ada").key_ids)
    with Session(begun) as session, eraser.enroll(session, person(session, "ada"), secret="another secret"):
        session.commit()
    with Session(begun) as session:
        ada = person(session, "ada")
        with pytest.raises(Exception, match="secret"):
            eraser.unlock(session, ada, secret=secret_of("ada"))
        with eraser.unlock(session, ada, secret="another secret") as unlocked:
            letter = session.scalars(select(Letter).where(Letter.author_id == 1)).one()
            with pytest.raises(KeyShreddedError):
                _ = letter.text
            with pytest.raises(KeyShreddedError):
                _ = ada.diary
            assert letter.note == "[erased]"
            letter.text = "written anew"
            session.commit()
            new = {key.key_id: key.epoch for key in unlocked.keyring.keys_of(next(iter(unlocked.places)))}
            assert (letter.text, letter.note) == ("written anew", "[erased]")
    assert not old & set(new)
    assert {2} == set(new.values())
    again = shred(begun, "ada")
    assert set(new) == set(again.key_ids)


def test_a_deleted_and_remade_owner_is_not_the_old_one(begun: Engine) -> None:
    """Values that outlive their owner's row never open for a new owner of the same primary key."""
    receipt = shred(begun, "ada", keep_row=False)
    with Session(begun) as session:
        assert session.scalar(select(func.count()).select_from(Person).where(Person.id == 1)) == 0
        new = Person(id=1, name="ann", diary="a new diary")
        with eraser.enroll(session, new, secret=secret_of("ann")):
            session.commit()
            letter = session.scalars(select(Letter).where(Letter.author_id == 1)).one()
            with pytest.raises(LockedError):
                _ = letter.text
            why = eraser.why_locked(session, letter, "text")
            assert new.diary == "a new diary"
            keys = [key.key_id for key in session.scalars(select(Person.__key_class__).filter_by(owner_id=1))]
    assert why is not None
    assert LockReason.SHREDDED is why.reason
    assert not set(keys) & set(receipt.key_ids)


def test_the_receipt_names_nobody(begun: Engine) -> None:
    """A receipt holds no primary key, name, reason or value, and two owners have unlike tags."""
    texts = [shred(begun, name).to_json() for name in ("ada", "ben")]
    bodies = [json.loads(text)["receipt"] for text in texts]

    for text, name in zip(texts, ("ada", "ben"), strict=True):
        # The name in its quotes: hexadecimal digits may spell it.
        assert not [one for one in (f'"{name}"', "asked", "diary of", "desk", secret_of(name)) if one in text]
    assert len({body["owners"][0]["tag"] for body in bodies}) == 2
    assert receipt_key.owner_tag(owner_reference("persons", (1,))) == bodies[0]["owners"][0]["tag"]
    tag = eraser.owner_tag(Person, 1)
    assert tag == AsyncEnvelope(eraser).owner_tag(Person, (1,)) == bodies[0]["owners"][0]["tag"]
    for wrong, key in ((Person, "1"), (Person, (1, 2)), (Letter, 1), ("persons", 1)):
        with pytest.raises(ConfigurationError):
            eraser.owner_tag(wrong, key)  # type: ignore[arg-type]


def test_a_slot_counts_once(begun: Engine) -> None:
    """The report and the receipt count the ways to the keys, in however many epochs each way is."""
    with Session(begun) as session:
        ada = person(session, "ada")
        with eraser.unlock(session, ada, secret=secret_of("ada")) as unlocked:
            unlocked.add_recovery_code(ada)
            unlocked.add_secret(ada, "another secret of ada", label="phone")
            for _ in range(2):
                unlocked.rotate(ada, root=True)
            session.commit()
        report = eraser.erasure_report(session, ada)
    receipt = shred(begun, "ada")

    assert report.slots == {"recovery": 1, "secret": 2}
    assert check_receipt(receipt.to_json(), receipt_key.public_text).body["counts"]["slots"] == 3


def test_refused(begun: Engine) -> None:
    """Without keys, without a key to sign with, without a reason, or a second time, nothing is done."""
    bare = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
    with Session(begun) as session:
        ada = person(session, "ada")
        with pytest.raises(ConfigurationError, match="sign the receipt"):
            bare.shred(session, ada, reason="asked")
        with pytest.raises(ConfigurationError, match="receipt_key"):
            Envelope(receipt_key=bytes(32))  # type: ignore[arg-type]
        wrong: Any = 30
        with pytest.raises(ConfigurationError, match="timedelta"):
            eraser.erasure_report(session, ada, backups_kept=wrong)
        with pytest.raises(ConfigurationError, match="timedelta"):
            eraser.shred(session, ada, reason="asked", backups_kept=wrong)
        with pytest.raises(ConfigurationError, match="reason"):
            eraser.shred(session, ada, reason=" ")
        session.add(nobody := Person(name="nobody"))
        session.flush()
        with pytest.raises(NotEnrolledError):
            eraser.shred(session, nobody, reason="asked")
        session.rollback()
    shred(begun, "ada")
    with pytest.raises(ErasureError, match="destroyed already"):
        shred(begun, "ada")
