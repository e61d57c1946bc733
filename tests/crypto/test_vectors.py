"""Every case of tests/vectors/*.json against the library's own functions; nothing is re-implemented here."""

import base64
import datetime as dt
import json
import struct
import uuid
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from sqlalchemy_envelope.crypto import (
    aead,
    argon2id,
    blind_index,
    context,
    kdf,
    peppering,
    preparation,
    recovery_code,
    row_seal,
    sealing,
    ticket,
    wrapping,
)
from sqlalchemy_envelope.crypto.key_share import KeyShare
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.exceptions import (
    ConfigurationError,
    DecryptionError,
    EnvelopeError,
    FormatError,
    KdfParametersError,
    KeyShareError,
    PepperError,
    ProviderError,
    ReceiptError,
    RecoveryCodeError,
    RowSealError,
    SecretError,
    TamperedKeyError,
    TicketError,
    TruncatedError,
    UnlockError,
)
from sqlalchemy_envelope.keys import grants, hierarchy, index_keys, pepper, receipts, row_seals, slots
from sqlalchemy_envelope.keys import ticket as keys_of_tickets
from sqlalchemy_envelope.keys.model import (
    GrantState,
    KeyState,
    OpenedKey,
    Purpose,
    SlotKind,
    StoredGrant,
    StoredKey,
    StoredSlot,
)
from sqlalchemy_envelope.keys.providers import ProviderCalls, ServerKeyring
from sqlalchemy_envelope.orm.columns import codecs
from sqlalchemy_envelope.orm.columns.format import ColumnFormat
from tests.crypto.vector_cases import load, server_keyring

VECTORS = Path(__file__).parent.parent / "vectors"


ERRORS: dict[str, type[EnvelopeError]] = {
    "format": FormatError,
    "truncated": TruncatedError,
    "unlock": UnlockError,
    "tampered": TamperedKeyError,
    "decryption": DecryptionError,
}

Case = dict[str, Any]


def cases_of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "case", [pytest.param(case, id=ascii(case["name"])) for case in load(name)]
    )


def key(case: Case, name: str) -> KeyBytes:
    return KeyBytes(bytes.fromhex(case[name]))


def uuid_of(data: bytes) -> uuid.UUID | None:
    return uuid.UUID(bytes=data) if data else None


def raw(held: KeyBytes) -> bytes:
    """The bytes of a key; held here while they are read, since a key wipes them when it goes."""
    return bytes(held.buffer)


# ---------------------------------------------------------------- what reads a case


PART: dict[str, Callable[[str], object]] = {
    "int": int,
    "str": str,
    "uuid": uuid.UUID,
    "bytes": bytes.fromhex,
    "date": dt.date.fromisoformat,
    "datetime": dt.datetime.fromisoformat,
    "bool": lambda text: text == "true",
    "float": float,
    "null": lambda text: None,
}


def parts_of(case: Case) -> list[object]:
    return [PART[part["type"]](part["value"]) for part in case["parts"]]


def wrap_context(of: Case) -> bytes:
    return wrapping.WrapContext(
        of["kind"],
        bytes.fromhex(of["key_id"]),
        bytes.fromhex(of["owner_reference"]),
        of["purpose"],
        of["scope"],
        of["epoch"],
        of["kdf"],
        bytes.fromhex(of["recipient"]),
        bytes.fromhex(of["granter"]),
    ).encode()


def as_stored(case: Case, public_key: bytes) -> StoredKey:
    of = case["context"]
    return StoredKey(
        uuid.UUID(of["key_id"]),
        bytes.fromhex(of["owner_reference"]),
        Purpose(of["purpose"]),
        of["scope"],
        of["epoch"],
        KeyState.ACTIVE,
        bytes.fromhex(case["stored_commitment"]),
        public_key,
    )


# ---------------------------------------------------------------- section 1


