"""Contexts and references cannot be read two ways: each is parsed back here, by the specification."""

import datetime as dt
import enum
import uuid

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy.sql.elements import quoted_name

from sqlalchemy_envelope.crypto.context import encode_context, encode_reference, owner_reference
from sqlalchemy_envelope.exceptions import ConfigurationError

LABELS = st.text(st.characters(min_codepoint=1, max_codepoint=127), max_size=20)
FIELDS = st.lists(st.binary(max_size=300), max_size=12)
PARTS = st.lists(
    st.integers() | st.text(st.characters(codec="utf-8")) | st.uuids() | st.binary() | st.dates(), max_size=5
)


def cut(data: bytes, start: int) -> tuple[bytes, int]:
    """What a u32be length at `start` speaks of, and where it ends."""
    first = start + 4
    end = first + int.from_bytes(data[start:first], "big")
    assert end <= len(data)
    return data[first:end], end


def parse_context(data: bytes) -> tuple[str, list[bytes]]:
    """The one label and list of fields that encode to these bytes."""
    prefix, rest = data[:23], data[23:]
    assert prefix == b"sqlalchemy-envelope/v1/"
    label, _, body = rest.partition(b"\0")
    fields, position = [], 1
    for _ in range(body[0]):
        field, position = cut(body, position)
        fields.append(field)
    assert position == len(body)
    return label.decode("ascii"), fields


READ = {
    b"i": int,
    b"s": bytes.decode,
    b"u": lambda data: uuid.UUID(bytes=data),
    b"b": bytes,
    b"d": lambda data: dt.date.fromisoformat(data.decode("ascii")),
}


def parse_reference(data: bytes) -> list[object]:
    """The one primary key that encodes to these bytes."""
    parts, position = [], 0
    while position < len(data):
        part, end = cut(data, position + 1)
        parts.append(READ[data[position : position + 1]](part))
        position = end
    return parts


@given(LABELS, FIELDS)
def test_a_context_reads_one_way(label: str, fields: list[bytes]) -> None:
    """Label and fields come back from the bytes, so no two of them encode alike."""
    assert (label, fields) == parse_context(encode_context(label, *fields))


@given(PARTS)
@example([-1, 0, 2**63, 10**40])
def test_a_reference_reads_one_way(parts: list[object]) -> None:
    """A primary key comes back from its bytes, types and all, so no two of them encode alike."""
    found = parse_reference(encode_reference(parts))

    assert parts == found
    assert [type(part) for part in parts] == [type(part) for part in found]


@given(LABELS, PARTS)
def test_an_owner_reference_reads_one_way(label: str, parts: list[object]) -> None:
    """An owner's table and primary key come back from its reference."""
    found, (table, reference) = parse_context(owner_reference(label, parts))

    assert ("owner", label) == (found, table.decode())
    assert parts == parse_reference(reference)


def test_what_looks_alike_stays_apart() -> None:
    """One and the same text as int, str, bytes and two parts gives four references."""
    alike = [encode_reference(key) for key in ([12], ["12"], [b"12"], ["1", "2"], ["12", ""], [])]

    assert len(alike) == len(set(alike))


def test_the_number_of_fields_is_one_byte() -> None:
    """255 fields are the most; one more is refused instead of wrapping to a count of zero."""
    assert parse_context(encode_context("most", *[b""] * 255)) == ("most", [b""] * 255)
    with pytest.raises(ValueError):
        encode_context("more", *[b""] * 256)


@pytest.mark.parametrize("label", ["with\0nul", "\0", "é", "\ud800"])
def test_a_label_is_ascii_without_nul(label: str) -> None:
    """A label that could end early, or be spelt two ways, is refused."""
    with pytest.raises(ValueError):
        encode_context(label)


class Number(enum.IntEnum):
    SEVEN = 7


class Word(str, enum.Enum):  # noqa: UP042 - StrEnum prints its value; this one does not
    SEVEN = "7"


class DriverUUID(uuid.UUID):
    """As asyncpg has one of its own."""


class Day(dt.date):
    """As a date library may hand out."""


@pytest.mark.parametrize(
    ("found", "plain"),
    [
        (Number.SEVEN, 7),
        (Word.SEVEN, "7"),
        (quoted_name("Name", quote=True), "Name"),
        (DriverUUID(int=7), uuid.UUID(int=7)),
        (Day(2024, 2, 29), dt.date(2024, 2, 29)),
    ],
)
def test_values_count_and_not_their_exact_types(found: object, plain: object) -> None:
    """A driver's own subclass of a key's type gives the same reference as the plain value."""
    assert encode_reference([plain]) == encode_reference([found])


@pytest.mark.parametrize(
    "value",
    [True, False, 1.5, None, dt.datetime(2024, 2, 29), (1,), bytearray(b"1"), "4711\ud800"],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_bound_to_is_refused(value: object) -> None:
    """A primary key without a canonical encoding is a configuration error that does not show it."""
    with pytest.raises(ConfigurationError, match=f"lone surrogate|{type(value).__name__}") as caught:
        encode_reference([1, value])

    assert "4711" not in str(caught.value)
    assert caught.value.__cause__ is None
