"""`sqlalchemy-envelope rotate`: new keys in the place of old ones, in batches, while the application runs.

Each command goes on where it was interrupted, and does nothing twice. Exit codes are those of `migrate`.

This module is over 400 lines long: its commands share one frame, and their help is the reference.
"""

import datetime as dt
import functools
import json
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from sqlalchemy.orm import Session

from sqlalchemy_envelope import OwnersRotation, ProviderRotation
from sqlalchemy_envelope.cli.discovery import discover
from sqlalchemy_envelope.cli.migrate.options import (
    CutOffError,
    app_option,
    carry_out,
    pace_options,
    with_pace,
)
from sqlalchemy_envelope.cli.migrate.progress import display_for
from sqlalchemy_envelope.cli.migrate.signals import StopSignals
from sqlalchemy_envelope.cli.output import DONE, LEFT, Group, PipeConsole, say
from sqlalchemy_envelope.migration.database.columns import column_named, encrypted_columns
from sqlalchemy_envelope.migration.database.greenlets import run_apart
from sqlalchemy_envelope.migration.jobs.owner_ciphers import keys_at_hand
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.orm.current.desk import Desk
from sqlalchemy_envelope.orm.verbs.rotation.index_keys import server_indexes
from sqlalchemy_envelope.orm.verbs.rotation.key_references import owner_classes_of
from sqlalchemy_envelope.orm.verbs.settling.batches import Batches
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy_envelope import IndexRotation
    from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn

LINE_SECONDS = 5.0
"""The seconds between two lines of progress."""


def time_given(
    ctx: click.Context, param: click.Parameter, value: str | dt.datetime | None
) -> dt.datetime | None:
    """The date or time that was given; without a zone, UTC.

    Raises:
        click.BadParameter: it is no time.
    """
    if value is None or isinstance(value, dt.datetime):
        return value
    try:
        found = dt.datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(
            f"{value!r} is no time: write 2026-11-30, or 2026-11-30T17:05.", ctx, param
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=dt.UTC)


@dataclass
class Job:
    """The task of a command.

    Attributes:
        owners: the names of the classes to work on; empty for all.
        stop: whether a signal asked for the end.
    """

    migrator: Migrator
    owners: tuple[str, ...]
    as_json: bool
    stop: StopSignals

    def classes(self) -> list[Any]:
        """The classes of owners to work on.

        Raises:
            click.BadParameter: there is no such class.
        """
        known = {one.name: one for one in owner_classes_of(self.migrator.base)}
        for name in self.owners:
            if name not in known:
                there = ", ".join(sorted(known)) or "none"
                raise click.BadParameter(f"{name!r} owns no keys (there is: {there}).", param_hint="--owners")
        return [known[name] for name in self.owners or sorted(known)]

    def event(self, name: str, values: dict[str, Any], text: str | None) -> None:
        """Print a JSON line for programs, or a text for people."""
        if self.as_json:
            say(json.dumps({"event": name, **values}, default=str))
        elif text is not None:
            say(text)

    def each(self, work: Callable[[Session, Any], tuple[Batches[Any], int]], told: str) -> int:
        """Do all batches of each class of owners, and commit each.

        Args:
            work: starts the run over a class; returns it, with the number of owners that it goes over.
            told: what was done with an owner, for the text.

        Raises:
            CutOffError: a signal ended it, and work is left.
        """
        left = False
        for owner_class in self.classes():
            began = told_at = time.monotonic()
            with Session(self.migrator.engine) as session:
                batches, total = work(session, owner_class)
                last: Any = None
                with closing(batches):  # the output may end before the first batch
                    self.event("started", {"owners": owner_class.name, "total": total}, None)
                    for last in batches:
                        session.commit()
                        seconds = max(time.monotonic() - began, 1e-6)
                        if self.as_json or time.monotonic() - told_at >= LINE_SECONDS:
                            told_at = time.monotonic()
                            values = {"owners": owner_class.name, "total": total, **_values(last)}
                            rate = f"{last.rotated:,} of {counted(total, 'owner')} {told}, "
                            rate += f"{last.rotated / seconds:,.0f} owners/s"
                            self.event("progress", values, f"{owner_class.name}: {rate}")
                        if self.stop():
                            raise CutOffError
                session.commit()
            left = self._finished(owner_class.name, last, told, time.monotonic() - began) or left
        return LEFT if left else DONE

    def _finished(self, name: str, last: Any, told: str, seconds: float) -> bool:
        """Tell the result of a class; whether something is left to do."""
        if last is None:
            self.event("finished", {"owners": name, "rotated": 0}, f"{name}: nothing to do")
            return False
        rest = f", {last.skipped:,} held by others: run it again" if last.skipped else ""
        text = f"{name}: {counted(last.rotated, 'owner')} {told}{rest}"
        values = {"owners": name, **_values(last), "seconds": round(seconds, 3)}
        self.event("finished", values, text)
        for one in last.refused[:10]:
            key = ", ".join(map(str, one.primary_key))
            self.event("refused", {"owners": name, **one._asdict()}, f"  refused: {name} {key}: {one.why}")
        if len(last.refused) > 10:
            self.event("refused", {"more": len(last.refused) - 10}, f"  and {len(last.refused) - 10:,} more")
        return bool(last.skipped or last.refused)


