"""`sqlalchemy-envelope campaign`: keys for absent owners, up to the destruction of the campaign's key.

Exit codes are those of `migrate`.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import click
from rich import box
from rich.table import Table

from sqlalchemy_envelope.campaign.campaign import Campaign
from sqlalchemy_envelope.campaign.report import CampaignStatus
from sqlalchemy_envelope.cli.discovery import discover
from sqlalchemy_envelope.cli.migrate.options import CutOffError, app_option, carry_out, confirm
from sqlalchemy_envelope.cli.migrate.signals import StopSignals
from sqlalchemy_envelope.cli.output import DONE, LEFT, Group, PipeConsole, say
from sqlalchemy_envelope.words import counted


@dataclass
class _Job:
    campaign: Campaign
    as_json: bool
    stop: StopSignals

    def say(self, text: str, values: Mapping[str, Any]) -> None:
        """Print the text for people, or with `--json` the values for programs."""
        say(json.dumps(values, indent=2, default=str) if self.as_json else text)


@click.group(cls=Group)
def campaign() -> None:
    """Give keys to owners who are away; each claims them when it comes back.

    In order: provide; status now and then, while owners claim their keys; release, if the key is offline;
    close. Exit codes are those of migrate.
    """


def _in_app(*, long: bool = False) -> Callable[[Callable[..., int]], Callable[..., None]]:
    def decorate(body: Callable[..., int]) -> Callable[..., None]:
        @functools.wraps(body)
        def command(app: str, as_json: bool, **options: Any) -> None:
            found = discover(app, Campaign)
            with StopSignals(at_once=not long) as stop:
                job = _Job(found.value, as_json, stop)
                sys.exit(carry_out(stop, lambda: body(job, **options)))

        wrapped: Callable[..., None] = command
        wrapped = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(wrapped)
        return app_option("Where the Campaign is, or a function that makes it.")(wrapped)

    return decorate


@campaign.command()
@click.option(
    "--batch", type=click.IntRange(1), default=500, show_default=True, help="Owners in a transaction."
)
@_in_app(long=True)
def provide(job: _Job, batch: int) -> int:
    """Make keys for every owner who has none.

    Ctrl-C and SIGTERM stop it after the batch at hand. Run it again to go on, and again later for owners who
    have joined meanwhile.
    """

    def told(owner_class: str, made: int) -> None:
        if not job.as_json:
            say(f"{owner_class}: {counted(made, 'owner has', 'owners have')} keys now")
        if job.stop():
            raise CutOffError

    made = job.campaign.provide(batch=batch, progress=told)
    job.say(f"{counted(made, 'owner was', 'owners were')} given keys", {"made": made})
    return DONE


@campaign.command()
@_in_app()
def status(job: _Job) -> int:
    """Show how many owners of each class have claimed their keys.

    Exits with 1 while some have none, or have not claimed theirs.
    """
    found = job.campaign.status()
    total = sum(found.values(), CampaignStatus())
    if job.as_json:
        job.say("", {"classes": {name: asdict(one) for name, one in found.items()}, "total": asdict(total)})
    else:
        _show(found)
    return LEFT if total.unprovided or total.unclaimed or total.waiting else DONE


@campaign.command()
@click.option(
    "--unsafe-without-row-seals",
    is_flag=True,
    help="Release although nobody can tell an owner's secret from one that was put into the database.",
)
@_in_app()
def release(job: _Job, unsafe_without_row_seals: bool) -> int:
    """Hand their keys to the owners who wait, where the private half of the offline key is.

    Exits with 1 if the rows of some owners are not as they should be, and these were not released.
    """
    with job.campaign.setting.transaction() as session:
        released, refused = job.campaign.release(session, unsafe_without_row_seals=unsafe_without_row_seals)
    text = f"{counted(released, 'owner')} released" + (f", {refused:,} refused" if refused else "")
    job.say(text, {"released": released, "refused": refused})
    return LEFT if refused else DONE


@campaign.command()
@click.option(
    "--unclaimed",
    default="refuse",
    show_default=True,
    metavar="refuse|keep|shred|provider:NAME",
    help="What becomes of owners who have not claimed their keys: do not close; keep their slots and the key;"
    " nobody ever opens their data again; put their keys under that provider.",
)
@click.option("--confirm", "confirmed", type=click.IntRange(0), help="With shred: how many owners that is.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_in_app()
def close(job: _Job, unclaimed: str, confirmed: int | None, yes: bool) -> int:
    """Remove the campaign's last slots, destroy its key, and report.

    Asks first. Without a terminal, say --yes. Exits with 1 if the key was not destroyed.
    """
    if not yes and unclaimed != "keep":
        confirm("This destroys the campaign's key, and cannot be undone. Go on?")
    report = job.campaign.close(unclaimed, confirm=confirmed)
    job.say(str(report), report.as_dict())
    return DONE if report.destroyed else LEFT


def _show(found: Mapping[str, CampaignStatus]) -> None:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    for one in fields(CampaignStatus):
        table.add_row(one.name, *(f"{getattr(status, one.name):,}" for status in found.values()))
    PipeConsole(highlight=False, markup=False).print(table)
