"""Somebody who may write to the database alters, moves and plants keys and slots: an error and no key."""

import time
import tracemalloc
import uuid
from contextlib import nullcontext
from typing import Any

import pytest
from sqlalchemy import Table, text
from sqlalchemy.orm import Session

from sqlalchemy_envelope import (
    EnvelopeError,
    FormatError,
    KdfParametersError,
    KeyNotFoundError,
    LockedError,
    NotEnrolledError,
    OwnerMismatchError,
    TamperedKeyError,
    TruncatedError,
    UnclaimedError,
    UnlockError,
)
from sqlalchemy_envelope.crypto import argon2id
from sqlalchemy_envelope.crypto.argon2id import KdfProfile, KdfSalt
from sqlalchemy_envelope.crypto.sealing import public_keys
from sqlalchemy_envelope.crypto.secret import KeyBytes
from tests.conftest import EveryNth
from tests.orm.attackers.scene import VALUES, Scene, entity, flip
from tests.orm.models import Base, User, envelope

ADA, BEN = "the secret of ada", "another one, of ben"
BODY, TEXT, PHONE = "ada's diary", "ada's page", "+44 20 7946 0000"


@pytest.fixture
def derivations(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The parameters of every key derivation that was run."""
    run: list[tuple[int, int, int]] = []
    genuine = argon2id.hash_secret_raw

    def counted(
        secret: bytes, salt: bytes, passes: int, memory: int, lanes: int, *rest: Any, **more: Any
    ) -> bytes:
        run.append((memory, passes, lanes))
        return genuine(secret, salt, passes, memory, lanes, *rest, **more)

    monkeypatch.setattr(argon2id, "hash_secret_raw", counted)
    return run


KEY_BYTES = {
    "slot wrap": (
        "slot",
        "wrapped",
        lambda at: FormatError if at == 0 else UnlockError if at < 57 else TamperedKeyError,
    ),
    "data key wrap": ("data", "wrapped", lambda at: FormatError if at == 0 else TamperedKeyError),
    "root commitment": ("root", "commitment", lambda at: TamperedKeyError),
    "data commitment": ("data", "commitment", lambda at: TamperedKeyError),
    "root public key": ("root", "public_key", lambda at: TamperedKeyError),
    "root owner reference": ("root", "owner_reference", lambda at: OwnerMismatchError),
    "data owner reference": ("data", "owner_reference", lambda at: OwnerMismatchError),
}


def place(scene: Scene, row: str) -> tuple[str, str]:
    """Table and condition of one of ada's key rows."""
    return ("users_keyslot", scene.slot_row(1)) if row == "slot" else ("users_key", scene.key_row(1, row))


@pytest.mark.parametrize("which", KEY_BYTES)
def test_no_altered_byte_of_a_key_row_goes_unnoticed(
    scene: Scene, which: str, record_property: Any, every_nth: EveryNth
) -> None:
    """Every byte flipped, every length cut, bytes added: the exact error, and no value. The public key of a
    data key is not among them; it has a test of its own."""
    row, column, expected = KEY_BYTES[which]
    table, where = place(scene, row)
    before = scene.writer.read(table, column, where)
    wrong_size = TamperedKeyError if column in ("commitment", "public_key") else expected(1)
    cases = [(flip(before, at, 1 << at % 8), expected(at)) for at in every_nth(5, range(len(before)))]
    short = TruncatedError if column == "wrapped" else wrong_size
    long = FormatError if column == "wrapped" else wrong_size
    # A slot with nothing in it waits to be released: it opens nothing, to whoever knows the secret.
    empty = short if column != "wrapped" else UnclaimedError if row == "slot" else FormatError
    cases += [(before[:size], short if size else empty) for size in every_nth(5, range(len(before)))]
    cases += [(before + bytes(size), long) for size in (1, 16, 1 << 20)]

    for altered, error in cases:
        with scene.writer.altered(table, column, where, altered), pytest.raises(error) as caught:
            scene.read_everything()

        assert caught.type is error
    assert scene.read_everything()[0] == BODY
    record_property("cases", len(cases))


@pytest.mark.parametrize("row", ["slot", "root", "data"])
@pytest.mark.parametrize("planted", ["text", 3, 10**12, -1, 1.5])
def test_a_key_row_with_something_else_than_bytes_is_refused_without_a_large_allocation(
    scene: Scene, row: str, planted: Any
) -> None:
    """`bytes(10**12)`, which SQLAlchemy's own binary type would compute, is a terabyte."""
    table, where = place(scene, row)
    columns = {"slot": ["wrapped"], "root": ["commitment", "public_key", "owner_reference"]}.get(
        row, ["commitment", "public_key", "owner_reference", "wrapped"]
    )
    tracemalloc.start()
    try:
        for column in columns:
            with scene.writer.altered(table, column, where, planted), pytest.raises(TamperedKeyError):
                scene.read_everything()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 32 * 2**20


@pytest.mark.parametrize("planted", [b"", bytes(31), bytes(33), "text", 32])
def test_a_proof_of_another_size_is_refused(scene: Scene, planted: Any) -> None:
    """What cannot be a proof at all is not read past."""
    with (
        scene.writer.altered("users_key", "proof", scene.key_row(1, "root"), planted),
        pytest.raises(TamperedKeyError),
    ):
        scene.read_everything()


@pytest.mark.parametrize("row", ["root", "data"])
def test_a_planted_ml_kem_public_key_is_refused(scene: Scene, row: str) -> None:
    """Whatever the row of an active root key says of a hybrid public key, it is the key's own or the row is
    tampered with. Of a data key, what cannot be one is refused, and another key's is not told."""
    table, where = place(scene, row)
    assert scene.writer.read(table, "mlkem_public_key", where) is None
    of_another = public_keys(KeyBytes.generate(), hybrid=True).mlkem768
    for planted in (b"", b"\x00" * 1184, of_another, b"short", "text", 7, 10**12):
        is_told = row == "root" or not isinstance(planted, bytes) or len(planted) != 1184
        with (
            scene.writer.altered(table, "mlkem_public_key", where, planted),
            pytest.raises(TamperedKeyError) if is_told else nullcontext(),
        ):
            assert scene.read_everything()[0] == BODY


def test_another_public_key_of_a_data_key_is_not_told(scene: Scene) -> None:
    """Nothing is ever sealed to a data key, so its public key is not compared: what has its size is passed
    over, and everything reads as before. What has another size is refused."""
    table, where = place(scene, "data")
    strange = public_keys(KeyBytes.generate(), hybrid=False).x25519
    with scene.writer.altered(table, "public_key", where, strange):
        assert scene.read_everything()[0] == BODY
    for planted in (b"", strange[:31], strange + b"\0"):
        with scene.writer.altered(table, "public_key", where, planted), pytest.raises(TamperedKeyError):
            scene.read_everything()


def test_another_public_key_in_a_slot_is_refused(scene: Scene) -> None:
    """The next root key would be sealed to it."""
    strange = public_keys(KeyBytes.generate(), hybrid=False).x25519
    before = scene.writer.read("users_keyslot", "recipient_public_key", scene.slot_row(1))
    for planted in (strange, b"", flip(before, 0), flip(before, 31, 0x80), before + b"\x00", "text", 32):
        with (
            scene.writer.altered("users_keyslot", "recipient_public_key", scene.slot_row(1), planted),
            pytest.raises(TamperedKeyError),
        ):
            scene.read_everything()


@pytest.mark.parametrize(
    ("row", "column", "planted"),
    [
        *[(row, "proof", bytes(32)) for row in ("root", "data")],
        *[(row, "granted", count) for row in ("root", "data") for count in (-1, 1, 2**31 - 1)],
        *[(row, "seal", bytes(size)) for row in ("root", "data", "slot") for size in (0, 48)],
        ("slot", "provider_ref", "server:planted"),
        ("slot", "provider_wrapped", b"\x14planted"),
    ],
)
def test_what_says_nothing_of_this_owner_changes_nothing(
    scene: Scene, row: str, column: str, planted: Any
) -> None:
    """Nobody holds grants to a user here, and no server key is configured: proofs, counters, row seals and
    what a provider would say are read past."""
    table, where = place(scene, row)
    with scene.writer.altered(table, column, where, planted):
        assert scene.read_everything()[0] == BODY


def _text_cases(before: str, every_nth: EveryNth) -> list[str]:
    places = every_nth(3, range(len(before)))
    return [
        *(before[:at] + chr(ord(before[at]) ^ 1) + before[at + 1 :] for at in places),
        *(before[:size] for size in places),
        before + "0",
        before + " ",
        "",
        "\x00",
        "é",
        "🔑",
    ]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ("root", "key_id"),
        ("data", "key_id"),
        ("data", "wrapping_key_id"),
        ("slot", "key_id"),
        ("slot", "kdf"),
        ("slot", "kind"),
        ("root", "purpose"),
        ("data", "purpose"),
        ("root", "state"),
        ("data", "state"),
        ("root", "scope"),
        ("data", "scope"),
    ],
)
def test_no_altered_text_of_a_key_row_goes_unnoticed(
    scene: Scene, row: str, column: str, record_property: Any, every_nth: EveryNth
) -> None:
    """Ids, epochs, scopes, states and KDF strings: every character, every length, and text that is no such
    thing."""
    table, where = place(scene, row)
    before = scene.writer.read(table, column, where)
    others = {
        "state": ["retired", "destroyed", "ACTIVE"],
        "purpose": ["root", "data", "index", "ROOT"],
        "kind": ["recovery", "provider", "SECRET"],
        "scope": ["x", "default"],
    }.get(column, [])
    cases = [
        case
        for case in dict.fromkeys([*_text_cases(before, every_nth), *others, 7, b"\x01\xff"])
        if case != before
    ]
    done = 0

    for altered in cases:
        if {row, altered} == {"data", "root"}:
            continue  # the tables' own constraint refuses it; without the constraint, below
        with scene.writer.altered(table, column, where, altered), pytest.raises(EnvelopeError):
            scene.read_everything()
        done += 1
    assert scene.read_everything()[0] == BODY
    record_property("cases", done)


