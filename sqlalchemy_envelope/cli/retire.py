"""`sqlalchemy-envelope keys retire`: what refers to a key; and its end, if nothing does."""

import datetime as dt
import json
import re
import sys
from dataclasses import asdict
from typing import Any

import click
from rich import box
from rich.table import Table
from sqlalchemy.orm import Session

from sqlalchemy_envelope import KeyInUseError, KeyReferences
from sqlalchemy_envelope.cli.discovery import discover
from sqlalchemy_envelope.cli.migrate.options import app_option, carry_out, complain, confirm
from sqlalchemy_envelope.cli.migrate.signals import StopSignals
from sqlalchemy_envelope.cli.output import DONE, LEFT, REFUSED, PipeConsole, say
from sqlalchemy_envelope.cli.rotate import time_given
from sqlalchemy_envelope.migration.database.greenlets import run_apart
from sqlalchemy_envelope.migration.migrator import Migrator

_UNITS = {"h": dt.timedelta(hours=1), "d": dt.timedelta(days=1), "w": dt.timedelta(weeks=1)}


def horizon_given(
    ctx: click.Context, param: click.Parameter, value: str | dt.timedelta | None
) -> dt.timedelta | None:
    """The length of time that was given: 30d, 12h, 4w.

    Raises:
        click.BadParameter: it is no length of time.
    """
    if value is None or isinstance(value, dt.timedelta):
        return value
    found = re.fullmatch(r"(\d{1,5})([hdw])", value)
    if found is None:
        raise click.BadParameter(f"{value!r} is no length of time: write 30d, 12h or 4w.", ctx, param)
    return int(found[1]) * _UNITS[found[2]]


@click.command()
@click.argument("key")
@click.option("--explain", is_flag=True, help="Print every reference, and change nothing.")
@click.option(
    "--horizon",
    callback=horizon_given,
    metavar="30d|12h|4w",
    help="How long backups are kept, from the key's retirement on.",
)
@click.option(
    "--backups-until",
    callback=time_given,
    metavar="TIME",
    help="Until when backups that need the key are kept.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
@app_option("Where the Migrator is, or a function that makes it.")
def retire(
    key: str,
    explain: bool,
    horizon: dt.timedelta | None,
    backups_until: dt.datetime | None,
    yes: bool,
    as_json: bool,
    app: str,
) -> None:
    """Destroy a KEY that nothing refers to any more, or say what does.

    A KEY is the id of an owner's key, or its first eight digits; or server: and a server key's id. It counts
    every value, wrap, grant, slot, row seal, ticket and emergency access over every column and table: exits
    with 3 if something needs the key, or a backup may. Tickets under a server key keep it needed until they
    end or are revoked. A server key is in no table: take it off the list when this exits with 0. With
    --explain it exits with 1 if the key is still needed.
    """
    migrator = discover(app, Migrator).value
    with StopSignals(at_once=True) as stop:

        def work() -> int:
            return _retire(
                migrator,
                key,
                {"horizon": horizon, "backups_until": backups_until},
                explain=explain,
                yes=yes,
                as_json=as_json,
            )

        sys.exit(carry_out(stop, lambda: run_apart(migrator.given_engine, work)))


def _retire(
    migrator: Migrator, key: str, until: dict[str, Any], *, explain: bool, yes: bool, as_json: bool
) -> int:
    now = dt.datetime.now(dt.UTC)
    envelope, base = migrator.setting.envelope, migrator.base
    with Session(migrator.engine) as session:
        found = envelope.key_references(session, base, key, **until)
        reasons = found.reasons(now)
        if explain:
            _show(found, reasons, as_json=as_json)
            return LEFT if reasons else DONE
        try:
            if found.kind == "server":
                if until["backups_until"] is None:
                    raise click.UsageError(
                        "Say until when backups that need the key are kept: --backups-until."
                    )
                found.require_unused(now)
                text = "nothing refers to it: take it off the list of server keys, and destroy every copy"
            else:
                session.rollback()
                if not yes and not reasons:
                    confirm(f"This destroys key {found.key}, and cannot be undone. Go on?")
                found = envelope.destroy_key(session, base, found.key, **until)
                session.commit()
                text = "destroyed"
        except KeyInUseError as error:
            complain(error)
            return REFUSED
    say(json.dumps(_values(found, []), indent=2, default=str) if as_json else f"{found.key}: {text}")
    return DONE


def _values(found: KeyReferences, reasons: list[str]) -> dict[str, Any]:
    return {**asdict(found), "needed": sum(one.count for one in found.needed), "reasons": reasons}


def _show(found: KeyReferences, reasons: list[str], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps(_values(found, reasons), indent=2, default=str))
        return
    of = f" of {found.owner_class}, epoch {found.epoch}" if found.owner_class else ""
    scope = f", scope {found.scope!r}" if found.scope else ""
    say(f"{found.key}: {found.kind} key{of}{scope}, {found.state}")
    for name, at in (("retired", found.retired_at), ("needed by backups until", found.free_from)):
        if at is not None:
            say(f"{name} {at.astimezone(dt.UTC):%Y-%m-%d %H:%M} UTC")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("place")
    table.add_column("what")
    table.add_column("rows", justify="right")
    table.add_column("needs the key")
    for one in found.references:
        table.add_row(one.place, one.what, f"{one.count:,}", "yes" if one.needed else "no, leads to it")
    PipeConsole(highlight=False, markup=False).print(table)
    say("It can go." if not reasons else "It has to stay: " + "; ".join(reasons) + ".")
