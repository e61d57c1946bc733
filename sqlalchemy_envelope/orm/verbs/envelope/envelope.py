"""`Envelope`: an application's policy and verbs. Over 400 lines, since its docstrings are the reference."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sqlalchemy_envelope.crypto.argon2id import KdfLimit, KdfProfile
from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.crypto.preparation import hide_required, hide_secret
from sqlalchemy_envelope.crypto.recovery_code import hide_given
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.escrow import EscrowKey
from sqlalchemy_envelope.keys.receipts import signing_key
from sqlalchemy_envelope.keys.row_seals import RowSeals, realm_name
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.policy import ENVELOPES, Policy, note_policy
from sqlalchemy_envelope.orm.current.providers import CachePolicy, make_providers
from sqlalchemy_envelope.orm.sessions.server import ServerSession
from sqlalchemy_envelope.orm.sessions.write_only import WriteOnlySession
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.throttling.throttle import Throttle
from sqlalchemy_envelope.orm.verbs.envelope.emergency_verbs import EmergencyVerbs
from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import (
    AnySession,
    EnvelopeSteps,
    Follow,
    plain_session,
)
from sqlalchemy_envelope.orm.verbs.envelope.escrow_verbs import EscrowVerbs
from sqlalchemy_envelope.orm.verbs.envelope.pepper_verbs import PepperVerbs, checked_pepper
from sqlalchemy_envelope.orm.verbs.envelope.recovery_verbs import RecoveryVerbs
from sqlalchemy_envelope.orm.verbs.envelope.rotation_verbs import RotationVerbs
from sqlalchemy_envelope.orm.verbs.envelope.share_verbs import ShareVerbs
from sqlalchemy_envelope.orm.verbs.envelope.shred_verbs import ShredVerbs
from sqlalchemy_envelope.orm.verbs.envelope.slot_verbs import SlotVerbs
from sqlalchemy_envelope.orm.verbs.envelope.ticket_verbs import TicketVerbs
from sqlalchemy_envelope.orm.verbs.log_in.enroll import asked_for
from sqlalchemy_envelope.orm.verbs.log_in.even_refusals import Pace
from sqlalchemy_envelope.orm.verbs.log_in.way import Way
from sqlalchemy_envelope.orm.verbs.owner_keys import locate_enrolled
from sqlalchemy_envelope.orm.verbs.settling.settle_all import Settled, Settling, batch_steps
from sqlalchemy_envelope.orm.verbs.settling.settle_batch import job
from sqlalchemy_envelope.orm.verbs.slots.slots import seal_rows
from sqlalchemy_envelope.orm.verbs.status.grant_status import grant_states
from sqlalchemy_envelope.orm.verbs.status.pending_rows import PendingIndexRows, pending_index_rows
from sqlalchemy_envelope.orm.verbs.status.why_locked import why_locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy import Engine

    from sqlalchemy_envelope.keys.escrow import OpenedEscrowKey
    from sqlalchemy_envelope.keys.providers.base import KeyProvider
    from sqlalchemy_envelope.keys.providers.server import ServerKeyring
    from sqlalchemy_envelope.keys.receipts import ReceiptKey
    from sqlalchemy_envelope.orm.current.audit import AuditEvent
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.tables.key_grant import KeyGrant
    from sqlalchemy_envelope.orm.verbs.status.grant_status import GrantStatus
    from sqlalchemy_envelope.orm.verbs.status.lock_answer import WhyLocked

T = TypeVar("T")


@emptying_class
class Envelope(
    SlotVerbs,
    RecoveryVerbs,
    PepperVerbs,
    EscrowVerbs,
    EmergencyVerbs,
    ShareVerbs,
    ShredVerbs,
    TicketVerbs,
    RotationVerbs,
    EnvelopeSteps,
):
    """The policy of an application, which makes one `Envelope`. Holds no user's key.

    Args:
        kdf_profile: the cost of new secret slots, and the minimum cost of opened slots: weaker slots are
            replaced.
        concurrent_derivations: the highest number of key derivations at once in this process; by default, one
            for each core. Each derivation holds its profile's memory while it runs.
        derivation_wait: the seconds to wait until a derivation may start, before `UnlockBusyError`.
        server_keys: keys from outside the database. With them every key, slot and grant row carries a seal,
            and they are the provider `"server"`.
        pepper: keys from outside the database, the active one first, that secret slots are stored under:
            whoever copied the database alone cannot try secrets on the copy. A key that slots are under must
            be kept as carefully as the database: without it their secrets open nothing.
        pepper_slots: whether slots that are written get the pepper. With False the pepper opens slots and is
            added to none: before the first process uses it, and while it is taken away.
        realm: the name of the application's database, or a function that returns the name for an engine. Rows
            that are sealed in one realm are refused in another. Without a realm, seals name no database, and
            in memory databases are told apart by host, port and database, in the URL or in `connect_args`. An
            engine with `creator=` or a `do_connect` listener is a database of its own. Name the realm if
            several engines reach one database in different ways (a leader and its replicas), or if several
            databases have one server key.
        providers: other outside holders of keys, by the name that slots store: `{"kms": AwsKms(...)}`.
        provider_timeout: seconds that one call to a provider may take.
        provider_retries: the number of retries after a failure that may pass.
        cache: how long keys that a provider opened stay in memory.
        post_quantum: give new root keys an ML-KEM-768 pair too, so that keys sealed to them withstand a
            quantum computer later (format 0x13, 1,169 bytes in place of 81).
        write_epoch_seconds, write_epoch_values: the seconds, and the encrypted values, after which a sealed
            write epoch ends.
        harden_claims: when an owner claims keys that a campaign held, give it new keys at once, which the
            campaign's key never opened. Older values stay under the old keys.
        throttle: makes attempts to unlock wait after failures.
        secret_strength: called with each new secret, as text, and its owner, before the secret is used. It
            returns None if the secret will do, or the reason why not, for `WeakSecretError`. It is not called
            for an unlock with `authenticated=True`.
        escrow: the public half of a key that custodians keep offline. Owners' keys are sealed to it by
            `add_escrow`, or with `everyone=True` when owners are enrolled.
        audit: called with each `AuditEvent`, at once and before the transaction ends; `shredded` comes after
            the commit. If it raises, the verb stops. The logger `sqlalchemy_envelope.audit` gets the events,
            too.
        actor: called for each event, to tell who acts: the user of the request, or a person of the support.
        receipt_key: the key that signs erasure receipts; by default, a key derived from the active server
            key.
    """

    def __init__(
        self,
        *,
        kdf_profile: KdfProfile = KdfProfile.RFC9106_LOW_MEMORY,
        concurrent_derivations: int | None = None,
        derivation_wait: float = 5.0,
        server_keys: ServerKeyring | None = None,
        pepper: ServerKeyring | None = None,
        pepper_slots: bool = True,
        realm: str | Callable[[Engine], str] | None = None,
        providers: Mapping[str, KeyProvider] | None = None,
        provider_timeout: float = 5.0,
        provider_retries: int = 2,
        cache: CachePolicy | None = None,
        post_quantum: bool = False,
        write_epoch_seconds: float = 3600.0,
        write_epoch_values: int = 2**24,
        harden_claims: bool = True,
        throttle: Throttle | None = None,
        secret_strength: Callable[[str, Any], str | None] | None = None,
        escrow: EscrowKey | None = None,
        audit: Callable[[AuditEvent], None] | None = None,
        actor: Callable[[], str | None] | None = None,
        receipt_key: ReceiptKey | None = None,
    ) -> None:
        self.kdf_profile = kdf_profile
        self.limit = KdfLimit(concurrent_derivations or os.cpu_count() or 1, derivation_wait)
        named = dict(providers or {})
        if server_keys is not None and named.setdefault("server", server_keys) is not server_keys:
            raise ConfigurationError("The provider 'server' is server_keys; give the other one another name.")
        self.pace = Pace()
        self.throttle = None
        if throttle is not None:
            if not isinstance(throttle, Throttle):
                raise ConfigurationError("throttle= takes a Throttle: Throttle(TableThrottle(table)).")
            keys = pepper or server_keys
            self.throttle = throttle.under(None if keys is None else keys.active[1])
        self.policy = Policy(
            seals=RowSeals(server_keys, checked_realm(realm)),
            pepper=checked_pepper(pepper, adds=pepper_slots),
            hybrid=post_quantum,
            secret_strength=secret_strength,
            audit=audit,
            actor=actor,
            receipt_key=signing_key(receipt_key, server_keys),
            providers=make_providers(
                named, cache or CachePolicy(), timeout=provider_timeout, retries=provider_retries
            ),
            write_epoch_seconds=write_epoch_seconds,
            write_epoch_values=write_epoch_values,
            harden_claims=harden_claims,
            escrow=checked_escrow(escrow),
            ticket_keys=tuple(one for one in (pepper, server_keys) if one is not None),
        )
        ENVELOPES.add(self.policy)

    def enroll(
        self,
        session: AnySession,
        owner: object,
        *,
        secret: str | bytes | Mapping[Any, str | bytes] | None = None,
        provider: str | None = None,
    ) -> UnlockedSession:
        """Make an owner's keys, opened by `secret`, by an outside `provider`, or by both, and flush the owner
        with them. Never commits.

        Without a secret and a provider, as for a group, the keys are open in the unlocked session around this
        call, and the same transaction must grant them to somebody (`KeyGrant`).

        If the owner is not in the session, it is added. To unlock the owner, use the result in a `with`.

        A list of some thousand owners takes as many statements as one owner. Either all of them are enrolled,
        or, with an error, no owner is. Give the secrets of a list as a mapping, `secret={owner: its secret}`.
        Each secret costs one key derivation.

        An owner whose keys a campaign made while it was away *claims* them with this call: from now on the
        secret opens the keys, and the campaign's key does not. If the campaign uses an offline key, the
        secret waits for the key's custodians, and the owner stays locked until they release its keys.

        Raises:
            AlreadyEnrolledError: the owner has claimed keys, or was enrolled at the same moment.
            TransactionConflictError: the owner's keys were claimed or changed at the same moment.
            EnrollmentError: nothing would open the owner's keys.
            SecretError: the secret cannot be used, or is a single secret for a list.
            ConfigurationError: the object is no `KeyOwner`, or its database would not delete keys with it.
            ProviderError: the provider failed.
        """
        asked = asked_for(owner, secret)
        del secret
        return self.run(self.enroll_steps(plain_session(session), owner, asked, provider))

    def unlock(
        self,
        session: AnySession,
        owner: object,
        *,
        secret: str | bytes | None = None,
        ticket: str | None = None,
        provider: str | None = None,
        reason: str | None = None,
        authenticated: bool = False,
        follow: Follow = "needed",
        recovery_code: str | None = None,
        source: str | None = None,
        escrow_key: OpenedEscrowKey | None = None,
        emergency: object | None = None,
    ) -> UnlockedSession:
        """Open an owner's keys, and all keys granted to it. The keys are open while the result is used in a
        `with`. Success with a secret is an authentication.

        An unlock takes two queries and one key derivation, of some 0.2 s with the default profile, however
        many groups the owner is in. The grants that lead to a group are followed when its rows are read or
        written: with one query for the keys of a fetch, and one for each class of grants. An unlock writes
        nothing and waits for no other transaction.

        The first flush that writes, or `UnlockedSession.settle`, settles what waits for the owner: sealed
        keys are adopted, pending grants are fulfilled, a slot that falls short of the policy is replaced, and
        an epoch starts if a member was removed.

        Args:
            secret: the owner's secret.
            ticket: in place of a secret, the text from `issue_ticket`. No key derivation. It reads and writes
                values, and changes nothing about keys. `owner` may be a class here: the ticket's owner is
                loaded with its keys, by one query, and is `unlocked.owner`.
            provider: in place of a secret, the outside holder of a key slot; needs a `reason`.
            reason: the reason, for the audit event.
            authenticated: the caller has checked this secret, for example by the former password hash. If the
                owner has not claimed its keys, or has no keys, the secret opens them from now on, as with
                `enroll`. Never pass True without a check: any secret would fit an owner without a secret.
            source: where the request comes from, such as "203.0.113.7", for the throttle.
            escrow_key: in place of a secret, the private half of the escrow key, as custodians opened it;
                needs a `reason`. `set_secret` then gives the owner a new secret.
            emergency: in place of a secret, the person whom the owner named with `allow_emergency`, who has
                asked, and who is unlocked around this call.
            recovery_code: in place of a secret, a recovery code as it was typed, in any case and with any
                dashes or spaces. No key derivation. The code stays; `reset_secret` replaces it.
            follow: "all" follows every grant now. Use it for code that cannot query when it reads: attributes
                under asyncio, of objects that were loaded, locked, in another session.

        Raises:
            RecoveryCodeError: the text is no recovery code: it is mistyped. Nothing was tried with it.
            UnclaimedError: a campaign holds the owner's keys. The owner has no secret yet, or the secret is
                right and waits.
            TicketError: the ticket was refused: log in again. `TicketExpiredError` if it has ended.
            UnlockError: the secret is wrong, or its slot was altered. The two cases cannot be told apart. Or
                the recovery code is none of this owner's.
            KeyShareError: the second database does not have the share that a slot needs.
            NotEnrolledError: the owner has no keys.
            TransactionConflictError: the owner's keys were made, claimed or changed at the same moment.
            KeyNotFoundError: the owner has no slot of this provider, or of this escrow key.
            EmergencyError: the person has no such access, has not asked, or the waiting time is not over.
            TamperedKeyError, RowSealError, OwnerMismatchError, KdfParametersError: stored keys were altered.
                Certain.
            NoSecretError: the owner has keys, and no secret.
            UnlockThrottledError: too many attempts at this owner or from this source failed before. Nothing
                was tried. Its `retry_after` has the seconds to wait.
            UnlockBusyError: too many derivations at once.
            SecretError: the secret cannot be any owner's secret.
            ProviderError: the provider failed, or answered with another key.
        """
        way = Way(
            secret=hide_secret(secret),
            ticket=hide_secret(ticket),
            provider=provider,
            recovery_code=hide_given(recovery_code),
            escrow_key=escrow_key,
            emergency=emergency,
            reason=reason,
            authenticated=authenticated,
            source=source,
        )
        del secret, recovery_code, ticket
        return self.run(self.unlock_steps(plain_session(session), owner, way, follow))

    def settle(self, session: AnySession) -> None:
        """Settle now what waits for the owners unlocked in this session, as the first write would do: see
        `UnlockedSession.settle`. Never commits.

        Raises:
            LockedError: no owner is unlocked in the session, or only by a ticket.
        """
        plain = plain_session(session)
        if context.only_by_ticket(plain):
            raise context.locked("What is to be settled", plain, use="give")
        if not any(one.home is plain for one in context.unlocked_sessions(plain)):
            raise context.locked("What is to be settled", plain)
        context.settle_unlocked(plain)

    def settle_all(
        self, session: AnySession, owner_class: type[Any], *, provider: str, reason: str, batch: int = 500
    ) -> Settling:
        """Settle each owner of a class with a slot of this provider: fulfil pending grants, adopt sealed
        keys, and start an epoch if a member was removed. Use it in a job. Each turn of a loop over the result
        settles one batch and returns the progress, and the loop commits:

            for so_far in envelope.settle_all(session, Group, provider="staff", reason="nightly"):
                session.commit()

        Each batch takes a fixed number of statements, and some more for each owner that a member has left.
        `settle_all` never commits, and never waits for owners that another transaction holds: it skips them.
        A new run finds the remaining work.

        Args:
            session: a session of the job's own: between two batches its transaction ends.
            owner_class: the class of the owners.
            provider: the outside holder of their slots. Owners without a slot of it are passed over.
            reason: the reason, for the audit events.
            batch: the highest number of owners in one turn, and so in one transaction.

        Raises:
            ConfigurationError: no class of key owners, no such provider, or no reason.
            ProviderError: the provider failed, or is the public half of an offline key.
        """
        plain, work = plain_session(session), job(self.policy, owner_class, provider, reason, batch)
        return Settling(Settled(), lambda so_far: self.run(batch_steps(self._desk(plain), work, so_far)))

    def write_only(self, session: AnySession, *owners: object) -> WriteOnlySession:
        """Encrypt for locked owners: a webhook's events, a job's results. Inside the `with`, their values can
        be written but not read.

        The first value seals a fresh data key to the owner's public key. The data key serves until its epoch
        ends, and the owner adopts it at the next unlock. For owners that are unlocked around this session,
        values are written as usual.

        Args:
            owners: the owners to write for; left out, the owners of all rows that are written.

        Raises (when the first value is written):
            NotEnrolledError: an owner has no keys.
            EnrollmentError: the owner is a group, and no member is left.
            RowSealError: a public key was not written by the application.
        """
        plain = plain_session(session)
        note_policy(plain, self.policy)
        places = [locate_enrolled(self._desk(plain), owner).place for owner in owners]
        return WriteOnlySession(plain, self.policy, places)

    def server_mode(
        self, session: AnySession | None = None, *, provider: str = "server", reason: str
    ) -> ServerSession:
        """Open owners with a slot of this provider as their rows appear, and give new owners such a slot. For
        applications whose operator holds the keys, and for workers.

        `with envelope.server_mode(...)` serves a request or a job; `envelope.server_mode(...).everywhere()`
        the whole process. Owners without a slot of the provider stay locked.

        Args:
            session: bind it to this session too, for code that runs in another context than the `with`.
            provider: the name of the provider, as it was given to the `Envelope`.
            reason: the reason, for the audit events: "web application", "nightly export".

        Raises:
            ConfigurationError: there is no such provider, or no reason was given.
        """
        plain = None if session is None else plain_session(session)
        return ServerSession(plain, self.policy, provider, reason)

    def why_locked(
        self,
        session: AnySession,
        instance: object,
        attribute: str | None = None,
        *,
        reader: object | None = None,
    ) -> WhyLocked | None:
        """Return why an encrypted attribute of an object does not open; None if it opens. Sends only SELECTs,
        locks nothing and needs no key.

        Args:
            instance: an object of the session. Unflushed changes do not count. For an object that is not
                flushed yet, the answer is why it cannot be flushed.
            attribute: the name of the attribute; left out, the first attribute that does not open.
            reader: the owner who should read the attribute, unlocked or not; left out, the unlocked owners.

        Raises:
            ConfigurationError: the object has no such encrypted attribute.
        """
        return why_locked(self._desk(plain_session(session)), instance, attribute, reader)

    def pending_index_rows(self, session: AnySession, owner: object) -> tuple[PendingIndexRows, ...]:
        """Return how many rows have a value and no tag in a blind index: no comparison finds them. Sends only
        SELECTs, one for each index, and needs no key.

        The rows of an owner get their tags when the owner settles, with the first write or by
        `envelope.settle(session)`. Indexes without such rows are left out.

        Args:
            owner: the owner whose rows are counted; or a class, for the rows of all its owners.

        Raises:
            ConfigurationError: it is no key owner, and no class of key owners.
            NotEnrolledError: the owner is not in the database.
        """
        return pending_index_rows(self._desk(plain_session(session)), owner)

    def grant_states(
        self, session: AnySession, grants: type[KeyGrant] | Iterable[KeyGrant]
    ) -> list[GrantStatus]:
        """Return the status of granting rows: granted, pending or void, since when, and who can fulfil a
        pending grant. Sends only SELECTs, as many for a thousand rows as for one row, and needs no key.

        Args:
            grants: a class, for all its rows; or objects of any classes. Objects whose rows are deleted are
                left out.

        Raises:
            ConfigurationError: an object is no `KeyGrant`, or is not in the database yet.
        """
        plain = plain_session(session)
        note_policy(plain, self.policy)
        return grant_states(self._desk(plain), grants)

    def seal_rows(self, session: AnySession, *owner_classes: type[Any]) -> int:
        """Seal every key, slot and grant row of these classes under the active server key, and return the
        number of rows. Never commits.

        Call it for a database that had no server keys until now, or whose server key is lost. The rows are
        sealed as they are, including rows that an attacker planted before: from then on those count as
        genuine. To rotate a server key, call `rotate_provider` or `rotate_seals` instead: they refuse rows
        without a right seal.

        Raises:
            ConfigurationError: no server keys are configured, or a class is no `KeyOwner`.
        """
        if not self.policy.seals.is_on:
            raise ConfigurationError("There are no server keys to seal with: Envelope(server_keys=...).")
        classes = [owner_class_of(getattr(one, "__table__", None)) for one in owner_classes]
        if None in classes:
            raise ConfigurationError("seal_rows() takes classes of key owners.")
        return seal_rows(self._desk(plain_session(session)), classes)

    def unlock_unknown(
        self,
        *,
        secret: str | bytes | None = None,
        recovery_code: str | None = None,
        account: str | None = None,
        source: str | None = None,
        session: AnySession | None = None,
    ) -> NoReturn:
        """Refuse an account that does not exist, as `unlock` refuses a wrong secret, and `reset_secret` a
        code that is not right. Neither the time of a secret's refusal nor the throttle tells which accounts
        exist.

        Args:
            secret: the secret that was typed.
            recovery_code: in place of a secret, the code that was typed. No key derivation.
            account: the name by which the account was looked for, for the throttle. Codes are counted at
                their source alone.
            source: where the request comes from, for the throttle.
            session: for a throttle that counts in the session's database.

        Raises:
            UnlockError: always; with a secret, after one key derivation.
            UnlockThrottledError, UnlockBusyError, SecretError: as `unlock` would.
            RecoveryCodeError: the text is no recovery code, as `reset_secret` would say.
        """
        hidden, code = hide_secret(secret), hide_given(recovery_code)
        del secret, recovery_code
        plain = None if session is None else plain_session(session)
        self.run(self.unknown_steps(plain, hidden, account, source, code))
        raise AssertionError  # the steps end with an error

    def rebind(
        self, session: AnySession, owner: object, *, secret: str | bytes, source: str | None = None
    ) -> None:
        """Bind an owner's keys to its present primary key, after the primary key was changed. Never commits.

        Use it against `OwnerMismatchError` only if the primary key was changed on purpose. Keys that were
        moved here from another owner open with that owner's secret alone.

        Raises: as `change_secret`.
        """
        hidden = hide_required(secret)
        del secret
        self.run(self.rebind_steps(plain_session(session), owner, hidden, source))

    def attach(self, session: AnySession) -> None:
        """Let this envelope's policy serve the flushes and look-ups of a session that has used none of its
        verbs. Needed only if a process has several envelopes."""
        note_policy(plain_session(session), self.policy)

    def __repr__(self) -> str:
        return f"Envelope(kdf_profile={self.kdf_profile!r})"


def checked_escrow(escrow: object) -> EscrowKey | None:
    """Return an escrow key, checked to be its public half.

    Raises:
        ConfigurationError: it is something else.
    """
    if escrow is None or isinstance(escrow, EscrowKey):
        return escrow
    raise ConfigurationError("Envelope(escrow=...) takes an EscrowKey: EscrowKey('escrow-public:...').")


def checked_realm(realm: Any) -> Any:
    """Return a realm, checked to be a name or a function.

    Raises:
        ConfigurationError: the realm is neither text nor a function.
    """
    return realm if realm is None or callable(realm) else realm_name(realm, None)
