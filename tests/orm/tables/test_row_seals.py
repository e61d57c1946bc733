"""Row seals: with server keys configured, no row of the key, slot and grant tables counts that the
application did not write as it stands. What a seal does not cover is listed here, and tested in
`test_sharing_attackers`."""

import uuid
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, Table, select

from sqlalchemy_envelope import Envelope, EnvelopeError, KdfProfile, RowSealError, TamperedKeyError
from sqlalchemy_envelope.keys.providers import ServerKeyring
from tests.orm import outsider as spec
from tests.orm.outsider import (
    ADA,
    BEN,
    CID,
    GRANTS,
    GROUPS_KEY,
    PLAIN,
    SEALED,
    SECRETS,
    SERVER_KEY,
    THEIRS,
    USERS_KEY,
    USERS_SLOT,
    Group,
    Post,
    Scene,
    User,
    set_scene,
)

NOT_COVERED = {
    "granted", "proof", "created_at", "retired_at", "changed_at", "label", "seal", "claimed_from", "used_at",
    "unacknowledged_since",
}  # fmt: skip
"""What may be altered unseen. `proof` is of use without server keys alone; a lowered `granted` hides a
removal."""


@pytest.fixture(scope="module")
def template() -> dict[str, bytes]:
    """The scene's database, made once."""
    return {}


@pytest.fixture
def scene(template: dict[str, bytes], sqlite_engine: Engine) -> Scene:
    """Two groups and four users, whose rows are sealed."""
    path = Path(str(sqlite_engine.url.database))
    if not template:
        set_scene(sqlite_engine, SEALED)
        sqlite_engine.dispose()
        template["scene"] = path.read_bytes()
    path.write_bytes(template["scene"])
    return Scene(sqlite_engine, SEALED, spec.Outsider(sqlite_engine))


def other(column: Any, value: Any) -> Any:
    """Another value that the column can hold."""
    name = column.name
    choices: dict[str, Any] = {"purpose": "index", "state": "retired", "kind": "provider", "kdf": "another"}
    if name == "state" and value == "adopted":
        return "sealed"
    if name in choices:
        return choices[name]
    if isinstance(value, uuid.UUID):
        return uuid.UUID(int=value.int ^ 1)
    if isinstance(value, bytes):
        return value[:-1] + bytes([value[-1] ^ 1])
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value + "x"
    python_type = column.type.python_type
    return (
        b"\1" * (column.type.length or 32)
        if python_type is bytes
        else uuid.UUID(int=1)
        if python_type is uuid.UUID
        else "x"
    )


def covered(table: Table) -> list[Any]:
    """Columns that say something of a key, a slot or a grant, but whose row it is: that is bound apart."""
    keys = {column.name for column in table.columns if column.name.startswith(("owner_id", "row_"))}
    return [column for column in table.columns if column.name not in NOT_COVERED | keys]


ROWS = [
    (table, column.name)
    for table in (USERS_KEY, USERS_SLOT, GROUPS_KEY, GRANTS)
    for column in covered(table)
    if (table, column.name) not in [(USERS_SLOT, "key_id"), (GRANTS, "recipient_key_id"), (GRANTS, "key_id")]
]
"""Of those three the row is found by; altered, it is not found at all, or as another's: see below."""


def row_of(scene: Scene, table: Table) -> Any:
    """A row on the way to Ben's own data, or to his group's."""
    out = scene.outsider
    if table is USERS_KEY:
        return out.key_row(USERS_KEY, BEN)
    if table is USERS_SLOT:
        return out.one(USERS_SLOT, key_id=out.key_row(USERS_KEY, BEN).key_id)
    return out.key_row(GROUPS_KEY, THEIRS) if table is GROUPS_KEY else out.one(GRANTS, row_id=2)


def read_as_ben(scene: Scene, envelope: Envelope | None = None) -> list[str | None]:
    with scene.session() as session:
        ben = session.get_one(User, BEN)
        with (envelope or scene.envelope).unlock(session, ben, secret=SECRETS[BEN]):
            assert ben.diary == "ben's diary"
            return [post.text for post in session.scalars(select(Post).filter_by(group_id=THEIRS))]


@pytest.mark.parametrize(("table", "column"), ROWS, ids=[f"{table.name}.{name}" for table, name in ROWS])
def test_every_column_that_counts_is_covered(scene: Scene, table: Table, column: str) -> None:
    """Alter one column of one row: it is not used, or not found any more."""
    out, row = scene.outsider, row_of(scene, table)
    (primary,) = table.primary_key.columns
    value = other(table.c[column], row._mapping[column])
    out.set(table, {primary.name: row._mapping[primary.name]}, **{column: value})
    is_name = column in ("key_id", "kind")  # by which rows are found

    with pytest.raises(EnvelopeError if is_name else RowSealError):
        read_as_ben(scene)


