"""One table in several variants: `id`, `user_id` and 20-character columns, encrypted in different ways."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import ForeignKey, Integer, String, Table
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from sqlalchemy_envelope import EncryptedType, KeyOwner

OURS_BY_COLUMN = "ours, bound to the column"
OURS_BY_ROW = "ours, bound to the row"
PLAINTEXT = "plaintext"
PLAINTEXT_AGAIN = "plaintext again"
UTILS_GCM = "sqlalchemy-utils AesGcmEngine"

TypeFactory = Callable[[], TypeEngine[Any]]


class Base(DeclarativeBase):
    """The registry of all variants, whose tables point to one `users` table."""


class User(KeyOwner, Base):
    """The owner of every row of every variant."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


@dataclass(frozen=True)
class Variant:
    """One way to store the columns of a note."""

    name: str
    model: type[Any]
    column_count: int
    # Makes a `str` of an attribute's or a result row's value, where a library returns a wrapper.
    plain: Callable[[Any], str] | None = None

    @property
    def columns(self) -> list[str]:
        return column_names(self.column_count)

    @property
    def table(self) -> Table:
        table = self.model.__table__
        assert isinstance(table, Table)
        return table


def column_names(count: int) -> list[str]:
    return [f"c{number}" for number in range(1, count + 1)]


def note_model(name: str, column_count: int, make_type: TypeFactory) -> type[Any]:
    """Map one table. Primary keys come from the client, so that row-bound columns need nothing special."""
    body: dict[str, Any] = {
        "__tablename__": f"notes{column_count}_{name}",
        "id": mapped_column(Integer, primary_key=True, autoincrement=False),
        "user_id": mapped_column(ForeignKey("users.id", ondelete="CASCADE")),
    }
    body |= {column: mapped_column(make_type(), nullable=False) for column in column_names(column_count)}
    return type(f"Note{column_count}_{name}", (Base,), body)


def variants(peers: bool = True) -> list[Variant]:
    """All variants: the library's with one and with five columns, peers with five, each beside its plaintext
    table."""
    found = [variant for count in (1, 5) for variant in our_variants(count)]
    if peers:
        for family in (sqlalchemy_utils_variants, encrypted_field_variants, sealed_fields_variants):
            try:
                found += family(5)
            except ImportError as missing:
                print(f"left out: {missing.name} is not installed")
    return found


def our_variants(count: int) -> Iterator[Variant]:
    yield Variant(PLAINTEXT, note_model("plain", count, String), count)
    yield Variant(PLAINTEXT_AGAIN, note_model("again", count, String), count)
    by_column = partial(EncryptedType, String, owner="user_id")
    yield Variant(OURS_BY_COLUMN, note_model("column", count, by_column), count)
    by_row = partial(EncryptedType, String, owner="user_id", bind="row")
    yield Variant(OURS_BY_ROW, note_model("row", count, by_row), count)


def sqlalchemy_utils_variants(count: int) -> list[Variant]:
    from sqlalchemy_utils import StringEncryptedType
    from sqlalchemy_utils.types.encrypted.encrypted_type import AesEngine, AesGcmEngine, FernetEngine

    engines = {
        "AesEngine": (AesEngine, "pkcs5"),
        "AesGcmEngine": (AesGcmEngine, None),
        "FernetEngine": (FernetEngine, None),
    }
    return [
        Variant(
            f"sqlalchemy-utils {name}",
            note_model(
                name.lower(), count, partial(StringEncryptedType, String, "a secret", engine, padding)
            ),
            count,
        )
        for name, (engine, padding) in engines.items()
    ]


def encrypted_field_variants(count: int) -> list[Variant]:
    from sqlalchemy_encrypted_field import EncryptedText, configure

    configure(base64.b64encode(os.urandom(32)).decode())
    model = note_model("field", count, EncryptedText)
    return [Variant("sqlalchemy-encrypted-field", model, count, plain=lambda secret: secret.decrypt())]


def sealed_fields_variants(count: int) -> list[Variant]:
    from sealed_fields import create_sealed_fields, generate_key
    from sealed_fields.sqlalchemy import SealedText

    provider = create_sealed_fields(namespaces={"NOTES": {"key": generate_key()}})
    return [
        Variant("sealed-fields", note_model("sealed", count, partial(SealedText, provider, "NOTES")), count)
    ]