ENCODE_CONTEXT: dict[str, Callable[[Case], bytes]] = {
    "ctx": lambda case: context.encode_context(case["label"], *map(bytes.fromhex, case["fields"])),
    "reference": lambda case: context.encode_reference(parts_of(case)),
    "owner_reference": lambda case: context.owner_reference(case["label"], parts_of(case)),
    "granting_row": lambda case: context.encode_context(
        "grant", case["label"].encode(), context.encode_reference(parts_of(case))
    ),
    "wrap_context": wrap_context,
}


@cases_of("context")
def test_contexts_and_references(case: Case) -> None:
    """Contexts and references come out byte for byte, and what has no encoding is refused."""
    encode = ENCODE_CONTEXT[case["op"]]
    if case["expect"] == "refused":
        with pytest.raises((ConfigurationError, ValueError)):
            encode(case)
        return

    assert case["expect"] == encode(case).hex()


# ---------------------------------------------------------------- sections 2 and 7


def described(case: Case, name: str) -> OpenedKey:
    return hierarchy.describe(key(case, name), b"", Purpose.ROOT)


DERIVE: dict[str, Callable[[Case], bytes]] = {
    "commitment": lambda case: kdf.commitment(key(case, "key")),
    "key_id": lambda case: kdf.key_id_of(kdf.commitment(key(case, "key"))).bytes,
    "x25519_private": lambda case: kdf.x25519_private(key(case, "key")).private_bytes_raw(),
    "x25519_public": lambda case: kdf.x25519_public(key(case, "key")),
    "mlkem_seed": lambda case: bytes(kdf.mlkem_seed(key(case, "key"))),
    "epoch_proof": lambda case: hierarchy.proof_of_epoch(
        described(case, "key"), described(case, "new_key").stored.key_id.bytes
    ),
    "wrapping": lambda case: raw(kdf.subkey(key(case, "key"), "wrap")),
    "value_key": lambda case: raw(kdf.subkey(key(case, "key"), "column", case["label"].encode())),
    # The library derives registered purposes only; these go through what stands beneath them.
    "subkey": lambda case: kdf.expand(
        key(case, "key"),
        context.encode_context(case["purpose"], *map(bytes.fromhex, case["fields"])),
        case["size"],
    ),
    "kek": lambda case: raw(kdf.key_encryption_key(bytes.fromhex(case["argon2_output"]))),
}


@cases_of("derivation")
def test_derivations(case: Case) -> None:
    """Everything that is derived from a key is derived as the specification says."""
    assert case["expect"] == DERIVE[case["op"]](case).hex()


# ---------------------------------------------------------------- section 3


# One word of the message that the library gives for each reason: a case must be refused for the right one.
REASONS = {
    "empty": "empty",
    "control": "control",
    "surrogate": "surrogate",
    "unassigned": "Unicode version",
    "too many bytes": "1024 bytes",
    "too many code points": "4096 characters",
}


@cases_of("secret")
def test_secrets(case: Case) -> None:
    """A secret is prepared to the same bytes everywhere, or refused for the reason given; never cut."""
    secret = case["text"] if "text" in case else bytes.fromhex(case["bytes"])
    if case["expect"] == "refused":
        with pytest.raises(SecretError, match=REASONS[case["reason"]]):
            preparation.prepare_secret(secret, new=case["making"])
        return

    assert case["prepared"] == preparation.prepare_secret(secret, new=case["making"]).hex()


