"""Shredding where rows were altered, restored, or changed at the same moment; and owners of all kinds."""

import threading
import uuid
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    Integer,
    String,
    Table,
    create_engine,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    ErasureError,
    KdfProfile,
    KeyOwner,
    KeyShreddedError,
    LockedError,
    LockReason,
    NotEnrolledError,
    ReceiptKey,
    ServerKeyring,
    check_receipt,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.migration import Migrator
from sqlalchemy_envelope.orm.verbs.erasure.returned_keys import returned_keys
from tests.orm.models import Base as PlainBase
from tests.orm.models import User
from tests.orm.sharing_models import KeysBase, Team, TeamNote, TeamPlace, Tenant
from tests.orm.verbs.shredding.erasable_models import Base as ErasableBase
from tests.orm.verbs.shredding.erasable_models import (
    Letter,
    Person,
    eraser,
    opened,
    person,
    receipt_key,
    secret_of,
    shred,
    start,
    told,
    unlock,
)
from tests.prepared import prepared, tables_of


@pytest.fixture
def begun(engine: Engine) -> Engine:
    prepared(engine, "erasable", lambda: start(engine))
    told.clear()
    return engine


def test_an_altered_row_stops_no_shredding(begun: Engine) -> None:
    """A key row that does not parse is deleted, and all else is destroyed."""
    keys = Person.__key_class__.__table__
    with begun.begin() as connection:
        connection.execute(
            update(keys).where(keys.c.owner_id == 1, keys.c.purpose == "data").values(state="odd")
        )
    receipt = shred(begun, "ada")
    with Session(begun) as session:
        left = session.execute(select(keys.c.purpose, keys.c.state).where(keys.c.owner_id == 1)).all()

    assert [tuple(row) for row in left] == [("root", "destroyed")]
    assert len(check_receipt(receipt.to_json(), receipt_key.public_text).keys) == 1


def test_broken_seals_stop_no_shredding(sqlite_engine: Engine) -> None:
    """Rows without their row seals are destroyed as any others, and what is left has seals that fit."""
    sealing = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes([3]) * 32]), realm="app"
    )
    tables_of(PlainBase.metadata, sqlite_engine)
    with Session(sqlite_engine) as session:
        sealing.enroll(session, user := User(email="ada@example.org", phone="1"), secret="a secret")
        session.commit()
        for table in (User.__key_class__.__table__, User.__slot_class__.__table__):
            session.execute(update(table).values(seal=bytes(48)))
        session.commit()
        receipt = sealing.shred(session, user, reason="asked")
        session.commit()
        with pytest.raises(NotEnrolledError, match="destroyed"):
            sealing.unlock(session, user, secret="a secret")
    checked = check_receipt(receipt.to_json(), sealing.receipt_public_key)

    assert (checked.body["realm"], checked.body["counts"]["slots"]) == ("app", 1)


def test_a_restored_backup_is_shredded_again(sqlite_engine: Engine, tmp_path: Path) -> None:
    """A backup from before opens again. The receipt finds it, and a second shredding ends it."""
    start(sqlite_engine)
    file = tmp_path / "restored.db"
    file.write_bytes(Path(str(sqlite_engine.url.database)).read_bytes())
    receipt = shred(sqlite_engine, "ada")
    checked = check_receipt(receipt.to_json(), receipt_key.public_text)
    restored = create_engine(f"sqlite:///{file}")
    enforce_foreign_keys(restored)
    with restored.connect() as connection, sqlite_engine.connect() as today:
        back, gone = returned_keys(connection, checked), returned_keys(today, checked)
    with opened(restored, "ada") as session:
        assert session.scalars(select(Letter.text).where(Letter.author_id == 1)).one() == "dear"
    again = shred(restored, "ada")
    with restored.connect() as connection:
        left = returned_keys(connection, checked)
    restored.dispose()

    assert (gone, left) == ([], [])
    assert {one.key_id for one in back} == set(again.key_ids) == set(receipt.key_ids)
    assert [one.owner for one in back] == [{"owner_id": 1}] * 2


