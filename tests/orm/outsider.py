"""What somebody with the database and the specification can do, in primitives alone:
docs/reference/wire-format.md written out a second time, with nothing of the library in it. And a scene to do
it in."""

import base64
import hmac
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from argon2.low_level import Type, hash_secret_raw
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from sqlalchemy import Engine, ForeignKey, LargeBinary, String, Table, Text, create_engine, event, select
from sqlalchemy import column as sql_column
from sqlalchemy import table as sql_table
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.pool import NullPool

from sqlalchemy_envelope import EncryptedType, Envelope, KdfProfile, KeyGrant, KeyOwner
from sqlalchemy_envelope.keys.providers import ServerKeyring
from tests.prepared import prepared

SERVER_KEY = b"\x07" * 32
PLAIN = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())
SEALED = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([SERVER_KEY]))
SECRETS = {1: "the secret of ada", 2: "the secret of ben", 3: "the secret of eve", 4: "the secret of cid"}
ADA, BEN, EVE, CID = 1, 2, 3, 4
THEIRS, HERS = 1, 2
"""Two groups: one of Ada and Ben, and one of Eve alone."""


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    display_name: Mapped[str | None] = mapped_column(EncryptedType(String, scope="profile"))
    diary: Mapped[str | None] = mapped_column(EncryptedType(String))


class Group(KeyOwner, Base):
    __tablename__ = "groups"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(EncryptedType(String))


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "memberships"

    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    group: Mapped[Group] = relationship()
    user: Mapped[User] = relationship()


class ProfileShare(KeyGrant, Base, of="user_id", to="group_id", scope="profile"):
    __tablename__ = "profile_shares"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)


class Nesting(KeyGrant, Base, of="inner_id", to="outer_id"):
    __tablename__ = "nestings"

    inner_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    outer_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)


class Post(Base):
    __tablename__ = "posts"

    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="group_id"))


