"""What raises at a provider or a key file."""

import time
from collections.abc import Callable
from pathlib import Path

from sqlalchemy_envelope import CampaignKeyFile, OfflineKey, ServerKeyring, exceptions
from tests.raised.scene import PLAIN, RIGHT, SERVER_KEY, Scene, User, raises

# ------------------------------------------------------------------ providers


def by_provider(at: Scene) -> None:
    at.again(providers={"kms": at.kms})
    at.envelope.unlock(at.session, at.ada, provider="kms", reason="a test")


def failing(how: Callable[[bytes], bytes]) -> Callable[[Scene], None]:
    def scene(at: Scene) -> None:
        at.kms.fails = how
        by_provider(at)

    return scene


def printing(key: bytes) -> bytes:
    raise ValueError(f"this key: {key!r}, {key.hex()}")


class UnprintableError(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no")


def unprintable(key: bytes) -> bytes:
    raise UnprintableError(key)


for how in (printing, unprintable, lambda key: key + b"\n", lambda key: [key], lambda key: key[::-1]):
    raises(exceptions.ProviderError)(failing(how))  # type: ignore[arg-type]


@raises(exceptions.ProviderError)
def key_not_wrapped(at: Scene) -> None:
    at.again(providers={"kms": at.kms})
    at.kms.fails = printing
    at.envelope.enroll(at.session, User(phone=PLAIN), secret=RIGHT, provider="kms")


@raises(exceptions.ProviderError)
def key_in_an_error_without_repr(at: Scene) -> None:
    at.again(providers={"kms": at.kms})
    at.kms.fails = unprintable
    at.envelope.enroll(at.session, User(phone=PLAIN), secret=RIGHT, provider="kms")


@raises(exceptions.ProviderTimeoutError)
def provider_too_slow(at: Scene) -> None:
    at.kms.local = False

    def slow(key: bytes) -> bytes:
        time.sleep(0.2)
        return key

    at.kms.fails = slow
    at.again(providers={"kms": at.kms}, provider_timeout=0.01, provider_retries=0)
    at.envelope.unlock(at.session, at.ada, provider="kms", reason="a test")


@raises(exceptions.ConfigurationError)
def unknown_provider(at: Scene) -> None:
    at.envelope.unlock(at.session, at.ada, provider="other", reason="a test")


@raises(exceptions.ConfigurationError)
def server_key_cut_short(at: Scene) -> None:
    ServerKeyring([SERVER_KEY, RIGHT.encode()])


@raises(exceptions.ConfigurationError)
def server_keys_as_one_text(at: Scene) -> None:
    ServerKeyring(RIGHT)  # type: ignore[arg-type]


@raises(exceptions.ConfigurationError)
def server_key_in_text(at: Scene) -> None:
    ServerKeyring([RIGHT])  # type: ignore[list-item]


@raises(exceptions.ConfigurationError)
def server_key_twice(at: Scene) -> None:
    ServerKeyring([SERVER_KEY, SERVER_KEY])


def _file_of(at: Scene, text: str) -> Path:
    path = at.folder / "keys"
    path.touch(0o600)
    path.write_text(text)
    return path


@raises(exceptions.ConfigurationError)
def file_with_something_else(at: Scene) -> None:
    good = ServerKeyring.generate_key()
    ServerKeyring.from_file(_file_of(at, f"{good}\n{RIGHT}\n"))


@raises(exceptions.ConfigurationError)
def campaign_file_with_something_else(at: Scene) -> None:
    CampaignKeyFile(_file_of(at, RIGHT))


@raises(exceptions.ConfigurationError)
def offline_key_cut_short(at: Scene) -> None:
    OfflineKey(RIGHT.encode())
