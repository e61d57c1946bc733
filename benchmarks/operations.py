"""The timed operations: two ways in, two ways out, and the bare cipher as the unit of all ratios."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import Engine, insert, select, text
from sqlalchemy.orm import Session

from benchmarks.variants import Variant

BULK_INSERT = "bulk insert"
FLUSH = "unit-of-work insert"
ORM_LOAD = "ORM load"
CORE_SELECT = "Core select"

#: Which loop over the bare cipher an operation is compared with.
BARE_LOOP = {BULK_INSERT: "encrypt", FLUSH: "encrypt", ORM_LOAD: "decrypt", CORE_SELECT: "decrypt"}

Rows = list[dict[str, Any]]
Operation = Callable[[Engine, Variant, Rows], object]


def make_rows(count: int, columns: list[str], user_id: int) -> Rows:
    """Rows of 20-character ASCII strings, all different."""
    return [
        {"id": number, "user_id": user_id, **{column: f"{column}-value-{number:011d}" for column in columns}}
        for number in range(1, count + 1)
    ]


def bulk_insert(engine: Engine, variant: Variant, rows: Rows) -> None:
    with Session(engine) as session:
        session.execute(insert(variant.model), rows)
        session.commit()


def flush(engine: Engine, variant: Variant, rows: Rows) -> None:
    with Session(engine) as session:
        session.add_all([variant.model(**row) for row in rows])
        session.commit()


def orm_load(engine: Engine, variant: Variant, rows: Rows) -> list[Any]:
    with Session(engine) as session:
        notes = session.scalars(select(variant.model)).all()
        return read(variant, [[getattr(note, column) for column in variant.columns] for note in notes])


def core_select(engine: Engine, variant: Variant, rows: Rows) -> list[Any]:
    with engine.connect() as connection:
        result = connection.execute(select(variant.table)).all()
        return read(variant, [row[2:] for row in result])


def read(variant: Variant, values: list[Any]) -> list[Any]:
    """Ask wrappers for their plaintext; plain strings are left as they are."""
    if variant.plain is None:
        return values
    return [[variant.plain(value) for value in row] for row in values]


OPERATIONS: dict[str, Operation] = {
    FLUSH: flush,
    BULK_INSERT: bulk_insert,
    ORM_LOAD: orm_load,
    CORE_SELECT: core_select,
}


def empty(engine: Engine, variant: Variant) -> None:
    verb = "TRUNCATE" if engine.dialect.name == "postgresql" else "DELETE FROM"
    with engine.begin() as connection:
        connection.execute(text(f"{verb} {variant.table.name}"))


def check(engine: Engine, variant: Variant, rows: Rows) -> None:
    """Check that the written values come back in each way of reading: an operation that does less is not
    timed."""
    expected = sorted(tuple(row[column] for column in variant.columns) for row in rows)
    for load in (orm_load, core_select):
        assert expected == sorted(tuple(values) for values in load(engine, variant, rows)), variant.name


def stored_size(engine: Engine, variant: Variant) -> int:
    """The bytes of one value of 20 characters in the database."""
    with engine.connect() as connection:
        return int(connection.execute(text(f"SELECT max(length(c1)) FROM {variant.table.name}")).scalar_one())


class BareCipher:
    """AES-256-GCM alone: one reused object, nonces at hand, AAD as long as the library's."""

    def __init__(self, count: int, label: str) -> None:
        key = AESGCM(AESGCM.generate_key(256))
        self.aad = bytes(17) + context("value", label.encode(), b"str", b"")
        self.encrypt_one, self.decrypt_one = key.encrypt, key.decrypt
        self.plaintexts = [(os.urandom(12), b"c1-value-%011d" % number) for number in range(count)]
        self.ciphertexts = [(nonce, key.encrypt(nonce, data, self.aad)) for nonce, data in self.plaintexts]

    def encrypt(self) -> None:
        encrypt, aad = self.encrypt_one, self.aad
        for nonce, plaintext in self.plaintexts:
            encrypt(nonce, plaintext, aad)

    def decrypt(self) -> None:
        decrypt, aad = self.decrypt_one, self.aad
        for nonce, ciphertext in self.ciphertexts:
            decrypt(nonce, ciphertext, aad)


def context(label: str, *fields: bytes) -> bytes:
    """The context of the wire format (section 1), written out here to give the AAD its length."""
    head = b"sqlalchemy-envelope/v1/" + label.encode() + b"\0" + bytes([len(fields)])
    return head + b"".join(len(field).to_bytes(4, "big") + field for field in fields)