class Event(Base):
    """What others write for a user who is away."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    text: Mapped[str | None] = mapped_column(EncryptedType(Text, owner="user_id"))


USERS_KEY, USERS_SLOT = Base.metadata.tables["users_key"], Base.metadata.tables["users_keyslot"]
GROUPS_KEY, GROUPS_SLOT = Base.metadata.tables["groups_key"], Base.metadata.tables["groups_keyslot"]
GRANTS = Base.metadata.tables["memberships_keygrant"]
SHARES = Base.metadata.tables["profile_shares_keygrant"]
NESTINGS = Base.metadata.tables["nestings_keygrant"]

# --- the specification ---


def ctx(label: str, *fields: bytes) -> bytes:
    """Section 1."""
    encoded = b"".join(len(field).to_bytes(4, "big") + field for field in fields)
    return b"sqlalchemy-envelope/v1/" + label.encode() + b"\0" + bytes([len(fields)]) + encoded


def reference(*parts: int) -> bytes:
    """Section 1, of integers."""
    return b"".join(b"i" + len(str(part)).to_bytes(4, "big") + str(part).encode() for part in parts)


def owner(label: str, key: int) -> bytes:
    """An owner reference."""
    return ctx("owner", label.encode(), reference(key))


def granting_row(label: str, *key: int) -> bytes:
    """Section 4."""
    return ctx("grant", label.encode(), reference(*key))


def expand(key: bytes, info: bytes, size: int = 32) -> bytes:
    """HKDF-Expand-SHA-512."""
    return HKDFExpand(algorithm=SHA512(), length=size, info=info).derive(key)


def commitment(key: bytes) -> bytes:
    """Section 2."""
    return expand(key, ctx("key-commitment"))


def key_id(key: bytes) -> uuid.UUID:
    """Section 2."""
    data = bytearray(commitment(key)[:16])
    data[6], data[8] = 0x80 | data[6] & 0x0F, 0x80 | data[8] & 0x3F
    return uuid.UUID(bytes=bytes(data))


def private(key: bytes) -> X25519PrivateKey:
    """Section 2."""
    return X25519PrivateKey.from_private_bytes(expand(key, ctx("x25519")))


def public(key: bytes) -> bytes:
    """Section 2."""
    return private(key).public_key().public_bytes_raw()


def wrap_context(kind: str, row: Any, kdf: str = "", recipient: bytes = b"", granter: bytes = b"") -> bytes:
    """Section 4, of a key row."""
    return ctx(
        "wrap", kind.encode(), row.key_id.bytes, row.owner_reference, row.purpose.encode(),
        row.scope.encode(), row.epoch.to_bytes(4, "big"), kdf.encode(), recipient, granter,
    )  # fmt: skip


def wrap(key: bytes, under: bytes, context: bytes) -> bytes:
    """Section 4: under a root key or a server key."""
    salt = os.urandom(24)
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + salt + context
    okm = expand(expand(under, ctx("wrap")), info, 76)
    return b"\x11" + salt + okm[44:] + AESGCM(okm[:32]).encrypt(okm[32:44], key, None)


def unwrap(blob: bytes, under: bytes, context: bytes, *, is_kek: bool = False) -> bytes:
    """Section 4; a KEK wraps as it is."""
    assert len(blob) == 105
    assert blob[0] == 0x11
    info = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0" + blob[1:25] + context
    okm = expand(under if is_kek else expand(under, ctx("wrap")), info, 76)
    assert hmac.compare_digest(okm[44:], blob[25:57])
    return AESGCM(okm[:32]).decrypt(okm[32:44], blob[57:], None)


_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


def seal(key: bytes, to: bytes, context: bytes) -> bytes:
    """Section 5."""
    return b"\x12" + _SUITE.encrypt(key, X25519PublicKey.from_public_bytes(to), info=context)


def unseal(blob: bytes, recipient: bytes, context: bytes) -> bytes:
    """Section 5."""
    assert len(blob) == 81
    assert blob[0] == 0x12
    return _SUITE.decrypt(blob[1:], private(recipient), info=context)


def decrypt(value: bytes, data_key: bytes, label: str, tag: str = "str") -> str:
    """Section 6, of a column-bound text."""
    assert value[0] == 0x01
    assert value[1:17] == key_id(data_key).bytes
    aad = value[:17] + ctx("value", label.encode(), tag.encode(), b"")
    return (
        AESGCM(expand(data_key, ctx("column", label.encode())))
        .decrypt(value[17:29], value[29:], aad)
        .decode()
    )


def encrypt(text: str, data_key: bytes, label: str) -> bytes:
    """Section 6."""
    head, nonce = b"\x01" + key_id(data_key).bytes, os.urandom(12)
    aad = head + ctx("value", label.encode(), b"str", b"")
    sealed = AESGCM(expand(data_key, ctx("column", label.encode()))).encrypt(nonce, text.encode(), aad)
    return head + nonce + sealed


def kek_of(secret: str, phc: str) -> bytes:
    """Section 3, of an ASCII secret."""
    _, _, _, costs, salt = phc.split("$")
    m, t, p = (int(cost.partition("=")[2]) for cost in costs.split(","))
    raw = base64.b64decode(salt + "=" * (-len(salt) % 4))
    stretched = hash_secret_raw(secret.encode(), raw, t, m, p, 32, Type.ID)
    return HKDF(algorithm=SHA512(), length=32, salt=None, info=ctx("kek")).derive(stretched)


def proof(previous: bytes, new: bytes) -> bytes:
    """Section 7."""
    return expand(previous, ctx("epoch-proof", key_id(new).bytes))


def provider_kek(server_key: bytes, blob: bytes, kek_public: bytes) -> bytes:
    """Section 8, of a server keyring."""
    assert blob[0] == 0x14
    assert blob[1:17] == key_id(server_key).bytes
    pairs = (b"kek", kek_public.hex().encode(), b"library", b"sqlalchemy-envelope/v1")
    return unwrap(blob[17:], server_key, ctx("server", *pairs))


# --- the scene ---


class Outsider:
    """Reads and writes the whole database, past the library and past foreign keys."""

    def __init__(self, engine: Engine) -> None:
        self.engine = create_engine(engine.url, poolclass=NullPool)
        event.listen(self.engine, "connect", lambda raw, _: raw.execute("PRAGMA synchronous = OFF"))

    def run(self, statement: Any, *rows: Any) -> Any:
        with self.engine.begin() as connection:
            result = connection.execute(statement, *rows)
            return result.all() if result.returns_rows else None

    def rows(self, table: Table, **where: Any) -> list[Any]:
        return self.run(select(table).filter_by(**where))

    def one(self, table: Table, **where: Any) -> Any:
        (row,) = self.rows(table, **where)
        return row

    def set(self, table: Table, where: dict[str, Any], **values: Any) -> None:
        self.run(table.update().filter_by(**where).values(**values))

    def insert(self, table: Table, **values: Any) -> None:
        self.run(table.insert().values(**values))

    def delete(self, table: Table, **where: Any) -> None:
        self.run(table.delete().filter_by(**where))

    def copy(self, table: Table, row: Any, **changes: Any) -> None:
        """Insert a row like another one."""
        self.insert(table, **{**row._mapping, **changes})

    def snapshot(self, *tables: Table) -> dict[Table, list[Any]]:
        return {table: [dict(row._mapping) for row in self.rows(table)] for table in tables}

    def restore(self, snapshot: dict[Table, list[Any]]) -> None:
        for table in reversed(snapshot):
            self.run(table.delete())
        for table, rows in snapshot.items():
            if rows:
                self.run(table.insert(), rows)

    def values(self, table: str, column: str) -> list[bytes]:
        """The stored bytes of an encrypted column, oldest row first."""
        raw = sql_table(table, sql_column("id"), sql_column(column, LargeBinary))
        return [
            bytes(row[0]) for row in self.run(select(raw.c[column]).order_by(raw.c.id)) if row[0] is not None
        ]

    def key_row(self, table: Table, owner_id: int, purpose: str = "root", scope: str = "") -> Any:
        """The active key of an owner."""
        return self.one(table, owner_id=owner_id, purpose=purpose, scope=scope, state="active")

    def plant_key(self, table: Table, like: Any, key: bytes, **changes: Any) -> Any:
        """A key of the outsider's own choice, in a row like another one."""
        new = {"key_id": key_id(key), "commitment": commitment(key), "public_key": public(key), "proof": None}
        self.copy(table, like, **{**new, "mlkem_public_key": None, **changes})
        return self.one(table, key_id=key_id(key))

    def seal_grant(self, key: bytes, row: Any, recipient: Any, granter: bytes) -> bytes:
        """A key sealed to the root key of a recipient, for a grant."""
        context = wrap_context("grant", row, recipient=recipient.key_id.bytes, granter=granter)
        return seal(key, recipient.public_key, context)

    def plant_epoch(self, old: Any, key: bytes, data_key: bytes, **changes: Any) -> Any:
        """A new epoch of the first group, of the outsider's own keys, sealed to all its members."""
        self.set(GROUPS_KEY, {"owner_id": old.owner_id, "state": "active"}, state="retired")
        data = self.one(GROUPS_KEY, owner_id=old.owner_id, purpose="data", epoch=old.epoch)
        grants = self.rows(GRANTS, key_id=old.key_id)
        new = {"epoch": old.epoch + 1, "state": "active", "wrapped": None, "wrapping_key_id": None}
        root = self.plant_key(GROUPS_KEY, old, key, **{**new, "granted": len(grants), **changes})
        child = self.plant_key(GROUPS_KEY, data, data_key, epoch=data.epoch + 1, state="active")
        under = wrap(data_key, key, wrap_context("root", child))
        self.set(GROUPS_KEY, {"key_id": child.key_id}, wrapped=under, wrapping_key_id=root.key_id)
        for grant in grants:
            recipient = self.one(USERS_KEY, key_id=grant.recipient_key_id)
            blob = self.seal_grant(key, root, recipient, granting_row("memberships", grant.row_id))
            self.copy(GRANTS, grant, grant_id=uuid.uuid4(), key_id=root.key_id, state="sealed", wrapped=blob)
        return root

    def root_of_user(self, user: int, secret: str | None = None) -> bytes:
        """The root key of a user whose secret is known: an outsider's own account."""
        row = self.key_row(USERS_KEY, user)
        slot = self.one(USERS_SLOT, key_id=row.key_id, kind="secret")
        kek = kek_of(secret or SECRETS[user], slot.kdf)
        if slot.wrapped[0] == 0x12:
            return unseal(slot.wrapped, kek, wrap_context("secret", row, slot.kdf, slot.recipient_public_key))
        return unwrap(slot.wrapped, kek, wrap_context("secret", row, slot.kdf), is_kek=True)

    def open_grants(self, user: int, root: bytes) -> dict[uuid.UUID, bytes]:
        """Every group's key that a user's root key opens through grants as they are stored."""
        mine, found = key_id(root), {}
        for grant in self.rows(GRANTS, recipient_key_id=mine):
            if grant.wrapped is None:
                continue
            row = self.one(GROUPS_KEY, key_id=grant.key_id)
            granter = granting_row("memberships", grant.row_id)
            context = wrap_context("grant", row, recipient=mine.bytes, granter=granter)
            opens = unseal if grant.wrapped[0] == 0x12 else unwrap
            with suppress(AssertionError, InvalidTag):  # it was made for somebody else
                found[row.key_id] = opens(grant.wrapped, root, context)
        return found

    def read_posts(self, roots: dict[uuid.UUID, bytes], group: int = THEIRS) -> list[str | None]:
        """The posts of a group with these root keys of it and what hangs on them; None for what stays
        closed."""
        known = dict(roots)
        keys = sorted(
            self.rows(GROUPS_KEY, owner_id=group), key=lambda row: (row.purpose != "root", -row.epoch)
        )
        for row in keys:
            if row.key_id in known or row.wrapping_key_id not in known:
                continue
            parent = known[row.wrapping_key_id]
            if row.purpose == "root":
                context = wrap_context("previous", row, recipient=row.wrapping_key_id.bytes)
                known[row.key_id] = unwrap(row.wrapped, parent, context)
            elif row.wrapped[0] == 0x12:
                context = wrap_context("sealed", row, recipient=row.wrapping_key_id.bytes)
                known[row.key_id] = unseal(row.wrapped, parent, context)
            else:
                known[row.key_id] = unwrap(row.wrapped, parent, wrap_context("root", row))
        texts: list[str | None] = []
        for value in self.values("posts", "text"):
            data = known.get(uuid.UUID(bytes=value[1:17]))
            texts.append(None if data is None else decrypt(value, data, "posts.text"))
        return texts


