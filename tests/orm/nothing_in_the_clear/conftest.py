"""A database of those models, and every key that is made meanwhile."""

import pytest
from sqlalchemy import Engine

from sqlalchemy_envelope.crypto.secret import KeyBytes
from tests.orm.nothing_in_the_clear.canaries import Base, Needles
from tests.prepared import tables_of


@pytest.fixture
def needles(monkeypatch: pytest.MonkeyPatch) -> Needles:
    """All canaries, and every key that is made or opened from here on: root, data, KEK and subkeys."""
    found = Needles()
    genuine = KeyBytes.__init__

    def noted(self: KeyBytes, data: bytes) -> None:
        genuine(self, data)
        found.add_key(bytes(data))

    monkeypatch.setattr(KeyBytes, "__init__", noted)
    return found


@pytest.fixture
def lite(sqlite_engine: Engine) -> Engine:
    """The tables, on SQLite."""
    tables_of(Base.metadata, sqlite_engine)
    return sqlite_engine
