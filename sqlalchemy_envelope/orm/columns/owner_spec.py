"""The values of `EncryptedType(owner=...)`: they name the owner of a column's rows.

left out                                    the class itself, or its only foreign key to a KeyOwner
"user_id", ("region", "number")             columns with a foreign key to the owner's primary key
"user"                                      a relationship to the owner
"order.customer"                            relationships, one after the other
OwnerColumn("user_id", of=User)             a column without a foreign key
OneOf("user_id", "organisation_id")         exactly one of these is set in each row
OneOf("document.user", "document.team")     exactly one of these is set in the row that each refers to
Vault                                       the sole owner: a class with one row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy_envelope.exceptions import ConfigurationError


@dataclass(frozen=True)
class OwnerColumn:
    """An owner named by one or several columns without a foreign key.

    Attributes:
        names: the attributes or columns that hold the owner's primary key, in that key's order.
        of: the class of the owner, a `KeyOwner`; or its name, if the class is declared later.
    """

    names: tuple[str, ...]
    of: type[Any] | str

    def __init__(self, *names: str, of: type[Any] | str) -> None:
        if not names or not all(isinstance(name, str) for name in names):
            raise ConfigurationError(
                "OwnerColumn('user_id', of=User): name the columns that hold the owner's primary key."
            )
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "of", of)

    def __repr__(self) -> str:
        names = ", ".join(repr(name) for name in self.names)
        return f"OwnerColumn({names}, of={self.of if isinstance(self.of, str) else self.of.__name__})"


@dataclass(frozen=True)
class OneOf:
    """Alternatives: each row belongs to a user or to an organisation, for example. Exactly one of these is
    set in the row, or in the other row through which they lead.

    Attributes:
        owners: the alternatives, each in a form that `owner=` accepts.
    """

    owners: tuple[OwnerSpec, ...]

    def __init__(self, *owners: OwnerSpec) -> None:
        if len(owners) < 2:
            raise ConfigurationError("OneOf('user_id', 'organisation_id'): name two alternatives or more.")
        object.__setattr__(self, "owners", owners)

    def __repr__(self) -> str:
        return f"OneOf({', '.join(map(repr, self.owners))})"


OwnerSpec = str | tuple[str, ...] | type[Any] | OwnerColumn | OneOf
"""The type of the argument of `EncryptedType(owner=...)`."""


def check_spec(owner: Any) -> None:
    """Check that a declaration can name an owner at all.

    Raises:
        ConfigurationError: the declaration cannot name an owner.
    """
    names = owner if isinstance(owner, tuple) else (owner,)
    text = bool(names) and all(isinstance(name, str) and name for name in names)
    if owner is None or text or isinstance(owner, (type, OwnerColumn, OneOf)):
        return
    raise ConfigurationError(
        f"EncryptedType(owner={owner!r}): name a column or relationship ('user_id', "
        f"'order.customer'), a tuple of "
        "columns, OwnerColumn(...), OneOf(...), or a class with a sole row."
    )
