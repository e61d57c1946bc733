"""Owners of every shape, and classes mapped in every way, have their values under their own keys."""

import uuid
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    String,
    Table,
    Text,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    registry,
    relationship,
)

from sqlalchemy_envelope import (
    EncryptedType,
    EnvelopeError,
    KeyOwner,
    LockedError,
    NotEnrolledError,
    StatementRefusedError,
)
from tests.orm.conftest import Started
from tests.orm.models import SECRET, User, envelope, unlock
from tests.orm.writing.reading_back import opens_for

pytestmark = pytest.mark.both_lines
PLAIN = "p1aintext"


def test_an_owner_that_nobody_enrolled_cannot_have_values(lite: Started) -> None:
    """Adding an owner with encrypted values without `enroll` says to enroll it."""
    lite.session.add(User(email="eve@example.org", phone=PLAIN))
    with pytest.raises(NotEnrolledError) as caught:
        lite.session.flush()
    lite.session.rollback()

    assert PLAIN not in str(caught.value)


@pytest.mark.any_database
def test_an_owners_own_column_is_changed(started: Started) -> None:
    """An owner's own value is updated under its key, and while locked it is refused."""
    session = started.session
    with unlock(session, started.ada):
        started.ada.phone = PLAIN
        session.commit()
        assert opens_for(started, started.ada, 1, User, "phone") == PLAIN
    started.ada.phone = "other"
    with pytest.raises(LockedError):
        session.flush()
    session.rollback()

    assert opens_for(started, started.ada, 1, User, "phone") == PLAIN


class Shapes(DeclarativeBase):
    pass


class UuidOwner(KeyOwner, Shapes):
    __tablename__ = "uuid_owners"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    own: Mapped[str | None] = mapped_column(EncryptedType(String))
    bound: Mapped[str | None] = mapped_column(EncryptedType(String, bind="row"))


class StringOwner(KeyOwner, Shapes):
    __tablename__ = "string_owners"
    name: Mapped[str] = mapped_column(primary_key=True)
    own: Mapped[str | None] = mapped_column(EncryptedType(String))


class PairOwner(KeyOwner, Shapes):
    __tablename__ = "pair_owners"
    realm: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    own: Mapped[str | None] = mapped_column(EncryptedType(String))


class PairItem(Shapes):
    __tablename__ = "pair_items"
    id: Mapped[int] = mapped_column(primary_key=True)
    # The other way round than in the owner's key, on purpose.
    owner_number: Mapped[int]
    owner_realm: Mapped[str]
    owner: Mapped[PairOwner] = relationship()
    text: Mapped[str] = mapped_column(EncryptedType(String))
    more: Mapped[str | None] = mapped_column(EncryptedType(String, owner=("owner_number", "owner_realm")))
    through: Mapped[str | None] = mapped_column(EncryptedType(String, owner="owner"))
    __table_args__ = (
        ForeignKeyConstraint(["owner_number", "owner_realm"], ["pair_owners.number", "pair_owners.realm"]),
    )


class Company(KeyOwner, Shapes):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    own: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "company"}  # noqa: RUF012


class Bank(Company):
    __tablename__ = "banks"
    id: Mapped[int] = mapped_column(ForeignKey("companies.id"), primary_key=True)
    vault: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "bank"}  # noqa: RUF012


class Shop(Company):
    shelf: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "shop"}  # noqa: RUF012


class Document(Shapes):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    subject: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "document"}  # noqa: RUF012


class Letter(Document):
    """Joined: its owner column is in the base table."""

    __tablename__ = "letters"
    id: Mapped[int] = mapped_column(ForeignKey("documents.id"), primary_key=True)
    text: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "letter"}  # noqa: RUF012


class Memo(Document):
    """Single table."""

    remark: Mapped[str | None] = mapped_column(EncryptedType(String))
    __mapper_args__ = {"polymorphic_identity": "memo"}  # noqa: RUF012


class Renamed(Shapes):
    __tablename__ = "renamed"
    id: Mapped[int] = mapped_column(primary_key=True)
    whose: Mapped[int] = mapped_column("company", ForeignKey("companies.id"))
    said: Mapped[str | None] = mapped_column("text", EncryptedType(String, owner="whose"))


class Defaulted(Shapes):
    __tablename__ = "defaulted"
    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    fixed: Mapped[str] = mapped_column(EncryptedType(String), default="fixed")
    made: Mapped[str] = mapped_column(EncryptedType(String), default=lambda: "made")


