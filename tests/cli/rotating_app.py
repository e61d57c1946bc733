"""An application with a blind index of the server, on the database that ROTATING_APP_URL names."""

import os

from sqlalchemy import create_engine

from sqlalchemy_envelope.migration import Migrator
from tests.orm.indexes.rotation_models import Base, new_process


def migrator() -> Migrator:
    """Its migrator, whose provider opens every desk."""
    return Migrator(create_engine(os.environ["ROTATING_APP_URL"]), new_process(), Base, provider="server")
