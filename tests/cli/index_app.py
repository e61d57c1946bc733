"""The migrator of an application with blind indexes, as `--app` finds it."""

import os

from sqlalchemy import create_engine

from sqlalchemy_envelope import enforce_foreign_keys
from sqlalchemy_envelope.migration import Migrator
from tests.migration.index_models import models, new_envelope


def migrator() -> Migrator:
    """Made anew by each command, as in a process of its own."""
    engine = create_engine(os.environ["INDEX_APP_URL"])
    enforce_foreign_keys(engine)
    return Migrator(engine, new_envelope(), models(indexed=True), provider="server")
