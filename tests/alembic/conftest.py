"""An Alembic environment in a folder, as `alembic init` makes it: `env.py` with the line of the how-to, and
the shortest of everything around it."""

import io
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.config import Config
from sqlalchemy import Engine

from tests.alembic.environments import ENV, SCRIPT, Environment


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """Makes an Alembic environment for a database and its metadata, with options as in `env.py`."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (tmp_path / "migrations" / "env.py").write_text(ENV)
    (tmp_path / "migrations" / "script.py.mako").write_text(SCRIPT)

    def make(
        engine: Engine, metadata: sa.MetaData, *, foreign_keys_off: bool = False, **options: Any
    ) -> Config:
        config = Config(output_buffer=io.StringIO())
        config.set_main_option("script_location", str(tmp_path / "migrations").replace("%", "%%"))
        config.attributes["engine"] = engine
        config.attributes["foreign_keys_off"] = foreign_keys_off
        config.attributes["options"] = {
            "target_metadata": metadata,
            "compare_server_default": True,
            **options,
        }
        return config

    return make
