"""Whatever the library raises, an error tracker finds no secret, key or plaintext in its frames: not in their
local variables as these tests walk them, and not in what the Sentry SDK sends."""

import asyncio
import traceback
from collections.abc import Callable, Iterator
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import sqlalchemy_envelope as envelopes
from sqlalchemy_envelope import AsyncEnvelope, EnvelopeError, exceptions
from sqlalchemy_envelope.crypto import argon2id
from sqlalchemy_envelope.crypto.argon2id import KdfSalt
from sqlalchemy_envelope.crypto.secret import Hidden
from sqlalchemy_envelope.orm.verbs.steps import Derivation
from tests.frames import Needles, leaks, sentry_event, sentry_frames
from tests.raised import (
    by_providers,  # noqa: F401   it adds to SCENES
    by_secrets,  # noqa: F401   it adds to SCENES
    by_values,  # noqa: F401   it adds to SCENES
)
from tests.raised.by_values import locked_bulk_write
from tests.raised.scene import CHEAP, FAULTS, NEW, PLAIN, RIGHT, SCENES, WRONG, Note, Scene, User

NOT_RAISED = {
    exceptions.EnvelopeError: "what every error is; none is no more than that",
    exceptions.MigrationError: "what every error of a migration is; none is no more than that",
}


@pytest.fixture
def needles(monkeypatch: pytest.MonkeyPatch) -> Needles:
    return Needles(monkeypatch)


@pytest.fixture
def scene(tmp_path: Path, needles: Needles) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.session.close()
    made.engine.dispose()


def test_every_error_is_raised_here() -> None:
    """No class of errors is left out without a reason."""
    every = {one for one in vars(exceptions).values() if isinstance(one, type)}
    every = {one for one in every if issubclass(one, EnvelopeError)}

    assert every == {error for error, _ in SCENES} | NOT_RAISED.keys()
    assert envelopes.EnvelopeError is EnvelopeError


@pytest.mark.parametrize(
    ("error", "how"),
    SCENES,
    ids=[f"{one.__name__}-{how.__name__}-{i}" for i, (one, how) in enumerate(SCENES)],
)
def test_no_frame_of_an_error_holds_a_needle(
    scene: Scene, needles: Needles, error: type[EnvelopeError], how: Callable[[Scene], Any]
) -> None:
    """Neither the frames themselves nor what the Sentry SDK makes of them, with its defaults, show a secret,
    a key or a plaintext; and no key and no secret is in a frame of another library."""
    with pytest.raises(error) as caught:
        how(scene)
    found, count = leaks(caught.value, needles)
    event = sentry_event(caught.value)
    ours = sentry_frames(event, "sqlalchemy_envelope")
    print(f"{error.__name__}: {count} frames walked, {len(ours)} sent, {len(needles.keys)} keys")

    assert type(caught.value) is error
    assert count > 0
    assert ours
    assert found == []
    assert [frame["function"] for frame in ours if needles.in_text(str(frame.get("vars")))] == []
    others = [one for one in sentry_frames(event, "") if not (one.get("module") or "").startswith("tests.")]
    assert [
        frame["function"] for frame in others if needles.in_text(str(frame.get("vars")), plaintext=False)
    ] == []


class OwnError(Exception):
    """An application's."""


def enrolled_twice_in_the_database(at: Scene) -> None:
    at.session.expunge_all()
    at.envelope.enroll(at.session, User(id=1, phone=PLAIN), secret=RIGHT)


def raised_by_a_default(at: Scene) -> None:
    FAULTS.append(OwnError())
    with at.unlock():
        at.session.execute(insert(Note), [{"user_id": 1, "body": PLAIN}] * 2)


def raised_inside(at: Scene) -> None:
    with at.unlock() as unlocked, unlocked.using(at.ada):
        raise OwnError(at.session.get_one(Note, 1).id)


