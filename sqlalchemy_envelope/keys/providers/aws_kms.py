"""AWS KMS: KMS itself wraps the key, and CloudTrail records each use of it with its context."""

from collections.abc import Mapping
from typing import Any

_PASSING = {
    "DependencyTimeoutException",
    "KMSInternalException",
    "KeyUnavailableException",
    "RequestTimeout",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
}


class AwsKms:
    """A symmetric KMS key, called through a client that boto3 made.

    Args:
        client: `boto3.client("kms")`. It is safe to share between threads.
        key_id: the key, best by its ARN. KMS rotates the key behind an ARN and goes on decrypting. An alias
            that is pointed at another key does not open what the first key wrapped.
    """

    local = False

    def __init__(self, client: Any, key_id: str) -> None:
        self._client = client
        self.reference = key_id

    def wrap(self, key: bytes, context: Mapping[str, str]) -> bytes:
        """Encrypt a key of 32 bytes; KMS binds it to the context as its encryption context."""
        answer = self._client.encrypt(KeyId=self.reference, Plaintext=key, EncryptionContext=dict(context))
        wrapped: bytes = answer["CiphertextBlob"]
        return wrapped

    def unwrap(self, wrapped: bytes, context: Mapping[str, str]) -> bytes:
        """Decrypt under the same context.

        The call names the key: without a name KMS takes whichever key the blob names, and an attacker's blob
        may name a key in the attacker's account.
        """
        answer = self._client.decrypt(
            KeyId=self.reference, CiphertextBlob=wrapped, EncryptionContext=dict(context)
        )
        key: bytes = answer["Plaintext"]
        return key

    def destroy(self) -> str:
        """Have KMS delete the key, to end a campaign (`CampaignKey`); the text tells what is left to do."""
        answer = self._client.schedule_key_deletion(KeyId=self.reference, PendingWindowInDays=7)
        until = f"{answer['DeletionDate']:%Y-%m-%d}"
        return f"KMS deletes {self.reference} on {until}; until then it can be brought back."

    def is_transient(self, error: Exception) -> bool:
        """Whether KMS throttled, failed or was not reached; known by names, as botocore is not imported."""
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return status >= 500 or response.get("Error", {}).get("Code") in _PASSING
        return not {base.__name__ for base in type(error).__mro__}.isdisjoint(
            {"ConnectionError", "HTTPClientError"}
        )

    def __repr__(self) -> str:
        return f"<AwsKms {self.reference!r}>"
