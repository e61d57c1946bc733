"""The row seals of one application (section 9): made under its active server key, checked under any."""

from __future__ import annotations

from collections.abc import Callable
from hmac import compare_digest
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.row_seal import SEAL_SIZE, row_bytes, row_key, row_mac
from sqlalchemy_envelope.crypto.secret import KeyBytes, Uncopied
from sqlalchemy_envelope.exceptions import ConfigurationError, RowSealError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy_envelope.keys.providers.server import ServerKeyring

Realm = str | Callable[[Any], str] | None


def realm_name(realm: Any, database: Any) -> str:
    """The name of a database: the realm itself, or the answer of a realm that is a function.

    Args:
        realm: `Envelope(realm=...)`.
        database: what the function is called with, an engine.

    Raises:
        ConfigurationError: the realm, or the function's answer, is not a name.
    """
    name = realm(database) if callable(realm) else realm
    if isinstance(name, str) and name.strip() and _is_utf8(name):
        return name
    raise ConfigurationError(
        "Envelope(realm=...) takes the name of a database: text that has a UTF-8 form and is not blank, or a "
        "function that returns such a name for an engine."
    )


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


class RowSeals(Uncopied):
    """Seals and checks rows. Without server keys it makes no seals and asks for none.

    Attributes:
        realm: the name of the database that the rows belong to, or a function that returns it. The seal of
            one realm does not fit in another.
    """

    def __init__(self, server_keys: ServerKeyring | None = None, realm: Realm = None) -> None:
        self._server_keys = server_keys
        self.realm = realm
        self._row_keys: dict[tuple[bytes, str, str], KeyBytes] = {}

    def realm_of(self, database: Any) -> str:
        """The name of a database; empty if it has none.

        Raises:
            ConfigurationError: see `realm_name`.
        """
        return "" if self.realm is None else realm_name(self.realm, database)

    @property
    def server_keys(self) -> ServerKeyring | None:
        """The server keys."""
        return self._server_keys

    @property
    def is_on(self) -> bool:
        """Whether there are server keys."""
        return self._server_keys is not None

    @property
    def server_key_ids(self) -> list[bytes]:
        """The ids of the server keys, the active one first."""
        return [] if self._server_keys is None else list(self._server_keys.keys_by_id)

    def is_under_active(self, seal: bytes | None) -> bool:
        """Whether a seal is under the active server key, as far as it says; true without server keys."""
        return self._server_keys is None or (seal or b"")[:16] == self._server_keys.active[0]

    def seal(self, label: str, fields: Sequence[bytes], realm: str = "") -> bytes | None:
        """The seal of a row, 48 bytes; None without server keys.

        Args:
            label: the owner label of a key or slot table, or the grant label of a grant table.
            fields: the columns under the seal, from `sealed_fields`.
            realm: the name of the database, from `realm_of`.
        """
        if self._server_keys is None:
            return None
        key_id, server_key = self._server_keys.active
        return key_id + row_mac(self._row_key(key_id, server_key, label, realm), row_bytes(fields))

    def check(self, seal: bytes | None, label: str, fields: Sequence[bytes], realm: str = "") -> None:
        """Check that the application wrote this row as it stands. Without server keys nothing is checked.

        Args:
            seal: the stored seal.
            label, fields, realm: as in `seal`.

        Raises:
            RowSealError: there is no seal, it does not fit, or its server key is not configured.
        """
        if self._server_keys is None:
            return
        if seal is None or len(seal) != SEAL_SIZE:
            raise RowSealError(
                f"A row of the keys of {label!r} has no row seal. Either it is from before server keys were "
                "configured: envelope.seal_rows() seals such rows, once. Or the application did not write it."
            )
        key_id = bytes(seal[:16])
        server_key = self._server_keys.keys_by_id.get(key_id)
        if server_key is None:
            raise RowSealError(
                f"A row of the keys of {label!r} is sealed under server key {key_id.hex()[:8]}, which is not "
                "configured. Put that key back among the server keys, after the first key."
            )
        row = row_bytes(fields)
        if not compare_digest(
            bytes(seal[16:]), row_mac(self._row_key(key_id, server_key, label, realm), row)
        ):
            raise RowSealError(
                f"A row of the keys of {label!r} was altered, or belongs to another database: its row seal "
                f"does not fit{f' in the realm {realm!r}' if realm else ''}. If Envelope(realm=...) was "
                "changed, seal the rows anew: envelope.seal_rows()."
            )

        self._checked(seal, label, row, realm)

    def _checked(self, seal: bytes, label: str, row: bytes, realm: str) -> None:
        """Called with each row whose seal is right."""

    def _row_key(self, key_id: bytes, server_key: KeyBytes, label: str, realm: str) -> KeyBytes:
        key = self._row_keys.get((key_id, label, realm))
        if key is None:
            key = self._row_keys[key_id, label, realm] = row_key(server_key, label, realm)
        return key

    def __repr__(self) -> str:
        return f"<RowSeals {'on' if self.is_on else 'off'}>"


class RenewingSeals(RowSeals):
    """Row seals for rows that are sealed anew: a row that was checked is not encoded a second time.

    Args:
        seals: the seals of the application.
    """

    def __init__(self, seals: RowSeals) -> None:
        super().__init__(seals._server_keys, seals.realm)
        self._row_keys = seals._row_keys
        self._active = None if seals._server_keys is None else seals._server_keys.active
        self._new: dict[bytes, bytes] = {}

    def is_under_active(self, seal: bytes | None) -> bool:
        """As `RowSeals.is_under_active`."""
        return self._active is None or (seal or b"")[:16] == self._active[0]

    def _checked(self, seal: bytes, label: str, row: bytes, realm: str) -> None:
        if self._active is not None and not self.is_under_active(seal):
            key_id, server_key = self._active
            self._new[bytes(seal)] = key_id + row_mac(self._row_key(key_id, server_key, label, realm), row)

    def renewed(self, seal: bytes | None) -> bytes | None:
        """The seal under the active server key of a row that was checked with this seal, as the row was."""
        return self._new.get(seal or b"")
