"""`EmergencyAccess`: a mapped class whose rows let one owner help another in an emergency."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

from sqlalchemy import DateTime, Integer, LargeBinary
from sqlalchemy.orm import Mapped, mapped_column

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.tables.owners import KEY_UUID, EmergencyClass
from sqlalchemy_envelope.orm.tables.two_owners import names_no_owners, paths_to_two

if TYPE_CHECKING:
    from sqlalchemy.orm import Mapper

    from sqlalchemy_envelope.orm.tables.owner_paths import OwnerPath


class EmergencyAccess:
    """Mixin: each row names a person who may open an owner's keys in an emergency, after a waiting time that
    the owner can use to refuse. `allow_emergency` writes the rows.

    Class keywords:
        of: the attribute or column that refers to the owner.
        to: the attribute or column that refers to the person, which is a `KeyOwner` too.

    Attributes:
        wait_seconds: the waiting time.
        requested_at: when the person asked, in UTC; None if nobody has asked. An edited date opens nothing.
    """

    __emergency_options__: ClassVar[tuple[str | tuple[str, ...], str | tuple[str, ...]]]

    kek_public_key: Mapped[bytes] = mapped_column(LargeBinary(32))
    person_key_id: Mapped[uuid.UUID] = mapped_column(KEY_UUID)
    sealed_share: Mapped[bytes] = mapped_column(LargeBinary(1169))
    server_share: Mapped[bytes] = mapped_column(LargeBinary(121))
    wait_seconds: Mapped[int] = mapped_column(Integer)
    requested_at: Mapped[dt.datetime | None] = mapped_column(DateTime(timezone=True))

    def __init_subclass__(
        cls,
        of: str | tuple[str, ...] | None = None,
        to: str | tuple[str, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        if of is not None and to is not None:
            cls.__emergency_options__ = of, to
        super().__init_subclass__(**kwargs)


_waiting: WeakKeyDictionary[Mapper[Any], None] = WeakKeyDictionary()


def on_mapper(mapper: Mapper[Any], cls: type[Any]) -> None:
    """A class was mapped: note an emergency access, and complete those whose owners are all known by now."""
    if issubclass(cls, EmergencyAccess) and mapper.inherits is None:
        if not hasattr(cls, "__emergency_options__"):
            raise ConfigurationError(
                f"{cls.__name__} is an EmergencyAccess and does not say of whom and to whom: "
                f"`class {cls.__name__}(EmergencyAccess, Base, of='owner_id', to='person_id')`."
            )
        _waiting[mapper] = None
    for waiting in list(_waiting):
        paths = paths_to_two(waiting, *waiting.class_.__emergency_options__)
        if paths is not None:
            del _waiting[waiting]
            _complete(waiting, *paths)


def check_all() -> None:
    """Mappers are configured: an emergency access that still waits for its owners will never be complete.

    Raises:
        ConfigurationError: `of` or `to` refers to no key owner, or a row would outlive one of the two.
    """
    for mapper in [waiting for waiting in list(_waiting) if waiting.configured]:
        raise names_no_owners(mapper, *mapper.class_.__emergency_options__)


def _complete(mapper: Mapper[Any], of: OwnerPath, to: OwnerPath) -> None:
    for path in (of, to):
        for column in path.columns:
            if not any((key.ondelete or "").upper() == "CASCADE" for key in column.foreign_keys):
                raise ConfigurationError(
                    f"{mapper.class_.__name__}.{column.key}: declare ForeignKey(..., ondelete='CASCADE'), so "
                    f"that the row goes with its {path.owner_class.name}."
                )
    emergency = EmergencyClass(mapper, of, to)
    for known in (of.owner_class.emergencies, to.owner_class.emergencies_to):
        # A class that is declared a second time takes the place of the first.
        known[:] = [*(other for other in known if other.table is not emergency.table), emergency]