@cases_of("recovery_code")
def test_recovery_codes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A code gives its key however it is typed, is written in one way, and is refused with any fault."""
    typed = recovery_code.hide_code(case["text"])
    if case["expect"] == "refused":
        with pytest.raises(RecoveryCodeError) as caught:
            recovery_code.kek_of_code(typed)
        assert REFUSED_CODES[case["reason"]] in str(caught.value)
        return
    kek = recovery_code.kek_of_code(typed)
    monkeypatch.setattr(recovery_code.os, "urandom", lambda size: bytes.fromhex(case["random"]))

    assert key(case, "kek") == kek
    assert case["public"] == kdf.x25519_public(kek).hex()
    assert case["written"] == str(recovery_code.new_code())


REFUSED_CODES = {
    "too long": "is too long",
    "character": "a character that no recovery code has",
    "count": "has 36 letters and digits",
    "check": "is mistyped",
}


@cases_of("kdf")
def test_key_derivation(case: Case) -> None:
    """Stored parameters are accepted within their bounds and in one spelling only, and give the known KEK."""
    policy = argon2id.KdfProfile.RFC9106_LOW_MEMORY
    if case["op"] == "share":
        parsed = argon2id.KdfSalt.parse(case["phc"], policy=policy)
        assert parsed.share_id is not None
        with pytest.raises(KeyShareError):
            KeyShare.read(parsed.share_id, case["share"] and bytes.fromhex(case["share"]))
        with pytest.raises(KeyShareError):
            argon2id.derive_kek(b"secret", parsed)
        return
    if case["expect"] == "refused":
        with pytest.raises(KdfParametersError):
            argon2id.KdfSalt.parse(case["phc"], policy=policy)
        return

    parsed = argon2id.KdfSalt.parse(case["phc"], policy=policy)

    assert case["phc"] == str(parsed)
    if "share" in case:
        assert parsed.share_id is not None
        parsed = parsed.with_share(KeyShare.read(parsed.share_id, bytes.fromhex(case["share"])))
        assert case["phc"] == str(parsed)
    if case["op"] == "derive":
        assert case["kek"] == raw(argon2id.derive_kek(bytes.fromhex(case["secret"]), parsed)).hex()
    else:
        profile = parsed.profile
        found = profile.memory, profile.passes, profile.lanes, parsed.salt.hex()
        assert (case["m"], case["t"], case["p"], case["salt"]) == found
        assert case.get("share_id") == (parsed.share_id and parsed.share_id.hex)
        assert parsed.share_id == argon2id.share_named_by(case["phc"])


# ---------------------------------------------------------------- sections 4 and 5


def check_opened(case: Case, unwrap: Callable[[bytes, bytes], KeyBytes]) -> None:
    def opened() -> KeyBytes:
        found = unwrap(bytes.fromhex(case["blob"]), wrap_context(case["context"]))
        # The public key in a row is compared as well; here it is always right, so that it hides nothing.
        return hierarchy.verify(found, as_stored(case, kdf.x25519_public(found))).key

    if case["expect"] == "ok":
        assert key(case, "key") == opened()
        return
    with pytest.raises(EnvelopeError) as caught:
        opened()

    assert ERRORS[case["expect"]] is caught.type


@cases_of("wrap")
def test_wrapped_keys(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrapped key opens with its key in its context alone, and the fault of any other is named exactly."""
    check_opened(case, lambda blob, of: wrapping.unwrap(blob, key(case, "wrapping_key"), of))
    if case["expect"] == "ok":
        monkeypatch.setattr(wrapping.os, "urandom", lambda size: bytes.fromhex(case["salt"]))
        again = wrapping.wrap(key(case, "key"), key(case, "wrapping_key"), wrap_context(case["context"]))

        assert case["blob"] == again.hex()


@cases_of("sealed")
def test_sealed_keys(case: Case) -> None:
    """A sealed key opens for its recipient in its context alone; what is sealed now opens as the old does."""
    of = wrap_context(case["context"])
    if "op" in case:  # a public key to which nothing may be sealed
        to = sealing.PublicKeys(bytes.fromhex(case["recipient_public"]))
        with pytest.raises(TamperedKeyError):
            sealing.seal_key(key(case, "key"), to, of)
        return
    check_sealed(case, hybrid=False)


