"""What the attacks on sharing assert, and the rows that several of them plant."""

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import Envelope, EnvelopeError, LockedError, RowSealError
from sqlalchemy_envelope.keys.providers import ServerKeyring
from tests.orm import outsider as spec
from tests.orm.outsider import THEIRS, Group, Post, Scene, User, set_scene


def scene_from(templates: dict[Any, bytes], engine: Engine, envelope: Envelope) -> Scene:
    path = Path(str(engine.url.database))
    if envelope not in templates:
        set_scene(engine, envelope)
        engine.dispose()
        templates[envelope] = path.read_bytes()
    path.write_bytes(templates[envelope])
    return Scene(engine, envelope, spec.Outsider(engine))


def assert_group_refused(scene: Scene, user: int, error: type[EnvelopeError], group: int = THEIRS) -> None:
    """A member reads their own data as ever, and is told why the group's rows do not open."""
    with scene.unlocked(user) as session:
        assert session.get_one(User, user).diary is not None
        with pytest.raises(error) as refused:
            first_post(session, group)
        assert not isinstance(refused.value, LockedError)
        session.add(Post(group_id=group, text="not to be written"))
        with pytest.raises(error):
            session.flush()
        session.rollback()


def expected(scene: Scene, without: type[EnvelopeError]) -> type[EnvelopeError]:
    """What an alteration is answered with: by the row seal, or else by what hangs on the row."""
    return RowSealError if scene.has_seals else without


def first_post(session: Session, group: int = THEIRS) -> str | None:
    """As the application reads it."""
    return session.scalars(select(Post).filter_by(group_id=group).order_by(Post.id)).all()[0].text


def fresh() -> bytes:
    """A key of the outsider's own."""
    return os.urandom(32)


class Box:
    """A provider over keys of its own, which can be told to misbehave."""

    reference = "box"
    local = False

    def __init__(self) -> None:
        self.keys = ServerKeyring([b"\x09" * 32])
        self.mood = "well"
        self.released = threading.Event()

    def wrap(self, key: bytes, context: Any) -> bytes:
        return self.keys.wrap(key, context)

    def unwrap(self, wrapped: bytes, context: Any) -> bytes:
        if self.mood == "down":
            raise ConnectionError("nobody there")
        if self.mood == "slow":
            self.released.wait(30)
        if self.mood == "another":
            return b"\x01" * 32
        if self.mood == "garbage":
            return b"garbage"
        if self.mood == "text":
            return "x" * 32  # type: ignore[return-value]
        return self.keys.unwrap(wrapped, context)


class BoxScene(Scene):
    box: Box


def has_seals(scene: Scene) -> bool:
    return scene.envelope.policy.seals.is_on


def unlock_box(scene: BoxScene, group: int = 7) -> list[str | None]:
    with scene.session() as session:
        unlocked = scene.envelope.unlock(
            session, session.get_one(Group, group), provider="box", reason="attack"
        )
        session.commit()
        with unlocked:
            return [post.text for post in session.scalars(select(Post).filter_by(group_id=group))]
