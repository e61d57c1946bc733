"""`Envelope`: an application's policy and verbs. Over 400 lines, since its docstrings are the reference."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from sqlalchemy.orm import Session, scoped_session

from sqlalchemy_envelope.crypto.argon2id import KdfLimit, KdfProfile
from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.crypto.preparation import hide_secret
from sqlalchemy_envelope.crypto.wrapping import wrong_secret
from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.keys.row_seals import RowSeals, realm_name
from sqlalchemy_envelope.orm.current import context
from sqlalchemy_envelope.orm.current.policy import ENVELOPES, Policy, note_policy
from sqlalchemy_envelope.orm.current.providers import CachePolicy, make_providers
from sqlalchemy_envelope.orm.sessions.server import ServerSession
from sqlalchemy_envelope.orm.sessions.write_only import WriteOnlySession
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.verbs import slots
from sqlalchemy_envelope.orm.verbs.enroll import asked_for
from sqlalchemy_envelope.orm.verbs.envelope_steps import EnvelopeSteps, Follow
from sqlalchemy_envelope.orm.verbs.grant_status import grant_states
from sqlalchemy_envelope.orm.verbs.owner_keys import locate_enrolled
from sqlalchemy_envelope.orm.verbs.settle_all import Settling, batch_steps
from sqlalchemy_envelope.orm.verbs.settle_batch import job
from sqlalchemy_envelope.orm.verbs.why_locked import why_locked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sqlalchemy import Engine

    from sqlalchemy_envelope.keys.providers.base import KeyProvider
    from sqlalchemy_envelope.keys.providers.server import ServerKeyring
    from sqlalchemy_envelope.orm.current.audit import AuditEvent
    from sqlalchemy_envelope.orm.sessions.unlocked import UnlockedSession
    from sqlalchemy_envelope.orm.tables.key_grant import KeyGrant
    from sqlalchemy_envelope.orm.verbs.grant_status import GrantStatus
    from sqlalchemy_envelope.orm.verbs.lock_answer import WhyLocked
    from sqlalchemy_envelope.orm.verbs.slots import KeySlots

    AnySession = Session | scoped_session[Any]

T = TypeVar("T")


@emptying_class
class Envelope(EnvelopeSteps):
    """The policy of an application; one for each. Holds no user's key.

    Args:
        kdf_profile: the cost of new secret slots, and the least an opened one is left at.
        concurrent_derivations: most key derivations at once in this process; default, one for each core. Each
            holds its profile's memory while it runs.
        derivation_wait: seconds to wait for one to come free, before `UnlockBusyError`.
        server_keys: keys from outside the database. With them every key, slot and grant row carries a seal,
            and they are the provider `"server"`.
        realm: the name of the application's database, or a function that tells the name of an engine's. Rows
            that are sealed in one realm are refused in another. Left out, seals name no database, and in
            memory databases are told apart by host, port and database, in the URL or in `connect_args`. An
            engine with `creator=` or a `do_connect` listener is a database of its own. Name the realm where
            several engines reach one database in different ways (a leader and its replicas), or where
            several databases have one server key.
        providers: other outside holders of keys, by the name that slots store: `{"kms": AwsKms(...)}`.
        provider_timeout: seconds that one call to a provider may take.
        provider_retries: how often a call is made again after a failure that may pass.
        cache: how long keys that a provider opened stay in memory.
        post_quantum: give new root keys an ML-KEM-768 pair too, so that what is sealed to them withstands a
            quantum computer later (format 0x13, 1,169 bytes in place of 81).
        write_epoch_seconds, write_epoch_values: when a sealed write epoch ends: after so many seconds, or
            encrypted values.
        harden_claims: give an owner who claims keys that a campaign held new ones at once, which the
            campaign's key never opened. What was written before stays under the old ones.
        audit: called with each `AuditEvent`; they go to the logger `sqlalchemy_envelope.audit` as well.
    """

    def __init__(
        self,
        *,
        kdf_profile: KdfProfile = KdfProfile.RFC9106_LOW_MEMORY,
        concurrent_derivations: int | None = None,
        derivation_wait: float = 5.0,
        server_keys: ServerKeyring | None = None,
        realm: str | Callable[[Engine], str] | None = None,
        providers: Mapping[str, KeyProvider] | None = None,
        provider_timeout: float = 5.0,
        provider_retries: int = 2,
        cache: CachePolicy | None = None,
        post_quantum: bool = False,
        write_epoch_seconds: float = 3600.0,
        write_epoch_values: int = 2**24,
        harden_claims: bool = True,
        audit: Callable[[AuditEvent], None] | None = None,
    ) -> None:
        self.kdf_profile = kdf_profile
        self.limit = KdfLimit(concurrent_derivations or os.cpu_count() or 1, derivation_wait)
        named = dict(providers or {})
        if server_keys is not None and named.setdefault("server", server_keys) is not server_keys:
            raise ConfigurationError("The provider 'server' is server_keys; give the other one another name.")
        self.policy = Policy(
            seals=RowSeals(server_keys, checked_realm(realm)),
            hybrid=post_quantum,
            audit=audit,
            providers=make_providers(
                named, cache or CachePolicy(), timeout=provider_timeout, retries=provider_retries
            ),
            write_epoch_seconds=write_epoch_seconds,
            write_epoch_values=write_epoch_values,
            harden_claims=harden_claims,
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

        With neither, as for a group, the keys are open in the unlocked session around this call, and the same
        transaction must grant them to somebody (`KeyGrant`).

        Adds the owner to the session if it is not in it. The owner is unlocked while the
        result is used in a `with`.

        A list of owners is enrolled in as many statements as one owner, for some thousands: all of them, or
        with an error none. Secrets of a list are a mapping, `secret={owner: its secret}`, and cost one key
        derivation each.

        An owner whose keys a campaign made while it was away *claims* them so: the secret opens them from now
        on, and the campaign's key does no more. With an offline key, which nobody here can open, the secret
        waits for its custodians, and the owner stays locked until then.

        Raises:
            AlreadyEnrolledError: it has keys that are claimed, or was enrolled at the same moment.
            TransactionConflictError: its keys were claimed or changed at the same moment.
            EnrollmentError: nothing would open its keys.
            SecretError: the secret cannot be used, or is one for a list.
            ConfigurationError: it is no `KeyOwner`, or its database would not delete its keys with it.
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
        provider: str | None = None,
        reason: str | None = None,
        authenticated: bool = False,
        follow: Follow = "needed",
    ) -> UnlockedSession:
        """Open an owner's keys, and all that it was granted; they are of use while the result is used in a
        `with`. Success with a secret is an authentication.

        Two queries and one key derivation, of some 0.2 s with the default profile, however many groups the
        owner is in. The grants that lead to a group are followed when its rows are read or written: one query
        for the keys of a fetch, and one for each class of grants. It writes nothing and waits for nobody.
        What waits for the owner is settled with the first flush that writes, or by `UnlockedSession.settle`:
        what was sealed is adopted, pending grants are fulfilled, a slot that falls short of the policy is
        replaced, an epoch starts where somebody was removed.

        Args:
            secret: the owner's own.
            provider: in its place, the outside holder of a key slot; needs a `reason`.
            reason: why, for the audit event.
            authenticated: the caller has checked this secret, as by the password hash that was there before:
                an owner who has not claimed its keys, or has none, gets them opened by it, as by `enroll`.
                Never without a check: of an owner without a secret any would fit.
            follow: "all" follows every grant now. For code that cannot query when it reads, as attributes
                under asyncio whose objects were loaded, locked, in another session.

        Raises:
            UnclaimedError: a campaign holds the owner's keys; it has no secret yet, or a right one that
                waits.
            UnlockError: the secret is wrong, or its slot was altered. Which of the two cannot be told.
            NotEnrolledError: the owner has no keys.
            TransactionConflictError: its keys were made, claimed or changed at the same moment.
            KeyNotFoundError: it has no slot of this provider.
            TamperedKeyError, RowSealError, OwnerMismatchError, KdfParametersError: stored keys were altered.
                Certain.
            UnlockBusyError: too many derivations at once.
            SecretError: the secret cannot be anyone's.
            ProviderError: the provider failed, or answered with another key.
        """
        hidden = hide_secret(secret)
        del secret
        return self.run(
            self.unlock_steps(plain_session(session), owner, hidden, provider, reason, authenticated, follow)
        )

    def settle(self, session: AnySession) -> None:
        """Do now what waits for whoever is unlocked in this session, which the first write would do: as
        `UnlockedSession.settle`. Never commits.

        Raises:
            LockedError: nothing is unlocked in it.
        """
        plain = plain_session(session)
        if not any(one.home is plain for one in context.unlocked_sessions(plain)):
            raise context.locked("What is to be settled", plain)
        context.settle_unlocked(plain)

    def settle_all(
        self, session: AnySession, owner_class: type[Any], *, provider: str, reason: str, batch: int = 500
    ) -> Settling:
        """Settle each owner of a class that this provider holds a slot of: fulfil their pending grants, adopt
        what is sealed, start an epoch where somebody was removed. For a job; each turn of a loop over it does
        one batch and tells how far it has come, and the loop commits:

            for so_far in envelope.settle_all(session, Group, provider="staff", reason="nightly"):
                session.commit()

        In a fixed number of statements for each batch, and some more for each owner whom somebody left. Never
        commits, and never waits for owners that another transaction holds: they are skipped. Begun again, it
        finds what is left.

        Args:
            session: a session of the job's own: between two batches its transaction ends.
            owner_class: the class of the owners.
            provider: the outside holder of their slots. Owners without one are passed over.
            reason: why, for the audit events.
            batch: how many owners are looked at in one turn, at most, and so in one transaction.

        Raises:
            ConfigurationError: no class of key owners, no such provider, or no reason.
            ProviderError: the provider failed, or is the public half of an offline key.
        """
        plain, work = plain_session(session), job(self.policy, owner_class, provider, reason, batch)
        return Settling(lambda so_far: self.run(batch_steps(self._desk(plain), work, so_far)))

    def write_only(self, session: AnySession, *owners: object) -> WriteOnlySession:
        """Encrypt for owners who are locked: a webhook's events, a job's results. Inside, their values can be
        written and not read.

        A fresh data key is sealed to each owner's public key with the first value, and serves until its epoch
        ends; the owner adopts it at their next unlock. Owners that are unlocked around this are written as
        usual.

        Args:
            owners: for whom; left out, for whoever's rows are written.

        Raises (when the first value is written):
            NotEnrolledError: an owner has no keys.
            EnrollmentError: it is a group, and has no member left.
            RowSealError: a public key was not written by the application.
        """
        plain = plain_session(session)
        note_policy(plain, self.policy)
        places = [locate_enrolled(self._desk(plain), owner).place for owner in owners]
        return WriteOnlySession(plain, self.policy, places)

    def server_mode(
        self, session: AnySession | None = None, *, provider: str = "server", reason: str
    ) -> ServerSession:
        """Open owners that this provider holds a slot of as their rows appear, and give new owners one:
        for applications whose operator holds the keys, and for workers.

        `with envelope.server_mode(...)` serves a request or a job; `envelope.server_mode(...).everywhere()`
        the whole process. Owners without a slot of the provider stay locked.

        Args:
            session: bind it to this session too, for code that runs in another context than the `with`.
            provider: the name of the provider, as it was given to the `Envelope`.
            reason: why, for the audit events: "web application", "nightly export".

        Raises:
            ConfigurationError: there is no such provider, or no reason was given.
        """
        plain = None if session is None else plain_session(session)
        return ServerSession(plain, self.policy, provider, reason)

    def slots(self, session: AnySession, owner: object) -> KeySlots:
        """The slots that open an owner's keys. "Can the operator read this?" is one line:
        `bool(envelope.slots(session, owner).providers)`; who reaches the owner through grants is counted in.

        Raises:
            NotEnrolledError: the owner is not in the database.
        """
        return slots.slots_of(self._desk(plain_session(session)), owner)

    def why_locked(
        self,
        session: AnySession,
        instance: object,
        attribute: str | None = None,
        *,
        reader: object | None = None,
    ) -> WhyLocked | None:
        """Why an encrypted attribute of an object does not open here; None if it does. It sends SELECTs
        alone, locks nothing and needs no key.

        Args:
            instance: an object of the session. What it has changed and not flushed does not count; of one
                that is not flushed yet: why it cannot be.
            attribute: which; left out, the first one that does not open.
            reader: why this owner could not read it, whether unlocked or not; left out, who is unlocked here.

        Raises:
            ConfigurationError: it has no such encrypted attribute.
        """
        return why_locked(self._desk(plain_session(session)), instance, attribute, reader)

    def grant_states(
        self, session: AnySession, grants: type[KeyGrant] | Iterable[KeyGrant]
    ) -> list[GrantStatus]:
        """Where granting rows stand: granted, pending or void, since when, and who can fulfil what is
        pending. It sends SELECTs alone, as many for a thousand rows as for one, and needs no key.

        Args:
            grants: a class, for all of its rows; or objects, of any classes. Those that are in the database
                no more are left out.

        Raises:
            ConfigurationError: it is no `KeyGrant`, or not in the database yet.
        """
        plain = plain_session(session)
        note_policy(plain, self.policy)
        return grant_states(self._desk(plain), grants)

    def add_provider(self, session: AnySession, owner: object, *, provider: str) -> None:
        """Let a provider open an owner who is unlocked here. Never commits.

        Raises:
            LockedError: the owner is not unlocked here.
            ProviderError: the provider failed.
        """
        self.run(self.add_provider_steps(plain_session(session), owner, provider))

    def add_secret(self, session: AnySession, owner: object, *, secret: str | bytes) -> None:
        """Give a first secret to an owner who has none and is unlocked here, in server mode or by a provider.
        The provider's slot stays. One key derivation. Never commits.

        Raises:
            LockedError: the owner is not unlocked here.
            AlreadyEnrolledError: it has a secret: `change_secret`.
            UnclaimedError: a campaign holds its keys: `enroll` claims them.
            SecretError: the secret cannot be used.
            UnlockBusyError: too many derivations at once.
        """
        hidden = hide_secret(secret)
        del secret
        self.run(self.add_secret_steps(plain_session(session), owner, hidden))

    def remove_provider(self, session: AnySession, owner: object, *, provider: str) -> None:
        """Take a provider's slots of an owner away and start a new epoch: what is written from now on, it
        cannot open. What it kept of the old keys opens what was written before. Never commits.

        Raises:
            KeyNotFoundError: it has none.
        """
        slots.remove_provider(self._desk(plain_session(session)), owner, provider)

    def seal_rows(self, session: AnySession, *owner_classes: type[Any]) -> int:
        """Seal every key, slot and grant row of these classes under the active server key; how many. Never
        commits.

        For a database that had no server keys until now, and before an old server key is taken away. The rows
        are taken as they stand: whatever was planted before is sealed with them.

        Raises:
            ConfigurationError: no server keys are configured, or a class is no `KeyOwner`.
        """
        if not self.policy.seals.is_on:
            raise ConfigurationError("There are no server keys to seal with: Envelope(server_keys=...).")
        classes = [owner_class_of(getattr(one, "__table__", None)) for one in owner_classes]
        if None in classes:
            raise ConfigurationError("seal_rows() takes classes of key owners.")
        return slots.seal_rows(self._desk(plain_session(session)), classes)

    def change_secret(
        self, session: AnySession, owner: object, *, old: str | bytes, new: str | bytes
    ) -> None:
        """Put a new secret in place of the old one. One row changes and no data is touched. Never commits.

        Raises: as `unlock`, and
            UnlockError: the old secret is wrong.
            TransactionConflictError: somebody else changed a slot of it at the same moment.
        """
        hidden, hidden_new = hide_secret(old), hide_secret(new)
        del old, new
        self.run(self.change_secret_steps(plain_session(session), owner, hidden, hidden_new))

    def unlock_unknown(self, *, secret: str | bytes) -> NoReturn:
        """Refuse an account that does not exist as slowly as a wrong secret, so that time
        does not tell who exists.

        Raises:
            UnlockError: always, after one key derivation.
            UnlockBusyError, SecretError: as `unlock` would.
        """
        hidden = hide_secret(secret)
        del secret
        kek = self.perform(self.unknown(hidden))
        kek.wipe()
        raise wrong_secret()

    def rebind(self, session: AnySession, owner: object, *, secret: str | bytes) -> None:
        """Bind an owner's keys to its present primary key, after that was changed. Never commits.

        The cure for `OwnerMismatchError` when the primary key was changed on purpose, and only then: keys
        that were moved here from another owner open with that owner's secret alone.

        Raises: as `change_secret`.
        """
        hidden = hide_secret(secret)
        del secret
        self.run(self.rebind_steps(plain_session(session), owner, hidden))

    def attach(self, session: AnySession) -> None:
        """Let this envelope's policy serve the flushes of a session in which none of its verbs was used: of
        use only where a process has several envelopes."""
        note_policy(plain_session(session), self.policy)

    def __repr__(self) -> str:
        return f"Envelope(kdf_profile={self.kdf_profile!r})"


def plain_session(session: AnySession) -> Session:
    """The session behind a scoped one.

    Raises:
        ConfigurationError: it is an asynchronous one.
    """
    if hasattr(session, "sync_session"):
        raise ConfigurationError(
            "This is an AsyncSession: use AsyncEnvelope(envelope), with `await` or `async with`."
        )
    return session.registry() if isinstance(session, scoped_session) else session


def checked_realm(realm: Any) -> Any:
    """A realm that can be a name.

    Raises:
        ConfigurationError: it is neither text nor a function.
    """
    return realm if realm is None or callable(realm) else realm_name(realm, None)
