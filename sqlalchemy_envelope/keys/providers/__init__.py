"""Outside key holders: each wraps the KEKs of provider slots through a ready client, and imports no SDK."""

from sqlalchemy_envelope.keys.providers.aws_kms import AwsKms
from sqlalchemy_envelope.keys.providers.base import KeyProvider
from sqlalchemy_envelope.keys.providers.calls import ProviderCalls
from sqlalchemy_envelope.keys.providers.campaign_key import (
    CampaignKey,
    CampaignKeyFile,
    OfflineKey,
    OfflinePublicKey,
)
from sqlalchemy_envelope.keys.providers.pkcs11 import Pkcs11
from sqlalchemy_envelope.keys.providers.server import ServerKeyring
from sqlalchemy_envelope.keys.providers.vault import VaultTransit

__all__ = [
    "AwsKms",
    "CampaignKey",
    "CampaignKeyFile",
    "KeyProvider",
    "OfflineKey",
    "OfflinePublicKey",
    "Pkcs11",
    "ProviderCalls",
    "ServerKeyring",
    "VaultTransit",
]