@cases_of("hybrid")
def test_hybrid_sealed_keys(case: Case) -> None:
    """The same of the hybrid format; its public keys come from the one key that opens it."""
    if case["op"] == "public_keys":
        found = sealing.public_keys(key(case, "key"), hybrid=True)
        publics = bytes.fromhex(case["x25519_public"]), bytes.fromhex(case["mlkem_public"])

        assert case["mlkem_seed"] == kdf.mlkem_seed(key(case, "key")).hex()
        assert publics == (found.x25519, found.mlkem768)
        assert found.mlkem768 is not None
        assert len(found.mlkem768) == sealing.MLKEM_PUBLIC_SIZE
        assert sealing.PublicKeys(publics[0]) == sealing.public_keys(key(case, "key"), hybrid=False)
    elif case["op"] == "seal":  # a pair of public keys to which nothing may be sealed
        to = sealing.PublicKeys(bytes.fromhex(case["x25519_public"]), bytes.fromhex(case["mlkem_public"]))
        with pytest.raises(TamperedKeyError):
            sealing.seal_key(key(case, "key"), to, wrap_context(case["context"]))
    else:
        check_sealed(case, hybrid=True)


def check_sealed(case: Case, *, hybrid: bool) -> None:
    recipient = key(case, "recipient_key")
    check_opened(case, lambda blob, of: sealing.open_key(blob, recipient, of))
    if case["expect"] == "ok":
        to = sealing.public_keys(recipient, hybrid=hybrid)
        fresh = sealing.seal_key(key(case, "key"), to, wrap_context(case["context"]))

        assert case["blob"][:2] == fresh[:1].hex()
        assert len(case["blob"]) == 2 * len(fresh)
        assert case["blob"] != fresh.hex()
        check_opened(case | {"blob": fresh.hex()}, lambda blob, of: sealing.open_key(blob, recipient, of))


def context_of_row(case: Case) -> bytes:
    """The context that the library makes of the rows in which a case's blob would stand."""
    of, blob = case["context"], bytes.fromhex(case["blob"])
    stored = as_stored(case, b"")
    recipient = uuid_of(bytes.fromhex(of["recipient"])) if len(of["recipient"]) == 32 else None
    if of["kind"] == "grant":
        granting_row = bytes.fromhex(of["granter"])
        found = grants.way_through(
            StoredGrant(uuid.UUID(int=0), granting_row, stored.key_id, recipient, GrantState.SEALED, blob),
            stored,
        )
    else:
        under = recipient or uuid.UUID(int=0)
        found = hierarchy.wrap_of(replace(stored, wrapping_key_id=under, wrapped=blob))
    assert found is not None
    return found.context(stored)


@pytest.mark.parametrize("name", ["wrap", "sealed", "hybrid"])
def test_rows_give_the_contexts_of_the_specification(name: str) -> None:
    """Kind, recipient and granter come out of the library's own rows as the table of section 4 has them."""
    checked = set()
    for case in load(name):
        if case["expect"] != "ok" or "context" not in case:
            continue
        of, blob = case["context"], bytes.fromhex(case["blob"])
        if of["kind"] in ("secret", "provider", "recovery"):
            public = bytes.fromhex(of["recipient"]) or None
            slot = StoredSlot(
                uuid.UUID(int=0), uuid.UUID(of["key_id"]), SlotKind(of["kind"]), of["kdf"], blob, public
            )
            kek = key(case, "recipient_key" if "recipient_key" in case else "wrapping_key")
            found = key(case, "key")

            assert found == slots.open_slot(slot, as_stored(case, kdf.x25519_public(found)), kek).key
        elif of["kind"] == "grant" and not of["granter"]:
            continue  # a context that no grant has: there to show that a context is bytes
        else:
            assert wrap_context(of) == context_of_row(case), case["name"]
        checked.add(of["kind"])

    expected = {
        "wrap": {"secret", "provider", "recovery", "root", "previous", "grant"},
        "sealed": {"secret", "provider", "recovery", "sealed", "grant"},
        "hybrid": {"sealed", "grant"},
    }
    assert expected[name] == checked


# ---------------------------------------------------------------- section 6


