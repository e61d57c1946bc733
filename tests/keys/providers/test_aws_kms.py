"""`AwsKms` with boto3 over HTTP against moto's server, which speaks the protocol of AWS KMS."""

from collections.abc import Iterator
from hashlib import sha512
from typing import Any

import pytest

from sqlalchemy_envelope import ProviderError
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.providers import AwsKms, KeyProvider, ProviderCalls

boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto[server] is not installed")

RAW = sha512(b"kek").digest()[:32]
CONTEXT = {"library": "sqlalchemy-envelope/v1", "kek": "6b" * 32}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of a KMS of this module's own."""
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(address: str) -> Iterator[Any]:
    """A client of that KMS; it does not try again, so that our own tries can be counted."""
    from botocore.config import Config

    client = boto3.client(
        "kms",
        endpoint_url=address,
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1}),
    )
    yield client
    client.close()


def calls_of(client: Any, key_id: str) -> ProviderCalls:
    """Calls to one KMS key, with next to no pauses."""
    return ProviderCalls(AwsKms(client, key_id), "aws", timeout=10, backoff=0.001)


def new_key(client: Any) -> str:
    """The ARN of a new KMS key."""
    arn: str = client.create_key()["KeyMetadata"]["Arn"]
    return arn


def requests_of(client: Any) -> list[str]:
    """The operations that a client asks for from now on."""
    made: list[str] = []
    client.meta.events.register("before-send.kms", lambda request, **_: made.append(request.url))
    return made


def test_a_key_goes_to_kms_and_back(client: Any) -> None:
    """A key comes back under its context, and the reference is the ARN."""
    arn = new_key(client)
    provider: KeyProvider = AwsKms(client, arn)
    blob = calls_of(client, arn).wrap(KeyBytes(RAW), CONTEXT)

    assert (arn, False) == (provider.reference, provider.local)
    assert blob[:1] == b"\x14"
    assert RAW not in blob
    assert KeyBytes(RAW) == calls_of(client, arn).unwrap(blob, dict(reversed(CONTEXT.items())))
    assert repr(provider) == f"<AwsKms {arn!r}>"


def test_kms_binds_to_the_context(client: Any) -> None:
    """With another encryption context KMS refuses; it is not asked again."""
    calls = calls_of(client, new_key(client))
    blob = calls.wrap(KeyBytes(RAW), CONTEXT)
    made = requests_of(client)
    with pytest.raises(ProviderError) as caught:
        calls.unwrap(blob, CONTEXT | {"kek": "6c" * 32})

    assert "InvalidCiphertextException" in str(caught.value)
    assert len(made) == 1


def test_another_kms_key_opens_nothing(client: Any) -> None:
    """The key is named when it unwraps: a blob that somebody wrapped under a key of theirs is refused."""
    blob = calls_of(client, new_key(client)).wrap(KeyBytes(RAW), CONTEXT)
    with pytest.raises(ProviderError, match="did not unwrap a key: ClientError"):
        calls_of(client, new_key(client)).unwrap(blob, CONTEXT)


def test_an_altered_blob_opens_nothing(client: Any) -> None:
    """KMS authenticates what it wrapped."""
    calls = calls_of(client, new_key(client))
    blob = bytearray(calls.wrap(KeyBytes(RAW), CONTEXT))
    blob[-1] ^= 1
    with pytest.raises(ProviderError):
        calls.unwrap(bytes(blob), CONTEXT)


def test_a_key_that_is_not_there_is_a_refusal(client: Any) -> None:
    """A wrong ARN is told by KMS once, and its answer is the cause."""
    made = requests_of(client)
    with pytest.raises(ProviderError, match="NotFoundException") as caught:
        calls_of(client, "arn:aws:kms:eu-central-1:123456789012:key/none").wrap(KeyBytes(RAW), CONTEXT)

    assert len(made) == 1
    assert "NotFoundException" in str(caught.value.__cause__)


def test_kms_that_is_down_is_tried_again(client: Any) -> None:
    """No connection may pass, and is a `ProviderError` after three tries."""
    down = boto3.client(
        "kms",
        endpoint_url="http://127.0.0.1:1",
        region_name="eu-central-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
        config=client.meta.config.merge(client.meta.config),
    )
    made = requests_of(down)
    with pytest.raises(ProviderError, match="EndpointConnectionError"):
        calls_of(down, "alias/app").wrap(KeyBytes(RAW), CONTEXT)
    down.close()

    assert len(made) == 3


@pytest.mark.parametrize(
    ("code", "status", "passes"),
    [
        ("ThrottlingException", 400, True),
        ("KMSInternalException", 500, True),
        ("InternalFailure", 503, True),
        ("AccessDeniedException", 400, False),
        ("DisabledException", 400, False),
    ],
)
def test_what_may_pass(code: str, status: int, passes: bool) -> None:
    """Throttling and KMS's own errors may pass; refusals do not."""
    from botocore.exceptions import ClientError, ParamValidationError

    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}

    assert passes is AwsKms(None, "app").is_transient(ClientError(answer, "Encrypt"))
    assert not AwsKms(None, "app").is_transient(ParamValidationError(report="what was given"))


def test_a_destroyed_key_waits_for_its_deletion(client: Any) -> None:
    """At the end of a campaign KMS is told to delete the key, and the report says until when it waits."""
    key_id = new_key(client).rpartition("/")[2]  # of the two that KMS takes here, moto takes this one

    assert "can be brought back" in AwsKms(client, key_id).destroy()

    assert client.describe_key(KeyId=key_id)["KeyMetadata"]["KeyState"] == "PendingDeletion"
