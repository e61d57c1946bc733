"""Tickets: the text that a client keeps, and the keys that a ticket carries (section 12).

    st1.<64 characters of base64url>          ticket id 16 ‖ client half 32
    key id 16 ‖ key 32 ‖ binding 16           one entry; entries are in the order of their key ids

A ticket carries keys, and no wrap says whose they are. So each entry binds its key to the row that described
the key when the ticket was issued: a row that says something else later is refused.
"""

import base64
import os
import re
import uuid
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple

from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes, Uncopied
from sqlalchemy_envelope.crypto.ticket import ENTRY_SIZE
from sqlalchemy_envelope.exceptions import ConfigurationError, TamperedKeyError, TicketError
from sqlalchemy_envelope.keys.hierarchy import short, verify
from sqlalchemy_envelope.keys.model import OpenedKey, Purpose, StoredKey

PREFIX = "st1."
MAX_KEYS = 100_000
"""The most keys that a ticket carries: their row has 6.4 MB then, which each request reads."""

_TEXT = re.compile(r"st1\.([A-Za-z0-9_-]{64})")
_LATER = re.compile(r"st[0-9]+\.")
_BINDING_SIZE = 16


class Ticket(str):
    """The text of a ticket, for a cookie or a header. Its `repr` shows nothing: logs and error trackers print
    the `repr` of variables. `str(ticket)` is the text.
    """

    __slots__ = ()

    @property
    def ticket_id(self) -> uuid.UUID:
        """The id of the ticket's row. It is no secret, and `Envelope.tickets` lists it."""
        return parse_ticket(self).ticket_id

    def __repr__(self) -> str:
        return "<Ticket redacted>"


class ParsedTicket(NamedTuple):
    """The parts of a ticket's text."""

    ticket_id: uuid.UUID
    client_half: KeyBytes


def new_ticket() -> ParsedTicket:
    """A fresh ticket, with random parts."""
    return ParsedTicket(uuid.uuid4(), KeyBytes.generate())


def ticket_text(ticket: ParsedTicket) -> Ticket:
    """The text that the client keeps, 68 characters."""
    data = ticket.ticket_id.bytes + bytes(ticket.client_half.buffer)
    return Ticket(PREFIX + base64.urlsafe_b64encode(data).decode("ascii"))


def parse_ticket(text: object) -> ParsedTicket:
    """Read the text of a ticket.

    Raises:
        TicketError: the text was cut or changed, is of a later version, or is no ticket at all.
    """
    if not isinstance(text, str):
        raise TicketError(f"A ticket is text, and not of the type {type(text).__name__}. Log in again.")
    found = _TEXT.fullmatch(text)
    if found is None:
        if _LATER.match(text) and not text.startswith(PREFIX):
            raise TicketError(
                "The ticket is of a version that this library does not read: a later release issued it. Log "
                "in again."
            )
        raise TicketError("The text of the ticket was cut or changed, or is no ticket. Log in again.")
    data = base64.urlsafe_b64decode(found[1])
    return ParsedTicket(uuid.UUID(bytes=data[:16]), KeyBytes(data[16:]))


def ticket_id_of(ticket: object) -> uuid.UUID:
    """The id of a ticket, which is given by its text or by its id.

    Raises:
        TicketError: see `parse_ticket`.
    """
    return ticket if isinstance(ticket, uuid.UUID) else parse_ticket(ticket).ticket_id


def new_row_half() -> bytes:
    """The part of the ticket's key that lies in the row."""
    return os.urandom(KEY_SIZE)


def entries_of(keys: Iterable[OpenedKey]) -> bytearray:
    """The entries of these keys. The caller wipes them.

    Raises:
        ConfigurationError: there are more keys than a ticket carries, or a root key is among them.
    """
    by_id = {one.stored.key_id.bytes: one for one in keys}
    if len(by_id) > MAX_KEYS:
        raise ConfigurationError(
            f"A ticket carries {MAX_KEYS:,} keys, and grants lead this owner to {len(by_id):,}."
        )
    entries = bytearray()
    for key_id in sorted(by_id):
        stored = by_id[key_id].stored
        if stored.purpose is Purpose.ROOT:
            raise ConfigurationError("A ticket carries no root key.")
        entries += key_id + by_id[key_id].key.buffer + _binding(stored)
    return entries


def _binding(stored: StoredKey) -> bytes:
    return sha256(stored.wrap_context("ticket")).digest()[:_BINDING_SIZE]


def _find(entries: bytearray, key_id: bytes) -> int:
    at = entries.find(key_id)
    while at >= 0 and at % ENTRY_SIZE:  # by chance, the id stands in the middle of an entry
        at = entries.find(key_id, at + 1)
    return at


class CarriedKeys(Uncopied):
    """The keys that a ticket carries. Each is copied and checked when it is first used.

    Args:
        entries: as `open_ticket` returned them. They are wiped with this object.
    """

    def __init__(self, entries: bytearray) -> None:
        self._entries = entries

    def open(self, stored: StoredKey) -> OpenedKey | None:
        """The key that a row describes; None if the ticket does not carry it.

        Raises:
            TamperedKeyError: the row describes the key otherwise than when the ticket was issued.
        """
        entries = self._entries  # read once: another thread may wipe at any moment
        at = _find(entries, stored.key_id.bytes)
        if at < 0:
            return None
        entry = entries[at : at + ENTRY_SIZE]
        try:
            if not compare_digest(entry[-_BINDING_SIZE:], _binding(stored)):
                raise TamperedKeyError(
                    f"Key {short(stored)} was altered since the ticket was issued: its row describes it as "
                    "another key."
                )
            return verify(KeyBytes(entry[16 : 16 + KEY_SIZE]), stored)
        finally:
            entry[:] = bytes(len(entry))

    def __len__(self) -> int:
        return len(self._entries) // ENTRY_SIZE

    def wipe(self) -> None:
        """Overwrite the keys with zeros, and forget them."""
        self._entries[:] = bytes(len(self._entries))
        self._entries = bytearray()

    def __repr__(self) -> str:
        return f"<CarriedKeys, {len(self)} of them>"