TYPES: dict[str, sa.types.TypeEngine[Any]] = {
    "str": sa.String(),
    "bytes": sa.LargeBinary(),
    "int": sa.Integer(),
    "float": sa.Float(),
    "decimal": sa.Numeric(),
    "bool": sa.Boolean(),
    "date": sa.Date(),
    "time": sa.Time(),
    "timetz": sa.Time(timezone=True),
    "datetime": sa.DateTime(),
    "datetimetz": sa.DateTime(timezone=True),
    "timedelta": sa.Interval(),
    "uuid": sa.Uuid(),
    "json": sa.JSON(),
}
READ: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "bytes": bytes.fromhex,
    "int": int,
    "float": lambda bits: struct.unpack(">d", bytes.fromhex(bits))[0],
    "decimal": Decimal,
    "bool": bool,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "timetz": dt.time.fromisoformat,
    "datetime": dt.datetime.fromisoformat,
    "datetimetz": dt.datetime.fromisoformat,
    "timedelta": lambda parts: dt.timedelta(**parts),
    "uuid": uuid.UUID,
    "enum": str,
    "json": json.loads,
}


def type_of(case: Case) -> sa.types.TypeEngine[Any]:
    tag: str = case["type"]
    if tag == "enum":
        return sa.Enum(case["value"])
    if not tag.startswith("list:"):
        return TYPES[tag]
    inner = tag.removeprefix("list:")
    # An item of a JSON array may be a list itself: only a stated dimension says that it is not a nested one.
    return sa.ARRAY(TYPES[inner], dimensions=1 if inner == "json" else None)


def value_of(tag: str, value: Any) -> Any:
    if not tag.startswith("list:"):
        return READ[tag](value)
    if value is None:
        return None
    return [
        item if item is None else value_of(tag if isinstance(item, list) else tag.removeprefix("list:"), item)
        for item in value
    ]


def alike(wanted: Any, found: Any) -> bool:
    """Equal, of one type, and printed alike: a NaN equals no NaN, and -0.0, 1.10 and 1E+3 equal too much."""
    return type(wanted) is type(found) and repr(wanted) == repr(found)


