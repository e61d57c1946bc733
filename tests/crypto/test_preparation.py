"""A secret becomes the same bytes however it was typed, or is refused; RFC 8265's profile is the oracle."""

import unicodedata

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from precis_i18n import get_profile

from sqlalchemy_envelope.crypto import preparation
from sqlalchemy_envelope.crypto.preparation import MAX_CODE_POINTS, MAX_SIZE, prepare_secret
from sqlalchemy_envelope.exceptions import SecretError

# Half of them from where the rules bite: spaces, marks that combine, compatibility forms, Hangul, controls.
CHARACTERS = st.characters(codec="utf-8") | st.sampled_from(
    " \u00a0\u1680\u2000\u2003\u202f\u205f\u3000aeéÅ\u030a\u0301\u0327\u0323Å\u1100\u1161\u11a8"
    "가ﬁ²ǆ\ufb1d\u0958"
    "\u212b\u2126\u200d\u00ad\ufeff\u0345\U0001d15e\U0001f600\ue000"
)
TEXTS = st.text(CHARACTERS, min_size=1, max_size=30)


@pytest.mark.parametrize("examples", [150, pytest.param(1000, marks=pytest.mark.thorough)])
def test_the_profile_of_rfc_8265_agrees(examples: int) -> None:
    """Whatever text OpaqueString of `precis-i18n` accepts, comes out byte for byte as it does."""
    profile = get_profile("OpaqueString")
    compared = 0

    @settings(max_examples=examples, suppress_health_check=[HealthCheck.filter_too_much])
    @given(TEXTS)
    @example("pass\u2003word A\u030a")
    def compare(text: str) -> None:
        nonlocal compared
        try:
            expected = profile.enforce(text)
        except UnicodeEncodeError:
            assume(False)  # it refuses more: what it calls ignorable, unassigned, or for private use
        compared += 1

        assert expected.encode("utf-8") == prepare_secret(text, new=True)

    compare()
    assert compared > examples // 5


@given(TEXTS)
def test_preparing_twice_changes_nothing(text: str) -> None:
    """What was prepared once is prepared already."""
    try:
        once = prepare_secret(text)
    except SecretError:
        assume(False)

    assert once == prepare_secret(once.decode("utf-8"))
    assert once == prepare_secret(once)


@given(TEXTS)
def test_composed_and_decomposed_are_one_secret(text: str) -> None:
    """A keyboard that sends letters and marks apart opens what one that sends them together made."""
    assume("Cc" not in {unicodedata.category(c) for c in text})
    both = {prepare_secret(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}

    assert len(both) == 1


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cn", "Zs"]), min_size=1, max_size=40))
def test_nothing_else_is_changed(text: str) -> None:
    """Case, compatibility forms and characters at the ends stay as they were typed."""
    assert unicodedata.normalize("NFC", text).encode("utf-8") == prepare_secret(text, new=True)


def test_spaces_at_the_ends_stay() -> None:
    """A secret is never trimmed."""
    assert prepare_secret("\u00a0secret \u3000") == b" secret  "


@given(st.binary(min_size=1, max_size=MAX_SIZE))
def test_bytes_are_taken_as_they_are(secret: bytes) -> None:
    """A secret of bytes is not normalised, not cut and not even decoded."""
    assert secret == prepare_secret(secret)
    assert secret == prepare_secret(bytearray(secret), new=True)


@pytest.mark.parametrize("secret", [None, 1234, ["secret"], memoryview(b"secret"), object()])
def test_another_type_is_refused(secret: object) -> None:
    """What is neither text nor bytes is refused by the name of its type, not shown."""
    with pytest.raises(SecretError, match=type(secret).__name__) as caught:
        prepare_secret(secret)  # type: ignore[arg-type]

    assert "1234" not in str(caught.value)


@pytest.mark.parametrize("secret", ["", b"", bytearray()])
def test_an_empty_secret_is_refused(secret: str | bytes) -> None:
    """An empty secret opens nothing and protects nothing."""
    with pytest.raises(SecretError, match="empty"):
        prepare_secret(secret)


@pytest.mark.parametrize("fits", ["x" * MAX_SIZE, "é" * (MAX_SIZE // 2), b"x" * MAX_SIZE])
def test_the_longest_secret_is_used_whole(fits: str | bytes) -> None:
    """1,024 bytes are accepted to the last; one more is refused, never cut."""
    longer: str | bytes = fits + (b"x" if isinstance(fits, bytes) else "x")

    assert len(prepare_secret(fits)) == MAX_SIZE
    with pytest.raises(SecretError, match="1024 bytes"):
        prepare_secret(longer)


def test_too_long_a_text_costs_no_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 4,096 characters are refused before any work is done on them; 4,096 are looked at."""
    seen = []
    plain = unicodedata.normalize

    def normalize(form: str, text: str) -> str:
        seen.append(len(text))
        return plain(form, text)

    monkeypatch.setattr(preparation.unicodedata, "normalize", normalize)
    with pytest.raises(SecretError, match="4096 characters"):
        prepare_secret("e\u0301" * 1_000_000)
    assert seen == []
    with pytest.raises(SecretError, match="1024 bytes"):
        prepare_secret("x" * MAX_CODE_POINTS)

    assert seen == [MAX_CODE_POINTS]


@pytest.mark.parametrize("bad", ["\n", "\t", "\0", "\x7f", "\x85"])
@pytest.mark.parametrize("new", [True, False])
def test_controls_are_refused(bad: str, new: bool) -> None:
    """A control character cannot be typed again everywhere; it is refused wherever it stands."""
    with pytest.raises(SecretError, match="control") as caught:
        prepare_secret(f"hunter2{bad}", new=new)

    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("new", [True, False])
def test_lone_surrogates_are_refused(new: bool) -> None:
    """A lone surrogate has no bytes; it is refused before it could fail to encode with the secret shown."""
    with pytest.raises(SecretError, match="surrogate") as caught:
        prepare_secret("hunter2\udc80", new=new)

    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None


def test_unassigned_characters_are_refused_only_when_made() -> None:
    """A character this Unicode does not know makes no new secret, but goes on opening an old one."""
    unassigned = "secret\u0378"
    assert unicodedata.category(unassigned[-1]) == "Cn"
    with pytest.raises(SecretError, match="Unicode"):
        prepare_secret(unassigned, new=True)

    assert unassigned.encode("utf-8") == prepare_secret(unassigned)
    assert unassigned.encode("utf-8") == prepare_secret(unassigned.encode("utf-8"), new=True)
