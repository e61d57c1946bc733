"""Alembic runs this file for each of its commands."""

from alembic import context
from sqlalchemy import create_engine

import sqlalchemy_envelope.alembic
from circle.models import Base

engine = create_engine(context.config.get_main_option("sqlalchemy.url"))
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
