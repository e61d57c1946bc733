"""What the Alembic environments of these tests are made of, and what is done in them."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

ENV = """
import sqlalchemy_envelope.alembic

from alembic import context

attributes = context.config.attributes
options = attributes["options"]
if context.is_offline_mode():
    context.configure(
        dialect_name=attributes["engine"].dialect.name,
        dialect_opts={"paramstyle": "named"},
        literal_binds=True,
        **options,
    )
    with context.begin_transaction():
        context.run_migrations()
else:
    with attributes["engine"].connect() as connection:
        if attributes["foreign_keys_off"]:
            connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
            connection.commit()
        context.configure(connection=connection, **options)
        with context.begin_transaction():
            context.run_migrations()
"""

SCRIPT = '''"""${message}"""
from alembic import op
import sqlalchemy as sa
${imports if imports else ""}

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade():
    ${upgrades if upgrades else "pass"}


def downgrade():
    ${downgrades if downgrades else "pass"}
'''

Environment = Callable[..., Config]


def migration(config: Config, message: str = "encrypted") -> str:
    """Write a migration, and give its text."""
    script: Any = command.revision(config, message=message, autogenerate=True)
    return Path(script.path).read_text()


def by_hand(config: Config, upgrade: str, downgrade: str = "pass", imports: str = "") -> None:
    """Write a migration by hand."""
    script: Any = command.revision(config, message="by hand")
    path = Path(script.path)
    text = path.read_text().replace("import sqlalchemy as sa\n", f"import sqlalchemy as sa\n{imports}\n", 1)
    for body in (upgrade, downgrade):
        lines = "\n".join(f"    {line}" for line in body.splitlines())
        text = text.replace("    pass\n", f"{lines}\n", 1) if body != "pass" else text
    path.write_text(text)


def script(config: Config, *revisions: str, down: bool = False) -> str:
    """What `alembic upgrade --sql` writes, or `alembic downgrade --sql`."""
    config.output_buffer.seek(0)
    config.output_buffer.truncate()
    (command.downgrade if down else command.upgrade)(config, ":".join(revisions), sql=True)
    return str(config.output_buffer.getvalue())


def revisions(config: Config) -> list[str]:
    """The revisions that there are, the first one first."""
    return [one.revision for one in ScriptDirectory.from_config(config).walk_revisions()][::-1]


def body_of(text: str, function: str) -> list[str]:
    """The statements of `upgrade` or `downgrade` in a migration."""
    found = re.search(rf"def {function}\(\):\n(.*?)(?=\n\n\n|\Z)", text, re.DOTALL)
    assert found is not None
    lines = [line.strip() for line in found[1].splitlines()]
    return [line for line in lines if line and not line.startswith("#")]