@pytest.mark.parametrize("table", [USERS_KEY, USERS_SLOT, GROUPS_KEY, GRANTS], ids=lambda table: table.name)
@pytest.mark.parametrize("seal", [None, b"", b"\0" * 48, b"short", "another row's", "another table's"])
def test_a_row_without_its_seal(scene: Scene, table: Table, seal: Any) -> None:
    """None, empty, short, made up, or another row's: refused."""
    out, row = scene.outsider, row_of(scene, table)
    (primary,) = table.primary_key.columns
    if seal == "another row's":
        seal = next(one.seal for one in out.rows(table) if one.seal != row.seal)
    elif seal == "another table's":
        seal = out.rows(GRANTS if table is not GRANTS else USERS_KEY)[0].seal
    out.set(table, {primary.name: row._mapping[primary.name]}, seal=seal)

    with pytest.raises(RowSealError):
        read_as_ben(scene)


def test_a_seal_that_somebody_without_the_server_key_made(scene: Scene) -> None:
    """With the id of the server key and a MAC under another: refused."""
    out, row = scene.outsider, row_of(scene, GRANTS)
    forged = spec.key_id(SERVER_KEY).bytes + os_mac(b"\x08" * 32, b"anything")
    out.set(GRANTS, {"grant_id": row.grant_id}, seal=forged)

    with pytest.raises(RowSealError):
        read_as_ben(scene)


def os_mac(key: bytes, data: bytes) -> bytes:
    return spec.hmac.digest(key, data, "sha256")


def test_a_seal_as_the_specification_says(scene: Scene) -> None:
    """Section 9, of a key row: computed by hand, it is the stored one."""
    row = row_of(scene, GROUPS_KEY)
    data = scene.outsider.key_row(GROUPS_KEY, THEIRS, "data")
    for one in (row, data):
        under = one.wrapping_key_id.bytes if one.wrapping_key_id else b""
        fields = spec.ctx(
            "row", b"key", one.key_id.bytes, one.owner_reference, one.purpose.encode(), one.scope.encode(),
            one.epoch.to_bytes(4, "big"), one.state.encode(), one.commitment, one.public_key, b"", under,
            one.wrapped or b"",
        )  # fmt: skip
        key = spec.expand(SERVER_KEY, spec.ctx("row-seal", b"groups", b""))

        assert one.seal == spec.key_id(SERVER_KEY).bytes + os_mac(key, fields)


def test_server_keys_are_rotated_by_prepending(scene: Scene) -> None:
    """Rows sealed under an older server key count as long as it is configured; new ones are under the new
    one."""
    new = b"\x17" * 32
    both = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([new, SERVER_KEY]))
    only = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([new]))
    scene.envelope = both
    assert read_as_ben(scene) == ["first"]
    scene.join(ADA, CID)
    assert scene.outsider.rows(GRANTS)[-1].seal[:16] == spec.key_id(new).bytes
    with pytest.raises(RowSealError, match="not configured"):
        read_as_ben(scene, only)
    with scene.session() as session:
        both.seal_rows(session, User, Group)
        session.commit()

    assert read_as_ben(scene, only) == ["first"]


def test_rows_from_before_server_keys(sqlite_engine: Engine) -> None:
    """Refused until they are sealed once; a row that does not parse is not sealed over."""
    scene = set_scene(sqlite_engine, PLAIN)
    scene.envelope = SEALED
    with pytest.raises(RowSealError, match="seal_rows"):
        read_as_ben(scene)
    root = scene.outsider.key_row(GROUPS_KEY, THEIRS)
    scene.outsider.set(GROUPS_KEY, {"key_id": root.key_id}, state="foo")
    with scene.session() as session, pytest.raises(TamperedKeyError):
        SEALED.seal_rows(session, User, Group)
    scene.outsider.set(GROUPS_KEY, {"key_id": root.key_id}, state="active")
    with scene.session() as session:
        SEALED.seal_rows(session, User, Group)
        session.commit()

    assert read_as_ben(scene) == ["first"]


def test_a_group_without_seals_does_not_keep_its_members_out(scene: Scene) -> None:
    """Ben reads his own data where every row of his group has lost its seal; and is told so of the
    group's."""
    scene.outsider.run(GROUPS_KEY.update().values(seal=None))
    with scene.session() as session:
        ben = session.get_one(User, BEN)
        with scene.envelope.unlock(session, ben, secret=SECRETS[BEN]):
            assert ben.diary == "ben's diary"
            with pytest.raises(RowSealError):
                _ = session.get_one(Group, THEIRS).name
