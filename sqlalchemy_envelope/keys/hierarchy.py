"""Root and data keys: made, described, wrapped under one another, and opened again.

After every unwrap of every kind the commitment and the id are recomputed and compared: that makes all paths
key-committing, whatever wrapped the key.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from hmac import compare_digest

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.sealing import is_sealed, open_key, public_keys, seal_key
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import unwrap, wrap
from sqlalchemy_envelope.exceptions import TamperedKeyError, TransactionConflictError, UnlockError
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose, StoredKey, Wrap


def describe(
    key: KeyBytes,
    owner_reference: bytes,
    purpose: Purpose,
    *,
    scope: str = "",
    epoch: int = 1,
    hybrid: bool = False,
) -> OpenedKey:
    """A new key with the row that describes it, not wrapped yet."""
    commitment = kdf.commitment(key)
    public = public_keys(key, hybrid=hybrid)
    stored = StoredKey(
        kdf.key_id_of(commitment),
        owner_reference,
        purpose,
        scope,
        epoch,
        KeyState.ACTIVE,
        commitment,
        public.x25519,
        public.mlkem768,
    )
    return OpenedKey(stored, key)


def new_keys(scopes: Iterable[str], *, hybrid: bool = False) -> list[OpenedKey]:
    """A root key, and a data key for each scope, bound to nobody yet."""
    root = describe(KeyBytes.generate(), b"", Purpose.ROOT, hybrid=hybrid)
    return [
        root,
        *(describe(KeyBytes.generate(), b"", Purpose.DATA, scope=scope) for scope in sorted(scopes)),
    ]


def bound_keys(made: Iterable[OpenedKey], reference: bytes) -> list[OpenedKey]:
    """The same keys, bound to their owner and wrapped under its root key."""
    root, *data = (OpenedKey(replace(one.stored, owner_reference=reference), one.key) for one in made)
    return [root, *(OpenedKey(wrap_under_root(one, root), one.key) for one in data)]


def verify(key: KeyBytes, stored: StoredKey) -> OpenedKey:
    """Whether an unwrapped key is the one its row describes.

    Raises:
        TamperedKeyError: it is not; the bytes were altered or exchanged.
    """
    commitment = kdf.commitment(key)
    # One by one: joined, bytes could move from one column of the row to the next and still compare equal.
    same = [
        compare_digest(commitment, stored.commitment),
        compare_digest(kdf.key_id_of(commitment).bytes, stored.key_id.bytes),
    ]
    # Of active root keys alone: nothing is sealed to another key, and the pair costs more than all the rest.
    if stored.purpose is Purpose.ROOT and stored.state is KeyState.ACTIVE:
        public = public_keys(key, hybrid=stored.mlkem_public_key is not None)
        same += [
            compare_digest(public.x25519, stored.public_key),
            compare_digest(public.mlkem768 or b"", stored.mlkem_public_key or b""),
        ]
    if not all(same):
        raise TamperedKeyError(f"Key {short(stored)} opened, but is not the key that its row describes.")
    return OpenedKey(stored, key)


def check_generations(keys: Sequence[StoredKey]) -> None:
    """Whether each kind of key has one active generation, and it is the newest.

    The state is part of no wrap, so that a key can be retired without what wraps it. A row that was made
    active again, to have new values encrypted under a key that somebody was shut out from, shows here alone;
    so does a second root beside the genuine one. Write epochs have no generations: none is ever active.

    Raises:
        TamperedKeyError: two are active, or a newer one than the active is not.
    """
    kinds: dict[tuple[Purpose, str], list[StoredKey]] = {}
    for key in keys:
        kinds.setdefault((key.purpose, "" if key.purpose is Purpose.ROOT else key.scope), []).append(key)
    for (purpose, _), of_kind in kinds.items():
        active = [key for key in of_kind if key.state is KeyState.ACTIVE]
        if purpose is Purpose.WRITE:
            expected = []
        elif all(key.state is KeyState.DESTROYED for key in of_kind):
            continue
        else:
            expected = [max(of_kind, key=lambda key: key.epoch)]
        if active != expected:
            raise TamperedKeyError(
                f"The active {purpose} key of this owner is not the newest one, or is not the only one."
            )


def wrap_under_root(child: OpenedKey, root: OpenedKey) -> StoredKey:
    """The row of a data, index or write key, wrapped under its owner's root key."""
    stored = replace(child.stored, wrapping_key_id=root.stored.key_id)
    return replace(stored, wrapped=wrap_under(child.key, root, stored.wrap_context("root")))


