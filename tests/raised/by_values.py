"""What raises as values are written, read and migrated."""

from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Text, insert, select, update

from sqlalchemy_envelope import ReceiptKey, exceptions
from sqlalchemy_envelope.crypto.aead import MAX_VALUE_SIZE, Field
from sqlalchemy_envelope.migration import Migrator
from tests.raised.scene import NEW, PLAIN, Address, Base, Moving, Note, Scene, User, flipped, raises

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


@raises(exceptions.NormalizationError)
def address_without_a_mailbox(at: Scene) -> None:
    with at.unlock():
        at.session.add(Address(user_id=1, email=PLAIN))
        at.session.flush()


@raises(exceptions.NormalizationError)
def addresses_without_a_mailbox(at: Scene) -> None:
    with at.unlock():
        at.session.execute(insert(Address), [{"user_id": 1, "email": PLAIN}] * 3)


@raises(exceptions.StatementRefusedError)
def sought_by_what_no_index_answers(at: Scene) -> None:
    at.session.execute(select(Address).where(Address.email < PLAIN))


@raises(exceptions.LockedError)
def sought_while_nobody_is_unlocked(at: Scene) -> None:
    at.session.execute(select(Address).where(Address.email == f"{PLAIN}@example.org"))


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


# ------------------------------------------------------------------ erased owners


@raises(exceptions.KeyShreddedError)
def value_of_an_erased_owner(at: Scene) -> None:
    at.again(receipt_key=ReceiptKey(bytes(32)), providers={"kms": at.kms})
    with at.unlock():
        note = at.session.get_one(Note, 1)
        at.envelope.shred(at.session, at.ada, reason="asked")
        at.session.commit()
        _ = note.body


@raises(exceptions.ErasureError)
def owner_erased_twice(at: Scene) -> None:
    at.again(receipt_key=ReceiptKey(bytes(32)), providers={"kms": at.kms})
    with at.unlock():
        for _ in range(2):
            at.envelope.shred(at.session, at.ada, reason="asked")


@raises(exceptions.ReceiptError)
def receipt_before_the_commit(at: Scene) -> None:
    at.again(receipt_key=ReceiptKey(bytes(32)), providers={"kms": at.kms})
    with at.unlock():
        at.envelope.shred(at.session, at.ada, reason="asked").to_json()
