"""Comparisons on an encrypted column, answered by its token indexes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sqlalchemy import LargeBinary, Select, and_, or_, select, tuple_
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import (
    BinaryExpression,
    BindParameter,
    ClauseElement,
    ColumnClause,
    UnaryExpression,
)
from sqlalchemy.sql.visitors import iterate

from sqlalchemy_envelope.exceptions import StatementRefusedError
from sqlalchemy_envelope.orm.columns.encrypted_type import shown_operator
from sqlalchemy_envelope.orm.columns.previous import base_of, column_beside
from sqlalchemy_envelope.orm.columns.searching import has_word_op, has_words_op
from sqlalchemy_envelope.orm.indexes.candidates import rechecked
from sqlalchemy_envelope.orm.indexes.given import SoughtParameter, given
from sqlalchemy_envelope.orm.indexes.indexed import indexes_on
from sqlalchemy_envelope.orm.indexes.kinds.kind import Wanted
from sqlalchemy_envelope.orm.indexes.sought import Sought
from sqlalchemy_envelope.orm.indexes.tokens.operators import NEGATED, TEXT_OPERATORS
from sqlalchemy_envelope.orm.indexes.tokens.token_set import NotAnsweredError
from sqlalchemy_envelope.orm.indexes.tokens.tokenized import (
    TAG_COLUMN,
    WHOLE,
    as_indexed,
    tags_of,
    tokenized_of_table,
)
from sqlalchemy_envelope.orm.indexes.tokens.words import Words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sqlalchemy_envelope.orm.indexes.executing import Execution
    from sqlalchemy_envelope.orm.indexes.given import Given
    from sqlalchemy_envelope.orm.indexes.tokens.token_set import WantedTokens
    from sqlalchemy_envelope.orm.indexes.tokens.tokenized import TokenizedColumn

_TAGS = LargeBinary()
_WORDS = (has_word_op, has_words_op)


def search(column: Any, op: Any, other: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """The condition that answers a comparison of texts; None for another comparison, and for a column without
    a token index.

    Raises:
        StatementRefusedError: no index of the column answers it.
    """
    if op not in TEXT_OPERATORS and op not in _WORDS:
        return None
    base = base_of(column)
    indexes = () if base is None else [one for one in tokenized_of_table(base.table) if one.text is base]
    if not indexes or len(other) != 1:
        return None
    (operand,) = other
    later = given(operand) if op is has_word_op else None
    if later is not None:
        return _condition_later(column, indexes, later)
    if isinstance(operand, ClauseElement) or hasattr(operand, "__clause_element__"):
        raise StatementRefusedError(
            f"{str(column)!r} is found by a token index, which looks for texts: compare it with a text, and "
            "not with an SQL expression."
        )
    answers = [(one, _answer(one, NEGATED.get(op, op), operand, options)) for one in indexes]
    # An index that answers for certain comes before one that gives candidates.
    found = [(one, wanted) for one, wanted in answers if not isinstance(wanted, str)]
    for index, wanted in sorted(found, key=lambda one: one[1].check is not None):
        return _condition(column, index, wanted, negated=op in NEGATED)
    whys = [why for _, why in answers if isinstance(why, str)]
    if op in TEXT_OPERATORS and indexes_on(base):
        return None  # an index of another kind may answer it
    raise _refused(column, op, whys)


def _answer(index: TokenizedColumn, op: Any, operand: Any, options: dict[str, Any]) -> WantedTokens | str:
    """What to look for, or why the index does not answer."""
    why = None
    try:
        operand.encode()  # a text with a lone surrogate is not stored
        wanted = index.tokens.answer(op, operand, options)
        if wanted is not None:
            return wanted
    except NotAnsweredError as error:
        why = str(error)
    except Exception:  # noqa: BLE001 - raised below, chained to nothing that holds the value
        why = f"its operand, of the type {type(operand).__name__}, is no text"
    return f"{index.key} {f'does not: {why}' if why else f'answers {index.tokens.operators}'}"


def _condition(column: Any, index: TokenizedColumn, wanted: WantedTokens, *, negated: bool) -> Any:
    own = [column_beside(column, one) for one in index.column.table.primary_key]
    wanteds = [Wanted((token.encode(),)) for token in wanted.tokens]
    if wanted.check is not None:
        # One of the conditions has the check: all of them have to be true of a row.
        wanteds[0] = rechecked(
            as_indexed(index), replace(wanteds[0], negated=negated, check=_check(index, wanted))
        )
        return and_(*(_with_tags(own, index, one) for one in wanteds))
    has = [_with_tags(own, index, one) for one in wanteds]
    # Without a text a row is in neither, as with a plain column; nor is a row without tags.
    lacks = and_(_with_tags(own, index, Wanted((WHOLE,))), or_(*(~one for one in has)))
    found = _opposed(and_(*has), lacks)
    return lacks if negated else found


def _condition_later(column: Any, indexes: Sequence[TokenizedColumn], later: Given) -> Any:
    """The condition for a word that is given when the statement is sent."""
    for index in indexes:
        if not isinstance(index.tokens, Words):
            continue

        def wanted(execution: Execution, index: TokenizedColumn = index) -> Wanted:
            found = _answer(index, has_word_op, later.value(execution.statement, execution.parameters), {})
            if isinstance(found, str):
                raise _refused(column, has_word_op, [found])
            return Wanted(tuple(token.encode() for token in found.tokens))

        own = [column_beside(column, one) for one in index.column.table.primary_key]
        has = _with_tags(own, index, Wanted(()), wanted, later.parameters)
        return _opposed(has, and_(_with_tags(own, index, Wanted((WHOLE,))), ~has))
    raise _refused(column, has_word_op, [f"{one.key} answers {one.tokens.operators}" for one in indexes])


def _opposed(found: Any, lacks: Any) -> Any:
    """Two conditions, each of which `~` makes of the other."""
    found.negation_clause, lacks.negation_clause = lacks, found
    return found


def _check(index: TokenizedColumn, wanted: WantedTokens) -> Callable[[Any], bool]:
    """What tells of a row's value whether the comparison is true of it."""
    check, convert = wanted.check, index.source.convert
    assert check is not None  # noqa: S101 - there are candidates
    return check if convert is None else lambda value: check(convert(value))