@dataclass
class Scene:
    """Ada and Ben share a group, Eve has one of her own; somebody else has the database."""

    engine: Engine
    envelope: Envelope
    outsider: Outsider

    @property
    def has_seals(self) -> bool:
        return self.envelope is SEALED

    def session(self) -> Session:
        session = Session(self.engine, expire_on_commit=False)
        self.envelope.attach(session)
        return session

    @contextmanager
    def unlocked(self, user: int) -> Iterator[Session]:
        """As the application does: unlock, settle what waits, and commit that."""
        with self.session() as session:
            unlocked = self.envelope.unlock(session, session.get_one(User, user), secret=SECRETS[user])
            unlocked.settle()
            session.commit()
            with unlocked:
                yield session

    def visit(self, *users: int) -> None:
        """Unlock and settle once: what was sealed is adopted."""
        for user in users:
            with self.unlocked(user):
                pass

    def post(self, user: int, text: str, group: int = THEIRS) -> None:
        with self.unlocked(user) as session:
            session.add(Post(group_id=group, text=text))
            session.commit()

    def posts(self, user: int, group: int = THEIRS) -> list[str | None]:
        with self.unlocked(user) as session:
            return [
                post.text
                for post in session.scalars(select(Post).filter_by(group_id=group).order_by(Post.id))
            ]

    def diary(self, user: int) -> str | None:
        with self.unlocked(user) as session:
            return session.get_one(User, user).diary

    def join(self, by: int | None, user: int, group: int = THEIRS) -> None:
        with self.session() as session:
            if by is None:
                session.add(Membership(group_id=group, user_id=user))
                session.commit()
                return
            with self.envelope.unlock(session, session.get_one(User, by), secret=SECRETS[by]):
                session.add(Membership(group_id=group, user_id=user))
                session.commit()

    def leave(self, by: int | None, user: int, group: int = THEIRS) -> None:
        with self.session() as session:
            member = session.scalars(select(Membership).filter_by(group_id=group, user_id=user)).one()
            if by is None:
                session.delete(member)
                session.commit()
                return
            with self.envelope.unlock(session, session.get_one(User, by), secret=SECRETS[by]):
                session.delete(member)
                session.commit()


def set_scene(engine: Engine, envelope: Envelope) -> Scene:
    """Four users, two groups, and everything adopted that was sealed."""
    scene = Scene(engine, envelope, Outsider(engine))

    def make() -> None:
        Base.metadata.create_all(engine)
        with scene.session() as session:
            for user, name in ((ADA, "ada"), (BEN, "ben"), (EVE, "eve"), (CID, "cid")):
                one = User(id=user, name=name, display_name=f"{name}'s name", diary=f"{name}'s diary")
                envelope.enroll(session, one, secret=SECRETS[user])
                session.commit()
            for founder, group, members in ((ADA, THEIRS, (ADA, BEN)), (EVE, HERS, (EVE,))):
                with envelope.unlock(session, session.get_one(User, founder), secret=SECRETS[founder]):
                    one = Group(id=group, name=f"group {group}")
                    envelope.enroll(session, one)
                    session.add_all([Membership(group_id=group, user_id=user) for user in members])
                    if founder == ADA:
                        session.add(ProfileShare(user_id=ADA, group_id=group))
                    session.commit()
                    session.add(Post(group_id=group, text="first"))
                    session.commit()
        scene.visit(ADA, BEN, EVE)

    prepared(engine, ("scene", envelope), make)
    return scene
