"""The tags of each kind, made again from the format alone: what is stored is found for ever."""

import datetime as dt
import hmac
from typing import Any

import pytest
from argon2.low_level import Type, hash_secret_raw

from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.orm.indexes.indexed import indexes_of_table
from tests.orm.indexes.people_models import Person

KEY = bytes(range(32))
TABLE: Any = Person.__table__


def ctx(label: str, *fields: bytes) -> bytes:
    """Section 1."""
    encoded = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return b"sqlalchemy-envelope/v1/" + label.encode() + b"\0" + bytes([len(fields)]) + encoded


def expand(info: bytes) -> bytes:
    """HKDF-Expand-SHA-512 (RFC 5869) of the key: the first 32 bytes of its first block."""
    return hmac.digest(KEY, info + b"\1", "sha512")[:32]


def tag(label: str, form: bytes, data: bytes) -> bytes:
    """Section 13."""
    derived = expand(ctx("index", label.encode()))
    return hmac.digest(derived, ctx("index-tag", form) + data, "sha256")[:16]


def stretched(label: str, data: bytes) -> bytes:
    """A slow index hashes this in place of the value."""
    salt = expand(ctx("index-salt", label.encode()))[:16]
    return hash_secret_raw(data, salt, 1, 64, 1, 32, Type.ID, 19)


@pytest.mark.parametrize(
    ("name", "values", "form", "data"),
    [
        ("email_index", ["Ada@Example.org"], b"email-v1 str", b"ada@example.org"),
        ("phone_index", ["044 668 18 00"], b"phone-v1:CH str", b"+41446681800"),
        ("last_exact", ["L\u00f3"], b"exact str", "L\u00f3".encode()),
        ("last_folded", ["L\u00f3"], b"diacritics-v1 str", b"lo"),
        ("last_start", ["L\u00d3velace"], b"prefix 3 of case-v1 str", "l\u00f3v".encode()),
        (
            "name_index",
            ["L\u00d3", dt.date(1815, 12, 10)],
            b"compound [case-v1 str, exact date]",
            ctx("index-parts", "l\u00f3".encode(), b"1815-12-10"),
        ),
        (
            "pin_index",
            ["1234"],
            b"argon2id m=64,t=1,p=1 of exact str",
            stretched("people.pin_index", b"1234"),
        ),
    ],
)
def test_a_tag_is_what_the_format_says(name: str, values: list[Any], form: bytes, data: bytes) -> None:
    """HMAC-SHA-256 of the form and of what the form makes of the values, under the subkey of the label."""
    index = next(one for one in indexes_of_table(TABLE) if one.key == name)
    hashed = index.kind.data(values)

    assert hashed is not None
    assert tag(f"people.{name}", form, data) == index.hasher(KeyBytes(KEY)).tag(hashed)
