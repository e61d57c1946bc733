"""The commands under a common name; each command has a file of its own."""

import click

from sqlalchemy_envelope.cli.campaign import campaign
from sqlalchemy_envelope.cli.demo.command import demo
from sqlalchemy_envelope.cli.index import index
from sqlalchemy_envelope.cli.keys import keys
from sqlalchemy_envelope.cli.leakage import leakage
from sqlalchemy_envelope.cli.migrate.command import migrate
from sqlalchemy_envelope.cli.output import RootGroup
from sqlalchemy_envelope.cli.retire import retire
from sqlalchemy_envelope.cli.rotate import rotate


@click.group(cls=RootGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sqlalchemy-envelope", message="%(prog)s %(version)s")
def commands() -> None:
    """Encrypted columns for SQLAlchemy whose keys belong to the people whose data it is."""


commands.add_command(demo)
commands.add_command(keys)
commands.add_command(leakage)
commands.add_command(migrate)
commands.add_command(campaign)
commands.add_command(rotate)
commands.add_command(index)
keys.add_command(retire)