class Data(MappedAsDataclass, DeclarativeBase):
    metadata = Shapes.metadata


class Record(Data):
    __tablename__ = "records"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    text: Mapped[str] = mapped_column(EncryptedType(String), default="default")
    many: Mapped[list[int]] = mapped_column(EncryptedType(sa.JSON), default_factory=list)


class Keeper(KeyOwner, Data):
    """A key owner that is a dataclass: its key tables are none."""

    __tablename__ = "keepers"
    id: Mapped[int] = mapped_column(primary_key=True, init=False)
    own: Mapped[str | None] = mapped_column(EncryptedType(String), default=None)


imperative = registry(metadata=Shapes.metadata)
plain_table = Table(
    "plain",
    Shapes.metadata,
    Column("id", Integer, primary_key=True),
    Column("company_id", ForeignKey("companies.id")),
    Column("text", EncryptedType(Text)),
)


class Plain:
    id: int
    company_id: int
    words: str


imperative.map_imperatively(Plain, plain_table, properties={"words": plain_table.c.text})


@pytest.fixture
def shapes(engine: Engine) -> Session:
    """A session on the tables of this file."""
    Shapes.metadata.create_all(engine)
    with Session(engine) as session:
        yield session


@pytest.fixture
def company(shapes: Session) -> Company:
    """An enrolled owner of the other shapes."""
    company = Company()
    envelope.enroll(shapes, company, secret=SECRET)
    shapes.commit()
    return company


@pytest.mark.parametrize(
    "make",
    [
        lambda: UuidOwner(own=PLAIN),
        lambda: StringOwner(name="ä", own=PLAIN),
        lambda: PairOwner(realm="r", number=2, own=PLAIN),
        lambda: Company(own=PLAIN),
        lambda: Bank(own=PLAIN, vault="v"),
        lambda: Shop(own=PLAIN, shelf="s"),
        lambda: Keeper(own=PLAIN),
    ],
    ids=["uuid", "string", "pair", "integer", "joined subclass", "single-table subclass", "dataclass"],
)
def test_owners_of_every_shape(shapes: Session, make: Any) -> None:
    """An owner's own values are written by the flush that makes its key, and open and change after that."""
    owner = make()
    with envelope.enroll(shapes, owner, secret=SECRET):
        shapes.commit()
        identity = inspect(owner).identity
    shapes.expunge_all()
    again = shapes.get_one(type(owner), identity)
    with unlock(shapes, again):
        assert again.own == PLAIN
        again.own = "changed"
        shapes.commit()
        assert again.own == "changed"
    with pytest.raises(LockedError):
        _ = again.own


@pytest.mark.any_database
def test_a_subclass_owner_has_its_own_values(shapes: Session) -> None:
    """Columns of a joined or single-table subclass of an owner are under the same owner's key."""
    bank, shop = Bank(vault="gold"), Shop(shelf="tea")
    with envelope.enroll(shapes, bank, secret=SECRET), envelope.enroll(shapes, shop, secret=SECRET):
        shapes.commit()
        assert (bank.vault, shop.shelf) == ("gold", "tea")
        bank.vault = "silver"
        shapes.commit()
    shapes.expunge_all()
    loaded = {type(one): one for one in shapes.scalars(select(Company))}
    with unlock(shapes, loaded[Bank]):
        assert loaded[Bank].vault == "silver"  # type: ignore[attr-defined]
        with pytest.raises(LockedError):
            _ = loaded[Shop].shelf  # type: ignore[attr-defined]


@pytest.mark.any_database
def test_row_bound_own_column(shapes: Session) -> None:
    """An owner's own row-bound value is bound to the key made by the client in the same flush."""
    owner = UuidOwner(bound=PLAIN)
    with envelope.enroll(shapes, owner, secret=SECRET):
        shapes.commit()
        shapes.expire_all()

        assert owner.bound == PLAIN


def test_composite_owners(shapes: Session) -> None:
    """A composite key is read in the owner's order, however the row names it; two halves swapped are
    another owner."""
    one, two = PairOwner(realm="1", number=2), PairOwner(realm="2", number=1)
    with envelope.enroll(shapes, one, secret=SECRET) as unlocked:
        envelope.enroll(shapes, two, secret=SECRET)
        item = PairItem(owner=one, text="a", more="b", through="c")
        shapes.add(item)
        shapes.commit()
        assert (item.text, item.more, item.through) == ("a", "b", "c")
        item.text = "d"
        shapes.commit()
        shapes.execute(insert(PairItem), [{"owner_realm": "1", "owner_number": 2, "text": "core"}])
        with unlocked.using(one):
            shapes.execute(update(PairItem), [{"id": item.id, "more": "e"}])
        with pytest.raises(LockedError):
            shapes.execute(insert(PairItem), [{"owner_realm": "2", "owner_number": 1, "text": "core"}])
        shapes.rollback()
        assert item.text == "d"


