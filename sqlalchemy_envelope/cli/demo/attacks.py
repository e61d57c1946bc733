"""Steps 5 to 7 of the demo: data is altered, a secret changes, an owner is deleted. Each returns a report."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any
from uuid import UUID

from rich.text import Text
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import DecryptionError, EnvelopeError, UnlockError
from sqlalchemy_envelope.cli.demo.clinic import ADA, DATA_TABLES, GRACE, KEY_TABLES, Clinic, digest
from sqlalchemy_envelope.cli.demo.models import ENCRYPTED, Entry, Person
from sqlalchemy_envelope.cli.demo.report import Report, attempt, listing, milliseconds, quoted


def tampering(clinic: Clinic) -> Report:
    """Step 5: raw SQL alters stored bytes, or moves them to other cells."""
    report = Report("What altered or moved ciphertext gets")
    outcomes: list[tuple[str, EnvelopeError | None]] = []
    with clinic.unlocked(ADA) as (session, person, _):
        a, b = session.scalars(select(Entry.id).where(Entry.person == person).limit(2))
        places = (("note", a), ("plan", a), ("note", b), ("dose", a), ("dose", b))
        note, plan, note_b, dose, dose_b = (_cell(clinic, *place) for place in places)
        flipped = note[:-20] + bytes([note[-20] ^ 1]) + note[-19:]
        attacks = [
            ("one bit of a note flipped", {("note", a): flipped}),
            ("a note and a plan of one row swapped", {("note", a): plan, ("plan", a): note}),
            ("doses of two rows swapped (bind='row')", {("dose", a): dose_b, ("dose", b): dose}),
        ]
        for what, changes in attacks:
            with _altered(clinic, session, changes):
                outcomes.append((what, attempt(lambda: _read(session, a))[0]))
        with _altered(clinic, session, {("note", a): note_b, ("note", b): note}):
            unbound = attempt(lambda: _read(session, a))[0]
        restored = attempt(lambda: (_read(session, a), _read(session, b)))[0]
    rows: list[Any] = [(what, Text(type(error).__name__, style="yellow")) for what, error in outcomes]
    rows.append(
        (
            "notes of two rows swapped (not row-bound)",
            type(unbound).__name__ if unbound else "no error",
        )
    )
    report.show(listing("with raw SQL", "reading it", rows=rows))
    report.show(Text("The last one is a known limit: only bind='row' holds a value to its row.", style="dim"))
    report.show(quoted(outcomes[0][1]))
    refused = sum(isinstance(error, DecryptionError) for _, error in outcomes)
    report.claim(
        refused == len(outcomes),
        f"{refused} of {len(outcomes)} alterations refused, no wrong value handed out",
    )
    report.claim(restored is None, "put back as they were, the same values open again")
    return report


def new_secret(clinic: Clinic) -> Report:
    """Step 6: the secret changes, and the report counts the cells that this touched."""
    report = Report(f"{ADA} changes her secret")
    data, keys = clinic.cells(DATA_TABLES), clinic.cells(KEY_TABLES)
    old, new = clinic.secrets[ADA], "enchantress of numbers 1852"
    with Session(clinic.engine) as session:
        person = session.scalars(select(Person).where(Person.name == ADA)).one()
        started = perf_counter()
        clinic.envelope.change_secret(session, person, old=old, new=new)
        session.commit()
        seconds = perf_counter() - started
    clinic.secrets[ADA] = new
    data_after, keys_after = clinic.cells(DATA_TABLES), clinic.cells(KEY_TABLES)
    changed = [place for place in keys_after if keys.get(place) != keys_after[place]]
    rows = [
        (
            f"{table}.{column}",
            f"{len(keys_after[table, row, column])} B",
            _short(keys_after[table, row, column]),
        )
        for table, row, column in changed
    ]
    report.show(listing("what changed", "size", "now", rows=rows, fixed=("what changed", "size")))
    size = sum(len(keys_after[place]) for place in changed)
    touched = sum(len(cell) for place, cell in data_after.items() if data.get(place) != cell)
    report.claim(
        data == data_after,
        f"{touched} of {sum(map(len, data.values())):,} bytes of data touched: the hash over all of them was "
        f"{digest(data)[:12]}… and is {digest(data_after)[:12]}…",
    )
    slots = {(table, row) for table, row, _ in changed}
    report.claim(
        keys.keys() == keys_after.keys() and len(slots) == 1,
        f"{size} bytes written in {len(slots)} key row, in {milliseconds(seconds)} with two key derivations",
    )
    refused = attempt(lambda: clinic.try_secret(ADA, old))[0]
    opened = attempt(lambda: clinic.try_secret(ADA, new))[0]
    report.claim(
        isinstance(refused, UnlockError) and opened is None,
        f"the old secret gets {type(refused).__name__}, the new one opens",
    )
    return report


def deletion(clinic: Clinic) -> Report:
    """Step 7: raw SQL deletes the owner past the library. Somebody has kept a copy of her ciphertext."""
    report = Report(f"{ADA} is deleted, and a copy of her ciphertext kept aside")
    statement = "DELETE FROM people WHERE name = ?"
    columns = ", ".join(column.name for column in Entry.__table__.columns)
    (person_id,) = clinic.execute("SELECT id FROM people WHERE name = ?", ADA)[0]
    kept = clinic.execute(f"SELECT {columns} FROM journal WHERE person_id = ?", person_id)  # noqa: S608 - ours
    wrapped = [
        *clinic.execute(
            "SELECT wrapped FROM people_key WHERE owner_id = ? AND wrapped IS NOT NULL", person_id
        ),
        *clinic.execute(
            "SELECT slot.wrapped FROM people_keyslot slot JOIN people_key USING (key_id) WHERE owner_id = ?",
            person_id,
        ),
    ]
    before = {table: clinic.count(table) for table in ("people", *KEY_TABLES, "journal")}
    were_there = _in_file(clinic, wrapped)
    clinic.execute(statement, ADA)
    after = {table: clinic.count(table) for table in before}
    report.show(
        Text(f"{statement.replace('?', repr(ADA))};", style="bold"),
        listing(
            "table", "rows before", "after", rows=[(table, before[table], after[table]) for table in before]
        ),
    )
    report.show(
        Text("A backup with her key rows in it does open with her secret, until it expires.", style="dim")
    )
    keys_left = clinic.execute("SELECT count(*) FROM people_key WHERE owner_id = ?", person_id)[0][0]
    orphans = clinic.execute(
        "SELECT count(*) FROM people_keyslot WHERE key_id NOT IN (SELECT key_id FROM people_key)"
    )[0][0]
    report.claim(
        keys_left == 0 and orphans == 0 and after["people_keyslot"] < before["people_keyslot"],
        f"{keys_left} key rows of hers are left: the database deleted them with her",
    )
    left = _in_file(clinic, wrapped)
    report.claim(
        were_there == len(wrapped) and left == 0,
        f"{were_there} wrapped keys of hers were in the file, {left} are (SQLite's secure_delete is on)",
    )
    if not report.held:
        return report  # no new person can take her id while her keys exist
    outcomes, grace_opened = _read_as_everybody(clinic, person_id, columns, kept)
    refused = {name: count for name, count in outcomes.items() if name != "opened"}
    report.claim(
        outcomes["opened"] == 0 and sum(refused.values()) == len(kept) * len(ENCRYPTED),
        f"her {len(kept):,} rows put back and read with every key there is, {GRACE}'s and those of a new "
        f"{ADA} of the same id and secret: {outcomes['opened']} of {len(kept) * len(ENCRYPTED):,} values "
        f"open ({', '.join(refused) or 'no error'})",
    )
    expected = {record["id"]: record["note"] for record in clinic.records(GRACE)}
    report.claim(grace_opened == expected, f"{GRACE}'s {len(grace_opened):,} entries open as before")
    return report


def _read_as_everybody(
    clinic: Clinic, person_id: int, columns: str, kept: list[Any]
) -> tuple[Counter[str], dict[Any, str]]:
    """Put the kept rows back, under a new person with the old person's id, and read them with every key."""
    outcomes: Counter[str] = Counter(opened=0)
    with Session(clinic.engine) as session:
        again = Person(id=person_id, name=ADA, phone=clinic.phones[ADA])
        with clinic.envelope.enroll(session, again, secret=clinic.secrets[ADA]):
            session.commit()
            places = ", ".join("?" * len(kept[0]))
            for row in kept:
                clinic.execute(f"INSERT INTO journal ({columns}) VALUES ({places})", *row)  # noqa: S608 - ours
            with clinic.unlocked(GRACE) as (other, grace, _):
                for entry in other.scalars(select(Entry).where(Entry.person_id == person_id)):
                    for key in ENCRYPTED:
                        error = attempt(partial(getattr, entry, key))[0]
                        outcomes["opened" if error is None else type(error).__name__] += 1
                hers = other.scalars(select(Entry).where(Entry.person == grace))
                opened = {entry.id: entry.note for entry in hers}
    clinic.execute("DELETE FROM people WHERE id = ?", person_id)
    return outcomes, opened


