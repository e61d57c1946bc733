"""The library agrees with the vectors of emergency access: the shares, their contexts, the waiting time."""

import datetime as dt
import uuid
from typing import Any

import pytest

from sqlalchemy_envelope import EmergencyError, EnvelopeError, ProviderError, ServerKeyring, TamperedKeyError
from sqlalchemy_envelope.crypto.kdf import joined_key
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.emergency import StoredEmergency, check_share, dated, opened_kek
from sqlalchemy_envelope.orm.verbs.slots import emergency
from tests.crypto.vector_cases import load

CASES = load("emergency")


def stored(case: dict[str, Any]) -> StoredEmergency:
    row = case["row"]
    names = ("owner", "person", "public_key")
    owner, person, public_key = (bytes.fromhex(row[name]) for name in names)
    return StoredEmergency(
        owner,
        person,
        public_key,
        uuid.UUID(row["person_key_id"]),
        bytes.fromhex(row["sealed_share"]),
        bytes.fromhex(row["server_share"]),
        row["wait"],
        row["requested"],
    )


@pytest.mark.parametrize("case", CASES, ids=[case["name"] for case in CASES])
def test_vectors(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The KEK comes out of a row as it was written, once the time is over; of any other, an error."""
    keys = ServerKeyring([bytes.fromhex(key) for key in case["server_keys"]])
    row, root = stored(case), KeyBytes(bytes.fromhex(case["root_key"]))
    monkeypatch.setattr(emergency, "now", lambda: dt.datetime.fromtimestamp(case["now"], dt.UTC))

    def opened() -> KeyBytes:
        check_share(keys, row)
        emergency._require_time(row)
        return opened_kek(keys, row, root)

    if case["expect"] == "ok":
        shares = (KeyBytes(bytes.fromhex(case[name])) for name in ("server_share", "person_share"))

        assert KeyBytes(bytes.fromhex(case["kek"])) == opened() == joined_key(*shares)
        assert dated(keys, dated(keys, row, None), row.requested_at).server_context() == row.server_context()
        return
    with pytest.raises(EnvelopeError) as raised:
        opened()
    named = {"refused": (EmergencyError, ProviderError, TamperedKeyError), "tampered": TamperedKeyError}

    assert isinstance(raised.value, named[case["expect"]])
