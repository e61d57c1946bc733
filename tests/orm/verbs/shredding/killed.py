"""A shredding, for the tests that kill it at any point."""

from collections.abc import Mapping

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, KdfProfile, NotEnrolledError, ReceiptKey
from tests.orm.models import Note, User

_eraser = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), receipt_key=ReceiptKey(bytes(32)))


def shred(session: Session, key: int, known: Mapping[str, str]) -> None:
    _eraser.shred(session, session.get_one(User, key), reason="killed")
    session.commit()


def is_shredded(session: Session, key: int, known: Mapping[str, str]) -> None:
    """Require that no way leads to any key, that all are destroyed, and that new keys can be made."""
    user, keys, slots = session.get_one(User, key), User.__key_class__, User.__slot_class__
    mine = select(keys.key_id).where(keys.owner_id == key)
    rows = session.execute(select(keys.state, keys.wrapped).where(keys.owner_id == key))
    assert {tuple(row) for row in rows} == {("destroyed", None)}
    assert session.scalars(select(slots).where(slots.key_id.in_(mine))).all() == []
    for secret in known.values():
        with pytest.raises(NotEnrolledError):
            _eraser.unlock(session, user, secret=secret)
    with _eraser.enroll(session, user, secret="new keys") as unlocked:
        note = session.scalars(select(Note).filter_by(user_id=key)).one()
        why = _eraser.why_locked(session, note, "body")
        assert why is not None
        assert why.reason == "shredded"
        assert unlocked.is_open
    session.rollback()
