"""Declarations that cannot work are errors with a code and a sentence that says what to do."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column, relationship

from sqlalchemy_envelope import ConfigurationError, EncryptedType, KeyOwner
from tests.orm.conftest import Started
from tests.orm.helpful import assert_helpful
from tests.orm.models import SECRET, envelope

pytestmark = pytest.mark.any_database


@pytest.fixture
def fresh_base() -> Any:
    """A declarative base that is forgotten after the test, broken mappings and all."""

    class Fresh(DeclarativeBase):
        pass

    yield Fresh
    Fresh.registry.dispose()


def _owners(base: Any) -> None:
    class Owner(KeyOwner, base):  # type: ignore[misc]
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(primary_key=True)


def test_no_owner(fresh_base: Any) -> None:
    """An encrypted column that nothing ties to an owner is refused when mappers are configured, with the
    line to write."""

    class Thing(fresh_base):  # type: ignore[misc]
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str] = mapped_column(EncryptedType(String))

    with pytest.raises(ConfigurationError) as caught:
        configure_mappers()
    assert_helpful(caught.value, says="user_id = mapped_column(ForeignKey('users.id', ondelete='CASCADE'))")


def test_several_owners(fresh_base: Any) -> None:
    """With two foreign keys to owners, the message shows the line for each."""
    _owners(fresh_base)

    class Thing(fresh_base):  # type: ignore[misc]
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        sender_id: Mapped[int] = mapped_column(ForeignKey("owners.id"))
        reader_id: Mapped[int] = mapped_column(ForeignKey("owners.id"))
        secret: Mapped[str] = mapped_column(EncryptedType(String))

    with pytest.raises(ConfigurationError) as caught:
        configure_mappers()
    assert_helpful(caught.value, says="owner='sender_id'")
    assert_helpful(caught.value, says="owner='reader_id'")


@pytest.mark.parametrize("named", ["nothing", "title", "plain_id", ("owner_id", "title"), "plain"])
def test_an_owner_that_is_none(fresh_base: Any, named: Any) -> None:
    """`owner=` must name a foreign key, or relationship, to a key owner; the message offers the one there
    is."""
    _owners(fresh_base)

    class Plain(fresh_base):  # type: ignore[misc]
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Thing(fresh_base):  # type: ignore[misc]
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        title: Mapped[str]
        plain_id: Mapped[int] = mapped_column(ForeignKey("plain.id"))
        plain: Mapped[Plain] = relationship()
        owner_id: Mapped[int] = mapped_column(ForeignKey("owners.id"))
        secret: Mapped[str] = mapped_column(EncryptedType(String, owner=named))

    with pytest.raises(ConfigurationError) as caught:
        configure_mappers()
    assert_helpful(caught.value, says="owner=")


def test_a_row_bound_column_under_an_autoincrement_key(fresh_base: Any) -> None:
    """The value would have to be encrypted before its row is known: refused, with both cures."""
    _owners(fresh_base)

    class Thing(fresh_base):  # type: ignore[misc]
        __tablename__ = "things"
        id: Mapped[int] = mapped_column(primary_key=True)
        owner_id: Mapped[int] = mapped_column(ForeignKey("owners.id"))
        secret: Mapped[str] = mapped_column(EncryptedType(String, bind="row"))

    with pytest.raises(ConfigurationError) as caught:
        configure_mappers()
    assert_helpful(caught.value, says="uuid")
    assert_helpful(caught.value, says="bind='column'")


@pytest.mark.parametrize("kind", [sa.Float, sa.Boolean, sa.JSON, sa.Numeric])
def test_owner_keys_that_cannot_be_bound_to(fresh_base: Any, kind: Any) -> None:
    """An owner's primary key has a type with one encoding."""
    with pytest.raises(ConfigurationError) as caught:

        class Owner(KeyOwner, fresh_base):  # type: ignore[misc]
            __tablename__ = "owners"
            id: Mapped[Any] = mapped_column(kind, primary_key=True)

    assert_helpful(caught.value, says="primary key")


def test_an_owner_without_key_tables(fresh_base: Any, lite: Started) -> None:
    """`key_tables=False` without the tables of one's own says which two classes to write."""

    class Owner(KeyOwner, fresh_base, key_tables=False):  # type: ignore[misc]
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(ConfigurationError) as caught:
        envelope.enroll(lite.session, Owner(), secret=SECRET)
    assert_helpful(caught.value, says="KeyTable[Owner]")
    assert_helpful(caught.value, says="KeySlotTable[Owner]")
