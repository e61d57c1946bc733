"""What an error tracker can see of an error: the local variables of every frame, and what they lead to."""

import base64
import json
import types
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import pytest
import sentry_sdk

import sqlalchemy_envelope
from sqlalchemy_envelope.crypto import argon2id, wrapping
from sqlalchemy_envelope.crypto.secret import KeyBytes

PACKAGE = str(Path(sqlalchemy_envelope.__file__).parent)
DEPTH = 7
_OPAQUE = (type, types.ModuleType, types.FunctionType, types.FrameType, types.TracebackType, types.CodeType)


class Needles:
    """What must not be found: texts, and every key that was made, derived or opened meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.secrets = ["needle-right", "needle-wrong", "needle-new"]
        self.secrets += ["needle-recovery-code", "DSJP-AS3C-CMPQ"]
        self.plaintexts = ["needle-plaintext", "4711471147"]
        self.keys: set[bytes] = set()
        make, derive, stretch = KeyBytes.__init__, wrapping._derive, argon2id.hash_secret_raw

        def made(key: KeyBytes, data: bytes) -> None:
            self.keys.add(bytes(data))
            make(key, data)

        def derived(*arguments: Any) -> Any:
            found = derive(*arguments)
            self.keys.add(found[0])
            return found

        def stretched(*arguments: Any) -> bytes:
            found = stretch(*arguments)
            self.keys.add(found)
            return found

        monkeypatch.setattr(KeyBytes, "__init__", made)
        monkeypatch.setattr(wrapping, "_derive", derived)
        monkeypatch.setattr(argon2id, "hash_secret_raw", stretched)

    def texts(self, *, plaintext: bool) -> list[str]:
        """The needles that are text."""
        return [*self.secrets, *(self.plaintexts if plaintext else [])]

    def in_text(self, text: str, *, plaintext: bool = True) -> bool:
        """Whether a text shows one."""
        if any(one in text for one in self.texts(plaintext=plaintext)):
            return True
        spelt = (
            one for key in self.keys for one in (key.hex(), repr(key)[2:-1], base64.b64encode(key).decode())
        )
        return any(one in text for one in spelt)

    def in_bytes(self, data: bytes, *, plaintext: bool) -> bool:
        """Whether bytes hold one."""
        return any(one.encode() in data for one in self.texts(plaintext=plaintext)) or any(
            key in data for key in self.keys
        )


def chain(error: BaseException) -> list[BaseException]:
    """An error with all that is chained to it, suppressed or not."""
    found = [error]
    for link in found:
        found += [
            one
            for one in (link.__cause__, link.__context__)
            if one is not None and not any(one is known for known in found)
        ]
    return found


def frames_of(error: BaseException) -> Iterator[types.FrameType]:
    """Every frame of this library that an error came through."""
    for link in chain(error):
        traceback = link.__traceback__
        while traceback is not None:
            if traceback.tb_frame.f_code.co_filename.startswith(PACKAGE):
                yield traceback.tb_frame
            traceback = traceback.tb_next


def leaks(error: BaseException, needles: Needles) -> tuple[list[str], int]:
    """Where a needle is found in the frames of this library, and how many frames there are."""
    found, count = [], 0
    for frame in frames_of(error):
        count += 1
        for name, value in frame.f_locals.items():
            path = f"{frame.f_code.co_qualname}: {name}"
            found += _search(value, path, needles, DEPTH, set(), own=True)
    return found, count


def _search(value: Any, path: str, needles: Needles, depth: int, seen: set[int], *, own: bool) -> list[str]:
    """Plaintext in the objects of an application and of SQLAlchemy is theirs (`own` is false): they are
    printed by their own `repr`, which is asked. Secrets and keys are nobody's to show, however deep."""
    if id(value) in seen or isinstance(value, _OPAQUE) or value is None or isinstance(value, (bool, float)):
        return []
    seen.add(id(value))
    if isinstance(value, (str, int)):
        return [path] if needles.in_text(str(value), plaintext=own) else []
    if isinstance(value, (bytes, bytearray, memoryview)):
        return [path] if needles.in_bytes(bytes(value), plaintext=own) else []
    module = type(value).__module__
    if module.startswith("tests."):
        return [path] if own and needles.in_text(repr(value)) else []
    if depth == 0:
        return []
    inner: list[tuple[str, Any]] = []
    if isinstance(value, Mapping):
        inner += [(f"[{number}]", one) for number, pair in enumerate(list(value.items())) for one in pair]
    elif isinstance(value, (list, tuple, Set)):
        inner += [(f"[{number}]", one) for number, one in enumerate(list(value))]
    else:
        own = own and not module.startswith("sqlalchemy.")
        if own and needles.in_text(repr(value)):
            return [f"repr({path})"]
        inner += [(f".{name}", one) for name, one in _attributes(value).items()]
    found = []
    for name, one in inner:
        found += _search(one, path + name, needles, depth - 1, seen, own=own)
    return found


def _attributes(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    try:
        found |= object.__getattribute__(value, "__dict__")
    except AttributeError:
        pass  # it has slots
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            try:
                found[name] = object.__getattribute__(value, name)
            except AttributeError:
                continue
    return found


class _Kept(sentry_sdk.transport.Transport):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []

    def capture_envelope(self, envelope: Any) -> None:
        self.events += [item.payload.json for item in envelope.items if item.payload.json is not None]


def sentry_event(error: BaseException, **options: Any) -> Any:
    """The event that the Sentry SDK sends for an error, with its own defaults."""
    kept = _Kept()
    client = sentry_sdk.Client(
        dsn="http://key@localhost/1", transport=kept, default_integrations=False, **options
    )
    event, hint = sentry_sdk.utils.event_from_exception(
        (type(error), error, error.__traceback__), client_options=client.options
    )
    client.capture_event(event, hint=hint)
    client.flush()
    (sent,) = kept.events
    return json.loads(json.dumps(sent))


def sentry_frames(event: Any, prefix: str) -> list[Any]:
    """The frames of an event whose module begins so."""
    return [
        frame
        for value in event["exception"]["values"]
        for frame in value.get("stacktrace", {}).get("frames", [])
        if (frame.get("module") or "").startswith(prefix)
    ]