@pytest.mark.backend
def test_two_at_once(postgres_engine: Engine) -> None:
    """Of two shreddings at the same moment one destroys the keys, and the other says so."""
    prepared(postgres_engine, "erasable", lambda: start(postgres_engine))
    outcomes: list[Any] = []

    def second() -> None:
        try:
            outcomes.append(shred(postgres_engine, "ada"))
        except ErasureError as error:
            outcomes.append(error)

    with Session(postgres_engine) as session:
        eraser.shred(session, person(session, "ada"), reason="asked")
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(timeout=0.3)
        waited = thread.is_alive()
        session.commit()
        thread.join()

    assert waited
    assert "destroyed already" in str(outcomes)


def test_nobody_writes_for_a_shredded_owner(begun: Engine) -> None:
    """A write epoch that this process kept for the owner is forgotten, and there is no new one."""
    with Session(begun) as session, eraser.write_only(session):
        session.add(Letter(author_id=1, subject="before", text="sealed"))
        session.commit()
        kept = len(eraser.policy.write_epochs)
    receipt = shred(begun, "ada")
    with Session(begun) as session, eraser.write_only(session):
        session.add(Letter(author_id=1, subject="after", text="sealed"))
        with pytest.raises((NotEnrolledError, LockedError)):
            session.flush()

    assert (kept, len(eraser.policy.write_epochs)) == (1, 0)
    assert len(receipt.key_ids) == 3


def test_a_write_for_a_shredded_owner_says_why(begun: Engine) -> None:
    """Whoever writes for an owner whose keys were destroyed is told so, and not to add a slot."""
    shred(begun, "ada")
    with Session(begun) as session, unlock(session, "ben"):
        session.add(Letter(author_id=1, subject="after", text="sealed"))
        with pytest.raises(LockedError, match="the keys of its Person were destroyed") as told_why:
            session.flush()

    assert LockReason.SHREDDED is told_why.value.reason


def test_a_first_savepoint_on_sqlite_is_refused(sqlite_engine: Engine) -> None:
    """Its release would commit, so that no rollback brings the keys back; after a write a rollback does."""
    start(sqlite_engine)
    with Session(sqlite_engine) as session:
        with session.begin_nested(), pytest.raises(ConfigurationError, match="first of its transaction"):
            eraser.shred(session, person(session, "ada"), reason="asked")
        session.rollback()
        session.execute(update(Letter.__table__).values(subject="a write"))
        with session.begin_nested():
            eraser.shred(session, person(session, "ada"), reason="asked")
        session.rollback()
    with opened(sqlite_engine, "ada") as session:
        assert person(session, "ada").diary == "the diary of ada"


def test_within_an_unlocked_session(begun: Engine) -> None:
    """Who erases itself does so in the unlocked session, which ends as any other."""
    with Session(begun, expire_on_commit=False) as session, unlock(session, "ada") as unlocked:
        letter = session.scalars(select(Letter).where(Letter.author_id == 1)).one()
        before = letter.text
        receipt = unlocked.shred(person(session, "ada"), reason="asked")
        session.commit()
        session.add(Letter(author_id=2, subject="by nobody", text=None))
        session.commit()
    assert before == "dear"
    assert len(receipt.key_ids) == 2
    with Session(begun) as session, pytest.raises(LockedError):
        _ = session.scalars(select(Letter).where(Letter.author_id == 1)).one().text


def test_owners_with_other_primary_keys(engine: Engine) -> None:
    """A key of two columns, a UUID, and a grant between them: counted, left and shredded as any others."""
    tables_of(KeysBase.metadata, engine)
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), receipt_key=ReceiptKey(bytes(32)))
    with Session(engine) as session:
        tenants = [Tenant(region="eu", number=number, note="a note") for number in (1, 2)]
        for one in tenants:
            envelope.enroll(session, one, secret="a secret")
        session.commit()
        with envelope.unlock(session, tenants[0], secret="a secret"):
            team = Team(id=uuid.uuid4(), name="team")
            envelope.enroll(session, team)
            for one in tenants:
                session.add(TeamPlace(team_id=team.id, tenant_region="eu", tenant_number=one.number))
            session.add(TeamNote(team_id=team.id, text="ours"))
            session.commit()
        report = envelope.erasure_report(session, tenants[0])
        of_team = envelope.erasure_report(session, team)
        receipt = envelope.shred(session, tenants[0], reason="asked")
        session.commit()
        with envelope.unlock(session, tenants[1], secret="a secret"):
            texts = [one.text for one in session.scalars(select(TeamNote))]
            count = session.scalar(
                select(func.count()).select_from(Tenant.__key_class__).filter_by(state="destroyed")
            )

    assert (dict(report.values), report.lost_groups) == ({"Tenant.note": 1}, ())
    assert dict(of_team.values) == {"Team.name": 1, "TeamNote.text": 1}
    assert [str(one) for one in of_team.readers] == ["Tenant eu, 1", "Tenant eu, 2"]
    assert (texts, count) == (["ours"], 2)
    assert len(receipt.key_ids) == 2
    assert secret_of("ada") not in report.to_json()


