"""Every query finds by the index what it finds by a plaintext twin, while the index key is rotated."""

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, Text
from sqlalchemy.orm import Session

from tests.orm.indexes import rotation_models
from tests.orm.indexes.test_twin import EXACT_TEXT, exact, texts
from tests.orm.indexes.twin import World


class Operator:
    """Another process. It begins a rotation after each that it has finished."""

    def __init__(self, world: World, clock: Any) -> None:
        self.done = 0
        self._world, self._clock = world, clock
        self._envelope = rotation_models.new_process()
        self._session = Session(world.engine)
        self._run = self._rotation()

    def _rotation(self) -> Iterator[Any]:
        envelope: Any = self._envelope
        return iter(envelope.rotate_index(self._session, self._world.row.secret_index, batch=7))

    def turn(self) -> None:
        """Let time pass, and do some turns."""
        self._clock.sleep(self._world.random.choice([0.5, 3, 20]))
        with self._envelope.server_mode(self._session, reason="test"):
            for _ in range(self._world.random.randint(0, 3)):
                if next(self._run, None) is None:
                    self.done += 1
                    self._run = self._rotation()
                self._session.commit()


def test_while_the_key_is_rotated(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """Random queries and writes between the turns of several rotations: the same rows, pages and counts."""
    clock = rotation_models.Clock(monkeypatch)
    world = World(engine, exact("rotated", Text(), texts, EXACT_TEXT), seed=5)
    operator = Operator(world, clock)
    world.between = operator.turn
    world.check(1_000 if pytestconfig.getoption("all") else 60)

    assert operator.done >= 1
