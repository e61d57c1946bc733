"""`sqlalchemy-envelope keys receipt-key` and `keys verify-receipt`: proof that keys were destroyed.

Exit codes are those of `migrate`: 1 says that keys are back in the database.
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO

import click
from sqlalchemy import URL, create_engine, make_url
from sqlalchemy.exc import NoSuchTableError, SQLAlchemyError

from sqlalchemy_envelope import (
    CheckedReceipt,
    ConfigurationError,
    FormatError,
    ReceiptError,
    ReceiptKey,
    ServerKeyring,
    check_receipt,
)
from sqlalchemy_envelope.cli.output import DONE, LEFT, REFUSED, say
from sqlalchemy_envelope.keys.receipts import receipt_key_of
from sqlalchemy_envelope.orm.verbs.erasure.returned_keys import (
    ReturnedKey,
    absent_keys,
    returned_keys,
)
from sqlalchemy_envelope.words import counted

_RECEIPT_KEY = "ENVELOPE_RECEIPT_KEY"


@click.command("receipt-key")
@click.option(
    "--server-keys",
    "file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file of server keys, in place of the environment variable.",
)
def receipt_key(file: Path | None) -> None:
    """Print the public key that checks this application's erasure receipts, one line of base64.

    It belongs to the receipt key in the environment variable ENVELOPE_RECEIPT_KEY. Without that, it is
    derived from the active server key, in ENVELOPE_SERVER_KEYS or in a file. Keep it where whoever asks for
    proof finds it; it is no secret. Print it again after the server key was rotated: each receipt is checked
    with the key of its time.
    """
    try:
        say(_own_key(file).public_text)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None


def _own_key(file: Path | None) -> ReceiptKey:
    if file is None and _RECEIPT_KEY in os.environ:
        return ReceiptKey.from_text(os.environ[_RECEIPT_KEY])
    keyring = ServerKeyring.from_environment() if file is None else ServerKeyring.from_file(file)
    return receipt_key_of(keyring)


@click.command("verify-receipt")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--public-key",
    "public_keys",
    required=True,
    multiple=True,
    metavar="BASE64",
    help="The public key, from `keys receipt-key`; several after a rotation.",
)
@click.option("--database", metavar="URL", help="Look whether the keys are back in this database.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def verify_receipt(
    file: IO[bytes], public_keys: tuple[str, ...], database: str | None, as_json: bool
) -> None:
    """Check an erasure receipt in a FILE, or on standard input with "-".

    Needs nothing but the public key, and no network. With --database, also look whether the destroyed keys
    are back, since a backup was restored: then shred their owners again. Exits with 0 if the receipt holds,
    with 1 if keys are back, and with 3 if it proves nothing, or the database has no keys of such owners.
    """
    try:
        checked = check_receipt(file.read(), public_keys)
    except ConfigurationError as error:
        raise click.UsageError(str(error)) from None
    except (FormatError, ReceiptError) as error:
        click.echo(str(error), err=True)
        sys.exit(REFUSED)
    back, absent = ([], {}) if database is None else _asked(database, checked)
    if as_json:
        say(json.dumps({**checked.body, "returned": [asdict(one) for one in back]}, indent=2, default=str))
    else:
        _show(checked)
        for one in back:
            say(f"BACK: {one}")
        for table, has_others in absent.items():
            say(f"{table} has no row of these keys. {_OTHER_KEYS if has_others else _NO_KEYS}")
        if database is not None and not back and not absent:
            say("None of them is back in the database.")
    sys.exit(LEFT if back else DONE if all(absent.values()) else REFUSED)


_OTHER_KEYS = (
    "That is right if the owners were deleted after the shredding. Else it is another database, or another "
    "schema."
)
_NO_KEYS = "It has no keys at all: it is another database, or another schema. Name the right one."


def _asked(database: str, checked: CheckedReceipt) -> tuple[list[ReturnedKey], dict[str, bool]]:
    """The keys that are back, and the tables without a row of these keys."""
    try:
        engine = create_engine(_readable(database))
        with engine.connect() as connection:
            return returned_keys(connection, checked), absent_keys(connection, checked)
    except NoSuchTableError as error:
        raise click.UsageError(
            f"The database has no table {error}: it is another database, or another schema."
        ) from None
    except ImportError as error:
        raise click.UsageError(f"The driver of this address is not installed: {error.name}.") from None
    except (SQLAlchemyError, ValueError, TypeError, OSError) as error:
        # Its message may hold the address, with a password.
        raise click.UsageError(f"The database cannot be asked: {type(error).__name__}.") from None


def _readable(database: str) -> URL:
    """The address of a database that a command without asyncio can read, and that is there.

    Raises:
        click.UsageError: it is another.
        SQLAlchemyError, ValueError, ImportError: it is no address, or its driver is not installed.
    """
    url = make_url(database)
    if url.get_dialect().is_async:
        raise click.UsageError(
            f"{url.drivername} is a driver for asyncio: write the address with one that is not, such as "
            "sqlite:///, postgresql+psycopg:// or mysql+pymysql://."
        )
    if url.get_backend_name() == "sqlite":
        # SQLite makes a file that is not there.
        path = (url.database or "").removeprefix("file:").partition("?")[0]
        if path and ":memory:" not in path and not Path(path).is_file():
            raise click.UsageError(f"There is no database {path}.")
    return url


def _show(checked: CheckedReceipt) -> None:
    say(
        f"{counted(len(checked.keys), 'key')} destroyed at {checked.destroyed_at:%Y-%m-%d %H:%M:%S} UTC, "
        f"with {counted(int(checked.body['counts']['values']), 'encrypted value')}. The signature fits."
    )
    for one in checked.body["remains"]:
        until = "it is not known until when" if one["until"] is None else f"until {one['until'][:10]}"
        say(f"  copies may remain in {one['place']}, {until}")
