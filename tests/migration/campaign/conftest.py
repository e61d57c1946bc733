"""That site, on both databases."""

from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.migration.campaign.site import Base, Site


@pytest.fixture
def site(engine: Engine, tmp_path: Path) -> Site:
    """On SQLite and on PostgreSQL."""
    Base.metadata.create_all(engine)
    return Site(engine, tmp_path)


@pytest.fixture
def lite(sqlite_engine: Engine, tmp_path: Path) -> Site:
    """On SQLite."""
    Base.metadata.create_all(sqlite_engine)
    return Site(sqlite_engine, tmp_path)