def seal_to_root(child: OpenedKey, root: StoredKey) -> StoredKey:
    """The row of a data or write key, sealed to the root key of an owner who is locked."""
    stored = replace(child.stored, wrapping_key_id=root.key_id)
    context = stored.wrap_context("sealed", recipient=root.key_id.bytes)
    return replace(stored, wrapped=seal_key(child.key, root.public_keys, context))


def link_to_newer_root(older: OpenedKey, newer: OpenedKey) -> StoredKey:
    """The row of a retired root key, wrapped under a newer one: who holds that reads what was before."""
    stored = replace(older.stored, wrapping_key_id=newer.stored.key_id)
    context = stored.wrap_context("previous", recipient=newer.stored.key_id.bytes)
    return replace(stored, wrapped=wrap_under(older.key, newer, context))


def wrap_of(stored: StoredKey) -> Wrap | None:
    """The way to a key that its own row stores; None if the row stores none."""
    if stored.wrapped is None or stored.wrapping_key_id is None:
        return None
    under = stored.wrapping_key_id
    if stored.purpose is Purpose.ROOT:
        return Wrap(under, stored.wrapped, "previous")
    if is_sealed(stored.wrapped):
        return Wrap(under, stored.wrapped, "sealed", sealed=True)
    return Wrap(under, stored.wrapped, "root")


def wrap_under(key: KeyBytes, wrapping: OpenedKey, context: bytes) -> bytes:
    """Wrap any key under a root key."""
    wrapped = wrap(key, wrapping.key.derived(kdf.wrapping_key), context)
    if not any(wrapping.key.buffer):
        # By another thread, which does not wait: under 32 zeros anybody would open it.
        raise TransactionConflictError(
            f"Key {short(wrapping.stored)} was wiped at the same moment; nothing was wrapped. Run the "
            "transaction again."
        )
    return wrapped


def open_wrap(stored: StoredKey, way: Wrap, parent: OpenedKey) -> OpenedKey:
    """Open a key through one stored way to it.

    Raises:
        FormatError, TruncatedError: sealed where it must be wrapped, the other way about, or no stored key.
        TamperedKeyError: altered, or moved here from another owner, scope, epoch or grant.
    """
    context = way.context(stored)
    try:
        # Told by the way and not by the blob: anybody can seal, and what is trusted for having been wrapped
        # must not open when it was sealed.
        if way.sealed:
            key = open_key(way.blob, parent.key, context)
        else:
            # A recipient opens a thousand grants, an owner its few data keys: those keep no subkey in memory.
            many = way.kind == "grant"
            wrapping = parent.key.derived(kdf.wrapping_key) if many else kdf.wrapping_key(parent.key)
            key = unwrap(way.blob, wrapping, context)
    except UnlockError:
        # The root key is right beyond doubt, so this is no wrong secret.
        raise TamperedKeyError(
            f"Key {short(stored)} was altered, or belongs to another owner, epoch or grant."
        ) from None
    return verify(key, stored)


def proof_of_epoch(previous: OpenedKey, key_id: bytes) -> bytes:
    """What only a holder of the previous root key can make for the next one (section 7)."""
    return bytes(kdf.subkey(previous.key, "epoch-proof", key_id).buffer)


def is_proven(root: StoredKey, previous: Iterable[OpenedKey]) -> bool:
    """Whether a root key was made by somebody who held one of these earlier ones."""
    entries = [(root.proof or b"")[start : start + 32] for start in (0, 32)]
    proofs = [proof_of_epoch(one, root.key_id.bytes) for one in previous]
    return any([compare_digest(entry, proof) for entry in entries for proof in proofs])  # noqa: C419 - all


def short(stored: StoredKey) -> str:
    """The first eight hex digits of a key id: enough to find the row, fit for a message."""
    return stored.key_id.hex[:8]
