"""`BlindIndex`: describes a column with the tags of an encrypted column's values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from sqlalchemy import LargeBinary
from sqlalchemy.dialects.mysql import VARBINARY
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from sqlalchemy_envelope.crypto.argon2id import KdfProfile
from sqlalchemy_envelope.crypto.blind_index import FULL_BITS
from sqlalchemy_envelope.exceptions import ConfigurationError, StatementRefusedError
from sqlalchemy_envelope.orm.indexes.buckets import Buckets, buckets_of
from sqlalchemy_envelope.orm.indexes.tag import TAG, StoredTag

Scope = Literal["owner", "group", "server"]
_SCOPES = ("owner", "group", "server")
_LONGEST_PREFIX = 64


class BlindIndex(TypeDecorator[bytes]):
    """A column of tags, by which equal values of an encrypted column are found::

        email: Mapped[str] = mapped_column(EncryptedType(String))
        email_index: Mapped[bytes | None] = mapped_column(
            BlindIndex("email", scope="server"), index=True, unique=True
        )

    The library writes it with the value. `User.email == "ada@example.org"` then works, in a WHERE or a join.

    What it tells somebody who has the database: which rows have equal values, and how many there are of each
    value. With the index key, that person can test guesses. Of a truncated index (`bits`), rows share tags by
    chance, too. By scope and kind: docs/explanation/what-an-index-leaks.md.

    Args:
        of: the attribute that it indexes, or a tuple of attributes that are looked for together.
        scope: whose key makes the tags. "owner": the key of the row's owner; only whoever has the owner open
            finds its rows. "group": the same, where the owner is a group. "server": a key that the server
            holds; rows are found while everybody is locked, as a log-in needs it.
        normalize: the name of a normaliser, with its version: values are equal if they are equal after it.
            "case-v1", "diacritics-v1" (and case), "digits-v1", "email-v1", "phone-v1" for numbers with their
            country, "phone-v1:CH" for those of one country too, or one of `register_normalizer`. Of several
            attributes, a tuple with a name or None for each.
        bits: the bits of a tag, 128 if left out. `plan_bits` proposes a number.
        label: the name that tags are bound to. Left out: `table.column`; pin the old name before a rename.
        bucket: makes it an index of ranges, of numbers or dates: the width of a bucket, or `Buckets`. Values
            of one bucket share a tag, and `<`, `<=`, `>`, `>=` and `between()` work.
        allow_low_entropy: why a column of few values is indexed: a bool, an Enum, a year. Without a reason
            that is refused, since its tags tell the values to whoever counts them.
        prefix: the number of first characters that are indexed, for `startswith()` and `like('abc%')`. A
            longer beginning gives candidates.
        slow: stretch each value by Argon2id, so that a guess costs as much even with the index key. A value
            that is written or looked for takes some 30 ms of a processor and 19 MiB, twice that while the
            index key is rotated, and a bulk write takes it for each row. A `KdfProfile` for another cost.

    Of an index with fewer bits, and of ranges, the tags give candidates. Each row is compared again after its
    value is decrypted, and so the value has to be selected, and its owner be unlocked.

    Stored: 16 bytes, or as many as hold the bits. NULL has no tag.
    Format: docs/reference/wire-format.md, section 13.

    Raises:
        ConfigurationError: an argument is out of range.
    """

    impl = LargeBinary
    cache_ok = True

    # Not keyword-only: SQLAlchemy builds its cache key from positional arguments alone.
    def __init__(
        self,
        of: str | Sequence[str],
        scope: Scope = "owner",
        normalize: str | Sequence[str | None] | None = None,
        bits: int = FULL_BITS,
        label: str | None = None,
        bucket: Any = None,
        allow_low_entropy: str | None = None,
        prefix: int | None = None,
        slow: bool | KdfProfile | None = None,
    ) -> None:
        names = (of,) if isinstance(of, str) else tuple(of)
        if not names or len(set(names)) < len(names) or not all(isinstance(one, str) for one in names):
            raise ConfigurationError("BlindIndex(of): the name of an attribute, or a tuple of names.")
        if scope not in _SCOPES:
            raise ConfigurationError(f"BlindIndex(scope={scope!r}): use 'owner', 'group' or 'server'.")
        if not isinstance(bits, int) or not 1 <= bits <= FULL_BITS:
            raise ConfigurationError(f"BlindIndex(bits={bits!r}): a number from 1 to {FULL_BITS}.")
        if allow_low_entropy is not None and not (
            isinstance(allow_low_entropy, str) and allow_low_entropy.strip()
        ):
            raise ConfigurationError("BlindIndex(allow_low_entropy=...): the reason, in words.")
        super().__init__(-(-bits // 8))
        self.of: tuple[str, ...] = names
        self.scope: Scope = scope
        self.normalize: str | tuple[str | None, ...] | None = _names(normalize, names)
        self.bits = bits
        self.label = label
        self.bucket: Buckets | None = buckets_of(bucket)
        self.allow_low_entropy = allow_low_entropy
        self.prefix = _length(prefix, names)
        self.slow: KdfProfile | None = _profile(slow)

    def labelled(self, label: str) -> BlindIndex:
        """A copy of this type for one column, with its label fixed."""
        copy: BlindIndex = self.copy()
        copy.label = label
        return copy

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """The dialect's type of short bytes: MySQL indexes no BLOB as a whole."""
        size = -(-self.bits // 8)
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(VARBINARY(size))
        return dialect.type_descriptor(LargeBinary(size))

    def coerce_compared_value(self, op: Any, value: Any) -> TypeEngine[Any]:
        """Tags in a comparison are plain bytes."""
        return LargeBinary()

    def bind_processor(self, dialect: Dialect) -> Callable[[Any], Any]:
        """Pass on the tags that the library made, and refuse everything else."""
        label = self.label

        def process(value: Any) -> Any:
            if value is None:
                return None
            if type(value) is StoredTag:
                return bytes(value)
            try:
                mark, tag = value
            except Exception:  # noqa: BLE001 - it is no pair, whatever it says of that
                mark = tag = None
            if mark is TAG:
                return tag
            del value, mark, tag
            raise StatementRefusedError(
                f"The blind index {label!r} takes no value: it is written with what it indexes. Leave it out."
            )

        return process

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], Any]:
        """Tags are bytes, and it shows that they were read."""
        read: Any = self.impl_instance.dialect_impl(dialect).result_processor(dialect, coltype) or bytes
        return lambda value: None if value is None else StoredTag(read(value))

    def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:
        """Return a text that no database accepts as SQL, in place of a literal."""
        shown = f"<tag of {self.label}>"
        return lambda value: shown

    @property
    def python_type(self) -> type[Any]:
        """Tags are bytes."""
        return bytes

    def __repr__(self) -> str:
        of = repr(self.of[0]) if len(self.of) == 1 else repr(self.of)
        options = "".join(
            f", {name}={value!r}"
            for name, value in (
                ("scope", self.scope),
                ("normalize", self.normalize),
                ("bits", self.bits),
                ("label", self.label),
                ("bucket", self.bucket),
                ("allow_low_entropy", self.allow_low_entropy),
                ("prefix", self.prefix),
                ("slow", self.slow),
            )
            if value not in (None, FULL_BITS)
        )
        return f"BlindIndex({of}{options})"


