"""`sqlalchemy-envelope leakage`: what blind indexes tell somebody who has the database."""

import json
import sys
from pathlib import Path
from typing import Any

import click
from sqlalchemy import Table
from sqlalchemy.orm import Session, configure_mappers

from sqlalchemy_envelope import ConfigurationError
from sqlalchemy_envelope.cli.discovery import discover
from sqlalchemy_envelope.cli.migrate.options import Number, app_option, carry_out
from sqlalchemy_envelope.cli.migrate.signals import StopSignals
from sqlalchemy_envelope.cli.output import DONE, LEFT, say
from sqlalchemy_envelope.migration.database.greenlets import run_apart
from sqlalchemy_envelope.migration.migrator import Migrator
from sqlalchemy_envelope.orm.indexes.indexed import IndexedColumn, indexes_of_table
from sqlalchemy_envelope.orm.indexes.leakage.measuring import THRESHOLD, measure_leakage
from sqlalchemy_envelope.orm.indexes.leakage.public_values import PublicValues
from sqlalchemy_envelope.orm.indexes.leakage.report import Leakage
from sqlalchemy_envelope.orm.tables.bases import mappers_of

_UNMEASURED = "Token indexes are not measured"


@click.command()
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@app_option("Where the Migrator is, or a function that makes it.")
@click.option(
    "--public",
    "public",
    multiple=True,
    metavar="INDEX=FILE",
    help="How often each value occurs among people at large: lines of value,weight, or a JSON object.",
)
@click.option(
    "--threshold",
    type=Number(0, 1),
    default=THRESHOLD,
    show_default=True,
    help="How much of what nobody could guess without an index it may give away.",
)
@click.option(
    "--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw the figures into this .svg or .png."
)
@click.option("--seed", type=int, default=0, help="The seed of the simulation. [default: 0]")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def leakage(
    indexes: tuple[str, ...],
    app: str,
    public: tuple[str, ...],
    threshold: float,
    plot: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Tell what blind indexes give away to somebody who has the database.

    An INDEX is a table.column; without any, it is each blind index of the models. Token indexes are not
    measured. The command counts the tags
    of the live column. With public figures it simulates a frequency attack, and where the server's index key
    is at hand, it checks the attack. It reads and prints no value. Exits with 1 if an index gives away more
    than the threshold.
    """
    migrator = discover(app, Migrator).value

    def work() -> int:
        tokens = migrator.token_indexes
        known = _indexes(migrator.base, tokens)
        for name in indexes:
            if name in tokens:
                raise click.BadParameter(f"{name} is a token index. {_UNMEASURED}.", param_hint="INDEX")
        wanted, figures = _chosen(known, indexes), _figures(known, public)
        with Session(migrator.engine) as session:
            migrator.setting.envelope.attach(session)
            found = [
                measure_leakage(session, one.column, figures.get(one.label), threshold=threshold, seed=seed)
                for one in wanted
            ]
        if plot is not None:
            _plot(found, plot)
        _tell(found, as_json=as_json)
        if tokens and not indexes:
            click.echo(f"{_UNMEASURED}: {', '.join(tokens)}.", err=True)
        return LEFT if any(one.is_above for one in found) else DONE

    with StopSignals(at_once=True) as stop:
        sys.exit(carry_out(stop, lambda: run_apart(migrator.given_engine, work)))


def _indexes(base: Any, tokens: list[str]) -> dict[str, IndexedColumn]:
    configure_mappers()
    tables = dict.fromkeys(table for mapper in mappers_of(base) for table in mapper.tables)
    found = [one for table in tables if isinstance(table, Table) for one in indexes_of_table(table)]
    if not found:
        more = f" {_UNMEASURED}: {', '.join(tokens)}." if tokens else ""
        raise ConfigurationError(f"No column of these models is a BlindIndex.{more}")
    return {f"{one.column.table.name}.{one.column.name}": one for one in found}


def _chosen(known: dict[str, IndexedColumn], names: tuple[str, ...]) -> list[IndexedColumn]:
    return [_named(known, name, "INDEX") for name in names] or list(known.values())


def _named(known: dict[str, IndexedColumn], name: str, hint: str) -> IndexedColumn:
    if name not in known:
        raise click.BadParameter(f"there is no index {name!r}: {', '.join(sorted(known))}.", param_hint=hint)
    return known[name]


def _figures(known: dict[str, IndexedColumn], given: tuple[str, ...]) -> dict[str, PublicValues]:
    figures = {}
    for one in given:
        name, equals, file = one.partition("=")
        if not equals:
            raise click.BadParameter(f"{one!r}: write INDEX=FILE.", param_hint="--public")
        index = _named(known, name, "--public")
        figures[index.label] = PublicValues.from_file(file)
    return figures


def _tell(found: list[Leakage], *, as_json: bool) -> None:
    if as_json:
        say(json.dumps([one.values() for one in found], indent=2))
        return
    for one in found:
        for line in one.lines():
            say(line)


def _plot(found: list[Leakage], path: Path) -> None:
    if path.suffix not in (".svg", ".png"):
        raise click.BadParameter(f"{path}: its name ends in .svg or .png.", param_hint="--plot")
    try:
        from sqlalchemy_envelope.cli.leakage_plot import plot
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        message = "--plot needs matplotlib: pip install 'sqlalchemy-envelope[plot]'"
        raise click.UsageError(message) from None
    plot([one for one in found if one.rows], path)