def _values(progress: ProviderRotation | OwnersRotation) -> dict[str, Any]:
    return {**vars(progress), "refused": len(progress.refused)}


@click.group(cls=Group)
def rotate() -> None:
    """Put new keys in the place of old ones while the application runs.

    provider and seals rotate what holds the owners' keys; data and root the owners' own keys; values
    re-encrypts what is still under earlier data keys. index rotates the key of a blind index. Then: keys
    retire. Each can be repeated, and goes on where it was interrupted. Exit codes are those of migrate.
    """


def _in_app(*, owners: bool = True) -> Callable[[Callable[..., int]], Callable[..., None]]:
    def decorate(body: Callable[..., int]) -> Callable[..., None]:
        @functools.wraps(body)
        def command(app: str, as_json: bool, owners: tuple[str, ...] = (), **options: Any) -> None:
            found = discover(app, Migrator)
            migrator = found.value
            migrator.reference = found.reference
            with StopSignals() as stop:
                job = Job(migrator, owners, as_json, stop)
                work = functools.partial(body, job, **options)
                sys.exit(carry_out(stop, lambda: run_apart(migrator.given_engine, work)))

        wrapped: Callable[..., None] = command
        if owners:
            wrapped = click.option(
                "--owners",
                multiple=True,
                metavar="CLASS",
                help="Only the owners of this class; can be repeated. [default: every class]",
            )(wrapped)
        wrapped = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(wrapped)
        return app_option("Where the Migrator is, or a function that makes it.")(wrapped)

    return decorate


def _batch(default: int, of: str = "Owners") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option(
        "--batch",
        type=click.IntRange(1),
        default=default,
        show_default=True,
        help=f"{of} in a transaction.",
    )


@rotate.command()
@click.option("--provider", default="server", show_default=True, help="The provider, by its name.")
@_batch(500)
@_in_app()
def provider(job: Job, provider: str, batch: int) -> int:
    """Put a provider's slots, and the row seals, under the key that wraps now.

    Publish the new key first, then make it the first one everywhere, and then run this. No owner is opened.
    """
    envelope = job.migrator.setting.envelope

    def work(session: Session, owner_class: Any) -> tuple[Batches[Any], int]:
        total = Desk(session, envelope.policy).keys(owner_class).count_owners()
        of = owner_class.mapper.class_
        return envelope.rotate_provider(session, of, provider=provider, batch=batch), total

    return job.each(work, "rotated")


