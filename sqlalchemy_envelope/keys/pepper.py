"""The pepper of an application: an outer layer around its secret slots (section 10).

A pepper is a key that the application holds and the database does not. What a secret slot stores is a
function of the secret: whoever copied the database can try guesses on it. Under a pepper the slot is
ciphertext, and a guess can be compared with nothing in the copy.

The layer is no input of the key derivation. So whoever has both peppers changes it without the secret.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from sqlalchemy_envelope.crypto.peppering import (
    PREFIX_SIZE,
    PepperContext,
    add_pepper,
    is_peppered,
    pepper_id_of,
    prefix_of,
    take_pepper,
)
from sqlalchemy_envelope.crypto.secret import Uncopied
from sqlalchemy_envelope.exceptions import PepperError
from sqlalchemy_envelope.keys.model import SlotKind

if TYPE_CHECKING:
    from sqlalchemy_envelope.keys.model import StoredSlot
    from sqlalchemy_envelope.keys.providers.server import ServerKeyring


class SlotPepper(Uncopied):
    """Puts secret slots under the active pepper, and opens them under any.

    Args:
        keys: the peppers, the active one first; None without a pepper.
        adds: whether slots that are written get the active pepper. If not, they get none.

    Attributes:
        keys: the peppers.
    """

    def __init__(self, keys: ServerKeyring | None = None, *, adds: bool = True) -> None:
        self.keys = keys
        self._adds = adds and keys is not None

    @property
    def is_on(self) -> bool:
        """Whether there is a pepper."""
        return self.keys is not None

    @property
    def prefix(self) -> bytes:
        """The first bytes of a slot that is stored as it should be; empty if that is without a pepper."""
        return prefix_of(self.keys.active[0]) if self.keys is not None and self._adds else b""

    def takes(self, slot: StoredSlot) -> bool:
        """Whether the layer is for a slot: a slot of a secret, and not of a row that has no public key."""
        return slot.kind is SlotKind.SECRET and slot.recipient_public_key is not None

    def is_current(self, slot: StoredSlot) -> bool:
        """Whether a slot that was loaded is stored as this application stores slots now."""
        return not self.takes(slot) or (slot.under_pepper or b"")[:PREFIX_SIZE] == self.prefix

    def stored(self, slot: StoredSlot) -> StoredSlot:
        """The slot as its row holds it.

        Raises:
            PepperError: the slot was never opened, since its pepper is not configured.
        """
        require_open(slot)
        if self.keys is None or not self._adds or not self.takes(slot):
            return slot if slot.under_pepper is None else replace(slot, under_pepper=None)
        pepper_id, pepper = self.keys.active
        public_key = slot.recipient_public_key or b""
        layer = add_pepper(pepper_id, pepper, public_key, slot.wrapped, _context(slot))
        return replace(slot, wrapped=layer, recipient_public_key=None, under_pepper=layer)

    def opened(self, row: StoredSlot) -> StoredSlot:
        """The slot of a row, out of its pepper; the row as it is, if that pepper is not configured.

        Raises:
            FormatError, TruncatedError: this is no slot under a pepper.
            TamperedKeyError: the slot was altered, or moved here.
        """
        if not is_peppered(row.wrapped):
            return row
        pepper_id = pepper_id_of(row.wrapped)
        pepper = None if self.keys is None else self.keys.keys_by_id.get(pepper_id)
        if pepper is None:
            return row
        public_key, wrapped = take_pepper(row.wrapped, pepper, _context(row))
        return replace(row, wrapped=wrapped, recipient_public_key=public_key, under_pepper=row.wrapped)

    def __repr__(self) -> str:
        return f"<SlotPepper {'on' if self.is_on else 'off'}>"


def is_closed(slot: StoredSlot) -> bool:
    """Whether a slot is under a pepper that is not configured: nothing in it can be read."""
    return is_peppered(slot.wrapped)


def require_open(slot: StoredSlot) -> None:
    """Require that a slot was taken out of its pepper.

    Raises:
        PepperError: its pepper is not configured.
    """
    if is_closed(slot):
        raise PepperError(
            f"A secret slot is under pepper {pepper_id_of(slot.wrapped).hex()[:8]}, which is not configured. "
            "Put that key back among the peppers, Envelope(pepper=ServerKeyring([...])), after the first. If "
            "it is lost, no secret opens the slot again: open the owner in another way, and give it a new "
            "secret."
        )


def _context(slot: StoredSlot) -> bytes:
    return PepperContext(slot.slot_id.bytes, slot.key_id.bytes, slot.kind.value, slot.kdf).encode()
