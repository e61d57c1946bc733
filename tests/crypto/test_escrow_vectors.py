"""The library agrees with the vectors of escrow: slots, the texts of both halves, custodians' shares."""

import uuid
from typing import Any

import pytest
from shamir_mnemonic.wordlist import words_from_indices

from sqlalchemy_envelope import EscrowKey, OpenedEscrowKey, SharesError, UnlockError
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.model import KeyState, Purpose, SlotKind, StoredKey, StoredSlot
from sqlalchemy_envelope.keys.slots import open_slot
from tests.crypto.vector_cases import load

Case = dict[str, Any]
CASES = load("escrow")


def of_op(op: str) -> Any:
    cases = [case for case in CASES if case["op"] == op]
    return pytest.mark.parametrize("case", cases, ids=[case["name"] for case in cases])


@of_op("slot")
def test_slots(case: Case) -> None:
    """An escrow slot opens with the escrow key, in its own row alone."""
    of, kek = case["context"], OpenedEscrowKey(bytes.fromhex(case["recipient_key"])).kek
    key = KeyBytes(bytes.fromhex(case["key"])) if "key" in case else None
    root = StoredKey(
        uuid.UUID(of["key_id"]),
        bytes.fromhex(of["owner_reference"]),
        Purpose(of["purpose"]),
        of["scope"],
        of["epoch"],
        KeyState.RETIRED,
        bytes.fromhex(case["stored_commitment"]),
        b"",
    )
    if of["kind"] not in ("secret", "provider", "escrow"):
        return  # no kind that a slot can have
    public = bytes.fromhex(of["recipient"]) or None
    slot = StoredSlot(
        uuid.UUID(int=0), root.key_id, SlotKind(of["kind"]), of["kdf"], bytes.fromhex(case["blob"]), public
    )
    if key is None:
        with pytest.raises(UnlockError):
            open_slot(slot, root, kek)
        return

    assert open_slot(slot, root, kek).key == key


@of_op("text")
def test_texts(case: Case) -> None:
    """Each half has one text."""
    opened = OpenedEscrowKey(bytes.fromhex(case["key"]))

    assert (case["private"], case["public"]) == (opened.text, opened.public.text)
    assert EscrowKey(case["public"]).public_key == OpenedEscrowKey(case["private"]).public_key


@of_op("join")
def test_shares(case: Case) -> None:
    """Shares make the key that the vector names, or are refused."""
    shares = [" ".join(words_from_indices(words)) for words in case["shares"]]
    if case["expect"] != "ok":
        with pytest.raises(SharesError):
            OpenedEscrowKey.from_shares(shares)
        return

    assert OpenedEscrowKey.from_shares(shares).kek == KeyBytes(bytes.fromhex(case["key"]))