@pytest.mark.parametrize("row", ["root", "data"])
@pytest.mark.parametrize("epoch", [0, 2, -1, 2**31 - 1, 2**32, 2**32 + 1, 2**63 - 1, "one", 1.5, b"1"])
def test_an_altered_epoch_is_refused(scene: Scene, row: str, epoch: Any) -> None:
    """The epoch is part of what a wrap is bound to."""
    table, where = place(scene, row)

    with (
        scene.writer.altered(table, "epoch", where, epoch),
        pytest.raises((TamperedKeyError, UnlockError)) as caught,
    ):
        scene.read_everything()

    assert row == "root" or caught.type is TamperedKeyError


def _copy_key(scene: Scene, owner: int, purpose: str, **changes: Any) -> None:
    source = (
        scene.writer.run(f"SELECT * FROM users_key WHERE {scene.key_row(owner, purpose)}").mappings().one()
    )
    row = {**source, **changes}
    names = ", ".join(row)
    scene.writer.run(
        f"INSERT INTO users_key ({names}) VALUES ({', '.join(':' + name for name in row)})", **row
    )


def test_an_old_epoch_made_active_again_is_refused(scene: Scene) -> None:
    """Else new values would be encrypted under a key that somebody may still hold for whom it was retired."""
    scene.writer.run(f"UPDATE users_key SET state = 'retired' WHERE {scene.key_row(1, 'data')}")

    with pytest.raises(TamperedKeyError):
        scene.read_everything()

    scene.writer.run("DROP INDEX uq_users_key_active")
    scene.writer.run(f"UPDATE users_key SET state = 'active' WHERE {scene.key_row(1, 'data')}")
    for state in ("active", "retired"):
        _copy_key(scene, 1, "data", key_id=uuid.uuid4().hex, epoch=2, state=state)
        with pytest.raises(TamperedKeyError):
            scene.read_everything()
        scene.writer.run("DELETE FROM users_key WHERE epoch = 2")


