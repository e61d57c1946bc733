"""Each normaliser makes one text of all values that are equal by its rule, and of no others, for ever."""

import sys
import unicodedata

import pytest

from sqlalchemy_envelope import ConfigurationError, register_normalizer
from sqlalchemy_envelope.orm.indexes.normalizers import NoNormalFormError, normalizer_named
from sqlalchemy_envelope.orm.indexes.unicode_14 import by_parts, unassigned

E_ACUTE = "\u00e9"
E_AND_ACUTE = "e\u0301"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("case-v1", "Ada LOVELACE", "ada lovelace"),
        ("case-v1", "", ""),
        ("case-v1", "STRASSE", "strasse"),
        ("case-v1", "Stra\u00dfe", "strasse"),
        (
            "case-v1",
            "\u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2",
            "\u03c3\u03af\u03c3\u03c5\u03c6\u03bf\u03c3",
        ),
        ("case-v1", E_AND_ACUTE.upper(), E_ACUTE),
        ("diacritics-v1", "Jos\u00c9 \u0141ukasz \u00d8re", "jose lukasz ore"),
        ("diacritics-v1", "\ufb01n", "fin"),
        ("diacritics-v1", "\u304c", "\u304c"),  # a kana with its voicing mark is another letter
        ("diacritics-v1", "\u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd", "\u05e9\u05dc\u05d5\u05dd"),
        ("digits-v1", "CH 12-34.5", "12345"),
        ("digits-v1", "\u0661\u0662 \uff13", "123"),
        ("email-v1", " Ada@Example.ORG ", "ada@example.org"),
        ("email-v1", "Ada+List@example.org.", "ada+list@example.org"),
        ("email-v1", "a@B\u00dcCHER.example", "a@b\u00fccher.example"),
        ("email-v1", "a@xn--bcher-kva.example", "a@b\u00fccher.example"),
        ("email-v1", '"a@b"@c.d', '"a@b"@c.d'),
        ("phone-v1", "+41 44 668 18 00", "+41446681800"),
        ("phone-v1:CH", "044 668 18 00", "+41446681800"),
        ("phone-v1:CH", "+1 (650) 253-0000 ext. 5", "+16502530000;ext=5"),
    ],
)
def test_what_each_makes_of_a_value(name: str, value: str, text: str) -> None:
    """The text by which a value is compared is part of what is stored: it never changes."""
    normalizer = normalizer_named(name)

    assert text == normalizer(value)
    if name != "phone-v1:CH":
        assert text == normalizer(text)  # made twice, it is the same


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("email-v1", "a@stra\u00dfe.example", "a@strasse.example"),
        ("email-v1", "a@example.org", "a@\u0435xample.org"),  # a Cyrillic letter
        ("email-v1", "adal@example.org", "ada.l@example.org"),
        ("email-v1", "a@xn--a-.example", "a@a.example"),  # no registry spells it so
        ("phone-v1", "+16502530000", "+16502530000 ext. 5"),
        ("case-v1", "e", E_ACUTE),
    ],
)
def test_what_stays_apart(name: str, one: str, other: str) -> None:
    """Addresses of two mailboxes, and letters that only look alike, are two values."""
    normalizer = normalizer_named(name)

    assert normalizer(one) != normalizer(other)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("digits-v1", "none"),
        ("email-v1", ""),
        ("email-v1", "ada"),
        ("email-v1", "@example.org"),
        ("email-v1", "ada@"),
        ("email-v1", "ada@."),
        ("phone-v1", ""),
        ("phone-v1", "044 668 18 00"),
        ("phone-v1:CH", "12"),
        ("phone-v1:CH", "0446681800" * 100),
    ],
)
def test_a_value_without_a_normal_form(name: str, value: str) -> None:
    """A value that the rule makes nothing of is told so, without showing it."""
    with pytest.raises(NoNormalFormError) as raised:
        normalizer_named(name)(value)

    assert value not in str(raised.value) or not value


def test_a_large_value_is_normalised_in_its_turn() -> None:
    """A megabyte takes a moment, and not minutes."""
    large = "\u00c9a" * 500_000

    assert len(normalizer_named("case-v1")(large)) == 1_000_000
    assert len(normalizer_named("email-v1")(large + "@a")) == 1_000_002
    with pytest.raises(NoNormalFormError):
        normalizer_named("phone-v1")(large)


@pytest.mark.thorough
@pytest.mark.skipif(unicodedata.unidata_version != "14.0.0", reason="this Python has another Unicode version")
def test_the_unassigned_characters_of_unicode_14() -> None:
    """The table has exactly the characters that Unicode 14.0 does not know."""
    known = {code for first, last in unassigned() for code in range(first, last + 1)}
    wanted = {code for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cn"}

    assert wanted == known


def test_a_later_unicode_version_changes_no_tag() -> None:
    """Characters that Unicode 14.0 does not know stay as they are, whatever this Python makes of them."""
    later = "\U00010d50\ua7cb\u1c89"  # capital letters since Unicode 16.0

    assert f"a{later}\u00e9{later}" == by_parts(lambda text: text.lower(), f"A{later}\u00c9{later}")
    assert f"a{later}" == normalizer_named("case-v1")(f"A{later}")


def test_a_normaliser_that_nobody_knows() -> None:
    """A version that is gone is named, with the versions that are there and what to do."""
    for name in ("email-v0", "email", "phone-v2", "phone-v1:XX"):
        with pytest.raises(ConfigurationError, match=f"'{name.partition(':')[0]}|'XX'"):
            normalizer_named(name)
    with pytest.raises(ConfigurationError, match=r"register_normalizer\('iban-v9', function\)"):
        normalizer_named("iban-v9")


def test_a_normaliser_of_ones_own() -> None:
    """A name stands for one rule: it is given once, with a version."""

    def plate(value: str) -> str:
        return value.replace(" ", "").upper()

    assert register_normalizer("plate-v1", plate) is plate
    assert register_normalizer("plate-v1", plate) is plate
    assert normalizer_named("plate-v1")("zh 123") == "ZH123"
    with pytest.raises(ConfigurationError, match="another version"):
        register_normalizer("plate-v1", str.strip)
    with pytest.raises(ConfigurationError, match="another version"):
        register_normalizer("email-v1", plate)
    for name in ("plate", "Plate-v1", "plate-v0", "plate-v1:CH", ""):
        with pytest.raises(ConfigurationError, match="version"):
            register_normalizer(name, plate)


def test_a_normaliser_returns_text() -> None:
    """What is hashed is text: anything else is a mistake of the function."""
    register_normalizer("none-v1", lambda value: None)  # type: ignore[arg-type,return-value]

    with pytest.raises(TypeError, match="none-v1"):
        normalizer_named("none-v1")("a")
