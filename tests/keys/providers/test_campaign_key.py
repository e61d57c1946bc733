"""A campaign's key: made in a file of its own, refused where others may read it, gone when destroyed; an
offline key seals with its public half and opens with the private one alone.
"""

import copy
import os
import pickle
from pathlib import Path

import pytest

from sqlalchemy_envelope import ConfigurationError, ProviderError, ServerKeyring, TransactionConflictError
from sqlalchemy_envelope.crypto.kdf import x25519_public
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.hierarchy import describe
from sqlalchemy_envelope.keys.model import Purpose
from sqlalchemy_envelope.keys.providers import (
    CampaignKey,
    CampaignKeyFile,
    KeyProvider,
    OfflineKey,
    OfflinePublicKey,
    ProviderCalls,
)
from sqlalchemy_envelope.keys.slots import ProviderKek, provider_slot

KEK = b"\x17" * 32
CONTEXT = {"library": "sqlalchemy-envelope/v1", "kek": "6b" * 32}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the key is to be."""
    return tmp_path / "campaign.key"


# ---------------------------------------------------------------- in a file


def test_what_is_wrapped_unwraps_after_a_restart(path: Path) -> None:
    """Another process that reads the same file opens what the first one wrapped, and names the same key."""
    first = CampaignKeyFile.generate(path)
    wrapped = first.wrap(KEK, CONTEXT)
    again: KeyProvider = CampaignKeyFile(path)

    assert again.unwrap(wrapped, CONTEXT) == KEK
    assert again.reference == first.reference
    assert again.reference.startswith("file:")


def test_a_key_is_readable_by_its_owner_alone(path: Path) -> None:
    """The file that is made is open to nobody else, and one that is has to be closed first."""
    CampaignKeyFile.generate(path)

    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(ConfigurationError, match="open to others"):
        CampaignKeyFile(path)


def test_a_key_is_not_overwritten(path: Path) -> None:
    """A second `generate` would make all that is under the first key unreadable: it is refused."""
    CampaignKeyFile.generate(path)
    before = path.read_bytes()

    with pytest.raises(ConfigurationError, match="File exists"):
        CampaignKeyFile.generate(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "no base64 !", "AAAA", "{0}\n{1}\n"])
def test_a_file_with_anything_but_one_key_is_refused(path: Path, content: str) -> None:
    """Nothing, nonsense, a short key or several keys are told at once, when the application starts."""
    path.touch(0o600)
    path.write_text(content.format(ServerKeyring.generate_key(), ServerKeyring.generate_key()))

    with pytest.raises(ConfigurationError):
        CampaignKeyFile(path)


def test_a_missing_file_says_what_to_do(path: Path) -> None:
    """After the campaign the file is gone, and the message says to take the provider away."""
    with pytest.raises(ConfigurationError, match="take its provider out"):
        CampaignKeyFile(path)


def test_a_destroyed_key_is_gone(path: Path) -> None:
    """After `destroy` there is no file, and the process that had the key opens and wraps nothing any more."""
    key = CampaignKeyFile.generate(path)
    wrapped = key.wrap(KEK, CONTEXT)

    key.destroy()
    key.destroy()

    assert not path.exists()
    with pytest.raises(ProviderError, match="destroyed"):
        key.unwrap(wrapped, CONTEXT)
    with pytest.raises(ProviderError, match="destroyed"):
        key.wrap(KEK, CONTEXT)


def test_a_destroyed_key_is_overwritten_in_place(path: Path, tmp_path: Path) -> None:
    """A second name of the same file shows zeros: the bytes were overwritten before the unlink."""
    key = CampaignKeyFile.generate(path)
    other = tmp_path / "other"
    os.link(path, other)
    size = other.stat().st_size

    key.destroy()

    assert other.read_bytes() == bytes(size)


# ---------------------------------------------------------------- offline


def test_the_public_half_opens_nothing() -> None:
    """Where the public half alone is configured there is no way back to a key."""
    public = OfflinePublicKey(OfflineKey(OfflineKey.generate()).public_key)
    calls = ProviderCalls(public, "campaign")

    assert not calls.can_open
    assert calls.is_campaign
    with pytest.raises(ProviderError):
        public.unwrap(public.kek_public_key, CONTEXT)
    with pytest.raises(ProviderError):
        public.wrap(KEK, CONTEXT)


def test_the_private_half_is_the_kek() -> None:
    """It answers with itself for a slot that names its public half, and for no other."""
    key, other = OfflineKey(KEK), OfflineKey(OfflineKey.generate())

    assert key.unwrap(key.public_key, CONTEXT) == KEK
    with pytest.raises(ProviderError, match="another offline key"):
        key.unwrap(other.public_key, CONTEXT)


@pytest.mark.parametrize("public", [b"", b"\0" * 31, "0" * 32, bytes(32), b"\x01" + bytes(31)])
def test_a_public_key_that_nothing_can_be_sealed_to_is_refused(public: bytes) -> None:
    """Another length, another type, or a point of low order, is told at the start."""
    with pytest.raises(ConfigurationError):
        OfflinePublicKey(public)


@pytest.mark.parametrize("private", ["", "no base64 !", "AAAA", b"short"])
def test_a_private_key_of_another_size_is_refused(private: bytes | str) -> None:
    """A key that was cut short when somebody copied it is told at once."""
    with pytest.raises(ConfigurationError):
        OfflineKey(private)


# ---------------------------------------------------------------- any provider


class Remote:
    """A provider over a network, as it were."""

    local = False
    reference = "remote/1"

    def __init__(self) -> None:
        self._keys = ServerKeyring([KEK])
        self.destroyed = 0

    def wrap(self, key: bytes, context: object) -> bytes:
        return self._keys.wrap(key, CONTEXT)

    def unwrap(self, wrapped: bytes, context: object) -> bytes:
        return self._keys.unwrap(wrapped, CONTEXT)

    def is_transient(self, error: Exception) -> bool:
        return isinstance(error, KeyError)

    def destroy(self) -> None:
        self.destroyed += 1


def test_any_provider_becomes_a_campaigns() -> None:
    """The wrapper passes everything on, and marks the provider."""
    remote = Remote()
    key = CampaignKey(remote)

    assert key.unwrap(key.wrap(KEK, CONTEXT), CONTEXT) == KEK
    assert (key.reference, key.local, key.campaign) == ("remote/1", False, True)
    assert key.is_transient(KeyError())
    assert not key.is_transient(ValueError())
    assert key.destroy is not None
    key.destroy()
    assert remote.destroyed == 1


def test_what_destroys_the_key_can_be_given() -> None:
    """A function of the application is called in place of the provider's own."""
    remote, called = Remote(), []
    key = CampaignKey(remote, destroy=lambda: called.append(1))

    assert key.destroy is not None
    key.destroy()
    assert called == [1]
    assert remote.destroyed == 0


def test_a_provider_without_it_leaves_it_to_a_person() -> None:
    """A keyring has no `destroy`, and none is made up."""
    assert CampaignKey(ServerKeyring([KEK])).destroy is None


def test_nothing_is_wrapped_under_a_key_that_was_wiped() -> None:
    """A slot under 32 zeros would be open to everybody: a campaign that is closed meanwhile makes none."""
    kek, root = KeyBytes.generate(), describe(KeyBytes.generate(), b"owner", Purpose.ROOT)
    shared = ProviderKek("campaign file:1", b"\x14-", x25519_public(kek), kek)
    provider_slot(root, shared)

    kek.wipe()

    with pytest.raises(TransactionConflictError, match="wiped"):
        provider_slot(root, shared)


def test_no_key_is_shown_copied_or_pickled(path: Path) -> None:
    """What holds a private key neither prints it nor leaves it in a pickle."""
    text = OfflineKey.generate()
    for key in (CampaignKeyFile.generate(path), OfflineKey(text)):
        assert path.read_text().strip() not in repr(key)
        assert text not in repr(key)
        with pytest.raises(TypeError):
            pickle.dumps(key)
        with pytest.raises(TypeError):
            copy.copy(key)
    assert "redacted" in repr(KeyBytes.generate())
