"""Normalisers: each makes the same text of all values that a blind index takes for equal.

A normaliser has a name and a version, `email-v1`, and the name is bound into every tag. Its rule never
changes: the tags of stored values were made by it. A better rule is another version, and an index that is
filled anew.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy_envelope.exceptions import ConfigurationError
from sqlalchemy_envelope.orm.indexes.unicode_14 import by_unicode_14

if TYPE_CHECKING:
    from collections.abc import Callable


class NoNormalFormError(ValueError):
    """A value that a normaliser makes nothing of. Its text tells why, and does not show the value."""


@dataclass(frozen=True)
class Normalizer:
    """A rule by which values are equal.

    Attributes:
        name: its name and version, with its parameter.
        function: makes the text by which values are compared.
        of_prefixes: whether the first characters of a value can be normalised by themselves.
        of_text: whether it takes text alone.
    """

    name: str
    function: Callable[[Any], str] = field(repr=False)
    of_prefixes: bool = True
    of_text: bool = True

    def __call__(self, value: Any) -> str:
        """The text by which a value is compared.

        Raises:
            NoNormalFormError: the rule makes nothing of this value.
            TypeError: the function does not take the type of the value, or returns no text.
        """
        text = self.function(value)
        if not isinstance(text, str):
            raise TypeError(f"the normaliser {self.name!r} returned {type(text).__name__}, and no str")
        return text


def register_normalizer(
    name: str, function: Callable[[Any], str], *, of_prefixes: bool = False
) -> Callable[[Any], str]:
    """Give a normaliser of one's own a name: `BlindIndex("iban", normalize="iban-v1")`.

    Register it before the mappers are configured, in every process. Its rule is part of what is stored: the
    same value has to give the same text for ever. For another rule register another version, `iban-v2`.

    Args:
        name: small letters, digits and hyphens, and a version: `iban-v1`.
        function: takes a value of the column, never None, and returns the text by which it is compared. It
            raises ValueError for a value that has no such text: the value is then not stored, and not found.
        of_prefixes: whether it also takes the first characters of a value, as an index with `prefix=` needs
            it.

    Returns:
        The function.

    Raises:
        ConfigurationError: the name has no version, or another function has it.
    """
    if not isinstance(name, str) or _NAME.fullmatch(name) is None:
        raise ConfigurationError(
            f"register_normalizer({name!r}): a name of small letters, digits and hyphens, with a version at "
            "its end, 'iban-v1'."
        )
    known = _own.get(name)
    if name in _BUILT_IN or (known is not None and known.function is not function):
        raise ConfigurationError(
            f"register_normalizer({name!r}): that name has a rule already, by which tags may be stored. Give "
            "another rule another version."
        )
    _own[name] = Normalizer(name, function, of_prefixes, of_text=False)
    return function


def normalizer_named(name: str) -> Normalizer:
    """The normaliser with this name and version.

    Raises:
        ConfigurationError: there is none.
    """
    known = _own.get(name) or _BUILT_IN.get(name)
    if known is not None:
        return known
    base, colon, region = name.partition(":")
    if base == _PHONE:
        return _phone(name, region if colon else None)
    others = ", ".join(repr(one) for one in sorted([*_BUILT_IN, _PHONE, *_own]))
    raise ConfigurationError(
        f"BlindIndex(normalize={name!r}): no normaliser has this name and version here. Known: {others}. "
        f"Call `register_normalizer({name!r}, function)` before the models are used. A version that is given "
        "up stays registered until its index is gone: declare a second index with the new version, fill it, "
        "and remove the first one then."
    )


_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*-v[1-9][0-9]*")


def _nothing(why: str) -> NoReturn:
    raise NoNormalFormError(why)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a normaliser of text got something else")
    return value


def _case(value: Any) -> str:
    """Text without case: canonical caseless matching, definition D145 of Unicode, composed."""
    return by_unicode_14(_caseless, _text(value))


def _caseless(text: str) -> str:
    if text.isascii():
        return text.lower()
    folded = unicodedata.normalize("NFD", text).casefold()
    return unicodedata.normalize("NFC", folded)


def _diacritics(value: Any) -> str:
    """Text without case and diacritics, and with one spelling of what only looks different."""
    return by_unicode_14(_bare, _text(value))


def _bare(text: str) -> str:
    if text.isascii():
        return text.lower()
    # Twice, as in definition D146 of Unicode: folded case may have to be decomposed again.
    for _ in range(2):
        text = unicodedata.normalize("NFKD", text).casefold()
    text = unicodedata.normalize("NFKD", text)
    return unicodedata.normalize("NFC", text.translate(_bare_letters()))


def _is_diacritic(one: str) -> bool:
    """Whether a mark stands above, below or over a letter, or points a Hebrew or Arabic letter. The marks
    that make another letter of Indic letters and of kana stay."""
    place = unicodedata.combining(one)
    return place == 1 or 10 <= place <= 36 or 202 <= place <= 240


@cache
def _bare_letters() -> dict[int, str | None]:
    marks = {code: None for code in range(0x300, 0x1F000) if _is_diacritic(chr(code))}
    return {**_LETTERS, **marks}


_LETTERS: dict[int, str] = str.maketrans(
    {
        "ø": "o",
        "ł": "l",
        "đ": "d",
        "ħ": "h",
        "ŧ": "t",
        "\u0131": "i",
        "æ": "ae",
        "œ": "oe",
        "ð": "d",
        "þ": "th",
    }
)
"""Letters that Unicode does not decompose."""


def _digits(value: Any) -> str:
    """The decimal digits of a text, of any script, as 0 to 9."""
    found = by_unicode_14(_decimals, _text(value))
    return "".join(one for one in found if one.isascii()) or _nothing("it has no digit")


def _decimals(text: str) -> str:
    return "".join(str(unicodedata.decimal(one)) for one in text if one.isdecimal())


def _email(value: Any) -> str:
    """An e-mail address without case, and its domain without Punycode.

    Nothing else: two addresses are equal only where mail to them goes to the same mailbox. So letters that
    merely look alike stay apart, as do `ß` and `ss`, dots, and what follows a `+`.
    """
    local, at, domain = _text(value).strip().rpartition("@")
    if not (at and local.strip() and domain.strip(" .")):
        _nothing("it is no e-mail address: text on both sides of an @")
    labels = [_domain_label(one) for one in domain.rstrip(".").split(".")]
    return by_unicode_14(_small, local) + "@" + ".".join(labels)


def _small(text: str) -> str:
    small = unicodedata.normalize("NFC", text).lower()
    return unicodedata.normalize("NFC", small)


def _domain_label(label: str) -> str:
    """A part of a domain; `xn--bcher-kva` is `bücher`. Only what is spelt as registries spell it: any other
    Punycode of the same letters is another name."""
    label = by_unicode_14(_small, label)
    if label.startswith("xn--") and label.isascii() and len(label) <= _LONGEST_LABEL:
        try:
            decoded = by_unicode_14(_small, label[4:].encode("ascii").decode("punycode"))
            if not decoded.isascii() and decoded.encode("punycode").decode("ascii") == label[4:]:
                return decoded
        except (UnicodeError, OverflowError):
            pass  # no Punycode: a label like others
    return label


_LONGEST_LABEL = 63


_PHONE = "phone-v1"


def _phone(name: str, region: str | None) -> Normalizer:
    """The normaliser of telephone numbers, by Google's rules for each country.

    Args:
        region: the country of the numbers that name none, `CH`; None if every number names it, `+41 ...`.
    """
    try:
        import phonenumbers
    except ImportError:
        raise ConfigurationError(
            f"BlindIndex(normalize={name!r}) needs the package phonenumbers: "
            "`pip install 'sqlalchemy-envelope[phone]'`."
        ) from None
    if region is not None and region not in phonenumbers.SUPPORTED_REGIONS:
        raise ConfigurationError(
            f"BlindIndex(normalize={name!r}): {region!r} is no country that phonenumbers knows. Write its "
            "two letters, 'phone-v1:CH'."
        )
    return Normalizer(name, partial(_phone_number, region), of_prefixes=False)


def _phone_number(region: str | None, value: Any) -> str:
    from phonenumbers import (
        NumberParseException,
        PhoneNumberFormat,
        format_number,
        is_possible_number,
        parse,
    )

    number, text = None, _text(value)
    try:
        number = parse(text, region)
    except NumberParseException:
        pass  # raised below, chained to nothing that holds the value
    if number is None or not is_possible_number(number):
        how = "" if region is not None else ", with its country: +41 44 ..."
        _nothing(f"it is no telephone number{how}")
    extension = f";ext={number.extension}" if number.extension else ""
    return format_number(number, PhoneNumberFormat.E164) + extension


_BUILT_IN = {
    one.name: one
    for one in (
        Normalizer("case-v1", _case),
        Normalizer("diacritics-v1", _diacritics),
        Normalizer("digits-v1", _digits),
        Normalizer("email-v1", _email, of_prefixes=False),
    )
}
_own: dict[str, Normalizer] = {}