@pytest.mark.any_database
def test_inheritance(shapes: Session, company: Company) -> None:
    """Joined and single-table subclasses find the owner in the base table, on insert and on update."""
    with unlock(shapes, company):
        letter = Letter(company_id=company.id, subject="s", text=PLAIN)
        memo = Memo(company_id=company.id, subject="m", remark=PLAIN)
        shapes.add_all([letter, memo, Letter(company_id=company.id, text="second")])
        shapes.commit()
        assert (letter.subject, letter.text, memo.remark) == ("s", PLAIN, PLAIN)
        letter.text = memo.remark = "changed"
        shapes.commit()
        shapes.expunge_all()
        texts = {
            getattr(one, "text", None) or getattr(one, "remark", None)
            for one in shapes.scalars(select(Document))
        }

        assert texts == {"changed", "second"}


@pytest.mark.any_database
def test_inheritance_moves(shapes: Session, company: Company) -> None:
    """A moved row of a joined subclass is encrypted anew in both tables."""
    other = Company()
    with unlock(shapes, company), envelope.enroll(shapes, other, secret=SECRET):
        letter = Letter(company_id=company.id, subject="s", text=PLAIN)
        shapes.add(letter)
        shapes.commit()
        letter.company_id = other.id
        shapes.commit()
    with unlock(shapes, other):
        assert (letter.subject, letter.text) == ("s", PLAIN)


@pytest.mark.any_database
def test_inheritance_bulk(shapes: Session, company: Company) -> None:
    """A bulk insert into a joined subclass either finds the owner, or is refused with nothing in the
    clear."""
    with unlock(shapes, company) as unlocked, unlocked.using(company):
        shapes.execute(insert(Letter), [{"company_id": company.id, "subject": "s", "text": PLAIN}])
        shapes.commit()
        letter = shapes.scalars(select(Letter)).one()

        assert (letter.subject, letter.text) == ("s", PLAIN)


@pytest.mark.any_database
def test_renamed_attributes(shapes: Session, company: Company) -> None:
    """Attribute names that differ from their columns work in every form."""
    with unlock(shapes, company) as unlocked:
        one = Renamed(whose=company.id, said=PLAIN)
        shapes.add(one)
        shapes.commit()
        one.said = "changed"
        shapes.commit()
        shapes.execute(insert(Renamed), [{"whose": company.id, "said": "rows"}])
        shapes.execute(insert(Renamed).values(whose=company.id, said="values"))
        shapes.execute(insert(Renamed).values([{"whose": company.id, "said": "multiple"}]))
        shapes.bulk_insert_mappings(inspect(Renamed), [{"whose": company.id, "said": "mappings"}])
        shapes.execute(Renamed.__table__.insert(), [{"company": company.id, "text": "core"}])  # type: ignore[attr-defined]
        with unlocked.using(company):
            shapes.execute(update(Renamed).where(Renamed.said.is_(None)).values(said="x"))
            shapes.execute(update(Renamed), [{"id": one.id, "said": "bulk"}])
        shapes.commit()

        assert {each.said for each in shapes.scalars(select(Renamed))} == {
            "rows", "values", "multiple", "mappings", "core", "bulk",
        }  # fmt: skip


@pytest.mark.any_database
def test_dataclasses(shapes: Session, company: Company) -> None:
    """Dataclass defaults are encrypted, whether or not they are in the object before the flush."""
    with unlock(shapes, company):
        record = Record(company_id=company.id)
        shapes.add_all([record, Record(company_id=company.id, text=PLAIN, many=[1])])
        shapes.commit()
        assert (record.text, record.many) == ("default", [])
        record.text = "changed"
        shapes.commit()

        assert {one.text for one in shapes.scalars(select(Record))} == {"changed", PLAIN}