def _names(
    normalize: str | Sequence[str | None] | None, of: tuple[str, ...]
) -> str | tuple[str | None, ...] | None:
    """The normalisers as they are kept: SQLAlchemy makes a cache key of them."""
    if normalize is None or (isinstance(normalize, str) and len(of) == 1):
        return normalize
    names: tuple[Any, ...] = () if isinstance(normalize, str) else tuple(normalize)
    if len(names) != len(of) or not all(one is None or isinstance(one, str) for one in names):
        example = ", ".join("None" for _ in of)
        raise ConfigurationError(
            "BlindIndex(normalize=...): the name of a normaliser. An index over several attributes takes a "
            f"name or None for each: normalize=({example}{',' if len(of) == 1 else ''})."
        )
    return names


def _length(prefix: int | None, of: tuple[str, ...]) -> int | None:
    if prefix is None:
        return None
    if not isinstance(prefix, int) or isinstance(prefix, bool) or not 1 <= prefix <= _LONGEST_PREFIX:
        raise ConfigurationError(
            f"BlindIndex(prefix={prefix!r}): a number of characters from 1 to {_LONGEST_PREFIX}."
        )
    if len(of) > 1:
        raise ConfigurationError("BlindIndex(prefix=...): it takes a single attribute.")
    return prefix


def _profile(slow: bool | KdfProfile | None) -> KdfProfile | None:
    if slow is None or slow is False:
        return None
    if slow is True:
        return KdfProfile.OWASP_MINIMUM  # for ever: tags are stored under it
    if not isinstance(slow, KdfProfile):
        raise ConfigurationError("BlindIndex(slow=...): True, or a KdfProfile.")
    return slow
