"""A write epoch serves until its time is up or its values are used up, whichever is first."""

import time

import pytest

from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.hierarchy import describe
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.keys.write_epoch import WriteEpoch


def test_a_write_epoch_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the moment named it is over, and for more values than are left it does not serve."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    key = describe(KeyBytes.generate(), b"ada", Purpose.WRITE)
    epoch = WriteEpoch(key, 100.5, [10])

    assert [epoch.lasts(values) for values in (0, 1, 10, 11)] == [True, True, True, False]
    for moment, lasts in ((100.4, True), (100.5, False), (101.0, False)):
        monkeypatch.setattr(time, "monotonic", lambda moment=moment: moment)

        assert lasts is epoch.lasts(1)