@pytest.mark.any_database
def test_imperative_mapping(shapes: Session, company: Company) -> None:
    """A table mapped by hand, with a renamed attribute."""
    with unlock(shapes, company):
        plain = Plain()
        plain.company_id, plain.words = company.id, PLAIN
        shapes.add(plain)
        shapes.commit()
        shapes.execute(insert(Plain), [{"company_id": company.id, "words": "rows"}])

        assert {one.words for one in shapes.scalars(select(Plain))} == {PLAIN, "rows"}


@pytest.mark.any_database
def test_defaults(shapes: Session, company: Company) -> None:
    """Python-side defaults of encrypted columns are evaluated before the value is encrypted."""
    with unlock(shapes, company):
        shapes.add(Defaulted(company_id=company.id))
        shapes.execute(insert(Defaulted), [{"company_id": company.id}])
        shapes.execute(insert(Defaulted).values(company_id=company.id))
        shapes.execute(insert(Defaulted).values([{"company_id": company.id}, {"company_id": company.id}]))
        shapes.bulk_save_objects([Defaulted(company_id=company.id)])
        shapes.execute(Defaulted.__table__.insert(), {"company_id": company.id, "fixed": "given"})  # type: ignore[attr-defined]
        shapes.commit()
        found = [(one.fixed, one.made) for one in shapes.scalars(select(Defaulted))]

    assert len(found) == 7
    assert set(found) == {("fixed", "made"), ("given", "made")}


class Versioned(Shapes):
    __tablename__ = "versioned"
    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    text: Mapped[str | None] = mapped_column(EncryptedType(String))
    version: Mapped[int] = mapped_column()
    stamp: Mapped[str] = mapped_column(server_default="s")
    __mapper_args__ = {"version_id_col": version, "eager_defaults": True}  # noqa: RUF012


@pytest.mark.any_database
def test_versioned_rows(shapes: Session, company: Company) -> None:
    """Version counters and eagerly fetched defaults stand beside encrypted values, through a move as well."""
    other = Company()
    with unlock(shapes, company), envelope.enroll(shapes, other, secret=SECRET):
        row = Versioned(company_id=company.id, text=PLAIN)
        shapes.add(row)
        shapes.commit()
        row.text = "changed"
        shapes.commit()
        row.company_id = other.id
        shapes.commit()

        assert (row.text, row.version, row.stamp) == ("changed", 3, "s")
        row.company_id = None  # type: ignore[assignment]
        with pytest.raises(EnvelopeError):
            shapes.commit()
        shapes.rollback()
        assert row.text == "changed"


@pytest.mark.any_database
def test_a_copy_inside_the_database(shapes: Session, company: Company) -> None:
    """INSERT .. FROM SELECT between columns of one label, a row's owner beside it, is the one copy that SQL
    may make."""
    table: Any = Renamed.__table__
    with unlock(shapes, company):
        shapes.add(Renamed(whose=company.id, said=PLAIN))
        shapes.commit()
        shapes.execute(insert(table).from_select(["company", "text"], select(table.c.company, table.c.text)))
        shapes.commit()

        assert [one.said for one in shapes.scalars(select(Renamed))] == [PLAIN, PLAIN]


@pytest.mark.any_database
def test_a_copy_that_changes_the_owner(shapes: Session, company: Company) -> None:
    """The same copy under another owner would leave a value under a key that goes with the first: refused."""
    table: Any = Renamed.__table__
    other = Company()
    with unlock(shapes, company), envelope.enroll(shapes, other, secret=SECRET):
        shapes.add(Renamed(whose=company.id, said=PLAIN))
        shapes.commit()
        copies = select(sa.literal(other.id), table.c.text)
        with pytest.raises(StatementRefusedError):
            shapes.execute(insert(table).from_select(["company", "text"], copies))


@pytest.mark.any_database
def test_a_default_that_reads_the_statement(shapes: Session, company: Company) -> None:
    """A context-sensitive default cannot be evaluated before the statement: an error of ours, and nothing
    stored."""
    with unlock(shapes, company):
        shapes.add(Contextual(company_id=company.id))
        with pytest.raises(EnvelopeError, match="default"):
            shapes.flush()
        shapes.rollback()
        with pytest.raises(EnvelopeError, match="default"):
            shapes.execute(insert(Contextual), [{"company_id": company.id}])


class Contextual(Shapes):
    __tablename__ = "contextual"
    id: Mapped[int] = mapped_column(primary_key=True)
    company_id: Mapped[int] = mapped_column(ForeignKey("companies.id"))
    text: Mapped[str | None] = mapped_column(
        EncryptedType(String), default=lambda context: f"{context.get_current_parameters()}"
    )
