"""Argon2id (RFC 9106): named profiles, PHC salt strings, bounds, and a limit on how many run at once.

The engine is `argon2-cffi`, which always releases the interpreter lock. The Argon2id of `cryptography` holds
the lock before 50.0; in 50.0 it deadlocks when two threads derive at once with several lanes.
"""

import base64
import os
import re
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import ClassVar

from argon2.low_level import Type, hash_secret_raw

from sqlalchemy_envelope.crypto.kdf import key_encryption_key
from sqlalchemy_envelope.crypto.key_share import KeyShare
from sqlalchemy_envelope.crypto.secret import Hidden, KeyBytes
from sqlalchemy_envelope.exceptions import KdfParametersError, KeyShareError, UnlockBusyError

SALT_SIZE = 16
"""The bytes of a salt."""
_PHC = re.compile(
    r"\$argon2id\$v=19\$m=([1-9][0-9]{0,9}),t=([1-9][0-9]{0,9}),p=([1-9][0-9]{0,9})"
    r"(?:,share=([A-Za-z0-9+/]{22}))?\$([A-Za-z0-9+/]{22})"
)
_OF_TESTS = (64, 1, 1)
"""The parameters of `KdfProfile.unsafe_for_tests`."""


@dataclass(frozen=True)
class KdfProfile:
    """The cost of one key derivation.

    Attributes:
        memory: the memory to fill, in KiB.
        passes: the number of passes over the memory.
        lanes: the number of threads that may fill it.

    Raises:
        KdfParametersError: a parameter is out of bounds.
    """

    memory: int
    passes: int
    lanes: int

    RFC9106_LOW_MEMORY: ClassVar["KdfProfile"]
    """RFC 9106's second recommended option, the default: 64 MiB, 3 passes, 4 lanes; some 0.2 s."""
    LIBSODIUM_MODERATE: ClassVar["KdfProfile"]
    """256 MiB, 3 passes, 1 lane: a libsodium client, which fixes the lanes at 1, can derive the same key."""
    OWASP_MINIMUM: ClassVar["KdfProfile"]
    """The weakest profile that is ever read: 19 MiB, 2 passes, 1 lane. For machines that cannot give more."""

    def __post_init__(self) -> None:
        check_bounds(self.memory, self.passes, self.lanes)

    @classmethod
    def unsafe_for_tests(cls) -> "KdfProfile":
        """64 KiB, 1 pass, 1 lane: for a test suite only, where it saves the time of the derivations.

        A secret under it is guessed in microseconds. A slot with it is refused, unless this profile is the
        envelope's policy.
        """
        profile = object.__new__(cls)  # skips `__post_init__`, the check of bounds; nothing else does
        for name, value in zip(("memory", "passes", "lanes"), _OF_TESTS, strict=True):
            object.__setattr__(profile, name, value)
        return profile

    def exceeds(self, other: "KdfProfile") -> bool:
        """Whether `other` falls short of this profile in memory, passes or lanes."""
        return other.memory < self.memory or other.passes < self.passes or other.lanes < self.lanes


def check_bounds(memory: int, passes: int, lanes: int) -> None:
    """Refuse parameters that would exhaust this machine, or that an attacker lowered (section 3).

    Args:
        memory: in KiB.

    Raises:
        KdfParametersError: a parameter is out of bounds.
    """
    strong = 19_456 <= memory <= 1_048_576 and (2 <= passes <= 16 or (passes == 1 and memory >= 47_104))
    if not (strong and 1 <= lanes <= 16 and memory >= 8 * lanes and memory * passes <= 8_388_608):
        raise KdfParametersError(
            f"Argon2id with m={memory} KiB, t={passes}, p={lanes} is out of bounds (19 MiB <= m <= 1 GiB, "
            "2 <= t <= 16 or t = 1 from 46 MiB, p <= 16, m * t <= 8 GiB); nothing was derived."
        )


KdfProfile.RFC9106_LOW_MEMORY = KdfProfile(memory=65_536, passes=3, lanes=4)
KdfProfile.LIBSODIUM_MODERATE = KdfProfile(memory=262_144, passes=3, lanes=1)
KdfProfile.OWASP_MINIMUM = KdfProfile(memory=19_456, passes=2, lanes=1)


