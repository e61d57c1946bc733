"""What the tests of values in revisions look at."""

from typing import Any

import sqlalchemy as sa
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from tests.alembic.moving_models import declare, envelope


def stored(engine: Engine, table: str, column: str) -> list[Any]:
    """What is stored in a column."""
    with engine.connect() as connection:
        return list(connection.execute(sa.text(f"SELECT {column} FROM {table}")).scalars())


def phones(engine: Engine) -> list[tuple[Any, ...]]:
    """What the application reads of the users once their numbers are encrypted in place."""
    User = declare("in place").User  # noqa: N806
    with envelope.server_mode(reason="test"), Session(engine) as session:
        return [(one.email, one.phone) for one in session.query(User).order_by(User.id)]
