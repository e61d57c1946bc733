"""Whose key opened a value, while several owners are unlocked.

A column-bound value opens before its row is known: a result processor sees the value alone, and the `load`
event sees the row with the plaintext already in it. With one owner unlocked the row is compared with that
owner. With several, somebody could put a value of one into a row of the other, to be read, saved and so
encrypted for the wrong one. Here it is noted which owner's key gave each plaintext, and the `load` event asks
for it back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy_envelope.keys.keyring import OwnerId

MANY = 100_000


class Provenance:
    """Plaintexts by identity, with the owners whose keys gave them.

    The plaintext itself is kept beside, so that no other object can have its identity meanwhile. What Python
    shares between values (True, small integers, the empty string) is noted once for each time it was read.
    """

    def __init__(self) -> None:
        self._recent: dict[int, tuple[Any, list[OwnerId]]] = {}
        self._older: dict[int, tuple[Any, list[OwnerId]]] = {}

    def note(self, plaintext: Any, owner: OwnerId) -> None:
        """This object was decrypted with a key of `owner`."""
        self._recent.setdefault(id(plaintext), (plaintext, []))[1].append(owner)

    def take(self, plaintext: Any, owner: OwnerId) -> bool:
        """Whether this object was; each note answers once."""
        for noted in (self._recent, self._older):
            found = noted.get(id(plaintext))
            if found is not None and owner in found[1]:
                found[1].remove(owner)
                if not found[1]:
                    del noted[id(plaintext)]
                return True
        return False

    def begin_statement(self, many: int = MANY) -> None:
        """Let go, in two steps, of what no row has asked for: selects of columns alone never do."""
        if len(self._recent) > many:
            self._older, self._recent = self._recent, {}

    def clear(self) -> None:
        """Forget every plaintext."""
        self._recent, self._older = {}, {}
