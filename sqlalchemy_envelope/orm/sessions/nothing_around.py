"""A null object around the outermost unlocked session: it holds no key, and does nothing."""

from __future__ import annotations

from typing import Any


class NothingAround:
    """Answers as an unlocked session without keys."""

    follows = False
    makes_keys = False

    def __contains__(self, owner: object) -> bool:
        return False

    def nothing(self, *_: Any) -> None:
        """Return None: there is no key, no owner, and nothing to do."""

    reader = writer = index_writer = owner_of = keyring_for = nothing
    follow_all = follow_owners = find_others = prepare_read = prepare_write = nothing
    settle_for = settle_around = make_way = saw = forget_deleted = seek = nothing

    def no(self, *_: Any) -> bool:
        """Return False: nothing waits, and there is no grant to follow."""
        return False

    may_follow = waits_in = only_reads = no

    def index_seekers(self, *_: Any, **__: Any) -> dict[Any, Any]:
        """Return an empty dictionary: no index key is open."""
        return {}

    def sole(self, *_: Any) -> set[Any]:
        """Return an empty set: no sole owner is open."""
        return set()


NOTHING_AROUND = NothingAround()
