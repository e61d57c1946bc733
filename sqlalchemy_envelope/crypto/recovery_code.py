"""Recovery codes: 160 random bits as text that a person writes down and types again (section 3).

    9Q2K-...-7V0D     nine groups of four symbols of Crockford's base32: 32 symbols of the bits, 4 that check

The 36 symbols, read as one number in base 32, are a multiple of the prime 1,048,517. So one wrong symbol, two
wrong symbols, and two neighbours that changed places are always found, and of other texts all but one in a
million. Crockford's own check symbol (modulo 37) finds less, and needs five signs beside letters and digits.
One wrong symbol can be located, too. It is never corrected: its owner can look at the paper.
"""

import os
import unicodedata
from collections.abc import Sequence
from functools import reduce
from typing import NoReturn, SupportsIndex

from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.kdf import recovery_kek
from sqlalchemy_envelope.crypto.secret import Hidden, KeyBytes
from sqlalchemy_envelope.exceptions import RecoveryCodeError

CODE_SIZE = 20
"""The random bytes of a code."""
_SYMBOLS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUES = {
    **{symbol: value for value, symbol in enumerate(_SYMBOLS)},
    **{symbol.lower(): value for value, symbol in enumerate(_SYMBOLS)},
    **dict.fromkeys("Oo", 0),
    **dict.fromkeys("IiLl", 1),
}
_COUNT, _GROUP, _CHECKING = 36, 4, 32**4
_PRIME = 1_048_517
"""The largest prime below 32**4 modulo which the changes of one symbol anywhere in the code all differ."""
_LONGEST = 256
_NO_MEANING = frozenset(("Pd", "Cf", "Zs", "Zl", "Zp"))
"""The categories of dashes, of invisible characters and of spaces."""
_DASHES = "\u2212\u2043\u30fc_\t\n\r"
"""What is typed or pasted as a dash or a space and is in none of these categories."""


class RecoveryCode(str):
    """A new recovery code, to be shown to its owner once, and stored nowhere. Its `repr` shows nothing: logs
    and error trackers print the `repr` of variables. It is not pickled.
    """

    __slots__ = ()

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise TypeError("a recovery code is not copied or pickled")

    def __repr__(self) -> str:
        return "<RecoveryCode redacted>"


GivenCode = str | Hidden[str]


def hide_code(code: GivenCode) -> Hidden[str]:
    """Hide a typed code where it enters the library: from there on, no frame has it among its variables."""
    return code if isinstance(code, Hidden) else Hidden(code)


def hide_given(code: GivenCode | None) -> Hidden[str] | None:
    """As `hide_code`, where a code may be left out."""
    return None if code is None else hide_code(code)


def new_code() -> RecoveryCode:
    """A fresh, random code."""
    return RecoveryCode(_text(os.urandom(CODE_SIZE)))


def _text(random: bytes) -> str:
    number = int.from_bytes(random, "big") * _CHECKING
    number += -number % _PRIME
    symbols = [_SYMBOLS[number >> 5 * place & 31] for place in reversed(range(_COUNT))]
    return "-".join("".join(symbols[at : at + _GROUP]) for at in range(0, _COUNT, _GROUP))


@emptying
def kek_of_code(code: Hidden[str]) -> KeyBytes:
    """The KEK of a typed code, however it is typed: in lower case, in full width, with O for 0 and I or L
    for 1, with spaces, with dashes of any kind or none.

    Raises:
        RecoveryCodeError: the text is no recovery code. One with a typo is refused.
    """
    symbols = _symbols(code.reveal())
    number = reduce(lambda so_far, symbol: so_far * 32 + symbol, symbols, 0)
    if number % _PRIME:
        raise RecoveryCodeError(f"The recovery code is mistyped{_where(symbols, number % _PRIME)}.")
    return recovery_kek((number // _CHECKING).to_bytes(CODE_SIZE, "big"))


def _symbols(text: str) -> list[int]:
    if not isinstance(text, str):
        raise RecoveryCodeError(f"A recovery code is text, not {type(text).__name__}.")
    if len(text) > _LONGEST:  # before any other work
        raise RecoveryCodeError("The text is too long for a recovery code.")
    typed = [one for one in unicodedata.normalize("NFKC", text) if not _is_separator(one)]
    for at, one in enumerate(typed):
        if one not in _VALUES:
            raise RecoveryCodeError(
                f"Group {at // _GROUP + 1} of the recovery code has a character that no recovery code has."
            )
    if len(typed) != _COUNT:
        raise RecoveryCodeError(
            f"A recovery code has {_COUNT} letters and digits, in groups of {_GROUP}. This text has "
            f"{len(typed)}."
        )
    return [_VALUES[one] for one in typed]


def _is_separator(character: str) -> bool:
    return unicodedata.category(character) in _NO_MEANING or character in _DASHES


def _where(symbols: Sequence[int], rest: int) -> str:
    """Where the typo is, if a change of a single symbol explains it: there is never more than one such."""
    for at, symbol in enumerate(symbols):
        change = rest * pow(32, at + 1 - _COUNT, _PRIME) % _PRIME
        change -= _PRIME if change > _PRIME // 2 else 0
        if 0 <= symbol - change < 32:
            return f", probably in its group {at // _GROUP + 1}"
    return ""
