"""What raises at a secret, or at a stored key."""

import datetime as dt

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from sqlalchemy_envelope import (
    Backoff,
    CampaignKeyFile,
    EscrowKey,
    MemoryThrottle,
    OpenedEscrowKey,
    ServerKeyring,
    Throttle,
    exceptions,
)
from sqlalchemy_envelope.migration import Campaign
from tests.raised.scene import (
    CODE,
    NEW,
    PLAIN,
    RIGHT,
    SERVER_KEY,
    WRONG,
    Base,
    Group,
    Membership,
    Nesting,
    Note,
    Scene,
    User,
    flipped,
    raises,
)

# ------------------------------------------------------------------ tickets


def ticket_of(at: Scene) -> str:
    """A ticket of an owner, in an application with server keys."""
    at.again(server_keys=ServerKeyring([SERVER_KEY]))
    at.envelope.seal_rows(at.session, User)
    with at.unlock() as unlocked:
        ticket = unlocked.issue_ticket(at.ada, lifetime=dt.timedelta(days=1), idle=dt.timedelta(hours=1))
        at.session.commit()
    return str(ticket)


@raises(exceptions.TicketError)
def no_ticket(at: Scene) -> None:
    at.envelope.unlock(at.session, at.ada, ticket=RIGHT)


@raises(exceptions.TicketError)
def altered_ticket(at: Scene) -> None:
    ticket = ticket_of(at)
    last = "A" if ticket[-1] != "A" else "B"
    at.envelope.unlock(at.session, at.ada, ticket=ticket[:-1] + last)


@raises(exceptions.TicketError)
def altered_ticket_row(at: Scene) -> None:
    ticket = ticket_of(at)
    at.planted("users_keyticket", flipped(-1))
    at.envelope.unlock(at.session, at.ada, ticket=ticket)


@raises(exceptions.TamperedKeyError)
def planted_ticket_row(at: Scene) -> None:
    ticket = ticket_of(at)
    at.raw("UPDATE users_keyticket SET issued_at = 3")
    at.envelope.unlock(at.session, at.ada, ticket=ticket)


@raises(exceptions.TicketExpiredError)
def idle_ticket(at: Scene) -> None:
    ticket = ticket_of(at)
    at.raw("UPDATE users_keyticket SET used_at = '2020-01-01 00:00:00.000000'")
    at.envelope.unlock(at.session, at.ada, ticket=ticket)


@raises(exceptions.LockedError)
def settled_by_ticket(at: Scene) -> None:
    ticket = ticket_of(at)
    with at.envelope.unlock(at.session, at.ada, ticket=ticket) as unlocked:
        unlocked.settle()


@raises(exceptions.LockedError)
def secret_by_ticket(at: Scene) -> None:
    ticket = ticket_of(at)
    with at.envelope.unlock(at.session, at.ada, ticket=ticket) as unlocked:
        unlocked.add_secret(at.ada, NEW, label="phone")


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
def unknown_account_with_a_recovery_code(at: Scene) -> None:
    at.envelope.unlock_unknown(recovery_code=CODE)


@raises(exceptions.UnlockError)
def wrong_old_secret(at: Scene) -> None:
    at.envelope.change_secret(at.session, at.ada, old=WRONG, new=NEW)


@raises(exceptions.UnlockError)
def recovery_code_of_nobody(at: Scene) -> None:
    at.envelope.unlock(at.session, at.ada, recovery_code=CODE)


@raises(exceptions.UnlockError)
def reset_with_a_recovery_code_of_nobody(at: Scene) -> None:
    at.envelope.reset_secret(at.session, at.ada, recovery_code=CODE, new=NEW)


def name_a_share(at: Scene) -> None:
    at.raw("UPDATE users_keyslot SET kdf = replace(kdf, 'p=1$', 'p=1,share=AAAAAAAAAAAAAAAAAAAAAA$')")


@raises(exceptions.KeyShareError)
def share_that_is_nowhere(at: Scene) -> None:
    name_a_share(at)
    at.unlock()


@raises(exceptions.KeyShareError)
def share_of_the_old_secret_that_is_nowhere(at: Scene) -> None:
    name_a_share(at)
    at.envelope.change_secret(at.session, at.ada, old=RIGHT, new=NEW)


