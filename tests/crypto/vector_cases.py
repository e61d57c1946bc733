"""The cases of the files of test vectors."""

import json
from pathlib import Path
from typing import Any

from sqlalchemy_envelope.keys.providers import ServerKeyring

VECTORS = Path(__file__).parent.parent / "vectors"
Case = dict[str, Any]


def load(name: str) -> list[Case]:
    cases: list[Case] = json.loads((VECTORS / f"{name}.json").read_text("ascii"))["cases"]
    return cases


def server_keyring(case: Case) -> ServerKeyring:
    return ServerKeyring([bytes.fromhex(text) for text in case["server_keys"]])
