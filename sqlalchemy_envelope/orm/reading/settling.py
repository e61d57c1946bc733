"""Values that could not be opened are put aside as their row becomes an object.

SQLAlchemy asks each property of a mapper for functions that fill an object from a row. The property of the
first encrypted column answers for all encrypted columns. A `load` listener could do the same, but
SQLAlchemy's dispatch to a listener costs as much per object as opening a value. Here it is only checked
whether anything is locked.
"""

from __future__ import annotations

from itertools import repeat
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import empty_frames
from sqlalchemy_envelope.orm.columns.dual_attributes import dual_attributes
from sqlalchemy_envelope.orm.columns.mixed_classes import mix_in
from sqlalchemy_envelope.orm.columns.plans import plan_of_mapper
from sqlalchemy_envelope.orm.reading import two_columns
from sqlalchemy_envelope.orm.reading.objects import put_aside
from sqlalchemy_envelope.orm.reading.results import opener_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sqlalchemy.orm import InstanceState, Mapper

    from sqlalchemy_envelope.orm.columns.dual_attributes import DualAttribute
    from sqlalchemy_envelope.orm.columns.plans import EncryptedAttribute
    from sqlalchemy_envelope.orm.reading.rows import RowOpener

_SETTLES = "sqlalchemy_envelope.settles"
"""Stands where SQLAlchemy keeps the name of the attribute that is filled. No attribute has this name."""


class _Settling:
    """Mixed into the property's own class."""

    __slots__ = ()

    def setup(self, *arguments: Any, memoized_populators: dict[Any, Any], **named: Any) -> None:
        super().setup(  # type: ignore[misc]  # of the class it is mixed into
            *arguments, memoized_populators=memoized_populators, **named
        )
        memoized_populators.pop(self, None)  # SQLAlchemy would not ask a memoized property for its functions

    def create_row_processor(
        self,
        context: Any,
        query_entity: Any,
        path: Any,
        mapper: Mapper[Any],
        result: Any,
        adapter: Any,
        populators: dict[str, list[tuple[str, Any]]],
    ) -> None:
        key, attributes = (_SETTLES, mapper, self), context.compile_state.attributes
        known = path.get(attributes, key, None)
        if known is None:  # the same for each result of a statement
            own: dict[str, list[tuple[str, Any]]] = {name: [] for name in populators}
            super().create_row_processor(  # type: ignore[misc]  # of the class it is mixed into
                context, query_entity, path, mapper, result, adapter, own
            )
            fills = [(name, found) for name, found in own.items() if found]
            known = fills, dual_attributes(mapper), [one.key for one in plan_of_mapper(mapper)]
            path.set(attributes, key, known)
        fills, duals, keys = known
        for name, found in fills:
            populators[name] += found
        settle = _settler(mapper, duals, context, opener_of(result))
        if not duals:  # values in two columns have a `load` listener
            populators["new"].append((_SETTLES, settle))
        # An object at several places of a row is filled anew for each place; SQLAlchemy asks by name.
        populators["existing"] += zip(keys, repeat(settle))


def _settler(
    mapper: Mapper[Any], duals: Sequence[DualAttribute], query_context: Any, opener: RowOpener | None
) -> Callable[..., None]:
    def settle(state: InstanceState[Any], values: dict[str, Any], row: object) -> None:
        # If rows came past the opener, it has fetched none.
        if opener is not None and opener.fetched and not opener.met_sealed and not duals:
            return
        try:
            put_aside(state, values, query_context, plan_of_mapper(mapper))
            two_columns.seen_again(state, duals)
        except BaseException as error:
            empty_frames(error)
            del values, row
            raise

    return settle


def make_settling(plan: tuple[EncryptedAttribute, ...], mapper: Mapper[Any]) -> None:
    """Let the first encrypted property of a mapper put aside values that could not be opened."""
    prop: Any = mapper.attrs[plan[0].key]
    base = type(prop)
    mix_in(_Settling, prop, base.__name__, __module__=base.__module__, inherit_cache=True)
