"""Members come by objects of a grant's class: what would write its rows past them is refused, with the
line to write instead."""

from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, String, Table, insert, select
from sqlalchemy.ext.associationproxy import AssociationProxy, association_proxy
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    backref,
    mapped_column,
    relationship,
)

from sqlalchemy_envelope import (
    AuditEvent,
    ConfigurationError,
    EncryptedType,
    Envelope,
    GrantError,
    KdfProfile,
    KeyGrant,
    KeyOwner,
)

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests())


class Models:
    """Users, groups and memberships on a base of their own, with something more in `Group`."""

    def __init__(self, **more: Any) -> None:
        class Base(DeclarativeBase):
            pass

        class User(KeyOwner, Base):
            __tablename__ = "users"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str | None] = mapped_column(EncryptedType(String))

        group = {
            "__tablename__": "groups",
            "__annotations__": {"id": Mapped[int], "name": Mapped[str | None]},
            "id": mapped_column(primary_key=True),
            "name": mapped_column(EncryptedType(String)),
            **more,
        }

        class Member(KeyGrant, Base, of="group_id", to="user_id"):
            __tablename__ = "members"
            group_id: Mapped[int] = mapped_column(
                ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True
            )
            user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
            user: Mapped[User] = relationship(User)

        self.base, self.user, self.member = Base, User, Member
        self.group: Any = type("Group", (KeyOwner, Base), group)


REFUSED = r"Group\.users writes rows of members.*viewonly=True.*association_proxy\('users_rows', 'user'"


@pytest.mark.parametrize(
    "options",
    [{}, {"backref": backref("groups", overlaps="user")}, {"lazy": "dynamic"}, {"lazy": "write_only"}],
    ids=["plain", "backref", "dynamic", "write_only"],
)
def test_a_secondary_that_grants_is_refused(sqlite_engine: Engine, options: dict[str, Any]) -> None:
    """A relationship that would write granting rows is refused where mappers are configured, and where it
    would be written, with the lines to write."""
    models = Models(users=relationship("User", secondary="members", overlaps="user", **options))

    with pytest.raises(ConfigurationError, match=REFUSED):
        models.base.registry.configure()
    models.base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session, session.no_autoflush:
        session.add(models.group())
        with pytest.raises(ConfigurationError, match=REFUSED):
            session.flush()
    models.base.registry.dispose()


@pytest.mark.parametrize("given", ["table", "function"])
def test_a_secondary_given_otherwise(given: str) -> None:
    """A `secondary` given as a Table, before or with its class, is known for the grant's."""
    models = Models()
    table = models.base.metadata.tables["members"]
    secondary: Any = table if given == "table" else (lambda: table)

    class Reader(models.base):  # type: ignore[misc, name-defined]
        __tablename__ = "readers"
        id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
        groups: Mapped[list[Any]] = relationship(
            models.group,
            secondary=secondary,
            primaryjoin=lambda: Reader.id == table.c.user_id,
            foreign_keys=[table.c.user_id, table.c.group_id],
            overlaps="user",
        )

    with pytest.raises(ConfigurationError, match=r"Reader\.groups writes rows of members"):
        models.base.registry.configure()
    models.base.registry.dispose()


def test_a_group_in_groups() -> None:
    """A self-referential one is refused too."""

    class Base(DeclarativeBase):
        pass

    class Group(KeyOwner, Base):
        __tablename__ = "groups"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str | None] = mapped_column(EncryptedType(String))
        inner: Mapped[list["Group"]] = relationship(
            secondary="nestings",
            primaryjoin="Group.id == Nesting.outer_id",
            secondaryjoin="Group.id == Nesting.inner_id",
        )

    class Nesting(KeyGrant, Base, of="outer_id", to="inner_id"):
        __tablename__ = "nestings"
        outer_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
        inner_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)

    with pytest.raises(ConfigurationError, match=r"Group\.inner writes rows of nestings"):
        Base.registry.configure()
    Base.registry.dispose()


def test_what_the_refusal_says(sqlite_engine: Engine) -> None:
    """What the message says to write grants and reads; a relationship for reading stays beside it."""
    proxy: AssociationProxy[Any] = association_proxy(
        "users_rows", "user", creator=lambda one: models.member(user=one)
    )
    models = Models(
        users_rows=relationship("Member", cascade="all, delete-orphan", passive_deletes=True),
        users=proxy,
        readers=relationship("User", secondary="members", viewonly=True),
    )
    models.base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        ada, bob = models.user(id=1), models.user(id=2)
        envelope.enroll(session, ada, secret="ada's secret")
        envelope.enroll(session, bob, secret="bob's secret")
        with envelope.unlock(session, ada, secret="ada's secret"):
            group = models.group(name="expedition")
            envelope.enroll(session, group)
            group.users.append(ada)
            session.commit()
            group.users.append(bob)
            session.commit()

            assert sorted(one.id for one in group.readers) == [1, 2]
    with (
        Session(sqlite_engine) as session,
        envelope.unlock(session, session.get(models.user, 2), secret="bob's secret"),
    ):
        assert session.scalars(select(models.group)).one().name == "expedition"


def test_a_plain_secondary_is_left_alone() -> None:
    """Relationships through tables that grant nothing are nobody's business."""
    models = Models()
    table = Table(
        "tags",
        models.base.metadata,
        *(mapped_column(f"{one}_id", ForeignKey(f"{one}s.id")).column for one in ("user", "group")),
    )
    models.group.tagged = relationship(models.user, secondary=table)
    models.base.registry.configure()

    assert models.group.tagged.property.secondary is table


def test_another_class_of_the_same_table(sqlite_engine: Engine) -> None:
    """A plain class that is mapped to a grant's table reads its rows and adds none."""
    models = Models()

    class Row(models.base):  # type: ignore[misc, name-defined]
        __table__ = models.base.metadata.tables["members"]

    models.base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        assert session.scalars(select(Row)).all() == []

        session.add(Row(group_id=1, user_id=1))
        with pytest.raises(GrantError, match=r"Row writes rows of members.*add a Member"):
            session.flush()


def test_an_insert_of_granting_rows_is_told(sqlite_engine: Engine) -> None:
    """A bulk insert grants nothing, as documented, and is told; objects grant, and are not."""
    events: list[AuditEvent] = []
    told = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), audit=events.append)
    models = Models()
    models.base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        for number in (1, 2):
            told.enroll(session, models.user(id=number), secret="a secret")
        with told.unlock(session, session.get(models.user, 1), secret="a secret"):
            group = models.group(id=1)
            told.enroll(session, group)
            session.add(models.member(group_id=1, user_id=1))
            session.commit()
            before = [event.name for event in events]
            session.execute(insert(models.member), [{"group_id": 1, "user_id": 2}])
            session.commit()

    assert "grant_bypassed" not in before
    assert [one.owner_class for one in events if one.name == "grant_bypassed"] == ["Group"]