@pytest.mark.parametrize("state", ["active", "retired"])
@pytest.mark.parametrize("owner_reference", ["ben's", "rewritten"])
def test_a_foreign_epoch_is_refused(scene: Scene, state: str, owner_reference: str) -> None:
    """Ben's data key as Ada's second epoch: she would encrypt for Ben."""
    scene.writer.run("DROP INDEX uq_users_key_active")
    mine = scene.writer.read("users_key", "owner_reference", scene.key_row(1, "data"))
    changes = {"owner_id": 1, "epoch": 2, "key_id": uuid.uuid4().hex, "state": state}
    if owner_reference == "rewritten":
        changes["owner_reference"] = mine
        changes["wrapping_key_id"] = scene.writer.read("users_key", "key_id", scene.key_row(1, "root"))
    _copy_key(scene, 2, "data", **changes)
    scene.writer.run(
        f"UPDATE users_key SET state = 'retired' WHERE owner_id = 1 AND epoch = 1 AND purpose = 'data' "
        f"AND {state == 'active'}"
    )

    with pytest.raises(EnvelopeError) as caught:
        scene.read_everything()

    assert caught.type in (TamperedKeyError, OwnerMismatchError)


@pytest.mark.parametrize("epoch", [0, 2])
@pytest.mark.parametrize("scope", ["", "\t", "z"])
def test_a_second_root_is_refused(scene: Scene, epoch: int, scope: str, derivations: list[Any]) -> None:
    """Before or after the genuine one in any order: two active roots are an error, and no derivation is
    spent."""
    scene.writer.run("DROP INDEX uq_users_key_active")
    planted = scene.writer.read("users_key", "owner_reference", scene.key_row(1, "root"))
    _copy_key(
        scene,
        2,
        "root",
        owner_id=1,
        owner_reference=planted,
        key_id=uuid.uuid4().hex,
        epoch=epoch,
        scope=scope,
    )

    with pytest.raises(TamperedKeyError):
        scene.read_everything()

    assert derivations == []


