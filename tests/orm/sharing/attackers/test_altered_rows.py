"""Altered rows, moody providers, and a copy of the whole database."""

import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import Engine, Table, create_engine, select

from sqlalchemy_envelope import (
    EnvelopeError,
    KeyNotFoundError,
    LockedError,
    ProviderError,
    ProviderTimeoutError,
    RowSealError,
    TamperedKeyError,
    UnlockError,
    enforce_foreign_keys,
)
from tests.conftest import EveryNth
from tests.orm import outsider as spec
from tests.orm.outsider import (
    ADA,
    BEN,
    CID,
    GRANTS,
    GROUPS_KEY,
    GROUPS_SLOT,
    HERS,
    NESTINGS,
    PLAIN,
    SEALED,
    SECRETS,
    SERVER_KEY,
    SHARES,
    THEIRS,
    USERS_KEY,
    USERS_SLOT,
    Group,
    Membership,
    Nesting,
    Post,
    Scene,
    User,
    set_scene,
)
from tests.orm.sharing.attackers.asserted import BoxScene, first_post, fresh, has_seals, unlock_box

MEMBERSHIPS: Any = Membership.__table__
GROUPS: Any = Group.__table__


# --- providers ---


MOODS = {
    "down": ProviderError,
    "slow": ProviderTimeoutError,
    "another": ProviderError,
    "garbage": ProviderError,
    "text": ProviderError,
}


@pytest.mark.parametrize("mood", MOODS)
def test_a_provider_that_misbehaves(boxed: BoxScene, mood: str) -> None:
    """Down, slow, answering with another key or with no key: the unlock says so, and works when it is well
    again."""
    boxed.box.mood = mood
    with pytest.raises(ProviderError) as refused:
        unlock_box(boxed)

    assert type(refused.value) is MOODS[mood]
    boxed.box.mood = "well"
    assert unlock_box(boxed) == ["boxed"]


@pytest.mark.parametrize("mood", MOODS)
def test_a_provider_that_misbehaves_in_server_mode(boxed: BoxScene, mood: str) -> None:
    """In server mode the read fails with the provider's error and is not taken for a locked row."""
    boxed.box.mood = mood
    with boxed.session() as session, boxed.envelope.server_mode(session, provider="box", reason="attack"):
        with pytest.raises(MOODS[mood]):
            first_post(session, 7)
        boxed.box.mood = "well"
        session.expire_all()
        assert first_post(session, 7) == "boxed"


@pytest.mark.parametrize("moved", ["provider_wrapped", "both", "all"])
def test_what_a_provider_wrapped_for_another_slot(boxed: BoxScene, moved: str) -> None:
    """A KEK from another slot, alone, with its public key, or with the wrap under it: never another owner's
    root."""
    out = boxed.outsider
    mine, other = (out.one(GROUPS_SLOT, key_id=out.key_row(GROUPS_KEY, one).key_id) for one in (7, 8))
    assert mine.provider_wrapped != other.provider_wrapped
    names = ["provider_wrapped", "recipient_public_key", "wrapped"]
    names = names[: {"provider_wrapped": 1, "both": 2, "all": 3}[moved]]
    out.set(GROUPS_SLOT, {"slot_id": mine.slot_id}, **{name: other._mapping[name] for name in names})

    error: Any = (TamperedKeyError, ProviderError) if moved == "provider_wrapped" else UnlockError
    with pytest.raises(RowSealError if has_seals(boxed) else error):
        unlock_box(boxed)


# --- altered rows ---


ALTERED: list[tuple[Table, dict[str, Any], str, Any]] = [
    (table, where, column, value)
    for table, where, columns in [
        (
            GROUPS_KEY,
            {"owner_id": THEIRS, "purpose": "root"},
            {"owner_reference": b"x", "purpose": "zzz", "scope": "x", "epoch": 5, "state": "foo"},
        ),
        (GROUPS_KEY, {"owner_id": THEIRS, "purpose": "root"}, {"public_key": b"abc", "granted": "many"}),
        (GROUPS_KEY, {"owner_id": THEIRS, "purpose": "root"}, {"commitment": b"\1" * 32, "public_key": 7}),
        (GROUPS_KEY, {"owner_id": THEIRS, "purpose": "root"}, {"proof": b"short", "state": "retired"}),
        (
            GROUPS_KEY,
            {"owner_id": THEIRS, "purpose": "data"},
            {"purpose": "index", "scope": "x", "epoch": -1, "state": "retired", "commitment": b"\1" * 32},
        ),
        (GROUPS_KEY, {"owner_id": THEIRS, "purpose": "data"}, {"wrapped": None, "wrapping_key_id": None}),
        (GRANTS, {"row_id": 2}, {"state": "foo", "wrapped": None, "recipient_key_id": None}),
        (GRANTS, {"row_id": 2}, {"wrapped": b"\x11" * 105, "key_id": uuid.UUID(int=5)}),
    ]
    for column, value in columns.items()
]