@raises(exceptions.RecoveryCodeError)
def mistyped_recovery_code(at: Scene) -> None:
    at.envelope.reset_secret(at.session, at.ada, recovery_code=CODE[:-1] + "0", new=NEW)


@raises(exceptions.RecoveryCodeError)
def cut_recovery_code(at: Scene) -> None:
    at.envelope.unlock(at.session, at.ada, recovery_code=CODE[:-1])


@raises(exceptions.UnlockError)
def wrong_secret_to_rebind(at: Scene) -> None:
    at.envelope.rebind(at.session, at.ada, secret=WRONG)


@raises(exceptions.TransactionConflictError)
def changed_by_two(at: Scene) -> None:
    waiting = ["UPDATE users_keyslot SET wrapped = x'00'"]

    def before(_: object, __: object, statement: str, *___: object) -> None:
        if statement.startswith("UPDATE users_key") and waiting:
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


@raises(exceptions.UnlockThrottledError)
def too_many_attempts(at: Scene) -> None:
    at.again(throttle=Throttle(MemoryThrottle(), account=Backoff(free=1)))
    with pytest.raises(exceptions.UnlockError):
        at.unlock(WRONG)
    at.unlock()


@raises(exceptions.WeakSecretError)
def refused_by_the_application(at: Scene) -> None:
    at.again(secret_strength=lambda secret, owner: f"{secret} is too weak")
    at.envelope.change_secret(at.session, at.ada, old=RIGHT, new=NEW)


def failing(secret: str, owner: object) -> str:
    """A check with a bug; its error has the secret in its frame and in its text."""
    raise RuntimeError(secret)


@raises(exceptions.WeakSecretError)
def not_judged(at: Scene) -> None:
    at.again(secret_strength=failing)
    at.envelope.enroll(at.session, User(phone=PLAIN), secret=NEW)


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


@raises(exceptions.NoSecretError)
def no_slot(at: Scene) -> None:
    at.raw("DELETE FROM users_keyslot")
    at.unlock()


@raises(exceptions.KeyNotFoundError)
def no_secret_with_the_label(at: Scene) -> None:
    with at.unlock():
        at.envelope.set_secret(at.session, at.ada, new=NEW, label="phone")


@raises(exceptions.RowSealError)
def no_row_seal(at: Scene) -> None:
    at.again(server_keys=ServerKeyring([SERVER_KEY]))
    at.unlock()


def under_a_pepper(at: Scene) -> None:
    at.again(pepper=ServerKeyring([SERVER_KEY]))
    for _ in at.envelope.rotate_pepper(at.session, User):
        at.session.commit()


@raises(exceptions.PepperError)
def slot_under_a_missing_pepper(at: Scene) -> None:
    under_a_pepper(at)
    at.again(pepper=ServerKeyring([SERVER_KEY[::-1]]))
    at.unlock()


@raises(exceptions.TamperedKeyError)
def slot_under_a_pepper_with_a_flipped_bit(at: Scene) -> None:
    under_a_pepper(at)
    at.planted("users_keyslot", flipped(-1))
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


# ------------------------------------------------------------------ custodians


@raises(exceptions.SharesError)
def mistyped_share(at: Scene) -> None:
    words = OpenedEscrowKey(SERVER_KEY).shares(custodians=3, threshold=2)[0].split()
    OpenedEscrowKey.from_shares([" ".join([*words[:-1], RIGHT])])


@raises(exceptions.SharesError)
def too_few_shares(at: Scene) -> None:
    OpenedEscrowKey.from_shares(OpenedEscrowKey(SERVER_KEY).shares(custodians=3, threshold=2)[:1])


@raises(exceptions.ConfigurationError)
def private_half_pinned(at: Scene) -> None:
    EscrowKey(OpenedEscrowKey(SERVER_KEY).text)


@raises(exceptions.EmergencyError)
def emergency_not_allowed(at: Scene) -> None:
    envelope = at.make_envelope(server_keys=ServerKeyring([SERVER_KEY]))
    ben = User(phone=PLAIN)
    with envelope.enroll(at.session, ben, secret=RIGHT):
        envelope.unlock(at.session, at.ada, emergency=ben)


@raises(exceptions.KeyInUseError)
def key_in_use(at: Scene) -> None:
    (key,) = at.session.scalars(sa.select(User.__key_class__.key_id).limit(1))
    at.envelope.destroy_key(at.session, Base, key, horizon=dt.timedelta(0))
