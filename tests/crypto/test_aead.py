"""A value opens under its key, in its column and row, whole and unaltered; its nonce is never used twice."""

import itertools
import os
import subprocess
import sys
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlalchemy_envelope.crypto import aead
from sqlalchemy_envelope.crypto.aead import (
    HEADER_SIZE,
    MAX_STORED_SIZE,
    MAX_VALUE_SIZE,
    NO_ROW,
    NONCE_SIZE,
    OVERHEAD,
    Batch,
    Field,
    ValueCipher,
    check_size,
    check_value,
    fresh_nonces,
    row_tail,
    row_tails,
)
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.crypto.kdf import commitment, key_id_of
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import (
    DecryptionError,
    EnvelopeError,
    FormatError,
    TruncatedError,
    ValueTooLargeError,
)

FIELD = Field("notes.body", "str")
ROW = encode_reference([7])
KEY = KeyBytes(bytes(range(32)))
KEY_ID = key_id_of(commitment(KEY))
CIPHER = ValueCipher(KEY, KEY_ID, FIELD)
BLOB = CIPHER.encrypt(b"a value of some length", ROW)

REFERENCES = st.lists(st.integers() | st.text(st.characters(codec="utf-8"), max_size=9), max_size=3)
FIELDS = st.builds(
    Field, st.text(st.characters(codec="utf-8"), max_size=20), st.sampled_from(["str", "json"])
)


def decryption_error(blob: bytes, row: bytes = ROW, cipher: ValueCipher = CIPHER) -> type[EnvelopeError]:
    """Which of our errors these bytes raise; that they raise one is what most tests here are about."""
    with pytest.raises(EnvelopeError) as caught:
        cipher.decrypt(blob, row)
    return caught.type


@given(st.binary(max_size=500), FIELDS, REFERENCES, st.uuids())
def test_a_value_opens(plaintext: bytes, field: Field, parts: list[object], key_id: uuid.UUID) -> None:
    """Any value of any column and row comes back, from 45 bytes more, which begin with its key's id."""
    cipher, row = ValueCipher(KEY, key_id, field), encode_reference(parts)
    blob = cipher.encrypt(plaintext, row)

    assert len(plaintext) + OVERHEAD == len(blob)
    assert b"\1" + key_id.bytes == blob[:HEADER_SIZE] == cipher.header
    assert plaintext == cipher.decrypt(blob, row)
    assert plaintext == ValueCipher(KEY, key_id, field).decrypt(bytearray(blob), row)
    assert plaintext == cipher.decrypt(memoryview(blob), row)  # type: ignore[arg-type]


@given(st.binary(max_size=50), REFERENCES)
def test_the_loops_of_orm_and_the_methods_agree(plaintext: bytes, parts: list[object]) -> None:
    """What is sealed with the parts that `orm` uses opens with `decrypt`, and the other way round."""
    row = encode_reference(parts)
    nonce = next(fresh_nonces(1))
    blob = CIPHER.header + nonce + CIPHER.seal(nonce, plaintext, CIPHER.row_aad + row_tail(row))
    assert plaintext == CIPHER.decrypt(blob, row)
    blob = CIPHER.encrypt(plaintext, row)
    assert plaintext == CIPHER.open(blob[17:29], blob[29:], CIPHER.aad_of(row))
    assert CIPHER.aad == CIPHER.aad_of(b"")

    assert CIPHER.header + FIELD.context(row) == CIPHER.aad_of(row)


