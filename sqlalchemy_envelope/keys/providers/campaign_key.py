"""The keys of campaigns: each opens the keys of owners who are away, until the owners claim them.

A campaign that is closed destroys its key.
"""

import base64
import binascii
import os
from collections.abc import Callable, Mapping
from hmac import compare_digest
from pathlib import Path
from typing import Self

from sqlalchemy_envelope.crypto import kdf
from sqlalchemy_envelope.crypto.frames import emptying
from sqlalchemy_envelope.crypto.sealing import is_usable
from sqlalchemy_envelope.crypto.secret import KEY_SIZE, KeyBytes, Uncopied
from sqlalchemy_envelope.exceptions import ConfigurationError, ProviderError
from sqlalchemy_envelope.keys.providers.base import KeyProvider
from sqlalchemy_envelope.keys.providers.server import ServerKeyring


class CampaignKeyFile(Uncopied):
    """A campaign's key in a file of its own, outside of the database and of its backups.

    Args:
        path: the file, one key in base64, readable by its owner alone. `generate` makes it.

    Raises:
        ConfigurationError: the file is missing, is open to others, or does not hold one key.
    """

    campaign = True
    local = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path).absolute()
        if not self._path.exists():
            raise ConfigurationError(
                f"There is no campaign key in {str(path)!r}. CampaignKeyFile.generate() makes one; if the "
                "campaign is closed, take its provider out of the Envelope."
            )
        self._keys: ServerKeyring | None = ServerKeyring.from_file(self._path)
        if len(self._keys.keys_by_id) != 1:
            raise ConfigurationError(f"{str(path)!r} holds several keys; a campaign has one.")
        self.reference = f"file:{self._keys.active[0].hex()}"

    @classmethod
    def generate(cls, path: str | os.PathLike[str]) -> Self:
        """Make a fresh key, in a file that does not exist yet.

        Raises:
            ConfigurationError: the file exists, or cannot be made.
        """
        try:
            file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"No campaign key can be made in {str(path)!r}: {error.strerror}."
            ) from None
        with os.fdopen(file, "w", encoding="ascii") as opened:
            opened.write(ServerKeyring.generate_key() + "\n")
            opened.flush()
            os.fsync(opened.fileno())
        _sync_folder(Path(path))
        return cls(path)

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Wrap a key as `ServerKeyring.wrap` does.

        Raises:
            ProviderError: the key of the campaign is destroyed.
        """
        return self._at_hand().wrap(key, context)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Unwrap a key as `ServerKeyring.unwrap` does.

        Raises:
            ProviderError: the key of the campaign is destroyed.
        """
        return self._at_hand().unwrap(wrapped, context)

    def destroy(self) -> None:
        """Overwrite the file with zeros, delete it, and forget the key. It may be called again.

        No program can promise that a file system overwrote the blocks of the key. A file system that writes
        elsewhere (copy on write, a journal of data, snapshots), a solid-state disk and a backup of the folder
        keep what they have; so do other machines that the file was copied to.
        """
        try:
            with self._path.open("r+b") as file:
                size = os.fstat(file.fileno()).st_size
                file.write(bytes(size))
                file.flush()
                os.fsync(file.fileno())
            self._path.unlink()
        except FileNotFoundError:
            pass
        else:
            _sync_folder(self._path)
        self._keys = None

    def _at_hand(self) -> ServerKeyring:
        if self._keys is None:
            raise ProviderError("The key of this campaign is destroyed.")
        return self._keys

    def __repr__(self) -> str:
        return f"<CampaignKeyFile {str(self._path)!r}>"


