"""Providers are handed clients that are ready: importing them imports no SDK."""

import subprocess
import sys

SDKS = ["boto3", "botocore", "hvac", "requests", "pkcs11"]


def test_providers_import_no_sdk() -> None:
    """With every SDK out of reach all providers are imported, and made where their client is given."""
    program = f"""
import sys
sys.modules.update(dict.fromkeys({SDKS!r}))
from sqlalchemy_envelope.keys.providers import AwsKms, Pkcs11, ServerKeyring, VaultTransit
ring = ServerKeyring([bytes(32)])
made = [AwsKms(None, "key"), VaultTransit(None, "key"), Pkcs11(None, "key"), ring]
print([one.local for one in made])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)

    assert (done.stderr, done.stdout.strip()) == ("", "[False, False, False, True]")
