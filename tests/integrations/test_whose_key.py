"""The example of declare.md: one shop in which rows name their owners in every way that needs no foreign
key to a user."""

import sys
import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, select

from examples.whose_key import Base, main, shop
from sqlalchemy_envelope import Envelope, ServerKeyring

VALUES = {
    "items": ["for Charles", "number 0", "number 1", "number 2"],
    "settings": ["dark"],
    "documents": ["Ada's letter", "the company's contract"],
    "documents_history": ["Ada's letter", "the company's contract"],
    "credentials": ["of the payment service"],
}
OWNERS = {
    "items": ["users"] * 4,
    "settings": ["users"],
    "documents": ["users", "companies"],
    "documents_history": ["users", "companies"],
    "credentials": ["vaults"],
}


def owners_of(engine: Engine) -> dict[str, list[str]]:
    """By table, whose keys the stored values name, read past the library."""
    tables, found = Base.metadata.tables, {}
    columns = {"items": "engraving", "settings": "value", "credentials": "token"}
    with engine.connect() as connection:
        keys = {
            key_id: owner
            for owner in ("users", "companies", "vaults")
            for (key_id,) in connection.execute(select(tables[f"{owner}_key"].c.key_id))
        }
        for name in VALUES:
            value: Any = tables[name].c[columns.get(name, "text")]
            stored = select(sa.type_coerce(value, sa.LargeBinary)).order_by(tables[name].c.id)
            found[name] = [keys[uuid.UUID(bytes=bytes(blob)[1:17])] for (blob,) in connection.execute(stored)]
    return found


def test_each_row_is_under_the_key_of_its_owner(engine: Engine) -> None:
    """The shop reads what it wrote, and each stored value names a key of the owner that the table in
    declare.md promises."""
    envelope = Envelope(server_keys=ServerKeyring.from_text(ServerKeyring.generate_key()))

    assert {name: sorted(values) for name, values in shop(engine, envelope).items()} == VALUES
    assert owners_of(engine) == OWNERS


def test_the_command_of_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`python -m examples.whose_key` prints every table with its values."""
    monkeypatch.setattr(sys, "argv", ["whose_key"])
    main()

    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(VALUES)
