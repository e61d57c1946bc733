"""A migration environment with values in its database."""

from collections.abc import Callable
from typing import Any

import pytest
from alembic.config import Config
from sqlalchemy import Engine

from sqlalchemy_envelope.alembic import KeySource
from tests.alembic.environments import Environment, by_hand
from tests.alembic.moving_models import declare, envelope

Made = Callable[..., Config]


@pytest.fixture
def made(environment: Environment, engine: Engine) -> Made:
    """Makes an environment beside plaintext tables, with one revision that is written by hand."""

    def make(upgrade: str, downgrade: str = "pass", **options: Any) -> Config:
        source = options.pop("envelope", KeySource(envelope, declare("in place").Base))
        config = environment(engine, declare("plaintext").Base.metadata, envelope=source, **options)
        declare("plaintext").Base.metadata.create_all(engine)
        by_hand(config, upgrade, downgrade)
        return config

    return make
