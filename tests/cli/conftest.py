"""An old application's files, made once."""

import pytest

from tests.cli.migrating import Old, make_template


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Old:
    """The old application's SQLite file without rows, and with the new key tables."""
    return make_template(tmp_path_factory.mktemp("template"))
