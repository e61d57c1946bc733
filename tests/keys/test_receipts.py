"""Erasure receipts: signed, checked offline, and worth nothing once altered."""

import base64
import json

import pytest

from sqlalchemy_envelope import (
    ConfigurationError,
    FormatError,
    ReceiptError,
    ReceiptKey,
    ServerKeyring,
    check_receipt,
)
from sqlalchemy_envelope.keys.receipts import FORMAT, canonical, receipt_key_of

KEY = ReceiptKey(bytes(range(32)))
OTHER = ReceiptKey(bytes(32))
BODY = {
    "format": FORMAT,
    "destroyed_at": "2026-11-30T18:00:00Z",
    "owners": [{"key_table": "users_key", "keys": [{"id": "ab" * 16, "commitment": "cd" * 32}]}],
    "counts": {"values": 3},
}
TEXT = KEY.sign(BODY)


def changed(change: object) -> str:
    """The receipt with a change that a forger makes and does not sign."""
    whole = json.loads(TEXT)
    change(whole)  # type: ignore[operator]
    return json.dumps(whole)


def test_a_receipt_holds_however_it_is_laid_out() -> None:
    """The signature is over the content: line breaks and the order of names do not matter."""
    whole = json.loads(TEXT)
    turned = {"signature": whole["signature"], "receipt": dict(reversed(whole["receipt"].items()))}
    checked = [
        check_receipt(one, KEY.public_text)
        for one in (TEXT, json.dumps(turned), json.dumps(turned, indent=7))
    ]

    assert len({one.keys for one in checked}) == 1
    assert checked[0].body["counts"] == {"values": 3}
    assert check_receipt(TEXT.encode(), [OTHER.public_text, KEY.public_text]) == checked[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda whole: whole["receipt"]["counts"].update(values=4),
        lambda whole: whole["receipt"].update(destroyed_at="2026-11-30T18:00:01Z"),
        lambda whole: whole["receipt"]["owners"].clear(),
        lambda whole: whole["receipt"].update(more=None),
        lambda whole: whole.update(signature=base64.b64encode(bytes(64)).decode()),
        lambda whole: whole.update(signature=base64.b64encode(bytes(63)).decode()),
    ],
)
def test_an_altered_receipt_is_refused(change: object) -> None:
    """Whatever was changed, the signature does not fit."""
    with pytest.raises(ReceiptError, match="was altered"):
        check_receipt(changed(change), KEY.public_text)


def test_another_key_is_told_from_an_alteration() -> None:
    """A receipt under a rotated key names its key; a forger's own key is not that of the application."""
    with pytest.raises(ReceiptError, match="signed by the key"):
        check_receipt(TEXT, OTHER.public_text)
    with pytest.raises(ReceiptError, match="signed by the key"):
        check_receipt(OTHER.sign(BODY), KEY.public_text)
    with pytest.raises(ReceiptError, match="was altered"):
        check_receipt(changed(lambda whole: whole["receipt"]["owners"].clear()), KEY.public_text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"receipt": {"format": "x", "format": "y"}}', "not JSON"),
        ("[]", "no `receipt`"),
        ('{"receipt": 1}', "no `receipt`"),
        ('{"receipt": {"format": "another"}}', "its format"),
        ('{"receipt": {"format": "sqlalchemy-envelope/erasure-receipt/2"}}', "newer version"),
        (changed(lambda whole: whole.pop("signature")), "no signature"),
        (changed(lambda whole: whole.update(signature="!")), "no signature"),
        (changed(lambda whole: whole["receipt"].update(more=1.5)), "type float"),
        (changed(lambda whole: whole["receipt"].update(more=2**60)), "integer"),
        (changed(lambda whole: whole["receipt"].update(more="\ud800")), "surrogate"),
        (changed(lambda whole: whole["receipt"].update({"é": 1})), "not ASCII"),
        (KEY.sign({**BODY, "owners": [{}]}), "lacks"),
        (KEY.sign({**BODY, "destroyed_at": "soon"}), "lacks"),
    ],
)
def test_what_is_no_receipt_is_refused(text: str, says: str) -> None:
    """Other files, later formats and values that readers take in several ways are format errors."""
    with pytest.raises(FormatError, match=says):
        check_receipt(text, KEY.public_text)


def test_the_key_comes_from_the_server_key_or_is_given() -> None:
    """The derived key follows the active server key alone; a given key is 32 bytes."""
    first, second = bytes([1]) * 32, bytes([2]) * 32
    derived = receipt_key_of(ServerKeyring([first, second]))

    assert receipt_key_of(ServerKeyring([first])).public_text == derived.public_text
    assert receipt_key_of(ServerKeyring([second, first])).public_text != derived.public_text
    assert ReceiptKey.from_text(base64.b64encode(bytes(range(32))).decode()).public_text == KEY.public_text
    assert KEY.public_text in repr(KEY)
    for wrong in ("", "!", base64.b64encode(bytes(31)).decode()):
        with pytest.raises(ConfigurationError):
            ReceiptKey.from_text(wrong)
        with pytest.raises(ConfigurationError):
            check_receipt(TEXT, wrong)


def test_canonical_bytes() -> None:
    """Names are sorted, nothing is spaced, and text is UTF-8 with the least escapes."""
    assert (
        canonical({"b": [1, None, True], "a": 'é"\\\n\x7f'})
        == b'{"a":"\xc3\xa9\\"\\\\\\n\x7f","b":[1,null,true]}'
    )