@cases_of("value")
def test_values(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value encodes, encrypts, decrypts and decodes as specified, and every fault is named exactly."""
    if case["op"] == "encode":
        codec = codecs.codec_for(type_of(case) if case["type"] != "enum" else sa.Enum("name"))
        with pytest.raises((TypeError, ValueError, LookupError)):
            codec.encode(value_of(case["type"], case["value"]))
        return
    if case["op"] == "decode":
        items = TYPES[case["type"].removeprefix("list:")]
        array = sa.ARRAY(items, dimensions=1 if case["flat"] else None)
        with pytest.raises(FormatError):
            ColumnFormat(array, "t.c", "column").decode(bytes.fromhex(case["plaintext"]))
        return
    data_key = key(case, "data_key")
    row = bytes.fromhex(case["row_reference"])
    field = aead.Field(case["label"], case["type"], bool(row))
    cipher = aead.ValueCipher(data_key, kdf.key_id_of(kdf.commitment(data_key)), field)
    blob = bytes.fromhex(case["blob"])
    if case["expect"] != "ok":
        with pytest.raises(EnvelopeError) as caught:
            cipher.decrypt(blob, row)
        assert ERRORS[case["expect"]] is caught.type
        return
    codec = codecs.codec_for(type_of(case))
    value = value_of(case["type"], case["value"])
    plaintext = bytes.fromhex(case["plaintext"])
    monkeypatch.setattr(aead.os, "urandom", lambda size: bytes.fromhex(case["nonce"]))

    assert case["type"] == codec.tag
    assert plaintext == codec.encode(value)
    assert plaintext == cipher.decrypt(blob, row)
    assert blob == cipher.encrypt(plaintext, row)
    decoded = codec.decode(plaintext)
    assert plaintext == codec.encode(decoded)
    if case["type"] in ("datetimetz", "list:datetimetz"):
        assert value == decoded  # the same moment; its offset is not kept
    elif "float" not in case["type"]:  # where many NaNs become one, the bytes above say more
        assert alike(value, decoded)


# ---------------------------------------------------------------- section 8


@cases_of("erasure_receipt")
def test_erasure_receipts(case: Case) -> None:
    """A receipt is checked and signed over the same bytes, and its key and its owners' names are derived."""
    if case["op"] == "derive":
        made = receipts.receipt_key_of(ServerKeyring([bytes.fromhex(case["server_key"])]))
        assert case["public_key"] == made.public_key.hex()
        return
    if case["op"] == "tag":
        signer = receipts.ReceiptKey(bytes.fromhex(case["seed"]))
        assert case["tag"] == signer.owner_tag(bytes.fromhex(case["owner_reference"]))
        return
    public_text = base64.b64encode(bytes.fromhex(case["public_key"])).decode()
    if case["expect"] != "ok":
        with pytest.raises({"format": FormatError, "refused": ReceiptError}[case["expect"]]):
            receipts.check_receipt(case["text"], public_text)
        return
    body = dict(receipts.check_receipt(case["text"], public_text).body)
    signer = receipts.ReceiptKey(bytes.fromhex(case["seed"]))

    assert case["message"] == receipts.signed_bytes(body).hex()
    assert json.loads(case["text"]) == json.loads(signer.sign(body))


@cases_of("server_keyring")
def test_server_keyrings(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server keyring unwraps what names one of its keys in the same context, and makes the same bytes."""
    if case["op"] == "open":
        check_provider_slot(case)
        return
    wrapped = bytes.fromhex(case["wrapped"])
    if case["expect"] == "refused":
        # An outside party has one refusal in the vectors; ours says more, but never that a secret was wrong.
        with pytest.raises((ProviderError, FormatError, TamperedKeyError)):
            server_keyring(case).unwrap(wrapped, case["context"])
        return

    assert case["key"] == server_keyring(case).unwrap(wrapped, case["context"]).hex()
    monkeypatch.setattr(wrapping.os, "urandom", lambda size: bytes.fromhex(case["salt"]))
    again = ServerKeyring([bytes.fromhex(case["server_key"])])
    assert wrapped == again.wrap(bytes.fromhex(case["key"]), case["context"])


def check_provider_slot(case: Case) -> None:
    public = bytes.fromhex(case["stored_public"])
    slot = StoredSlot(
        uuid.UUID(int=0), uuid.UUID(int=0), SlotKind.PROVIDER, "", b"", recipient_public_key=public
    )
    calls = ProviderCalls(server_keyring(case), "server")

    def opened() -> KeyBytes:
        kek = calls.unwrap(bytes.fromhex(case["blob"]), slots.kek_context(public))
        return slots.check_kek(kek, slot)

    if case["expect"] == "ok":
        assert key(case, "key") == opened()
        return
    with pytest.raises({"format": FormatError, "refused": ProviderError}[case["expect"]]):
        opened()


# ---------------------------------------------------------------- section 9


@cases_of("row_seal")
def test_row_seals(case: Case) -> None:
    """A row is accepted with its own seal as it was sealed, and refused with any byte of it elsewhere."""
    fields = [case["row"].encode(), *map(bytes.fromhex, case["columns"].values())]
    seal = None if case["seal"] is None else bytes.fromhex(case["seal"])
    seals = row_seals.RowSeals(server_keyring(case))
    if case["expect"] == "refused":
        with pytest.raises(RowSealError):
            seals.check(seal, case["label"], fields, case["realm"])
        return
    seals.check(seal, case["label"], fields, case["realm"])
    active = row_seals.RowSeals(ServerKeyring([bytes.fromhex(case["server_key"])]))

    assert seal == active.seal(case["label"], fields, case["realm"])
    assert seal[:16] == row_seal.server_key_id(key(case, "server_key"))


# ---------------------------------------------------------------- section 12


def carried(of: Case) -> OpenedKey:
    held = KeyBytes(bytes.fromhex(of["key"]))
    commitment = kdf.commitment(held)
    stored = StoredKey(
        kdf.key_id_of(commitment),
        bytes.fromhex(of["owner_reference"]),
        Purpose(of["purpose"]),
        of["scope"],
        of["epoch"],
        KeyState.RETIRED,
        commitment,
        bytes(32),
    )
    return OpenedKey(stored, held)


def check_ticket_entries(case: Case) -> None:
    keys = [carried(of) for of in case["carried"]]
    held = keys_of_tickets.CarriedKeys(bytearray.fromhex(case["expect"]))

    assert keys_of_tickets.entries_of(keys).hex() == case["expect"]
    assert [held.open(one.stored) for one in keys] == keys


def check_ticket_text(case: Case) -> None:
    if case["expect"] == "refused":
        with pytest.raises(TicketError):
            keys_of_tickets.parse_ticket(case["text"])
        return
    found = keys_of_tickets.parse_ticket(case["text"])

    assert (found.ticket_id.hex, raw(found.client_half).hex()) == (case["ticket_id"], case["client_half"])
    assert keys_of_tickets.ticket_text(found) == case["text"]


@cases_of("ticket")
def test_tickets(case: Case) -> None:
    """Entries and texts come out byte for byte; a ticket opens with its three parts and its own context."""
    if case["op"] != "open":
        {"entries": check_ticket_entries, "text": check_ticket_text}[case["op"]](case)
        return
    of, row_half = case["context"], bytes.fromhex(case["row_half"])
    bound = ticket.TicketContext(
        *(bytes.fromhex(of[name]) for name in ("ticket_id", "owner_reference", "root_key_id")),
        of["issued_at"],
        of["expires_at"],
        of["idle_seconds"],
        of["realm"],
    )
    pepper = ticket.pepper_of(key(case, "server_key"))
    made = ticket.ticket_key(key(case, "client_half"), row_half, pepper, bound)
    blob = bytes.fromhex(case["blob"])
    if case["expect"] != "ok":
        with pytest.raises(ERRORS[case["expect"]]):
            ticket.open_ticket(blob, made)
        return
    entries = ticket.open_ticket(blob, made)

    assert entries.hex() == case["entries"]
    assert ticket.open_ticket(ticket.seal_ticket(entries, made), made) == entries


# ---------------------------------------------------------------- section 13


def opened_index_key(case: Case) -> KeyBytes:
    of, calls = case["row"], ProviderCalls(server_keyring(case), "server")
    stored = index_keys.StoredIndexKey(
        uuid.UUID(of["key_id"]),
        of["label"],
        of["epoch"],
        index_keys.IndexKeyState(of["state"]),
        bytes.fromhex(of["commitment"]),
        "server",
        bytes.fromhex(of["wrapped"]),
        bytes.fromhex(of["seal"]),
    )
    opened = index_keys.open_index_key(calls, stored)
    index_keys.check_row(opened, stored)
    return opened


@cases_of("index")
def test_blind_indexes(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags come out byte for byte; an index key opens in its own row and state alone."""
    if case["op"] == "tag":
        hasher = blind_index.IndexHasher(key(case, "key"), case["label"], case["form"], case["bits"])

        assert hasher.tag(bytes.fromhex(case["data"])).hex() == case["expect"]
        return
    if case["expect"] != "ok":
        refusals: tuple[type[Exception], ...] = (ProviderError, FormatError, TamperedKeyError)
        with pytest.raises(refusals if case["expect"] == "refused" else ERRORS[case["expect"]]):
            opened_index_key(case)
        return
    of, opened = case["row"], opened_index_key(case)
    monkeypatch.setattr(wrapping.os, "urandom", lambda size: bytes.fromhex(case["salt"]))
    monkeypatch.setattr(index_keys.KeyBytes, "generate", lambda: opened)
    calls = ProviderCalls(ServerKeyring([bytes.fromhex(case["server_key"])]), "server")
    state = index_keys.IndexKeyState(of["state"])
    made = index_keys.make_index_key(calls, of["label"], of["epoch"], state)

    assert [made.wrapped.hex(), made.seal.hex()] == [of["wrapped"], of["seal"]]


# How the library holds the rows that the vectors spell out, so that its own order of columns is compared.
STORED: dict[str, Callable[[dict[str, bytes]], StoredKey | StoredSlot | StoredGrant]] = {
    "key": lambda of: StoredKey(
        uuid.UUID(bytes=of["key_id"]),
        of["owner_reference"],
        Purpose(of["purpose"].decode()),
        of["scope"].decode(),
        int.from_bytes(of["epoch"], "big"),
        KeyState(of["state"].decode()),
        of["commitment"],
        of["public_key"],
        of["mlkem_public_key"] or None,
        uuid_of(of["wrapping_key_id"]),
        of["wrapped"] or None,
    ),
    "slot": lambda of: StoredSlot(
        uuid.UUID(bytes=of["slot_id"]),
        uuid.UUID(bytes=of["key_id"]),
        SlotKind(of["kind"].decode()),
        of["kdf"].decode(),
        of["wrapped"],
        of["recipient_public_key"] or None,
        of["provider_reference"].decode() or None,
        of["provider_blob"] or None,
    ),
    "grant": lambda of: StoredGrant(
        uuid.UUID(bytes=of["grant_id"]),
        of["granting_row"],
        uuid.UUID(bytes=of["key_id"]),
        uuid_of(of["recipient_key_id"]),
        GrantState(of["state"].decode()),
        of["wrapped"] or None,
        recipient=of["recipient"],
    ),
}


@pytest.mark.parametrize("row", STORED)
@pytest.mark.parametrize("name", ["every column filled", "columns absent"])
def test_rows_are_sealed_by_the_columns_of_the_specification(row: str, name: str) -> None:
    """The library seals the columns that the specification names, in that order; what is absent, as empty."""
    case = next(case for case in load("row_seal") if case["name"] == f"{row}: {name}")
    columns = {column: bytes.fromhex(text) for column, text in case["columns"].items()}

    assert [row.encode(), *columns.values()] == STORED[row](columns).sealed_fields()


# ---------------------------------------------------------------- section 10


@cases_of("pepper")
def test_slots_under_a_pepper(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot comes out of its pepper in its own row alone; a missing pepper is told from an altered slot."""
    of = case["slot"]
    layers = pepper.SlotPepper(ServerKeyring([bytes.fromhex(text) for text in case["peppers"]]))
    row = StoredSlot(
        uuid.UUID(of["slot_id"]),
        uuid.UUID(of["key_id"]),
        SlotKind(of["kind"]),
        of["kdf"],
        bytes.fromhex(case["blob"]),
    )

    def taken() -> StoredSlot:
        peppering.pepper_id_of(row.wrapped)
        slot = layers.opened(row)
        pepper.require_open(slot)
        return slot

    if case["expect"] != "ok":
        with pytest.raises(EnvelopeError) as caught:
            taken()

        assert (ERRORS | {"refused": PepperError})[case["expect"]] is caught.type
        return
    slot = taken()
    monkeypatch.setattr(wrapping.os, "urandom", lambda size: bytes.fromhex(case["salt"]))
    active = pepper.SlotPepper(ServerKeyring([bytes.fromhex(case["pepper"])]))

    assert (case["public_key"], case["wrapped"]) == (
        (slot.recipient_public_key or b"").hex(),
        slot.wrapped.hex(),
    )
    assert active.is_current(slot)
    assert (row.wrapped, None) == (active.stored(slot).wrapped, active.stored(slot).recipient_public_key)