@contextmanager
def _altered(clinic: Clinic, session: Session, changes: dict[tuple[str, UUID], bytes]) -> Iterator[None]:
    """Overwrite stored cells, and restore them at the end of the block."""
    session.rollback()
    before = {place: _cell(clinic, *place) for place in changes}
    try:
        for place, value in changes.items():
            _set_cell(clinic, *place, value)
        yield
    finally:
        session.rollback()
        for place, value in before.items():
            _set_cell(clinic, *place, value)


def _cell(clinic: Clinic, column: str, entry: UUID) -> bytes:
    value: bytes = clinic.execute(f"SELECT {column} FROM journal WHERE id = ?", entry.hex)[0][0]  # noqa: S608 - ours
    return value


def _set_cell(clinic: Clinic, column: str, entry: UUID, value: bytes) -> None:
    clinic.execute(f"UPDATE journal SET {column} = ? WHERE id = ?", value, entry.hex)  # noqa: S608 - ours


def _read(session: Session, entry_id: UUID) -> list[Any]:
    session.expunge_all()
    entry = session.get_one(Entry, entry_id)
    return [getattr(entry, key) for key in ENCRYPTED]


def _in_file(clinic: Clinic, rows: list[Any]) -> int:
    raw = clinic.path.read_bytes()
    return sum(value in raw for (value,) in rows)


def _short(value: bytes) -> str:
    text = (
        value.decode("ascii") if value.isascii() and value.decode("ascii").isprintable() else value.hex(" ")
    )
    return text if len(text) <= 36 else f"{text[:35].rstrip()}…"