class KindBase(DeclarativeBase):
    pass


class Customer(KeyOwner, KindBase):
    __tablename__ = "kind_customers"
    __mapper_args__: ClassVar[Any] = {"polymorphic_on": "kind", "polymorphic_identity": "customer"}

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Patron(Customer):
    __tablename__ = "kind_patrons"
    __mapper_args__: ClassVar[Any] = {"polymorphic_identity": "patron"}

    id: Mapped[int] = mapped_column(ForeignKey("kind_customers.id"), primary_key=True)
    gift: Mapped[str | None] = mapped_column(EncryptedType(String, shredded="gone"))
    since: Mapped[int | None]


class Order(KindBase):
    __tablename__ = "kind_orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("kind_customers.id"))
    customer: Mapped[Customer] = relationship()


class Line(KindBase):
    __tablename__ = "kind_lines"

    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("kind_orders.id"))
    order: Mapped[Order] = relationship()
    text: Mapped[str | None] = mapped_column(EncryptedType(String, owner="order.customer", shredded=None))


class Bound(KindBase):
    __tablename__ = "kind_bound"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    customer_id: Mapped[int] = mapped_column(ForeignKey("kind_customers.id"))
    text: Mapped[str | None] = mapped_column(EncryptedType(String, bind="row", shredded="row gone"))


core = Table(
    "kind_core",
    KindBase.metadata,
    Column("id", Integer, primary_key=True),
    Column("customer_id", ForeignKey("kind_customers.id")),
    Column("text", EncryptedType(String, owner="customer_id")),
)


def test_values_that_are_owned_in_other_ways(engine: Engine) -> None:
    """Joined subclasses, linked owners, row-bound values and unmapped tables count, and read as shredded."""
    envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), receipt_key=ReceiptKey(bytes(32)))
    tables_of(KindBase.metadata, engine)
    with Session(engine) as session:
        patron, other = Patron(phone="1", gift="a gift"), Customer(phone="2")
        envelope.enroll(session, other, secret="another secret")
        with envelope.enroll(session, patron, secret="a secret"):
            order = Order(customer=patron)
            session.add_all(
                [order, Line(order=order, text="line"), Bound(id=1, customer_id=patron.id, text="row")]
            )
            session.flush()
            session.execute(insert(core).values(id=1, customer_id=patron.id, text="core"))
            session.commit()
        report = envelope.erasure_report(session, patron)
        envelope.shred(session, patron, reason="asked")
        session.commit()
        with envelope.unlock(session, other, secret="another secret"):
            read = [
                session.scalars(select(Line)).one().text,
                session.scalars(select(Line.text)).one(),
                session.get_one(Bound, 1).text,
                session.execute(select(Bound.text, Bound.id, Bound.customer_id)).one().text,
                session.get_one(Patron, patron.id).gift,
            ]
            sealed = session.execute(select(core.c.text, core.c.customer_id)).one().text
            with pytest.raises(KeyShreddedError):
                _ = session.get_one(Patron, patron.id).phone

    names = ["Bound.text", "Customer.phone", "Line.text", "Patron.gift", "kind_core.text"]
    assert dict.fromkeys(names, 1) == dict(report.values)
    assert dict(report.plaintext) == {"Customer": ("kind",), "Patron": ("since",)}
    assert read == [None, None, "row gone", "row gone", "gone"]
    assert isinstance(sealed.why, KeyShreddedError)


def test_re_encryption_counts_erased_values_apart(sqlite_engine: Engine) -> None:
    """A value under a destroyed key is shredded, and not locked: nobody can ever open it."""
    start(sqlite_engine)
    shred(sqlite_engine, "ada")
    report = Migrator(sqlite_engine, eraser, ErasableBase, provider=None).reencrypt("letters.text")

    assert (report.shredded, report.locked, report.bad) == (1, 1, 0)
