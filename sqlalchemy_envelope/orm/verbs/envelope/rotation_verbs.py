"""The verbs that put new keys in the place of old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import EnvelopeSteps, plain_session
from sqlalchemy_envelope.orm.verbs.rotation.index_keys import open_steps
from sqlalchemy_envelope.orm.verbs.rotation.index_rotation import IndexRotation, index_job, index_steps
from sqlalchemy_envelope.orm.verbs.rotation.kdf_standing import kdf_standing
from sqlalchemy_envelope.orm.verbs.rotation.key_destruction import destroy_key
from sqlalchemy_envelope.orm.verbs.rotation.key_references import key_references
from sqlalchemy_envelope.orm.verbs.rotation.owner_rotation import Rotating, rotate_owner
from sqlalchemy_envelope.orm.verbs.rotation.provider_rotation import (
    ProviderRotation,
    rotation_job,
    rotation_steps,
)
from sqlalchemy_envelope.orm.verbs.rotation.rotate_all import OwnersRotation, owners_job, owners_steps

if TYPE_CHECKING:
    import datetime as dt
    import uuid

    from sqlalchemy_envelope.orm.verbs.envelope.envelope_steps import AnySession
    from sqlalchemy_envelope.orm.verbs.rotation.kdf_standing import KdfStanding
    from sqlalchemy_envelope.orm.verbs.rotation.key_references import KeyReferences
    from sqlalchemy_envelope.orm.verbs.rotation.owner_rotation import RotatedKeys
    from sqlalchemy_envelope.orm.verbs.rotation.provider_rotation import RotationJob


@emptying_class
class RotationVerbs(EnvelopeSteps):
    """The verbs of an `Envelope` that rotate keys."""

    def rotate(
        self, session: AnySession, owner: object, *, root: bool = False, scope: str | None = None
    ) -> RotatedKeys:
        """Put a new data key of each scope in the place of an owner's present one; with `root`, a new root
        key too. The owner is unlocked here, and nobody else is needed: a new root key is sealed to every slot
        and to every member of a group, and each finds it at the next unlock. No value is touched. Never
        commits.

        New values are under the new key at once. Earlier values stay readable under the old key, until they
        are written again or `Migrator.reencrypt` has done so; then `destroy_key` destroys the old key.

        A new root key ends every ticket of the owner. What is under an earlier root key moves under the new
        one, where new members may read earlier values.

        Args:
            root: make a new root key, as after a secret, a recovery code or a copy of the keys was stolen.
            scope: the only scope whose data key is replaced; left out, every scope's.

        Raises:
            LockedError: the owner is not unlocked here.
            ConfigurationError: the owner has no data key of this scope.
            EnrollmentError: nobody could open a new root key.
            TransactionConflictError: somebody else changed the keys at the same moment.
        """
        return rotate_owner(self._desk(plain_session(session)), owner, root=root, scope=scope)

    def rotate_all(
        self,
        session: AnySession,
        owner_class: type[Any],
        *,
        provider: str,
        reason: str,
        root: bool = False,
        before: dt.datetime | None = None,
        batch: int = 100,
    ) -> Rotating[OwnersRotation]:
        """As `rotate`, of each owner of a class with a slot of this provider. Each turn of a loop over the
        result does one batch, and the loop commits, as with `settle_all`. Owners without such a slot are
        passed over: only they can rotate their keys, when they are unlocked.

        Args:
            session: a session of the job's own: between two batches its transaction ends.
            owner_class: the class of the owners.
            provider: the outside holder of their slots.
            reason: the reason, for the audit events.
            root: make new root keys too.
            before: rotate owners whose keys were made before this time; left out, before now. To go on after
                an interruption, give the time at which the interrupted run began.
            batch: the highest number of owners in one turn, and so in one transaction.

        Raises:
            ConfigurationError: no class of key owners, no such provider, no reason, or a time without zone.
            ProviderError: the provider failed, or is the public half of an offline key.
        """
        work = owners_job(self.policy, owner_class, provider, reason, root=root, before=before, size=batch)
        desk = self._desk(plain_session(session))
        return Rotating(OwnersRotation(), lambda so_far: self.run(owners_steps(desk, work, so_far)))

    def rotate_provider(
        self, session: AnySession, owner_class: type[Any], *, provider: str = "server", batch: int = 500
    ) -> Rotating[ProviderRotation]:
        """Put the slots of a provider under the outside key that wraps now, and seal the rows anew under the
        active server key. No owner is opened and no data is touched. Each turn of a loop over the result does
        one batch and returns the progress, and the loop commits:

            for so_far in envelope.rotate_provider(session, User, provider="server"):
                session.commit()

        Each key that the provider wrapped is unwrapped and wrapped once, however many slots are under it. The
        new wrap is unwrapped before the old one is overwritten. Run it again after an interruption, or beside
        another run: it finds what is left. It never waits for a row that another transaction holds.

        Args:
            session: a session of the job's own: between two batches its transaction ends.
            owner_class: the class of the owners.
            provider: the name of the provider.
            batch: the highest number of owners in one turn, and so in one transaction.

        Raises:
            ConfigurationError: no class of key owners, no such provider, or an offline key.
            ProviderError: a provider over the network failed.
        """
        job = rotation_job(self.policy, "rotate_provider", owner_class, provider, batch)
        return self._rotation(session, job)

    def rotate_seals(
        self, session: AnySession, owner_class: type[Any], *, batch: int = 500
    ) -> Rotating[ProviderRotation]:
        """As `rotate_provider`, of the row seals alone, for server keys that hold no slots. Rows without a
        right seal are refused: `seal_rows` seals rows as they are.

        Raises:
            ConfigurationError: no class of key owners, or no server keys.
        """
        return self._rotation(session, rotation_job(self.policy, "rotate_seals", owner_class, None, batch))

    def _rotation(self, session: AnySession, job: RotationJob) -> Rotating[ProviderRotation]:
        desk = self._desk(plain_session(session))
        return Rotating(ProviderRotation(), lambda so_far: self.run(rotation_steps(desk, job, so_far)))

    def rotate_index(
        self, session: AnySession, index: Any, *, batch: int = 500, alone: bool = False
    ) -> Rotating[IndexRotation]:
        """Put a new key in the place of the key of a blind index whose scope is the server. Values are found
        meanwhile, and a unique index stays unique. Each turn of a loop over the result does one batch, and
        the loop commits:

            with envelope.server_mode(session, provider="server", reason="index key rotated"):
                for so_far in envelope.rotate_index(session, User.email_index):
                    session.commit()

        Tags are made of values. So a row is moved if a key that is open around the loop opens its values: in
        server mode, the keys of owners with a slot of the provider. If rows are left (`so_far.pending`), both
        keys stay, and both are looked for. Such a row gets its new tag when its value is written next. Run it
        again where their owners are open, or later: it goes on where it was.

        Between its steps the run waits for about half a minute, five times: until every process knows the
        step. At the end the key before is destroyed. Run it again after an interruption, or beside another
        run.

        Args:
            session: a session of the job's own: between two turns its transaction ends. On PostgreSQL its
                isolation level is READ COMMITTED.
            index: the mapped attribute of the index, or its column.
            batch: the highest number of rows in one turn, and so in one transaction.
            alone: whether no other process uses the database, and no other thread. Then nothing is waited
                for.

        Raises:
            ConfigurationError: no such index, or a turn that was not committed.
            KeyNotFoundError: rows have tags, and there is no key.
            TamperedKeyError: the row of a key was altered.
            ProviderError: a provider over the network failed.
        """
        job, desk = index_job(index, batch, alone=alone), self._desk(plain_session(session))
        start = IndexRotation(job.index.label)
        return Rotating(start, lambda so_far: self.run(index_steps(desk, job, so_far)))

    def open_index_keys(self, session: AnySession, base: Any) -> int:
        """Open the index keys of the server that the models of a declarative base use, and make those that
        are missing. Call it when the process starts, and commit. It returns how many are open.

        A provider over a network needs it: a statement does not wait for one. New keys of a rotation are then
        opened beside the application, while it looks for values as before.

        Raises:
            ConfigurationError: no provider of a key's name is configured here.
            ProviderError: a provider failed.
            TamperedKeyError: the row of a key was altered.
        """
        return self.run(open_steps(self._desk(plain_session(session)), base))

    def kdf_standing(self, session: AnySession, owner_class: type[Any]) -> list[KdfStanding]:
        """Count the secret slots of a class by the cost of their derivation. Slots that fall short of the
        envelope's profile are replaced when their owners unlock and write.

        Raises:
            ConfigurationError: no class of key owners.
        """
        return kdf_standing(self._desk(plain_session(session)), self.kdf_profile, owner_class)

    def key_references(
        self,
        session: AnySession,
        base: Any,
        key: str | uuid.UUID,
        *,
        horizon: dt.timedelta | None = None,
        backups_until: dt.datetime | None = None,
    ) -> KeyReferences:
        """Count every reference to a key, over every encrypted column and every table of keys: a full scan of
        each table, without a key and without a lock.

        Args:
            base: the declarative base, or registry, of the application's models.
            key: the id of an owner's key, or its first eight digits; or `server:` and a server key's id.
            horizon: how long backups are kept, counted from the key's retirement.
            backups_until: until when backups that need the key are kept.

        Raises:
            KeyNotFoundError: no owner has such a key.
            ConfigurationError: no id, several such keys, or a horizon for a server key.
        """
        desk = self._desk(plain_session(session))
        return key_references(desk, base, key, horizon=horizon, backups_until=backups_until)

    def destroy_key(
        self,
        session: AnySession,
        base: Any,
        key: str | uuid.UUID,
        *,
        horizon: dt.timedelta | None = None,
        backups_until: dt.datetime | None = None,
    ) -> KeyReferences:
        """Destroy a retired key of an owner, if nothing needs it and the last backup that does is gone: its
        wrapped bytes are overwritten, and what leads to it is deleted. A single value under it in any row
        stops that. Never commits; until the commit, nobody writes to the tables with encrypted columns.

        Args:
            base, key, horizon, backups_until: as for `key_references`; say how long backups are kept.

        Raises:
            KeyInUseError: the key is active, something needs it, it was retired less than ten minutes ago, a
                backup may need it, or a transaction that may write under it is running.
            KeyNotFoundError, ConfigurationError: as `key_references`.
        """
        desk = self._desk(plain_session(session))
        return destroy_key(desk, base, key, horizon=horizon, backups_until=backups_until)