@pytest.mark.parametrize(
    ("table", "where", "column", "value"),
    ALTERED,
    ids=[
        f"{table.name}.{where.get('purpose', '')}.{name}={value!r:.12}"
        for table, where, name, value in ALTERED
    ],
)
def test_a_group_whose_rows_were_altered(
    scene: Scene, table: Table, where: dict[str, Any], column: str, value: Any
) -> None:
    """Its members unlock and read their own data as ever; the group's is refused, or unlocks unharmed."""
    raw = spec.sql_table(table.name, *(spec.sql_column(name) for name in (*where, column)))
    scene.outsider.run(
        raw.update()
        .filter_by(**where)
        .values(**{column: value.hex if isinstance(value, uuid.UUID) else value})
    )
    with scene.unlocked(BEN) as session:
        assert session.get_one(User, BEN).diary == "ben's diary"
        refused: list[EnvelopeError] = []
        try:
            assert first_post(session) == "first"
        except EnvelopeError as error:
            refused.append(error)
    is_gone = column in ("recipient_key_id", "key_id")  # no grant of Ben's is there any more
    assert is_gone or not any(isinstance(one, LockedError) for one in refused)


def test_a_users_key_id_in_another_table(scene: Scene) -> None:
    """A group's row that claims a user's own key does not keep that user out."""
    out = scene.outsider
    ben, hers, grant = out.key_row(USERS_KEY, BEN), out.key_row(GROUPS_KEY, HERS), out.one(GRANTS, row_id=3)
    out.insert(MEMBERSHIPS, id=9, group_id=HERS, user_id=BEN)
    out.copy(GROUPS_KEY, hers, key_id=ben.key_id, epoch=7, state="retired")
    ids = {"grant_id": uuid.uuid4(), "key_id": ben.key_id, "recipient_key_id": ben.key_id, "row_id": 9}
    out.copy(GRANTS, grant, **ids)

    assert scene.diary(BEN) == "ben's diary"
    assert scene.posts(BEN) == ["first"]


def test_planted_grants_in_every_direction_cost_no_time(scene: Scene) -> None:
    """Sixteen groups that all seem to grant their keys to one another have more paths than could ever be
    walked."""
    out, nestings, keys = scene.outsider, Nesting.__table__, []
    like, grant = out.key_row(GROUPS_KEY, HERS), out.one(GRANTS, row_id=2)
    for number in range(100, 116):
        out.insert(GROUPS, id=number, name=None)
        reference = spec.owner("groups", number)
        keys.append(out.plant_key(GROUPS_KEY, like, fresh(), owner_id=number, owner_reference=reference))
    out.insert(MEMBERSHIPS, id=9, group_id=100, user_id=BEN)
    out.copy(GRANTS, grant, grant_id=uuid.uuid4(), key_id=keys[0].key_id, row_id=9)
    pairs = [(inner, outer) for inner in keys for outer in keys if inner is not outer]
    rows = [{"inner_id": inner.owner_id, "outer_id": outer.owner_id} for inner, outer in pairs]
    out.run(nestings.insert(), rows)  # type: ignore[attr-defined]
    planted = {"state": "adopted", "wrapped": b"\x11" * 105, "seal": None, "created_at": grant.created_at}
    out.run(
        NESTINGS.insert(),
        [
            {
                "grant_id": uuid.uuid4(),
                "key_id": inner.key_id,
                "recipient_key_id": outer.key_id,
                "row_inner_id": inner.owner_id,
                "row_outer_id": outer.owner_id,
                **planted,
            }
            for inner, outer in pairs
        ],
    )
    began = time.monotonic()

    assert scene.diary(BEN) == "ben's diary"
    assert scene.posts(BEN) == ["first"]
    assert time.monotonic() - began < 20


