"""A group, its members and an attacker, with row seals and without."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from sqlalchemy_envelope import Envelope, KdfProfile
from sqlalchemy_envelope.keys.providers import ServerKeyring
from tests.orm import outsider as spec
from tests.orm.outsider import ADA, CID, PLAIN, SEALED, SERVER_KEY, Group, Membership, Post, Scene, set_scene
from tests.orm.sharing.attackers.asserted import Box, BoxScene, scene_from


@pytest.fixture(scope="session")
def templates() -> dict[Any, bytes]:
    """Databases as they are before an attack, made once."""
    return {}


@pytest.fixture(params=[PLAIN, SEALED], ids=["without", "with"])
def scene(request: pytest.FixtureRequest, templates: dict[Any, bytes], sqlite_engine: Engine) -> Scene:
    """Two groups and four users, without server keys and with row seals."""
    return scene_from(templates, sqlite_engine, request.param)


@pytest.fixture
def without(templates: dict[Any, bytes], sqlite_engine: Engine) -> Scene:
    """Without server keys alone."""
    return scene_from(templates, sqlite_engine, PLAIN)


@pytest.fixture(params=[None, SERVER_KEY], ids=["without", "with"])
def boxed(
    request: pytest.FixtureRequest, templates: dict[Any, bytes], sqlite_engine: Engine
) -> Iterator[BoxScene]:
    """The scene with a provider, and the group under a slot of it as well."""
    box = Box()
    path = Path(str(sqlite_engine.url.database))
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(),
        server_keys=None if request.param is None else ServerKeyring([request.param]),
        providers={"box": box},
        provider_timeout=1.0,
        provider_retries=0,
    )
    if request.param not in templates:
        made = set_scene(sqlite_engine, envelope)
        with made.session() as session:
            for number in (7, 8):
                with envelope.enroll(session, Group(id=number, name="boxed"), provider="box"):
                    session.add(Membership(id=10 * number, group_id=number, user_id=ADA))
                    session.add(Membership(id=10 * number + 1, group_id=number, user_id=CID))
                    session.add(Post(group_id=number, text="boxed"))
                    session.commit()
                envelope.policy.require_providers().forget()
        made.visit(ADA, CID)
        sqlite_engine.dispose()
        templates[request.param] = path.read_bytes()
    path.write_bytes(templates[request.param])
    scene = BoxScene(sqlite_engine, envelope, spec.Outsider(sqlite_engine))
    scene.box = box
    yield scene
    box.released.set()
