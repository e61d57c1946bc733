"""Values of a table compared as a whole, and a run that is interrupted."""

import hashlib
from collections.abc import Callable

from sqlalchemy_envelope.migration.database import schema
from tests.migration.engine_models import Trial


def checksum(trial: Trial, table: str, column: str, key: str = "id") -> str:
    """Of all values of a column, to the byte."""
    rows = trial.sql(f'SELECT "{key}", "{column}" FROM "{table}" ORDER BY "{key}"')
    return hashlib.sha256(repr([tuple(row) for row in rows]).encode()).hexdigest()


def without_triggers(trial: Trial, name: str) -> None:
    """Somebody has dropped them."""
    columns = schema.tracked(trial.migrator().column(name))
    with trial.engine.begin() as connection:
        schema.change_on(connection, schema.untrack(trial.engine.dialect, columns))


def interrupt_after(count: int) -> Callable[[], bool]:
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        if len(asked) > count:
            raise KeyboardInterrupt
        return False

    return stop