@dataclass(frozen=True)
class KdfSalt:
    """A profile and a salt of 16 bytes; a slot stores both as text, to stretch its secret again.

    Attributes:
        share_id: the id of the KEK's share, where a second database holds one.
        share: the share itself, once it is there.
    """

    profile: KdfProfile
    salt: bytes
    share_id: uuid.UUID | None = None
    share: KeyShare | None = field(default=None, repr=False, compare=False)

    @classmethod
    def generate(cls, profile: KdfProfile, share: KeyShare | None = None) -> "KdfSalt":
        """Make a fresh random salt.

        Args:
            profile: the profile of the policy, never of an old row: a weak row that somebody planted must not
                spread.
            share: a fresh share, where a second database holds shares.
        """
        return cls(profile, os.urandom(SALT_SIZE), None if share is None else share.id, share)

    def with_share(self, share: KeyShare) -> "KdfSalt":
        """The same with its share, which was read from the second database."""
        return replace(self, share_id=share.id, share=share)

    @classmethod
    def parse(cls, text: str, *, policy: KdfProfile) -> "KdfSalt":
        """Read a PHC salt string. It is checked in full before any memory is allocated.

        Args:
            policy: the envelope's own profile, which is accepted even out of bounds.

        Raises:
            KdfParametersError: the text is not canonical, or out of bounds.
        """
        match = _PHC.fullmatch(text) if len(text) <= 128 else None
        if match is None:
            raise KdfParametersError(
                "The stored key-derivation string is not a canonical Argon2id salt string."
            )
        memory, passes, lanes = (int(match[i]) for i in (1, 2, 3))
        salt, share_id = _decode(match[5]), None if match[4] is None else uuid.UUID(bytes=_decode(match[4]))
        if (memory, passes, lanes) == (policy.memory, policy.passes, policy.lanes):
            return cls(policy, salt, share_id)
        if (memory, passes, lanes) == _OF_TESTS:
            raise KdfParametersError(
                "The key slot was written under `KdfProfile.unsafe_for_tests()`, and this envelope has "
                "another profile; nothing was derived. In a test suite, write `Envelope(kdf_profile="
                "KdfProfile.unsafe_for_tests())` for each envelope. Anywhere else, a secret under this "
                "profile is easily guessed: open the owner with such an envelope once, and call its "
                "`add_provider`, or copy the data to an owner with another secret. Do not delete the slot: "
                "it may be the only way to the owner's keys."
            )
        return cls(KdfProfile(memory, passes, lanes), salt, share_id)

    def __str__(self) -> str:
        profile = self.profile
        parameters = f"m={profile.memory},t={profile.passes},p={profile.lanes}"
        if self.share_id is not None:
            parameters += f"{_SHARE}{_encode(self.share_id.bytes)}"
        return f"$argon2id$v=19${parameters}${_encode(self.salt)}"


_SHARE = ",share="


def share_named_by(text: str | None) -> uuid.UUID | None:
    """The id of the share that a stored PHC salt string names; None if it names none, or is none."""
    match = _PHC.fullmatch(text) if text is not None and len(text) <= 128 else None
    return None if match is None or match[4] is None else uuid.UUID(bytes=base64.b64decode(match[4] + "=="))


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _decode(text: str) -> bytes:
    data = base64.b64decode(text + "==")
    if _encode(data) != text:  # other unused trailing bits would spell the same bytes again
        raise KdfParametersError("The stored key-derivation string is not canonical base64.")
    return data


class KdfLimit:
    """A limit on how many derivations run at once in this process: each holds its profile's memory meanwhile.

    Args:
        concurrent: the number of derivations.
        wait: how long a call waits for a free place, in seconds.
    """

    def __init__(self, concurrent: int, wait: float) -> None:
        self.concurrent = concurrent
        self.wait = wait
        self.reset()
        _LIMITS.add(self)

    def reset(self) -> None:
        """Free every place: the threads that hold them do not exist in a forked child."""
        self._slots = threading.BoundedSemaphore(self.concurrent)

    def derive(
        self,
        secret: bytes | Hidden[bytes],
        salt: KdfSalt,
        *,
        waited: float = 0.0,
        took: Callable[[float], None] | None = None,
    ) -> KeyBytes:
        """Stretch a prepared secret into its KEK.

        Args:
            waited: the seconds of the wait that are used up already.
            took: called with the seconds that the derivation took, without the wait.

        Raises:
            UnlockBusyError: no place came free in time.
        """
        secret = secret if isinstance(secret, Hidden) else Hidden(secret)
        with self._place(waited):
            began = time.perf_counter()
            try:
                return derive_kek(secret, salt)
            finally:
                if took is not None:
                    took(time.perf_counter() - began)

    def stretch(self, data: bytes, salt: bytes, profile: KdfProfile) -> bytes:
        """The 32 bytes that Argon2id makes of a value that is no secret of a person.

        Raises:
            UnlockBusyError: no place came free in time.
        """
        with self._place(0.0):
            return _argon2id(Hidden(data), salt, profile)

    @contextmanager
    def _place(self, waited: float) -> Iterator[None]:
        if not self._slots.acquire(timeout=max(0.0, self.wait - waited)):
            raise self.busy()
        try:
            yield
        finally:
            self._slots.release()

    def busy(self) -> UnlockBusyError:
        """The error for a call that waited too long."""
        return UnlockBusyError(
            f"As many key derivations as are allowed ran for {self.wait:g} s; try again shortly."
        )


_LIMITS: weakref.WeakSet[KdfLimit] = weakref.WeakSet()


def _reset_in_child() -> None:
    for limit in _LIMITS:
        limit.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_in_child)


def derive_kek(secret: bytes | Hidden[bytes], salt: KdfSalt) -> KeyBytes:
    """The KEK of a prepared secret: Argon2id (RFC 9106), then HKDF (section 3, steps 3 and 4).

    Raises:
        KeyShareError: the salt names a share, and comes without it.
        argon2.exceptions.HashingError: the machine has no memory for the derivation, as a rule.
    """
    secret = secret if isinstance(secret, Hidden) else Hidden(secret)
    profile = salt.profile
    if salt.share_id is not None and salt.share is None:
        raise KeyShareError("The share of a key slot was not read before its secret was stretched.")
    return key_encryption_key(_argon2id(secret, salt.salt, profile), salt.share)


def _argon2id(secret: Hidden[bytes], salt: bytes, profile: KdfProfile) -> bytes:
    try:
        return hash_secret_raw(
            secret.reveal(), salt, profile.passes, profile.memory, profile.lanes, 32, Type.ID, 19
        )
    except Exception as error:  # noqa: BLE001 - no memory, as a rule
        failed = error
    raise failed.with_traceback(None)  # argon2's own frames hold the secret
