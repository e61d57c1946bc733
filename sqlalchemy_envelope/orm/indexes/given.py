"""Values that a statement does not hold when it is built: `bindparam("email")`, whose value is given when the
statement is sent, and the variables of a lambda, whose values SQLAlchemy looks up each time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.sql.lambdas import PyWrapper
from sqlalchemy.sql.visitors import InternalTraversal

from sqlalchemy_envelope.exceptions import StatementRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping


_names: set[str] = set()
"""The names of all parameters whose values are looked for."""


class Unshown:
    """A value that is looked for, in the parameters of a statement, which SQLAlchemy shows in its errors.

    Attributes:
        value: the value.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "<a value that is looked for>"


class SoughtParameter(BindParameter[Any]):
    """The parameter that a statement's tags stand in.

    Attributes:
        given: the application's parameters that it is made from. They are a part of the statement, so that
            `.params()` and lambdas give them values.
    """

    inherit_cache = True
    given: tuple[BindParameter[Any], ...] = ()
    _traverse_internals = [  # noqa: RUF012 - as SQLAlchemy declares it
        *BindParameter._traverse_internals,
        ("given", InternalTraversal.dp_clauseelement_tuple),
    ]

    def _gen_cache_key(self, anon_map: Any, bindparams: Any) -> Any:
        found: Any = super()._gen_cache_key(anon_map, bindparams)  # type: ignore[no-untyped-call]
        for bind in self.given:
            bind._gen_cache_key(anon_map, bindparams)  # type: ignore[no-untyped-call]
        return found


class Given:
    """An operand with such values in it.

    Attributes:
        operand: a parameter, or a list with parameters in it.
    """

    __slots__ = ("_tracked", "operand")

    def __init__(self, operand: Any, *, tracked: bool) -> None:
        self.operand = operand
        self._tracked = tracked
        _names.update(one.key for one in self.parameters if not one.unique)

    @property
    def parameters(self) -> tuple[BindParameter[Any], ...]:
        """The application's parameters."""
        operands = self.operand if isinstance(self.operand, list) else [self.operand]
        return tuple(one for one in operands if isinstance(one, BindParameter))

    def value(self, statement: Any, sent: Mapping[str, Any]) -> Any:
        """The operand, with the values that a statement is sent with.

        Args:
            sent: the parameters of the execution.

        Raises:
            StatementRefusedError: a parameter has no value.
        """
        stated, found = _parameters_of(statement)
        params = {**stated, **sent}
        if isinstance(self.operand, list):
            return [
                self._value_of(one, params, found) if isinstance(one, BindParameter) else one
                for one in self.operand
            ]
        return self._value_of(self.operand, params, found)

    def _value_of(
        self, bind: BindParameter[Any], params: Mapping[str, Any], found: Mapping[str, BindParameter[Any]]
    ) -> Any:
        if bind.key in params:
            value = params[bind.key]
            return value.value if isinstance(value, Unshown) else value
        now = found.get(bind.key, None if self._tracked else bind)
        if now is not None and not now.required:
            return now.effective_value
        raise StatementRefusedError(
            f"A value is required for the parameter {bind.key!r}, which is looked for in a blind index: "
            f"`session.execute(statement, {{{bind.key!r}: ...}})`."
            if not self._tracked
            else "A lambda looks for the value of a variable in a blind index, and the statement does not "
            "tell which value it has now. Build the statement without a lambda."
        )


def given(operand: Any) -> Given | None:
    """The operand of a comparison, if its value is known only when the statement is sent."""
    if isinstance(operand, str):  # the most frequent
        return None
    if isinstance(operand, PyWrapper):
        return Given(_of_lambda(operand), tracked=True)
    if isinstance(operand, BindParameter):
        return Given(operand, tracked=False)
    if isinstance(operand, Sequence) and not isinstance(operand, (bytes, bytearray, memoryview)):
        tracked = any(isinstance(one, PyWrapper) for one in operand)
        if tracked or any(isinstance(one, BindParameter) for one in operand):
            ones = [_of_lambda(one) if isinstance(one, PyWrapper) else one for one in operand]
            return Given(ones, tracked=tracked)
    return None


def _of_lambda(wrapper: Any) -> Any:
    """The parameter of a lambda's variable: from now on, each execution of the lambda gives it a value."""
    return wrapper._sa__py_wrapper_literal()


def _parameters_of(statement: Any) -> tuple[Mapping[str, Any], dict[str, BindParameter[Any]]]:
    """The values of `.params()`, and the parameters of a statement by key, as they are now. The cache key has
    them all, those of loader options included; a statement that has none is walked through."""
    key = statement._generate_cache_key()
    if key is None:
        stated, binds = _walked(statement)
    else:
        stated, binds = getattr(key, "params", None) or {}, key.bindparams  # `params`: SQLAlchemy 2.1
    return stated, {bind.key: bind for bind in binds}


def _walked(statement: Any) -> tuple[dict[str, Any], list[BindParameter[Any]]]:
    stated: dict[str, Any] = {}
    binds = []
    for one in visitors.iterate(statement):
        if isinstance(one, BindParameter):
            binds.append(one)
        stated = {**getattr(one, "_params", {}), **stated}
    return stated, binds


def unshown(statement: Any, rows: Any, params: Any) -> tuple[Any, Any]:
    """The parameters of a statement, with each value hidden that is looked for and used for nothing else."""
    row = rows[0] if rows else params
    if not row or _names.isdisjoint(row):
        return rows, params
    names = _only_sought(statement)
    if names.isdisjoint(row):
        return rows, params
    hidden = [
        {name: Unshown(value) if name in names else value for name, value in one.items()}
        for one in rows or [params]
    ]
    return (hidden, params) if rows else (rows, hidden[0])


def _only_sought(statement: Any) -> set[str]:
    """The names of parameters that are looked for, and stand nowhere else in the statement."""
    uses: Counter[str] = Counter()
    for one in visitors.iterate(statement):
        if isinstance(one, BindParameter):
            uses[one.key] += 1
        if isinstance(one, SoughtParameter):
            uses.subtract(bind.key for bind in one.given)
    return {name for name in _names if uses.get(name) == 0}