FLIPPED: list[tuple[Table, str, dict[str, Any]]] = [
    *((GROUPS_KEY, name, {"owner_id": THEIRS, "purpose": "root"}) for name in ("commitment", "public_key")),
    *(
        (GROUPS_KEY, name, {"owner_id": THEIRS, "purpose": "data"})
        for name in ("commitment", "public_key", "wrapped", "seal")
    ),
    *((GROUPS_KEY, name, {"owner_id": THEIRS, "epoch": 2, "purpose": "root"}) for name in ("proof", "seal")),
    (GROUPS_KEY, "wrapped", {"owner_id": THEIRS, "epoch": 1, "purpose": "root"}),
    *((USERS_SLOT, name, {}) for name in ("wrapped", "recipient_public_key", "seal")),
    *((GRANTS, name, {"row_id": 2, "state": "adopted"}) for name in ("wrapped", "seal")),
    *((GRANTS, name, {"row_id": 2, "state": "sealed"}) for name in ("wrapped", "seal")),
]


@pytest.fixture(scope="module", params=[PLAIN, SEALED], ids=["without", "with"])
def two_epochs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene with a second epoch of the group, which waits for Ben."""
    engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('flips') / 'test.db'}")
    enforce_foreign_keys(engine)
    scene = set_scene(engine, request.param)
    scene.join(ADA, CID)
    scene.leave(ADA, CID)
    yield scene
    engine.dispose()


@pytest.mark.parametrize(
    ("table", "column", "where"),
    FLIPPED,
    ids=[f"{table.name}.{name}.{'.'.join(map(str, where.values()))}" for table, name, where in FLIPPED],
)
def test_every_byte_flipped(
    two_epochs: Scene, table: Table, column: str, where: dict[str, Any], every_nth: EveryNth
) -> None:
    """One of our errors or no effect; never another value, and nothing is written that its owner cannot
    read."""
    scene, out = two_epochs, two_epochs.outsider
    if table is USERS_SLOT:
        where = {"key_id": out.key_row(USERS_KEY, BEN).key_id}
    row = out.rows(table, **where)[0]
    (primary,) = table.primary_key.columns
    value = row._mapping[column]
    if value is None:
        assert not scene.has_seals
        assert column == "seal"
        return
    key = {primary.name: row._mapping[primary.name]}
    # A seal or a public key is compared as a whole, and a seal covers a wrap as a whole.
    apart = 1 if column == "wrapped" and not scene.has_seals else 7
    for at in every_nth(9 // apart + 1, range(0, len(value), apart)):
        altered = value[:at] + bytes([value[at] ^ 0x41]) + value[at + 1 :]
        out.set(table, key, **{column: altered})
        with scene.session() as session, suppress(EnvelopeError):
            unlocked = scene.envelope.unlock(session, session.get_one(User, BEN), secret=SECRETS[BEN])
            with unlocked:
                post = Post(group_id=THEIRS, text="new")
                texts = [one.text for one in session.scalars(select(Post).filter_by(group_id=THEIRS))]
                assert texts == ["first"]
                session.add(post)
                session.flush()
                session.refresh(post)
                assert post.text == "new"
                session.rollback()
        out.set(table, key, **{column: value})


# --- a copy of the database ---


def read_dump(out: spec.Outsider, server_keys: list[bytes]) -> dict[tuple[str, int], dict[bytes, bytes]]:
    """Every data key that a copy of the database gives to somebody with these server keys, by owner: from the
    specification alone."""
    opened: dict[uuid.UUID, bytes] = {}
    known = {spec.key_id(key).bytes: key for key in server_keys}
    tables = [("users", USERS_KEY, USERS_SLOT), ("groups", GROUPS_KEY, GROUPS_SLOT)]
    keys = {row.key_id: (name, row) for name, table, _ in tables for row in out.rows(table)}
    for _, table, slots in tables:
        for slot in out.rows(slots, kind="provider"):
            server_key = known.get(slot.provider_wrapped[1:17])
            if server_key is None:
                continue
            row = out.one(table, key_id=slot.key_id)
            kek = spec.provider_kek(server_key, slot.provider_wrapped, slot.recipient_public_key)
            assert spec.public(kek) == slot.recipient_public_key
            if slot.wrapped[0] == 0x12:
                context = spec.wrap_context("provider", row, "", slot.recipient_public_key)
                opened[row.key_id] = spec.unseal(slot.wrapped, kek, context)
            else:
                context = spec.wrap_context("provider", row)
                opened[row.key_id] = spec.unwrap(slot.wrapped, kek, context, is_kek=True)
    grants = [
        (GRANTS, "memberships", "row_id"),
        (SHARES, "profile_shares", None),
        (NESTINGS, "nestings", None),
    ]
    while True:
        count = len(opened)
        for key_id, (_, row) in keys.items():
            if key_id in opened or row.wrapping_key_id not in opened:
                continue
            parent = opened[row.wrapping_key_id]
            under = row.wrapping_key_id.bytes
            if row.purpose == "root":
                opened[key_id] = spec.unwrap(
                    row.wrapped, parent, spec.wrap_context("previous", row, "", under)
                )
            elif row.wrapped[0] == 0x12:
                opened[key_id] = spec.unseal(row.wrapped, parent, spec.wrap_context("sealed", row, "", under))
            else:
                opened[key_id] = spec.unwrap(row.wrapped, parent, spec.wrap_context("root", row))
        for table, label, single in grants:
            for grant in out.rows(table):
                if grant.recipient_key_id not in opened or grant.key_id in opened or grant.wrapped is None:
                    continue
                row_names = [column.name for column in table.columns]
                names = [single] if single else [name for name in row_names if name.startswith("row_")]
                granter = spec.granting_row(label, *(grant._mapping[name] for name in names))
                row, recipient = keys[grant.key_id][1], grant.recipient_key_id
                context = spec.wrap_context("grant", row, "", recipient.bytes, granter)
                opens = spec.unseal if grant.wrapped[0] == 0x12 else spec.unwrap
                opened[grant.key_id] = opens(grant.wrapped, opened[recipient], context)
        if len(opened) == count:
            break
    found: dict[tuple[str, int], dict[bytes, bytes]] = {}
    for key_id, key in opened.items():
        name, row = keys[key_id]
        assert (spec.commitment(key), spec.key_id(key)) == (row.commitment, key_id)
        if row.purpose != "root":
            found.setdefault((name, row.owner_id), {})[key_id.bytes] = key
    return found


def test_a_copy_of_the_database(sqlite_engine: Engine) -> None:
    """Alone it opens nothing. With the server keys it opens exactly the owners that have a provider's slot,
    and what was granted to them: not one that only a secret opens."""
    scene = set_scene(sqlite_engine, SEALED)
    with scene.session() as session:
        dot = User(id=5, name="dot", display_name="dot's name", diary="dot's diary")
        scene.envelope.enroll(session, dot, secret="the secret of dot", provider="server")
        session.commit()
        with scene.envelope.unlock(session, session.get_one(User, ADA), secret=SECRETS[ADA]):
            group = Group(id=6, name="of ada and dot")
            scene.envelope.enroll(session, group)
            session.add_all(
                [Membership(id=60, group_id=6, user_id=ADA), Membership(id=61, group_id=6, user_id=5)]
            )
            session.commit()
            session.add(Post(group_id=6, text="to dot"))
            session.commit()
    out = scene.outsider

    assert read_dump(out, []) == read_dump(out, [b"\x08" * 32]) == {}
    found = read_dump(out, [SERVER_KEY])
    assert set(found) == {("users", 5), ("groups", 6)}
    diary, post = out.values("users", "diary")[-1], out.values("posts", "text")[-1]
    assert spec.decrypt(diary, found["users", 5][diary[1:17]], "users.diary") == "dot's diary"
    assert spec.decrypt(post, found["groups", 6][post[1:17]], "posts.text") == "to dot"
    for value in out.values("users", "diary")[:4]:
        assert not any(value[1:17] in keys for keys in found.values())


def test_an_owner_of_secrets_alone_is_not_the_operators(sqlite_engine: Engine) -> None:
    """The library keeps to it too: server mode opens no owner without a provider's slot."""
    scene = set_scene(sqlite_engine, SEALED)
    with scene.session() as session, scene.envelope.server_mode(session, reason="attack"):
        with pytest.raises(LockedError):
            _ = session.get_one(User, BEN).diary
        with pytest.raises(KeyNotFoundError):
            scene.envelope.unlock(session, session.get_one(User, BEN), provider="server", reason="attack")
