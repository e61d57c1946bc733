"""A recovery code finds its key however it is typed; a typo in it is found, located, and never corrected."""

import pickle
import random

import pytest

from sqlalchemy_envelope.crypto import recovery_code
from sqlalchemy_envelope.crypto.recovery_code import hide_code, kek_of_code, new_code
from sqlalchemy_envelope.exceptions import RecoveryCodeError
from tests.frames import sentry_event

SYMBOLS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def refusal(text: str) -> str:
    with pytest.raises(RecoveryCodeError) as caught:
        kek_of_code(hide_code(text))
    return str(caught.value)


def test_every_wrong_symbol_is_found_and_located() -> None:
    """Each of the 36 symbols, exchanged for each of the 31 others, is refused with the group it is in."""
    code = str(new_code()).replace("-", "")
    for at in range(36):
        for other in SYMBOLS.replace(code[at], ""):
            message = refusal(code[:at] + other + code[at + 1 :])

            assert f"probably in its group {at // 4 + 1}." in message


def test_neighbours_that_changed_places_are_found() -> None:
    """Two neighbours that changed places are refused, wherever they are."""
    symbols = random.Random(1)
    for _ in range(20):
        code = recovery_code._text(symbols.randbytes(20)).replace("-", "")
        for at in range(35):
            if code[at] != code[at + 1]:
                assert "mistyped" in refusal(code[:at] + code[at + 1] + code[at] + code[at + 2 :])


def test_any_two_wrong_symbols_are_found() -> None:
    """No two changes anywhere in the code cancel out: of single changes, no two leave the same rest."""
    prime = recovery_code._PRIME
    rests = {
        change * pow(32, place, prime) % prime
        for place in range(36)
        for change in (*range(-31, 0), *range(1, 32))
    }

    assert len(rests) == 36 * 62
    assert 0 not in rests
    code = str(new_code())
    typos = random.Random(2)
    for _ in range(2_000):
        text = list(code.replace("-", ""))
        for at in typos.sample(range(36), 2):
            text[at] = typos.choice(SYMBOLS.replace(text[at], ""))
        assert "mistyped" in refusal("".join(text))


def test_codes_are_random() -> None:
    """A thousand codes are a thousand texts, and every symbol stands at every place of the random part."""
    codes = [str(new_code()).replace("-", "") for _ in range(1_000)]

    assert len(set(codes)) == 1_000
    assert [set(SYMBOLS)] * 32 == [set(place) for place in list(zip(*codes, strict=True))[:32]]


def test_a_code_shows_itself_on_request_alone() -> None:
    """`str` is the text; `repr`, a container, a pickle and the variables of a frame have none of it."""
    code = new_code()
    text = str(code)
    parts = {text, text.replace("-", ""), *text.split("-")[:3]}

    assert text == f"{code}"
    assert len(text) == 44
    for shown in (repr(code), f"{code!r}", repr([code]), repr({"code": code})):
        assert not any(part in shown for part in parts)
    with pytest.raises(TypeError):
        pickle.dumps(code)

    def show(code: object) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError) as caught:
        show(code)
    del text
    frames = str(sentry_event(caught.value)["exception"]["values"][-1]["stacktrace"]["frames"][-1])
    assert "redacted" in frames
    assert not any(part in frames for part in parts)


@pytest.mark.parametrize("given", [None, b"bytes", 1, ["text"]])
def test_a_code_is_text(given: object) -> None:
    """What is no text is refused as a code, with its type and nothing of it."""
    message = refusal(given)  # type: ignore[arg-type]

    assert f"is text, not {type(given).__name__}." in message