class OfflinePublicKey:
    """The public half of a key that custodians keep: the server seals keys to it and opens none.

    Args:
        public_key: `OfflineKey.public_key`, 32 bytes of X25519 (RFC 7748).

    Raises:
        ConfigurationError: nothing can be sealed to this public key.
    """

    campaign = True
    local = True
    can_open = False

    def __init__(self, public_key: bytes) -> None:
        if not isinstance(public_key, (bytes, bytearray)) or len(public_key) != KEY_SIZE:
            raise ConfigurationError(f"The public half of an offline key has {KEY_SIZE} bytes.")
        if not is_usable(bytes(public_key)):
            raise ConfigurationError(
                "This is not a usable public key; take it from OfflineKey(...).public_key."
            )
        self.kek_public_key = bytes(public_key)

    @property
    def reference(self) -> str:
        """`offline:` and the public key."""
        return f"offline:{self.kek_public_key.hex()}"

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Refuse: root keys are sealed to the public key itself."""
        raise ProviderError("An offline key wraps nothing; root keys are sealed to it.")

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Refuse: the private half is not here."""
        raise ProviderError("The private half of this offline key is with its custodians, not here.")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.kek_public_key.hex()[:8]}>"


class OfflineKey(OfflinePublicKey, Uncopied):
    """Both halves of an offline key. Use it only where custodians release what was claimed.

    Args:
        private: the private half: 32 bytes, or their base64 text as `generate` made it.

    Raises:
        ConfigurationError: this is neither.
    """

    can_open = True

    @emptying
    def __init__(self, private: bytes | str) -> None:
        self._key = KeyBytes(_private_bytes(private))
        super().__init__(kdf.x25519_public(self._key))

    @staticmethod
    def generate() -> str:
        """Make the text of a fresh key, for custodians; the server gets `OfflineKey(text).public_key`."""
        return base64.b64encode(os.urandom(KEY_SIZE)).decode("ascii")

    @property
    def public_key(self) -> bytes:
        """The public half, 32 bytes, for `OfflinePublicKey`."""
        return self.kek_public_key

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """The private half itself: it is the KEK of the slots that name its public half.

        Raises:
            ProviderError: the slot names another offline key.
        """
        if not compare_digest(wrapped, self.kek_public_key):
            raise ProviderError("A key slot is sealed to another offline key.")
        return bytes(self._key.buffer)


class CampaignKey:
    """Any provider as the key of a campaign, such as a key in AWS KMS or Vault that is made for it.

    Args:
        provider: the provider to call.
        destroy: a function that makes the outside key useless for ever. Left out, it is the provider's own
            `destroy`. Without either, the report of the campaign says that a person has to do it.
    """

    campaign = True

    def __init__(self, provider: KeyProvider, destroy: Callable[[], object] | None = None) -> None:
        self._provider = provider
        self._destroy: Callable[[], object] | None = destroy or getattr(provider, "destroy", None)

    @property
    def reference(self) -> str:
        """The provider's reference."""
        return self._provider.reference

    @property
    def local(self) -> bool:
        """Whether the provider is local."""
        return self._provider.local

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Wrap a key as the provider does."""
        return self._provider.wrap(key, context)

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Unwrap a key as the provider does."""
        return self._provider.unwrap(wrapped, context)

    def is_transient(self, error: Exception) -> bool:
        """The provider's answer; False if it has no `is_transient`."""
        is_transient: Callable[[Exception], bool] | None = getattr(self._provider, "is_transient", None)
        return is_transient is not None and is_transient(error)

    @property
    def destroy(self) -> Callable[[], object] | None:
        """The function that destroys the outside key; None if a person has to."""
        return self._destroy

    def __repr__(self) -> str:
        return f"<CampaignKey {self._provider!r}>"


def _private_bytes(private: object) -> bytes:
    try:
        data = base64.b64decode(private, validate=True) if isinstance(private, str) else private
    except (binascii.Error, ValueError):
        data = b""
    if not isinstance(data, (bytes, bytearray)) or len(data) != KEY_SIZE:
        raise ConfigurationError(f"An offline key is {KEY_SIZE} bytes, or their base64 text.")
    return bytes(data)


def _sync_folder(path: Path) -> None:
    """Make the creation or the deletion of a file durable (POSIX only: Windows opens no folders)."""
    if os.name == "posix":
        folder = os.open(path.absolute().parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