def test_a_data_key_that_says_it_is_a_root_is_refused(scene: Scene) -> None:
    """Whatever its epoch."""
    scene.writer.run("DROP INDEX uq_users_key_active")
    where = scene.key_row(1, "data")
    for epoch in (0, 2):
        scene.writer.run(f"UPDATE users_key SET purpose = 'root', epoch = {epoch} WHERE {where}")
        with pytest.raises(TamperedKeyError):
            scene.read_everything()


def test_a_slot_moved_to_another_root_opens_nothing(both: Scene) -> None:
    """Ada's slot under Ben's root key: her secret does not reach his keys, and he still reaches his."""
    slot, root_of_ben = both.slot_row(1), both.writer.read("users_key", "key_id", both.key_row(2, "root"))
    ben_slot = both.slot_row(2)
    both.writer.run(f"UPDATE users_keyslot SET key_id = '{root_of_ben}' WHERE {slot}")

    with pytest.raises(UnlockError) as caught:
        both.read_everything(2, ADA)
    assert caught.type is UnlockError
    with pytest.raises(KeyNotFoundError):
        both.read_everything(1, ADA)
    assert both.read_everything(2, BEN)[0] == "ben's diary"

    both.writer.run(f"DELETE FROM users_keyslot WHERE {ben_slot}")
    for secret in (ADA, BEN):
        with pytest.raises(UnlockError):
            both.read_everything(2, secret)


@pytest.mark.parametrize("rewritten", [False, True], ids=["owner_id", "owner_id and owner_reference"])
def test_keys_moved_to_another_owner_open_for_nobody(both: Scene, rewritten: bool) -> None:
    """Ada's keys and slot in place of Ben's: neither secret logs in as Ben."""
    reference = both.writer.read("users_key", "owner_reference", both.key_row(2, "root"))
    both.writer.run(
        "DELETE FROM users_keyslot WHERE key_id IN (SELECT key_id FROM users_key WHERE owner_id = 2)"
    )
    both.writer.run("DELETE FROM users_key WHERE owner_id = 2")
    both.writer.run("UPDATE users_key SET owner_id = 2 WHERE owner_id = 1")
    if rewritten:
        both.writer.run("UPDATE users_key SET owner_reference = :reference", reference=reference)

    for secret in (ADA, BEN):
        with pytest.raises(UnlockError if rewritten else OwnerMismatchError):
            both.read_everything(2, secret)
    with pytest.raises(NotEnrolledError):
        both.read_everything(1, ADA)


