"""Root and data keys: made, described, wrapped under one another, and opened again.

After every unwrap of every kind, `verify` computes commitment and id anew and compares them with the row: so
every path to a key commits to it, whatever wrapped the key (section 2).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hmac import compare_digest
from types import MappingProxyType

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.sealing import is_sealed, open_key, public_keys, seal_key
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.crypto.wrapping import unwrap, wrap
from sqlalchemy_envelope.exceptions import TamperedKeyError, TransactionConflictError, UnlockError
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose, StoredKey, Wrap

Epochs = Mapping[tuple[Purpose, str], int]
"""The number of an epoch for each kind of key: its purpose and scope."""
_NO_EPOCHS: Epochs = MappingProxyType({})


def describe(
    key: KeyBytes,
    owner_reference: bytes,
    purpose: Purpose,
    *,
    scope: str = "",
    epoch: int = 1,
    hybrid: bool = False,
) -> OpenedKey:
    """Describe a new key by a row, which has no wrap yet.

    Args:
        hybrid: whether the key gets an ML-KEM-768 public key beside the X25519 public key.
    """
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


def new_keys(scopes: Iterable[str], indexed: Iterable[str] = (), *, hybrid: bool = False) -> list[OpenedKey]:
    """A new root key, a new data key for each scope, and a new index key for each of these scopes that has
    blind indexes. They are bound to no owner: see `bound_keys`."""
    kinds = [
        *((Purpose.DATA, scope) for scope in sorted(scopes)),
        *((Purpose.INDEX, scope) for scope in sorted(indexed)),
    ]
    root = describe(KeyBytes.generate(), b"", Purpose.ROOT, hybrid=hybrid)
    return [
        root,
        *(describe(KeyBytes.generate(), b"", purpose, scope=scope) for purpose, scope in kinds),
    ]


def last_epochs(keys: Iterable[StoredKey]) -> Epochs:
    """The last epoch of each kind of key among these. It is taken, also if its key is destroyed."""
    found: dict[tuple[Purpose, str], int] = {}
    for key in keys:
        kind = key.purpose, key.scope
        found[kind] = max(key.epoch, found.get(kind, 0))
    return found


def bound_keys(made: Iterable[OpenedKey], reference: bytes, former: Epochs = _NO_EPOCHS) -> list[OpenedKey]:
    """Bind new keys to their owner, and wrap them under the root key.

    Args:
        made: from `new_keys`, the root key first.
        reference: the owner's (`context.owner_reference`).
        former: the last epochs of the owner's destroyed keys; the new keys are of the epochs after them.
    """
    root, *data = (_bound(key, reference, former) for key in made)
    return [root, *(OpenedKey(wrap_under_root(key, root), key.key) for key in data)]


def _bound(key: OpenedKey, reference: bytes, former: Epochs) -> OpenedKey:
    epoch = former.get((key.stored.purpose, key.stored.scope), 0) + 1
    return OpenedKey(replace(key.stored, owner_reference=reference, epoch=epoch), key.key)


def verify(key: KeyBytes, stored: StoredKey) -> OpenedKey:
    """Check that an unwrapped key is the key that its row describes.

    Raises:
        TamperedKeyError: it is another key; its bytes were altered or exchanged.
    """
    commitment = kdf.commitment(key)
    # One by one: joined, bytes could move from one column of the row to the next and still compare equal.
    same = [
        compare_digest(commitment, stored.commitment),
        compare_digest(kdf.key_id_of(commitment).bytes, stored.key_id.bytes),
    ]
    # Only of active root keys: nothing is sealed to other keys, and the pair costs more than all the rest.
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
    """Check that each kind of key has one active generation, and that it is the newest (section 2).

    No wrap binds the state of a key, so that a key can be retired without the key that wraps it. An attacker
    can thus make an old row active again, to have new values encrypted under a key that a removed member
    still has. This check alone finds such a row, and a second root key beside the genuine one. Write epochs
    have no generations: none is ever active.

    Raises:
        TamperedKeyError: two keys of a kind are active, or an older key than the newest.
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
    """The row of a data, index or write key, wrapped under its owner's root key.

    Raises:
        TransactionConflictError: see `wrap_under`.
    """
    stored = replace(child.stored, wrapping_key_id=root.stored.key_id)
    return replace(stored, wrapped=wrap_under(child.key, root, stored.wrap_context("root")))


