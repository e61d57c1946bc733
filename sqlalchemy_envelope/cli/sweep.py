"""`sqlalchemy-envelope keys sweep`: the shares of a second database."""

import datetime as dt
import json
import sys
from dataclasses import asdict
from typing import Any

import click
from sqlalchemy.orm import Session, configure_mappers, sessionmaker

from sqlalchemy_envelope import ConfigurationError, KeyOwner, KeyShareTable, SharesSwept
from sqlalchemy_envelope.cli.discovery import discover
from sqlalchemy_envelope.cli.migrate.options import app_option, carry_out
from sqlalchemy_envelope.cli.migrate.signals import StopSignals
from sqlalchemy_envelope.cli.output import DONE, LEFT, say
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.current.policy import ENVELOPES, Policy
from sqlalchemy_envelope.orm.verbs.slots.share_sweep import sweep_shares
from sqlalchemy_envelope.words import counted


@click.command()
@app_option("Where the sessionmaker is, or a function that makes it. It leads to both databases.")
@click.option(
    "--class",
    "named",
    multiple=True,
    metavar="MODULE:CLASS",
    help="A class with key_shares=; repeat it for several. [default: those in the sessionmaker's binds]",
)
@click.option(
    "--keep-hours",
    type=click.IntRange(1),
    default=24,
    show_default=True,
    help="How long a share stays after it was first found without a slot.",
)
@click.option("--delete", "may_delete", is_flag=True, help="Note and delete; otherwise only count.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def sweep(app: str, named: tuple[str, ...], keep_hours: int, may_delete: bool, as_json: bool) -> None:
    """Delete shares in the second database that no key slot needs, and count the slots that lack theirs.

    A share without a slot is noted at first, and deleted by a run after --keep-hours: run it once a day.
    Slots are never deleted. Exits with 1 if a slot lacks its share.
    """
    sessions = discover(app, sessionmaker).value
    keep = dt.timedelta(hours=keep_hours)

    def work() -> int:
        found = {one.__name__: _sweep(sessions, one, keep, may_delete) for one in _classes(sessions, named)}
        if as_json:
            say(json.dumps({name: asdict(one) for name, one in found.items()}, indent=2, default=str))
        else:
            for name, one in found.items():
                _tell(name, one)
        return DONE if all(one.is_whole for one in found.values()) else LEFT

    with StopSignals(at_once=True) as stop:
        sys.exit(carry_out(stop, work))


def _sweep(sessions: sessionmaker[Session], of: Any, keep: dt.timedelta, may_delete: bool) -> SharesSwept:
    policy = ENVELOPES.only() or Policy()  # which takes the event; no key is needed
    with sessions() as session:
        return sweep_shares(Desk(session, policy), of, keep, delete=may_delete)


def _classes(sessions: sessionmaker[Session], named: tuple[str, ...]) -> list[type[KeyOwner]]:
    configure_mappers()
    if named:
        return [discover(one, type).value for one in named]
    bound = [one for one in (sessions.kw.get("binds") or {}) if isinstance(one, type)]
    found = [one.__owner_class__.mapper.class_ for one in bound if issubclass(one, KeyShareTable)]
    if not found:
        raise ConfigurationError("The sessionmaker binds no class of shares: name the owners with --class.")
    return found


def _tell(name: str, found: SharesSwept) -> None:
    missing = found.slots_without_share
    owners = f"{counted(found.owners_affected, 'owner')}, {found.owners_locked_out:,} without another slot"
    if found.elsewhere:
        others = counted(found.elsewhere, "share")
        say(f"{name}: {others} of other schemas: sweep in a session of each")
    for line in (
        f"{counted(found.shares, 'share')}: {found.deleted:,} deleted, {found.unused:,} kept without a slot",
        f"{counted(found.slots, 'secret slot')}: {found.slots_to_move:,} from before, without any share",
        f"{counted(missing, 'slot')} whose share is missing: {owners}",
    ):
        say(f"{name}: {line}")
    if found.is_strange:
        say(f"{name}: no slot needs any of the shares: is it another database? Nothing was noted or deleted")
