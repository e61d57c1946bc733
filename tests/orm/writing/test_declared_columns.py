"""Properties over encrypted columns work, and declarations that cannot work are refused."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    Computed,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    func,
    select,
    text,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    aliased,
    column_property,
    configure_mappers,
    mapped_column,
    selectin_polymorphic,
    with_polymorphic,
)

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    EnvelopeError,
    KeyOwner,
    StatementRefusedError,
)
from tests.orm.conftest import Started
from tests.orm.models import SECRET, Note, envelope

pytestmark = [pytest.mark.both_lines, pytest.mark.any_database]
Other = aliased(Note)


# Properties over encrypted columns


class Local(DeclarativeBase):
    pass


class Person(KeyOwner, Local):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    first: Mapped[str | None] = mapped_column(EncryptedType(String))
    last: Mapped[str | None] = mapped_column(EncryptedType(String))
    is_named = column_property(first.is_not(None))

    @hybrid_property
    def full(self) -> str:
        return f"{self.first} {self.last}"

    @hybrid_property
    def nameless(self) -> bool:
        return self.first is None

    @nameless.inplace.expression
    @classmethod
    def _nameless(cls) -> sa.ColumnElement[bool]:
        return cls.first.is_(None)


class Entry(Local):
    __tablename__ = "entries"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    person_id: Mapped[int] = mapped_column(ForeignKey("people.id"))
    subject: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "entry"}  # noqa: RUF012


class Joined(Entry):
    __tablename__ = "joined_entries"
    id: Mapped[int] = mapped_column(ForeignKey("entries.id"), primary_key=True)
    detail: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "joined"}  # noqa: RUF012


class Single(Entry):
    remark: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "single"}  # noqa: RUF012


Person.latest = column_property(  # type: ignore[attr-defined]
    select(Entry.subject)
    .where(Entry.person_id == Person.id)
    .order_by(Entry.id.desc())
    .limit(1)
    .scalar_subquery(),
    deferred=True,
)


@pytest.fixture
def person(sqlite_engine: sa.Engine) -> Any:
    """An unlocked person with two entries, in a session of their own."""
    Local.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session:
        person = Person(first="Ada", last="L.")
        with envelope.enroll(session, person, secret=SECRET):
            session.add_all(
                [
                    Joined(person_id=person.id, subject="s1", detail="d"),
                    Single(person_id=person.id, subject="s2", remark="r"),
                ]
            )
            session.commit()
            yield person


def test_hybrids_and_column_properties(person: Any) -> None:
    """Hybrids over plaintext work on instances; in SQL they are held to the same rules; column_property
    reads."""
    session = Session.object_session(person)
    assert session is not None
    assert (person.full, person.nameless, person.is_named) == ("Ada L.", False, True)
    assert session.scalars(select(Person.id).where(Person.nameless)).all() == []
    assert session.scalars(select(Person.id).where(Person.is_named)).all() == [person.id]
    assert person.latest == "s2"
    with pytest.raises(EnvelopeError):
        session.execute(select(Person).where(Person.latest == "s2"))


@pytest.mark.parametrize(
    "query",
    [
        lambda: select(Entry),
        lambda: select(with_polymorphic(Entry, "*")),
        lambda: select(with_polymorphic(Entry, "*", aliased=True)),
        lambda: select(with_polymorphic(Entry, [Joined, Single], flat=True)),
        lambda: select(Entry).options(selectin_polymorphic(Entry, [Joined, Single])),
        lambda: select(Entry).order_by(Entry.id).limit(2),
    ],
)
def test_polymorphic_loads(person: Any, query: Any) -> None:
    """Every polymorphic load opens the columns of the base and of the subclasses."""
    session = Session.object_session(person)
    assert session is not None
    session.expire_all()
    found = {
        (one.subject, getattr(one, "detail", None), getattr(one, "remark", None))
        for one in session.scalars(query())
    }

    assert found == {("s1", "d", None), ("s2", None, "r")}
    with pytest.raises(StatementRefusedError):
        session.execute(select(Joined).order_by(Joined.detail))


# Declarations


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"server_default": "x"}, "default"),
        ({"server_default": text("'x'")}, "default"),
        ({"onupdate": "x"}, "onupdate"),
        ({"onupdate": lambda: "x"}, "onupdate"),
        ({"server_onupdate": sa.FetchedValue()}, "default"),
        ({"unique": True}, "unique"),
        ({"index": True}, "index"),
        ({"primary_key": True}, "primary"),
        ({"default": func.now()}, "default"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_declarations_that_cannot_work(options: dict[str, Any], word: str) -> None:
    """An encrypted column the database would have to compute, compare or index is refused where it is
    declared."""
    with pytest.raises(ConfigurationError, match=word):
        Table(
            "t",
            MetaData(),
            sa.Column("id", Integer, primary_key=True),
            sa.Column("c", EncryptedType(Text), **options),
        )


def test_computed_and_foreign_key() -> None:
    """Neither a computed column nor a foreign key can be encrypted."""
    for argument in (Computed("id"), ForeignKey("u.id"), sa.Identity()):
        with pytest.raises((ConfigurationError, sa.exc.ArgumentError)):
            Table(
                "t",
                MetaData(),
                sa.Column("id", Integer, primary_key=True),
                sa.Column("c", EncryptedType(Text), argument),
            )


@pytest.mark.parametrize(
    "extra",
    [
        lambda: Index("i", "secret"),
        lambda: UniqueConstraint("secret"),
        lambda: UniqueConstraint("person_id", "secret"),
        lambda: Index("i", "person_id", "secret", unique=True),
    ],
)
def test_indexes_over_ciphertext(extra: Any) -> None:
    """An index or unique constraint in the table's arguments is found when mappers are configured."""

    class Other(DeclarativeBase):
        pass

    class Owner(KeyOwner, Other):
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Thing(Other):
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        person_id: Mapped[int] = mapped_column(ForeignKey("owners.id"))
        secret: Mapped[str] = mapped_column(EncryptedType(String))
        __table_args__ = (extra(),)

    try:
        with pytest.raises(ConfigurationError, match=r"things\.secret"):
            configure_mappers()
    finally:
        Other.registry.dispose()


def test_a_functional_index(lite: Started) -> None:
    """An index over an expression of an encrypted column is found as well."""

    class Other(DeclarativeBase):
        pass

    class Owner(KeyOwner, Other):
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str | None] = mapped_column(EncryptedType(String))

    Index("lowered", func.lower(Owner.secret))
    try:
        with pytest.raises(ConfigurationError):
            configure_mappers()
    finally:
        Other.registry.dispose()