@rotate.command()
@_batch(500)
@_in_app()
def seals(job: Job, batch: int) -> int:
    """Seal every row anew under the active server key, and leave slots alone.

    Rows without a right seal are refused.
    """
    envelope = job.migrator.setting.envelope

    def work(session: Session, owner_class: Any) -> tuple[Batches[Any], int]:
        total = Desk(session, envelope.policy).keys(owner_class).count_owners()
        return envelope.rotate_seals(session, owner_class.mapper.class_, batch=batch), total

    return job.each(work, "sealed anew")


def _of_owners(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        _batch(100),
        click.option(
            "--before",
            callback=time_given,
            metavar="TIME",
            help="Only keys that were made before this time. To go on after an interruption, give the time "
            "at which it began. [default: now]",
        ),
        click.option("--reason", required=True, help="Why owners are opened, for the audit events."),
        click.option(
            "--provider", help="The provider that opens the owners. [default: the migrator's provider]"
        ),
    ):
        command = option(command)
    return command


@rotate.command()
@_of_owners
@_in_app()
def data(job: Job, **options: Any) -> int:
    """Make a new data key for every owner that a provider opens.

    New values are under it at once; values re-encrypts earlier ones. Owners who hold their keys alone are
    passed over, and counted: they rotate when they are unlocked.
    """
    return _rotate_owners(job, root=False, **options)


@rotate.command()
@_of_owners
@_in_app()
def root(job: Job, **options: Any) -> int:
    """Make a new root key, and new data keys, for every owner that a provider opens.

    Slots and members follow, whoever is away.
    """
    return _rotate_owners(job, root=True, **options)


def _rotate_owners(
    job: Job, *, root: bool, provider: str | None, reason: str, before: dt.datetime | None, batch: int
) -> int:
    named = provider or job.migrator.setting.provider
    if named is None:
        raise click.UsageError("Say which provider opens the owners: --provider NAME.")
    before = before or dt.datetime.now(dt.UTC)
    again = before.astimezone(dt.UTC).isoformat(timespec="seconds")
    job.event("before", {"before": before.isoformat()}, f"To go on after an interruption: --before {again}")
    envelope = job.migrator.setting.envelope

    def work(session: Session, owner_class: Any) -> tuple[Batches[Any], int]:
        store = Desk(session, envelope.policy).keys(owner_class)
        total = store.count_owners(named)
        alone = store.count_owners() - total
        if alone:
            text = (
                f"{owner_class.name}: {counted(alone, 'owner')} without a slot of provider {named!r}: only "
            )
            text += "they can rotate, when they are unlocked"
            job.event("user-held", {"owners": owner_class.name, "count": alone}, text)
        of = owner_class.mapper.class_
        run = envelope.rotate_all(
            session, of, provider=named, reason=reason, root=root, before=before, batch=batch
        )
        return run, total

    return job.each(work, "rotated")


@rotate.command()
@click.argument("columns", nargs=-1, metavar="[COLUMN]...")
@pace_options
@_in_app(owners=False)
def values(job: Job, columns: tuple[str, ...], workers: int, **pace: Any) -> int:
    """Re-encrypt the values that are not under their owner's present data key.

    A COLUMN is written table.attribute; without any, every encrypted column is meant. Readers and writers go
    on meanwhile. Exits with 1 if no key here opens some values, or some do not authenticate.
    """
    migrator = with_pace(job.migrator, pace)
    known = encrypted_columns(migrator.base)
    names = [column_named(known, name).name for name in columns] or [one.name for one in known]
    left = False
    with display_for(PipeConsole(highlight=False, markup=False), job.stop, as_json=job.as_json) as display:
        for name in names:
            display.started(name, "reencrypt", workers)
            report = migrator.reencrypt(name, workers=workers, stop=job.stop, progress=display.progress)
            outcome = {key: value for key, value in vars(report).items() if key != "column"}
            locked = f", {report.locked:,} that no key here opens" if report.locked else ""
            bad = f", {report.bad:,} that do not authenticate" if report.bad else ""
            text = f"{name}: {counted(report.rows, 'value')} re-encrypted{locked}{bad}"
            display.finished(name, "reencrypt", outcome, text)
            if job.stop() and not report.finished:
                raise CutOffError
            left = left or not report.finished or bool(report.locked or report.bad)
    return LEFT if left else DONE