def _with_tags(
    own: Sequence[Any],
    index: TokenizedColumn,
    wanted: Wanted,
    later: Callable[[Execution], Wanted] | None = None,
    parameters: tuple[BindParameter[Any], ...] = (),
) -> Any:
    """The condition that a row has the tag of a token.

    Args:
        later: gives the token, if it is known only when the statement is sent.
        parameters: the application's parameters that it is made from.
    """
    tags = index.table.alias()
    sought = Sought(as_indexed(index), wanted, later)
    kind = SoughtParameter if parameters else BindParameter
    made: Any = kind(None, callable_=sought, expanding=True, unique=True, type_=_TAGS)
    if parameters:
        made.given = parameters
    rows = select(*(tags.c[key.key] for key in index.keys)).where(tags.c[TAG_COLUMN].in_(made))
    row: Any = own[0] if len(own) == 1 else tuple_(*own)
    return row.in_(rows)


def _refused(column: Any, op: Any, whys: Sequence[str]) -> StatementRefusedError:
    return StatementRefusedError(
        f"{shown_operator(op)} on the encrypted column {str(column)!r} is answered by no token index: "
        f"{'; '.join(whys)}. Load the rows and compare the decrypted texts."
    )


def looked_up(condition: Any) -> tuple[Any, Any] | None:
    """The parameter that a condition of a token index looks for, and the column of the row that it is about;
    None for another condition."""
    if not isinstance(condition, BinaryExpression) or condition.operator is not operators.in_op:
        return None
    if _sought_in(condition.right) is None:
        return None
    parameters = (one for one in iterate(condition.right) if isinstance(one, BindParameter))
    parameter = next(one for one in parameters if isinstance(one.callable, Sought))
    return parameter, next(one for one in iterate(condition.left) if isinstance(one, ColumnClause))


def refuse_negated(elements: Iterable[Any]) -> None:
    """Refuse `~(... & ...)` around a condition of a token index: a row without a text would be found, which a
    plain column would leave out.

    Raises:
        StatementRefusedError: there is such a condition.
    """
    for element in elements:
        if isinstance(element, UnaryExpression) and element.operator is operators.inv:
            index = _sought_in(element.element)
            if index is not None:
                raise StatementRefusedError(
                    f"`~` stands around several conditions, one of them on {index.label!r}, a token index. "
                    "Negate each condition by itself: `or_(~first, ~second)` for `~and_(first, second)`."
                )


def _sought_in(element: Any) -> TokenizedColumn | None:
    """The token index that a condition looks into, outside of the SELECTs in it."""
    if isinstance(element, Select):
        tags = getattr(next(iter(element._raw_columns), None), "table", None)
        return tags_of(getattr(tags, "element", tags))
    found = (_sought_in(one) for one in element.get_children())
    return next((one for one in found if one is not None), None)
