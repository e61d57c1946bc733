"""What an error has to be, to help."""

from sqlalchemy_envelope import EnvelopeError
from sqlalchemy_envelope.exceptions import DOCUMENTATION


def assert_helpful(error: EnvelopeError, *, says: str, hides: str | None = None) -> None:
    """The message has one sentence of cause and cure, and the code by which the reference is found."""
    text = str(error)
    assert says.lower() in text.lower()
    assert f"[{error.code}: {DOCUMENTATION}/reference/errors.html#{error.code}]" in text
    if hides:
        assert hides not in text