@rotate.command()
@click.argument("names", nargs=-1, required=True, metavar="INDEX...")
@click.option("--provider", help="The provider that opens the owners. [default: the migrator's provider]")
@click.option("--reason", required=True, help="Why owners are opened, for the audit events.")
@click.option("--alone", is_flag=True, help="No other process uses the database: wait for nobody.")
@click.option(
    "--batch", type=click.IntRange(1), default=500, show_default=True, help="Rows in a transaction."
)
@_in_app(owners=False)
def index(
    job: Job, names: tuple[str, ...], provider: str | None, reason: str, alone: bool, batch: int
) -> int:
    """Put a new key in the place of the key of a blind index whose scope is the server.

    An INDEX is written table.column. Values are found meanwhile, by both keys, and a unique index stays
    unique. Between its steps it waits for half a minute, five times. Exits with 1 if rows are left whose
    owners no key here opens: both keys stay, and it goes on when it is run again.
    """
    migrator, envelope = job.migrator, job.migrator.setting.envelope
    known = {f"{one.column.table.name}.{one.key}": one for one, _ in server_indexes(migrator.base)}
    for name in names:
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise click.BadParameter(
                f"{name!r} is no blind index of the server (there is: {there}).", param_hint="INDEX"
            )
    left = False
    with keys_at_hand(envelope, provider or migrator.setting.provider, reason):
        for name in names:
            left = _rotate_index(job, known[name], batch, alone=alone) or left
    return LEFT if left else DONE


def _rotate_index(job: Job, found: "IndexedColumn", batch: int, *, alone: bool) -> bool:
    """Rotate an index, and tell the result; whether rows are left."""
    name, told_at = f"{found.column.table.name}.{found.key}", time.monotonic()
    last: IndexRotation | None = None
    with Session(job.migrator.engine) as session:
        run = job.migrator.setting.envelope.rotate_index(session, found, batch=batch, alone=alone)
        with closing(run):
            for last in run:
                session.commit()
                if job.as_json or time.monotonic() - told_at >= LINE_SECONDS:
                    told_at = time.monotonic()
                    text = f"{name}: {last.step}, {counted(last.filled, 'row')} ready, {last.moved:,} moved"
                    text += f"; it waits for {last.waits:.0f} s" if last.waits else ""
                    job.event("progress", {**vars(last), "index": name}, text)
                if job.stop():
                    raise CutOffError
    if last is None:
        job.event("finished", {"index": name, "step": None}, f"{name}: it has no key yet")
        return False
    text = f"{name}: {counted(last.moved, 'row')} moved, the old key is destroyed"
    if not last.is_done:
        text = f"{name}: {counted(last.pending or 0, 'row')} that no key here opens; both keys stay"
    job.event("finished", {**vars(last), "index": name}, text)
    return not last.is_done


@rotate.command()
@_in_app()
def kdf(job: Job) -> int:
    """Count the secrets by the cost of their derivation.

    A secret below the envelope's profile is put under it when its owner next unlocks and writes. Exits with 1
    while there are some.
    """
    weak = 0
    with Session(job.migrator.engine) as session:
        for owner_class in job.classes():
            for one in job.migrator.setting.envelope.kdf_standing(session, owner_class.mapper.class_):
                weak += one.slots if one.is_weak else 0
                left = ", until their owners unlock and write" if one.is_weak else ""
                text = f"{owner_class.name}: {counted(one.slots, 'secret')} with {one.parameters}{left}"
                job.event("kdf", {"owners": owner_class.name, **one._asdict()}, text)
    return LEFT if weak else DONE