def test_every_flipped_bit_is_noticed() -> None:
    """Each bit of a value, flipped, raises one of our errors: the header is authenticated like the rest."""
    for bit in range(8 * len(BLOB)):
        blob = bytearray(BLOB)
        blob[bit // 8] ^= 1 << bit % 8

        assert (FormatError if bit < 8 else DecryptionError) is decryption_error(bytes(blob)), bit


@given(st.integers(0, len(BLOB) - 1))
def test_every_truncation_is_noticed(size: int) -> None:
    """A value cut short anywhere raises one of our errors: truncated, where its length shows it."""
    expected = FormatError if size == 0 else TruncatedError if size < OVERHEAD else DecryptionError

    assert expected is decryption_error(BLOB[:size])


@given(st.binary(min_size=1, max_size=100))
def test_every_extension_is_noticed(more: bytes) -> None:
    """A value with bytes after it does not open."""
    assert DecryptionError is decryption_error(BLOB + more)


@given(st.binary(max_size=120))
def test_no_other_bytes_open(blob: bytes) -> None:
    """Bytes that were not encrypted here raise one of our errors whatever they are."""
    decryption_error(blob)
    decryption_error(CIPHER.header + blob)


def test_the_header_cannot_be_exchanged() -> None:
    """A value renamed to another key does not open under that key either, even where both keys are one."""
    other = ValueCipher(KEY, uuid.UUID(int=1), FIELD)
    renamed = other.header + BLOB[HEADER_SIZE:]

    assert DecryptionError is decryption_error(renamed, cipher=other)
    assert DecryptionError is decryption_error(renamed)
    assert DecryptionError is decryption_error(BLOB, cipher=other)
    # Not by the comparison of headers alone: the header is part of what is authenticated.
    other.header = CIPHER.header
    assert DecryptionError is decryption_error(BLOB, cipher=other)


def test_a_header_of_another_key_is_refused_before_the_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that names another key is not tried under this one."""
    cipher = ValueCipher(KEY, KEY_ID, FIELD)
    cipher.open = lambda *_: b"opened"
    other = ValueCipher(KEY, uuid.UUID(int=1), FIELD).encrypt(b"")

    assert cipher.decrypt(BLOB) == b"opened"
    assert DecryptionError is decryption_error(other, cipher=cipher)


@pytest.mark.parametrize(
    "field",
    [Field("notes.title", "str"), Field("notes.body", "bytes"), Field("notes.bod", "ystr"), Field("", "str")],
)
def test_another_column_or_type_does_not_open(field: Field) -> None:
    """A value moved to another column, or read as another type, does not open."""
    assert DecryptionError is decryption_error(BLOB, cipher=ValueCipher(KEY, KEY_ID, field))


def test_the_type_alone_is_bound() -> None:
    """The type is in the AAD and not in the key: two ciphers of one label differ in it alone."""
    one, other = (ValueCipher(KEY, KEY_ID, Field("t.c", tag)) for tag in ("str", "bytes"))
    blob = one.encrypt(b"value")
    other.aad = one.aad
    other.row_aad = one.row_aad

    assert other.decrypt(blob) == b"value"


@given(REFERENCES)
def test_another_row_does_not_open(parts: list[object]) -> None:
    """A value moved to another row, or to a column without rows, does not open."""
    row = encode_reference(parts)
    if row != ROW:
        assert DecryptionError is decryption_error(BLOB, row)


def test_another_key_does_not_open() -> None:
    """Another data key that claims the same id does not open it."""
    assert DecryptionError is decryption_error(BLOB, cipher=ValueCipher(KeyBytes.generate(), KEY_ID, FIELD))


def test_the_error_names_the_column_and_the_cure_alone() -> None:
    """What is raised names the label and `label=`, no byte of the value, and chains nothing."""
    with pytest.raises(
        DecryptionError,
        match=r"'notes\.body' does not authenticate\. .*moved.*renamed.*, label='.*inner type",
    ) as caught:
        CIPHER.decrypt(BLOB)

    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert (str(caught.value.args[0]),) == caught.value.args


# ---------------------------------------------------------------- sizes


def test_the_largest_value_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 MiB are encrypted and decrypted; one byte more is refused on both ways, before any cryptography."""
    largest = bytes(MAX_VALUE_SIZE)
    blob = CIPHER.encrypt(largest)

    assert len(blob) == MAX_STORED_SIZE
    assert largest == CIPHER.decrypt(blob)
    monkeypatch.setattr(aead.os, "urandom", lambda size: pytest.fail("something was encrypted"))
    with pytest.raises(ValueTooLargeError, match=f"{MAX_VALUE_SIZE:,}"):
        CIPHER.encrypt(largest + b"\0")
    assert FormatError is decryption_error(blob + b"\0", b"")


def test_sizes_are_checked_at_the_byte() -> None:
    """`check_size` and `check_value` accept their limits and nothing beyond them."""
    check_size(b"")
    check_size(bytes(MAX_VALUE_SIZE))
    check_value(b"\1" + bytes(OVERHEAD - 1), "notes.body")
    check_value(b"\1" + bytes(MAX_STORED_SIZE - 1), "notes.body")
    with pytest.raises(ValueTooLargeError):
        check_size(bytes(MAX_VALUE_SIZE + 1))
    with pytest.raises(TruncatedError, match=f"has {OVERHEAD - 1} bytes, and the shortest has {OVERHEAD}"):
        check_value(b"\1" + bytes(OVERHEAD - 2), "notes.body")
    with pytest.raises(FormatError, match=f"has {MAX_STORED_SIZE + 1:,} bytes") as caught:
        check_value(b"\1" + bytes(MAX_STORED_SIZE), "notes.body")

    assert FormatError is caught.type


@pytest.mark.parametrize(
    "value", [None, "text", 1, 1.5, [1], "\1" * 60], ids=lambda value: type(value).__name__
)
def test_what_is_no_bytes_is_named_by_its_type(value: object) -> None:
    """Plaintext of any other type that a column still holds is refused, never shown, never taken as it is."""
    with pytest.raises(FormatError, match=type(value).__name__) as caught:
        check_value(value, "notes.body")

    assert "\1" not in str(caught.value)


@given(st.binary(max_size=100).filter(lambda blob: not blob.startswith(b"\1")))
def test_bytes_of_another_format_are_refused(blob: bytes) -> None:
    """Whatever does not start with 0x01 is not ours, whatever its length: never taken for plaintext."""
    for wrapped in (blob, bytearray(blob), memoryview(blob)):
        with pytest.raises(FormatError, match="not taken for plaintext") as caught:
            check_value(wrapped, "notes.body")

        assert FormatError is caught.type


# ---------------------------------------------------------------- batches

MARK = object()
ROW_CIPHER = ValueCipher(KEY, KEY_ID, Field("notes.page", "str", row_bound=True))


@pytest.mark.parametrize("as_bytearray", [False, True])
def test_a_batch_encrypts_what_each_cipher_opens(as_bytearray: bool) -> None:
    """Every value of every row is marked and opens under its own column, and the row-bound one in its row
    alone; NULL stays NULL, and what no cipher names stays as it is."""
    ciphers = [
        one.bind(name, str.encode, name, as_bytearray=as_bytearray)
        for name, one in (("body", CIPHER), ("page", ROW_CIPHER))
    ]
    batch, reference = Batch(3, MARK), encode_reference((7,))
    rows = [{"id": 7, "body": f"text {n}", "page": f"page {n}"} for n in range(20)] + [
        {"id": 7, "body": None}
    ]

    assert [batch.encrypt(row, ciphers, row_tail(reference)) for row in rows] == [None] * 21
    for n, row in enumerate(rows[:20]):
        (mark, body), (_, page) = row["body"], row["page"]
        assert mark is MARK
        assert type(body) is (bytearray if as_bytearray else bytes)
        assert CIPHER.decrypt(bytes(body)) == f"text {n}".encode()
        assert ROW_CIPHER.decrypt(bytes(page), reference) == f"page {n}".encode()
        with pytest.raises(DecryptionError):
            ROW_CIPHER.decrypt(bytes(page))
    assert rows[20] == {"id": 7, "body": None}


def test_a_batch_encrypts_many_rows_as_it_does_each() -> None:
    """Column by column or row by row: every value is marked and opens in its own column and row; NULL stays
    NULL, and what a row leaves out stays out."""
    ciphers = [one.bind(name, str.encode, name) for name, one in (("body", CIPHER), ("page", ROW_CIPHER))]
    rows: list[dict[str, Any]] = [{"id": n, "body": f"text {n}", "page": f"page {n}"} for n in range(20)]
    rows += [{"id": 20, "body": None, "page": "page 20"}, {"id": 21}]

    assert Batch(3, MARK).encrypt_rows(rows, ciphers, row_tails(range(22)))
    for n, row in enumerate(rows[:20]):
        assert [row[name][0] for name in ("body", "page")] == [MARK, MARK]
        assert CIPHER.decrypt(row["body"][1]) == f"text {n}".encode()
        assert ROW_CIPHER.decrypt(row["page"][1], encode_reference((n,))) == f"page {n}".encode()
    assert rows[20]["body"] is None
    assert ROW_CIPHER.decrypt(rows[20]["page"][1], encode_reference((20,))) == b"page 20"
    assert rows[21] == {"id": 21}


def test_a_batch_never_uses_a_nonce_twice() -> None:
    """Thousands of values of one batch, row by row and column by column, and of another, have each a nonce of
    its own."""
    ciphers = [CIPHER.bind("body", str.encode, None)]
    rows = [{"body": "same"} for _ in range(4000)]
    for batch, part in ((Batch(1, MARK), rows[:2000]), (Batch(2000, MARK), rows[2000:])):
        batch.encrypt_rows(part[:1000], ciphers, ())
        for row in part[1000:]:
            batch.encrypt(row, ciphers, NO_ROW)

    assert len({bytes(row["body"][1][17:29]) for row in rows}) == 4000


@pytest.mark.parametrize("value", [5, "x" * (MAX_VALUE_SIZE + 1)], ids=["wrong", "large"])
def test_rows_of_which_one_cannot_be_encrypted_stay_as_they_are(value: Any) -> None:
    """A value that does not encode, or is too large, in the last column of the last row: nothing is
    changed, so that row by row the same value is found."""
    ciphers = [CIPHER.bind(name, str.encode, name) for name in ("first", "last")]
    rows = [{"first": "a", "last": "b"}, {"first": "c", "last": value}]
    before = [dict(row) for row in rows]

    assert not Batch(4, MARK).encrypt_rows(rows, ciphers, ())
    assert before == rows


@pytest.mark.parametrize(
    "keys",
    [[0, 7, -12, 10**18], [10**40, 1], ["a", "b"], [uuid.UUID(int=5), 3], [True + 1, b"x"]],
)
def test_the_tails_of_many_rows(keys: list[Any]) -> None:
    """Whatever the primary keys are, each row's tail is the one that it has alone."""
    assert [row_tail(encode_reference((key,))) for key in keys] == row_tails(keys)


def test_a_batch_gives_back_what_it_cannot_encrypt() -> None:
    """A value that does not encode comes back without ciphertext, one that is too large with it; neither is
    put into its row."""
    ciphers = [CIPHER.bind("body", str.encode, "source")]
    wrong, large = {"body": 5}, {"body": "x" * (MAX_VALUE_SIZE + 1)}

    assert Batch(1, MARK).encrypt(wrong, ciphers, NO_ROW) == ("source", 5, None)
    failed = Batch(1, MARK).encrypt(large, ciphers, NO_ROW)
    assert failed is not None
    assert failed[:2] == ("source", large["body"])
    assert failed[2] is not None
    assert (wrong["body"], type(large["body"])) == (5, str)


# ---------------------------------------------------------------- nonces


@pytest.mark.parametrize("expected", [1, 1_000_000])
def test_a_million_nonces_are_different(expected: int) -> None:
    """A million nonces in a row have no two alike, drawn for few values at a time or for many."""
    seen = set(itertools.islice(fresh_nonces(expected), 1_000_000))

    assert len(seen) == 1_000_000
    assert {NONCE_SIZE} == set(map(len, seen))


@pytest.mark.parametrize(("expected", "size"), [(0, 96), (1, 96), (8, 96), (9, 3072), (10_000, 3072)])
def test_nonces_are_the_system_s_randomness(
    expected: int, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every random byte is used once and in turn: no two nonces overlap, and none is skipped or kept."""
    drawn = []
    plain = os.urandom

    def urandom(count: int) -> bytes:
        drawn.append(plain(count))
        return drawn[-1]

    monkeypatch.setattr(aead.os, "urandom", urandom)
    nonces = list(itertools.islice(fresh_nonces(expected), 600))

    assert b"".join(drawn)[: 600 * NONCE_SIZE] == b"".join(nonces)
    assert {size} == set(map(len, drawn))


def test_nothing_is_drawn_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each statement draws its own: nothing is left over for the next, and nothing is drawn ahead."""
    drawn = []
    monkeypatch.setattr(aead.os, "urandom", lambda size: drawn.append(size) or bytes(size))
    unused = fresh_nonces(1)
    assert drawn == []
    next(fresh_nonces(1))
    next(fresh_nonces(1))

    assert drawn == [96, 96]
    assert next(unused)


@settings(max_examples=20)
@given(st.integers(1, 50))
def test_each_value_has_its_own_nonce(count: int) -> None:
    """Equal values of one row encrypt differently, each under a nonce of its own."""
    blobs = [CIPHER.encrypt(b"same", ROW) for _ in range(count)]

    assert count == len({blob[17:29] for blob in blobs}) == len({blob[29:] for blob in blobs})


FORKED = """
import itertools, os, uuid
from sqlalchemy_envelope.crypto.aead import Field, ValueCipher, fresh_nonces
from sqlalchemy_envelope.crypto.secret import KeyBytes

cipher = ValueCipher(KeyBytes(bytes(range(32))), uuid.UUID(int=0), Field("t.c", "str"))
next(fresh_nonces(1)), next(fresh_nonces(1000)), cipher.encrypt(b"")
reader, writer = os.pipe()
child = os.fork()
nonces = [n for count in (1, 1000) for _ in range(100) for n in itertools.islice(fresh_nonces(count), 3)]
nonces += [cipher.encrypt(b"")[17:29] for _ in range(300)]
if child == 0:
    os.write(writer, b"".join(nonces))
    os._exit(0)
os.close(writer)
with open(reader, "rb") as pipe:
    theirs = pipe.read()
os.waitpid(child, 0)
print(len(theirs) // 12, len({*nonces, *(theirs[at : at + 12] for at in range(0, len(theirs), 12))}))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_no_nonce_is_shared_across_a_fork() -> None:
    """Parent and child, which inherited cipher and module alike, draw 900 nonces each and no two alike."""
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=60)

    assert run.stdout.strip() == "900 1800", run.stderr
