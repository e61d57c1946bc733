"""`sqlalchemy-envelope keys`: fresh keys for people who set up an application without writing Python, and the
sweep of a second database."""

from pathlib import Path

import click

from sqlalchemy_envelope import CampaignKeyFile, ConfigurationError, ReceiptKey, ServerKeyring
from sqlalchemy_envelope.cli.escrow import escrow, generate_escrow
from sqlalchemy_envelope.cli.output import Group, say
from sqlalchemy_envelope.cli.receipts import receipt_key, verify_receipt
from sqlalchemy_envelope.cli.sweep import sweep


@click.group(cls=Group)
def keys() -> None:
    """Make, open, sweep and retire keys, and check the receipts of destroyed keys."""


keys.add_command(sweep)
keys.add_command(receipt_key)
keys.add_command(verify_receipt)


@keys.group(cls=Group)
def generate() -> None:
    """Make a fresh key.

    Keep it apart from the database and its backups. Whoever has both can read; whoever loses the key cannot.
    """


@generate.command()
def server() -> None:
    """Print a fresh server key, one line of base64.

    The application finds it in the environment variable ENVELOPE_SERVER_KEYS
    (ServerKeyring.from_environment) or in a file that its user alone can read (ServerKeyring.from_file).
    """
    say(ServerKeyring.generate_key())


@generate.command()
@click.argument("file", type=click.Path(path_type=Path))
def campaign(file: Path) -> None:
    """Make a campaign's key, in a FILE that does not exist yet.

    Its user alone can read the file. Give it to CampaignKeyFile, and keep no backup that you cannot
    destroy.
    """
    try:
        CampaignKeyFile.generate(file)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    say(f"{file}: the campaign's key")


@generate.command()
def receipt() -> None:
    """Print a fresh key that signs erasure receipts, one line of base64.

    For an application without server keys: ReceiptKey.from_text(os.environ["ENVELOPE_RECEIPT_KEY"]).
    """
    say(ReceiptKey.generate_key())


generate.add_command(generate_escrow)
keys.add_command(escrow)