def test_a_data_key_moved_alone_is_refused(both: Scene) -> None:
    """Ada's data key in place of Ben's, under his root by name, with his owner reference."""
    reference = both.writer.read("users_key", "owner_reference", both.key_row(2, "root"))
    root = both.writer.read("users_key", "key_id", both.key_row(2, "root"))
    data_of_ada = both.key_row(1, "data")
    both.writer.run("DELETE FROM users_key WHERE owner_id = 2 AND purpose = 'data'")
    both.writer.run(f"UPDATE users_key SET owner_id = 2 WHERE {data_of_ada}")
    with pytest.raises(OwnerMismatchError):
        both.read_everything(2, BEN)

    both.writer.run(f"UPDATE users_key SET owner_reference = :r WHERE {data_of_ada}", r=reference)
    with pytest.raises(KeyNotFoundError):
        both.read_everything(2, BEN)

    both.writer.run(f"UPDATE users_key SET wrapping_key_id = :root WHERE {data_of_ada}", root=root)
    with pytest.raises(TamperedKeyError):
        both.read_everything(2, BEN)


@pytest.mark.parametrize("verb", ["unlock", "change_secret", "rebind"])
@pytest.mark.parametrize(
    ("memory", "passes", "lanes"),
    [
        (64 * 2**20, 3, 4),
        (9_999_999_999, 3, 4),
        (65_536, 2**31, 4),
        (65_536, 17, 4),
        (65_536, 3, 255),
        (65_536, 3, 17),
        (1_048_576, 9, 1),
        (8, 1, 1),
        (63, 1, 1),
        (19_455, 2, 1),
        (19_456, 1, 1),
        (47_103, 1, 1),
        (0, 0, 0),
        (65_536, 3, 0),
    ],
)
def test_no_derivation_runs_with_planted_parameters(
    scene: Scene, derivations: list[Any], verb: str, memory: int, passes: int, lanes: int
) -> None:
    """64 GiB, 2^31 passes, 255 lanes, or next to nothing: refused in no time, before anything is
    allocated."""
    salt = scene.writer.read("users_keyslot", "kdf", scene.slot_row(1)).rpartition("$")[2]
    planted = f"$argon2id$v=19$m={memory},t={passes},p={lanes}${salt}"

    with (
        Session(scene.engine) as session,
        scene.writer.altered("users_keyslot", "kdf", scene.slot_row(1), planted),
    ):
        user = session.get_one(User, 1)
        secrets = {"old": ADA, "new": "x" * 12} if verb == "change_secret" else {"secret": ADA}
        tracemalloc.start()
        started = time.perf_counter()
        with pytest.raises(KdfParametersError):
            getattr(envelope, verb)(session, user, **secrets)
        elapsed = time.perf_counter() - started
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()

    assert derivations == []
    assert elapsed < 2
    assert peak < 16 * 2**20


@pytest.mark.parametrize("planted", [3, 50, 10_000])
def test_planted_slots_cost_no_derivation(scene: Scene, derivations: list[Any], planted: int) -> None:
    """More slots than are accepted are an error at once, however many, and are not even read."""
    _plant_slots(scene, _salts(planted))

    tracemalloc.start()
    with pytest.raises(KeyNotFoundError):
        scene.read_everything()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert derivations == []
    assert peak < 4 * 2**20


def test_a_few_planted_slots_cost_three_derivations_at_most(scene: Scene, derivations: list[Any]) -> None:
    """And keep nobody out: the genuine one is found among them."""
    _plant_slots(scene, _salts(2))

    assert scene.read_everything()[0] == BODY
    assert 1 <= len(derivations) <= 3

    derivations.clear()
    with pytest.raises(UnlockError):
        scene.read_everything(1, "not her secret")

    assert len(derivations) == 3