@pytest.mark.parametrize("how", [enrolled_twice_in_the_database, raised_by_a_default, raised_inside])
def test_no_frame_of_another_error_holds_a_needle(
    scene: Scene, needles: Needles, how: Callable[[Scene], None]
) -> None:
    """The same of errors that are not the library's and come through its frames."""
    with pytest.raises((OwnError, sa.exc.IntegrityError)) as caught:
        how(scene)
    found, _ = leaks(caught.value, needles)
    ours = sentry_frames(sentry_event(caught.value), "sqlalchemy_envelope")

    assert found == []
    assert not needles.in_text(str([frame.get("vars") for frame in ours]))


def test_no_frame_of_an_asynchronous_error_holds_a_needle(scene: Scene, needles: Needles) -> None:
    """The same of errors that come through threads and greenlets."""
    url = scene.engine.url.set(drivername="sqlite+aiosqlite")

    async def wrong(verb: Callable[[AsyncEnvelope, AsyncSession, User], Any]) -> BaseException:
        engine = create_async_engine(url)
        async with AsyncSession(engine) as session:
            with pytest.raises(EnvelopeError) as caught:
                await verb(AsyncEnvelope(scene.envelope), session, await session.get_one(User, 1))
        await engine.dispose()
        return caught.value

    verbs: list[Callable[[AsyncEnvelope, AsyncSession, User], Any]] = [
        lambda envelope, session, ada: envelope.unlock(session, ada, secret=WRONG),
        lambda envelope, session, ada: envelope.enroll(session, ada, secret=WRONG),
        lambda envelope, session, ada: envelope.change_secret(session, ada, old=WRONG, new=NEW),
        lambda envelope, session, ada: envelope.rebind(session, ada, secret=RIGHT + "\t"),
        lambda envelope, session, ada: envelope.unlock_unknown(secret=RIGHT),
    ]
    for verb in verbs:
        error = asyncio.run(wrong(verb))
        found, count = leaks(error, needles)

        assert count > 0
        assert found == []
        for frame in sentry_frames(sentry_event(error), "sqlalchemy_envelope"):
            assert not needles.in_text(str(frame.get("vars")))


def test_the_frames_of_a_derivation_that_failed_are_dropped(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What argon2 raises, as for want of memory, comes without its frames: they hold the prepared secret."""

    def no_memory(secret: bytes, *_: object) -> bytes:
        raise MemoryError

    monkeypatch.setattr(argon2id, "hash_secret_raw", no_memory)
    with pytest.raises(MemoryError) as caught:
        scene.unlock()
    names = [frame.f_code.co_name for frame, _ in traceback.walk_tb(caught.value.__traceback__)]

    assert "derive_kek" in names
    assert "no_memory" not in names


def test_a_derivation_is_not_looked_into() -> None:
    """Neither its items, fields or attributes nor a copy of it show the secret."""
    derivation = Derivation(RIGHT.encode(), KdfSalt.generate(CHEAP))
    hidden = Hidden(RIGHT)

    assert not hasattr(derivation, "__dict__")
    assert not isinstance(derivation, tuple)
    assert RIGHT not in repr([derivation, hidden, derivation.secret])
    assert derivation.secret.reveal() == RIGHT.encode()
    for one in (derivation, hidden):
        for spread in (copy, vars, iter, len):
            with pytest.raises(TypeError):
                spread(one)  # type: ignore[operator]


def test_frames_of_sqlalchemy_are_sent_by_default_and_left_out_by_one_option(
    scene: Scene, needles: Needles
) -> None:
    """What the threat model says: SQLAlchemy's own frames hold the rows of a statement, unless the tracker is
    told to send no local variables."""
    with pytest.raises(exceptions.LockedError) as caught:
        locked_bulk_write(scene)
    by_default = sentry_event(caught.value)
    without = sentry_event(caught.value, include_local_variables=False)

    assert needles.in_text(str(sentry_frames(by_default, "sqlalchemy.")))
    assert not needles.in_text(str(without))
