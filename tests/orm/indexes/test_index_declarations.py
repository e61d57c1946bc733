"""What a blind index cannot do is told when it is declared, or when mappers are configured."""

from typing import Any

import pytest
from sqlalchemy import Date, Integer, LargeBinary, String, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, configure_mappers, mapped_column

from sqlalchemy_envelope import (
    BlindIndex,
    ConfigurationError,
    EncryptedType,
    KdfProfile,
    KeyOwner,
    register_normalizer,
)
from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn, indexes_of_table


def declare(index: BlindIndex, inner: Any = String) -> IndexedColumn:
    """An index of a class whose mappers are configured."""

    class Base(DeclarativeBase):
        pass

    class Owner(KeyOwner, Base):
        __tablename__ = "owners"
        id: Mapped[int] = mapped_column(primary_key=True)
        value: Mapped[Any] = mapped_column(EncryptedType(inner))
        other: Mapped[Any] = mapped_column(EncryptedType(inner))
        value_index: Mapped[bytes | None] = mapped_column(index)

    try:
        configure_mappers()
        return indexes_of_table(Owner.__table__)[0]  # type: ignore[arg-type]
    finally:
        Base.registry.dispose()


@pytest.mark.parametrize(
    "options",
    [
        {"normalize": 5},
        {"normalize": ("case-v1", None)},
        {"prefix": 0},
        {"prefix": 65},
        {"prefix": True},
        {"slow": 3},
    ],
)
def test_an_argument_out_of_range(options: dict[str, Any]) -> None:
    """It is refused where it stands."""
    with pytest.raises((ConfigurationError, TypeError)):
        BlindIndex("value", **options)


def test_an_index_over_several_attributes_takes_a_normaliser_for_each() -> None:
    """One name for all would be a guess, and a beginning belongs to a single attribute."""
    for options in ({"normalize": "case-v1"}, {"normalize": ("case-v1",)}, {"prefix": 3}):
        with pytest.raises(ConfigurationError):
            BlindIndex(("value", "other"), **options)  # type: ignore[arg-type]

    assert BlindIndex(("value", "other"), normalize=["case-v1", None]).normalize == ("case-v1", None)


@pytest.mark.parametrize(
    ("index", "inner", "message"),
    [
        (BlindIndex("value", normalize="email-v0"), String, "email-v0"),
        (BlindIndex("value", normalize="phone-v1:ZZ"), String, "two letters"),
        (BlindIndex("value", normalize="case-v1"), Date, "takes text"),
        (BlindIndex("value", prefix=3), Date, "no text"),
        (BlindIndex("value", normalize="email-v1", prefix=3), String, "beginning"),
        (BlindIndex(("value", "missing")), String, "missing"),
    ],
)
def test_an_index_that_cannot_work(index: BlindIndex, inner: Any, message: str) -> None:
    """It is refused when mappers are configured, with what to change."""
    with pytest.raises(ConfigurationError, match=message):
        declare(index, inner)


@pytest.mark.parametrize("unique", [{"unique": True}, {}])
def test_beginnings_are_not_unique(unique: dict[str, Any]) -> None:
    """The database would refuse the second value that begins as another does."""

    class Base(DeclarativeBase):
        pass

    class Owner(KeyOwner, Base):
        __tablename__ = "owners"
        __table_args__ = () if unique else (UniqueConstraint("id", "value_start"),)
        id: Mapped[int] = mapped_column(primary_key=True)
        value: Mapped[str] = mapped_column(EncryptedType(String))
        value_start: Mapped[bytes | None] = mapped_column(BlindIndex("value", prefix=3), **unique)

    try:
        with pytest.raises(ConfigurationError, match="of beginnings"):
            configure_mappers()
    finally:
        Base.registry.dispose()


def test_a_normaliser_of_the_application() -> None:
    """It may take another type than text, and is registered before the mappers are configured."""
    register_normalizer("decade-v1", lambda number: str(number // 10))
    index = declare(BlindIndex("value", normalize="decade-v1"), Integer)

    assert index.kind.data([1987]) == b"198"
    assert index.kind.form == "decade-v1 int"


def test_the_form_tells_indexes_apart() -> None:
    """Tags of two kinds, normalisers or lengths have nothing in common: the form is bound into each."""

    def form(**options: Any) -> str:
        return declare(BlindIndex(options.pop("of", "value"), **options)).kind.form

    forms = [
        form(),
        form(normalize="case-v1"),
        form(normalize="diacritics-v1"),
        form(prefix=3),
        form(prefix=4),
        form(prefix=3, normalize="case-v1"),
        form(of=("value", "other")),
        form(of=("value", "other"), normalize=("case-v1", None)),
        form(of=("value", "other"), normalize=(None, "case-v1")),
    ]

    assert len(forms) == len(set(forms))
    assert forms[0] == "exact str"
    assert forms[7] == "compound [case-v1 str, exact str]"


def test_the_type_is_rebuilt_from_its_text() -> None:
    """`repr` names every argument, and SQLAlchemy's cache key tells two declarations apart."""
    types = [
        BlindIndex("value"),
        BlindIndex("value", prefix=3, normalize="case-v1"),
        BlindIndex(("value", "other"), normalize=("case-v1", None)),
        BlindIndex("value", slow=True),
        BlindIndex("value", slow=KdfProfile.LIBSODIUM_MODERATE),
    ]

    for one in types:
        rebuilt = eval(repr(one), {"BlindIndex": BlindIndex, "KdfProfile": KdfProfile})  # noqa: S307 - its own
        assert repr(one) == repr(rebuilt)
    assert len(types) == len({one._static_cache_key for one in types})
    assert isinstance(types[0].impl_instance, LargeBinary)
