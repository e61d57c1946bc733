"""What the state machine of sharing plays with: names, numbers, envelopes, databases."""

from __future__ import annotations

from contextvars import Context
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, ServerKeyring, UnlockedSession
from tests.orm.sharing.sharing_world import Owner

NAMES = ("ann", "bob", "cat", "dan")
SERVER_KEY = b"\x05" * 32
COMPILED: dict[Any, Any] = {}
"""The statements, compiled once for all runs."""
TEMPLATES: dict[bool, bytes] = {}


def secret_of(person: Owner) -> str:
    """What opens a person's keys."""
    return f"the secret of {person.name}"


def make_envelope(is_sealed: bool) -> Envelope:
    """With row seals, or with the same key as a provider and no more."""
    keys = ServerKeyring([SERVER_KEY])
    profile = KdfProfile.unsafe_for_tests()
    if is_sealed:
        return Envelope(kdf_profile=profile, server_keys=keys)
    return Envelope(kdf_profile=profile, providers={"server": keys})


@dataclass(eq=False)
class Kept:
    """An unlocked session that somebody leaves open, in a context of its own."""

    session: Session
    unlocked: UnlockedSession
    context: Context
    reads: set[str]
    holds: set[Owner]
