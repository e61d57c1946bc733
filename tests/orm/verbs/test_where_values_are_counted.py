"""Values under a key are counted in the schema and in the columns where the application has them."""

import datetime as dt
from typing import Any

import pytest
from sqlalchemy import (
    Column,
    Engine,
    Integer,
    MetaData,
    Table,
    Text,
    create_engine,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.orm import Session
from sqlalchemy.pool import StaticPool

from sqlalchemy_envelope import (
    EncryptedType,
    ErasureError,
    KeyInUseError,
    OwnerColumn,
    check_receipt,
    enforce_foreign_keys,
)
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from sqlalchemy_envelope.orm.verbs.erasure.returned_keys import returned_keys
from sqlalchemy_envelope.orm.verbs.rotation.key_references import tables_with_values
from tests.orm.verbs.shredding.erasable_models import (
    Base,
    Letter,
    Person,
    eraser,
    found_group,
    person,
    receipt_key,
    start,
    unlock,
)

KEYS = Person.__key_class__.__table__


@pytest.fixture(params=[True, False], ids=["with a template", "without a template"])
def tenant(request: pytest.FixtureRequest) -> Engine:
    """A tenant's schema with Ada and Ben; the default schema has the same tables, empty, or none."""
    engine = create_engine("sqlite://", poolclass=StaticPool)
    enforce_foreign_keys(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("ATTACH ':memory:' AS acme")
    if request.param:
        Base.metadata.create_all(engine)
    mapped = engine.execution_options(schema_translate_map={None: "acme"})
    start(mapped)
    return mapped


def _rotated(engine: Engine) -> Any:
    """Rotate Ada's keys, long ago; return the id of the retired key of her values."""
    with Session(engine) as session, unlock(session, "ada") as unlocked:
        retired = unlocked.rotate(person(session, "ada")).retired
        session.commit()
        long_ago = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        session.execute(update(KEYS).where(KEYS.c.key_id.in_(retired)).values(retired_at=long_ago))
        session.commit()
    return retired[0]


def test_a_key_in_use_in_a_tenants_schema(tenant: Engine) -> None:
    """A key with values in the tenant's schema is not destroyed, and the report tells their number."""
    retired = _rotated(tenant)
    with Session(tenant) as session:
        report = eraser.erasure_report(session, person(session, "ada"))
        with pytest.raises(KeyInUseError, match=r"letters\.note has 1 value under it"):
            eraser.destroy_key(session, Base, retired, horizon=dt.timedelta(0))
    with Session(tenant) as session, unlock(session, "ada"):
        assert session.scalars(select(Letter.text).where(Letter.author_id == 1)).one() == "dear"

    assert report.value_count == 4


def test_the_last_holder_in_a_tenants_schema(tenant: Engine) -> None:
    """The last holder of a group with values in the tenant's schema is not shredded without a word."""
    with Session(tenant) as session:
        found_group(session, "choir", "ada")
    with (
        Session(tenant) as session,
        pytest.raises(ErasureError, match="last holder of 1 Group with 1 value"),
    ):
        eraser.shred(session, person(session, "ada"), reason="asked")


def test_a_receipt_from_a_tenants_schema(tenant: Engine) -> None:
    """The receipt names the tenant's schema, where keys that are back are found without a map."""
    with Session(tenant) as session:
        rows = [dict(row) for row in session.execute(select(KEYS).where(KEYS.c.owner_id == 1)).mappings()]
        receipt = eraser.shred(session, person(session, "ada"), reason="asked")
        session.commit()
        checked = check_receipt(receipt.to_json(), receipt_key.public_text)
        before = returned_keys(session.connection(), checked)
        session.execute(delete(KEYS).where(KEYS.c.owner_id == 1))
        session.execute(insert(KEYS), rows)
        session.commit()
    with tenant.execution_options(schema_translate_map=None).connect() as connection:
        after = returned_keys(connection, checked)

    assert before == []
    assert {"acme.persons_key"} == {one.table for one in after}
    assert set(receipt.key_ids) == {one.key_id for one in after}


def test_a_table_object_with_fewer_columns_hides_none() -> None:
    """A job's own `Table` of the same name, with fewer columns, leaves all the model's columns counted."""
    author = OwnerColumn("author_id", of=Person)
    jobs = [
        Table(
            "letters",
            MetaData(),
            Column("id", Integer, primary_key=True),
            Column("author_id", Integer),
            Column("text", EncryptedType(Text, owner=author)),
        )
        for _ in range(5)  # the order is that of a set
    ]
    owner_class = owner_class_of(Person.__table__)
    assert owner_class is not None
    (columns,) = [found for table, found in tables_with_values(Base, owner_class) if table.name == "letters"]

    assert {"text", "note", "tags"} == {column.name for column in columns}
    assert len(columns) == 3
    assert len(jobs) == 5