def test_planted_slots_of_one_salt_cost_one_derivation(scene: Scene, derivations: list[Any]) -> None:
    """The genuine one is found among 30, by the one key that its salt gives."""
    _plant_slots(scene, [{}] * 30)

    assert scene.read_everything()[0] == BODY
    assert len(derivations) == 1


def test_a_planted_slot_of_an_unknown_kind_keeps_nobody_out(scene: Scene) -> None:
    """A slot of no kind that this version knows, marked as new, is passed over."""
    _plant_slots(scene, [{"kind": "of tomorrow", "unacknowledged_since": "2026-01-01 00:00:00.000000"}])

    assert scene.read_everything()[0] == BODY


def _salts(count: int) -> list[dict[str, str]]:
    return [{"kdf": str(KdfSalt.generate(KdfProfile.unsafe_for_tests()))} for _ in range(count)]


def _plant_slots(scene: Scene, others: list[dict[str, str]]) -> None:
    slot = dict(scene.writer.run(f"SELECT * FROM users_keyslot WHERE {scene.slot_row(1)}").mappings().one())
    names = ", ".join(slot)
    statement = text(f"INSERT INTO users_keyslot ({names}) VALUES ({', '.join(':' + name for name in slot)})")
    rows = [
        {**slot, "slot_id": uuid.uuid4().hex, "wrapped": b"\x11" + bytes(104), **other} for other in others
    ]
    with scene.writer.engine.begin() as connection:
        connection.execute(statement, rows)


def test_keys_made_for_a_victim_log_in_as_the_victim_and_open_nothing(both: Scene) -> None:
    """What a writer can do: make anew what `enroll` makes. It passes for a login, and nothing of the
    victim opens."""
    both.writer.run(
        "DELETE FROM users_keyslot WHERE key_id IN (SELECT key_id FROM users_key WHERE owner_id = 1)"
    )
    both.writer.run("DELETE FROM users_key WHERE owner_id = 1")
    with Session(both.engine) as session:
        envelope.enroll(session, session.get_one(User, 1), secret="of the attacker")
        session.commit()

    with pytest.raises(UnlockError):
        both.read_everything(1, ADA)
    with both.unlocked((1, "of the attacker")) as session:
        for model, name, _, _ in VALUES.values():
            with pytest.raises(LockedError):
                entity(model, name)(session)


def test_deleted_keys_are_told(scene: Scene) -> None:
    """No data key, no slot, no root: an error that says so, and no value."""
    for table, where, error in (
        ("users_key", scene.key_row(1, "data"), LockedError),
        ("users_keyslot", scene.slot_row(1), KeyNotFoundError),
        ("users_key", scene.key_row(1, "root"), NotEnrolledError),
    ):
        scene.writer.run(f"DELETE FROM {table} WHERE {where}")
        with pytest.raises(error):
            scene.read_everything()


def test_every_column_of_the_key_tables_is_attacked_or_of_no_consequence() -> None:
    """A column added later has to be thought about here."""
    keys: Table = Base.metadata.tables["users_key"]
    slots: Table = Base.metadata.tables["users_keyslot"]
    attacked = {
        "key_id", "owner_id", "owner_reference", "purpose", "scope", "epoch", "state", "commitment",
        "public_key", "mlkem_public_key", "wrapping_key_id", "wrapped",
    }  # fmt: skip
    # What is proof, counter and row seal of an owner that others hold grants to is attacked with those.
    of_no_consequence = {"created_at", "retired_at", "proof", "granted", "seal"}
    assert set(keys.columns.keys()) == attacked | of_no_consequence
    assert set(slots.columns.keys()) == {
        "key_id", "slot_id", "kind", "kdf", "wrapped", "recipient_public_key", "provider_ref",
        "provider_wrapped", "seal", "label", "created_at", "changed_at", "used_at", "unacknowledged_since",
        "claimed_from",
    }  # fmt: skip