def seal_to_root(child: OpenedKey, root: StoredKey) -> StoredKey:
    """The row of a data or write key, sealed to the root key of an owner who is locked."""
    stored = replace(child.stored, wrapping_key_id=root.key_id)
    context = stored.wrap_context("sealed", recipient=root.key_id.bytes)
    return replace(stored, wrapped=seal_key(child.key, root.public_keys, context))


def link_to_newer_root(older: OpenedKey, newer: OpenedKey) -> StoredKey:
    """The row of a retired root key, wrapped under a newer root key: its holder reads the values from before.

    Raises:
        TransactionConflictError: see `wrap_under`.
    """
    stored = replace(older.stored, wrapping_key_id=newer.stored.key_id)
    context = stored.wrap_context("previous", recipient=newer.stored.key_id.bytes)
    return replace(stored, wrapped=wrap_under(older.key, newer, context))


def wrap_of(stored: StoredKey) -> Wrap | None:
    """The way to a key that the key's own row stores; None if the row stores none."""
    if stored.wrapped is None or stored.wrapping_key_id is None:
        return None
    under = stored.wrapping_key_id
    if stored.purpose is Purpose.ROOT:
        return Wrap(under, stored.wrapped, "previous")
    if is_sealed(stored.wrapped):
        return Wrap(under, stored.wrapped, "sealed", sealed=True)
    return Wrap(under, stored.wrapped, "root")


def wrap_under(key: KeyBytes, wrapping: OpenedKey, context: bytes) -> bytes:
    """Wrap a key under a root key; 105 bytes.

    Raises:
        TransactionConflictError: another thread wiped the root key meanwhile.
    """
    wrapped = wrap(key, wrapping.key.derived(kdf.wrapping_key), context)
    if not any(wrapping.key.buffer):
        # Another thread wiped it, and does not wait for us. A wrap under 32 zeros opens for anybody.
        raise TransactionConflictError(
            f"Key {short(wrapping.stored)} was wiped at the same moment; nothing was wrapped. Run the "
            "transaction again."
        )
    return wrapped


def open_wrap(stored: StoredKey, way: Wrap, parent: OpenedKey) -> OpenedKey:
    """Open a key through one stored way to it.

    Args:
        parent: the open key `way.under`.

    Raises:
        FormatError, TruncatedError: the blob is sealed where it must be wrapped, wrapped where it must be
            sealed, or no stored key at all.
        TamperedKeyError: the blob was altered, or moved here from another owner, scope, epoch or grant.
    """
    context = way.context(stored)
    try:
        # The way decides, and not the blob: anybody can seal. A key that is trusted because only a holder of
        # the parent can have wrapped it must not open when it was sealed.
        if way.sealed and stored.purpose is Purpose.INDEX:
            # Anybody can seal. The maker of a genuine index key holds the root key, and wraps it.
            raise TamperedKeyError(f"Key {short(stored)} is an index key, and is sealed: it was planted.")
        if way.sealed:
            key = open_key(way.blob, parent.key, context)
        else:
            # A recipient opens a thousand grants, so the subkey stays in memory; an owner, its few data keys.
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
    """The proof of a new root key, 32 bytes: only a holder of the previous root key can make it (section 7).

    Args:
        key_id: the id of the new root key, 16 bytes.
    """
    return bytes(kdf.subkey(previous.key, "epoch-proof", key_id).buffer)


def is_proven(root: StoredKey, previous: Iterable[OpenedKey]) -> bool:
    """Whether the maker of a root key held one of these earlier root keys (section 7)."""
    entries = [(root.proof or b"")[start : start + 32] for start in (0, 32)]
    proofs = [proof_of_epoch(earlier, root.key_id.bytes) for earlier in previous]
    # A list, so that all are compared: the time tells nothing of the first that fits.
    return any([compare_digest(entry, proof) for entry in entries for proof in proofs])  # noqa: C419


def short(stored: StoredKey) -> str:
    """The first eight hex digits of a key id: enough to find the row, fit for a message."""
    return stored.key_id.hex[:8]
