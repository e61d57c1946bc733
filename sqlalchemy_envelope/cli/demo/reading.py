"""Steps 1 to 4 of the demo: the readers and what they see. Each takes the clinic and returns a report."""

import datetime as dt
import json
import uuid
from collections.abc import Iterator
from decimal import Decimal
from functools import partial
from time import perf_counter
from typing import Any

from rich.text import Text
from sqlalchemy import select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import KdfProfile, LockedError, UnlockError
from sqlalchemy_envelope.cli.demo.clinic import ADA, GRACE, Clinic
from sqlalchemy_envelope.cli.demo.models import ENCRYPTED, Entry, Kind, Person
from sqlalchemy_envelope.cli.demo.report import Report, attempt, hex_dump, listing, milliseconds, quoted
from sqlalchemy_envelope.words import counted

SHORTEST = 6
"""The length of the shortest plaintext to search for: random bytes contain shorter texts by chance."""


def enrolment(clinic: Clinic) -> Report:
    """Make the people, their keys and their journals."""
    report = Report("Two people are enrolled, and their clinic journals written")
    seconds = {name: clinic.enroll(name) for name in (ADA, GRACE)}
    rows = [
        (name, clinic.secrets[name], len(clinic.records(name)), milliseconds(seconds[name]))
        for name in seconds
    ]
    report.show(listing("person", "secret, known to them alone", "entries", "enrolled in", rows=rows))
    written = clinic.count("journal")
    report.claim(
        written == clinic.record_count,
        f"{written:,} entries of {len(ENCRYPTED)} encrypted columns each are in {clinic.path.name}",
    )
    strings = [kdf.rsplit("$", 1)[0] for (kdf,) in clinic.execute("SELECT kdf FROM people_keyslot")]
    default = KdfProfile.RFC9106_LOW_MEMORY
    expected = f"$argon2id$v=19$m={default.memory},t={default.passes},p={default.lanes}"
    report.claim(
        strings == [expected, expected],
        f"a guess costs what it should: Argon2id, {default.memory // 1024} MiB, {default.passes} passes",
    )
    return report


def file_contents(clinic: Clinic) -> Report:
    """Step 1: read the file as bytes, and search it for everything that was written."""
    report = Report("What the database file holds")
    with Session(clinic.engine) as session:
        first = session.execute(select(Entry.id, Entry.note).limit(1)).one()
    raw, note = clinic.path.read_bytes(), first.note.blob
    position = raw.find(note)
    sizes = (1, "format", "bold magenta"), (16, "key id", "yellow"), (12, "nonce", "blue")
    rest = (len(note) - 45, "ciphertext", ""), (16, "tag", "green")
    parts = (*sizes, *rest)
    report.show(
        Text.assemble(
            f"One note, at byte {position:,} of {clinic.path.name}: ",
            *((f"{size} B {name}" + (", " if name != "tag" else ""), style) for size, name, style in parts),
        ),
        hex_dump(raw[position : position + len(note)], position, [(size, style) for size, _, style in parts]),
    )
    report.claim(position > 0, "the stored note stands in the file as it came from the database")
    needles = {needle for name in (ADA, GRACE) for needle in plaintexts(clinic, name)}
    found = _count_found(needles, raw)
    report.claim(
        found == 0,
        f"{len(needles):,} known plaintexts of {SHORTEST} bytes or more searched for: {found} found",
    )
    controls = [name for name in (ADA, GRACE) if name.encode() in raw]
    report.claim(
        len(controls) == 2,
        f"the same search does find {' and '.join(controls) or 'no names'}: that column is not encrypted",
    )
    return report


def owner_reads(clinic: Clinic) -> Report:
    """Step 2: the owner unlocks and reads."""
    report = Report(f"What {ADA} sees, unlocked with her secret")
    with clinic.unlocked(ADA) as (session, person, _):
        started = perf_counter()
        entries = session.scalars(select(Entry).filter_by(person=person)).all()
        read = [{key: getattr(entry, key) for key in ("id", *ENCRYPTED)} for entry in entries]
        seconds = perf_counter() - started
    written = {record["id"]: record for record in clinic.records(ADA)}
    one = read[0]
    report.show(
        Text("One entry in full:"),
        listing(
            *("column", "type", "stored", "what she reads"),
            rows=[
                (key, type(one[key]).__name__, _stored(clinic, key, one["id"]), _cell(one[key]))
                for key in ENCRYPTED
            ],
            fixed=("column", "type", "stored"),
        ),
        Text("And the next ones:"),
        listing(
            *("day", "kind", "fee", "urgent", "note"),
            rows=[[_cell(row[key]) for key in ("day", "kind", "fee", "urgent", "note")] for row in read[1:5]],
            fixed=("day", "kind", "fee", "urgent"),
        ),
    )
    same = [repr(row) == repr(written.get(row["id"])) for row in read]
    report.claim(
        len(read) == len(written) and all(same),
        f"{counted(len(read) * len(ENCRYPTED), 'value')} read, equal to what was written, types and all: "
        f"{milliseconds(seconds)}, after {milliseconds(clinic.unlock_seconds)} for the unlock",
    )
    return report


def other_owner_reads(clinic: Clinic) -> Report:
    """Step 3: another owner is unlocked, and reads all rows."""
    report = Report(f"What {GRACE} sees, unlocked with hers")
    refusals: dict[str, LockedError] = {}
    locked = 0
    opened: dict[str, int] = {ADA: 0, GRACE: 0}
    shown: dict[str, list[tuple[Any, ...]]] = {ADA: [], GRACE: []}
    with clinic.unlocked(GRACE) as (session, _, _unlocked):
        for entry, name in session.execute(select(Entry, Person.name).join(Entry.person)):
            for key in ENCRYPTED:
                try:
                    value: Any = getattr(entry, key)
                    opened[name] += 1
                except LockedError as error:
                    refusals[key] = error
                    locked += 1
                    value = Text(type(error).__name__, style="yellow")
                if key == "note" and len(shown[name]) < 3:
                    shown[name].append((name, str(entry.id)[:8], value))
    report.show(
        listing("whose", "entry", "entry.note", rows=[*shown[ADA], *shown[GRACE]], fixed=("whose", "entry"))
    )
    report.show(quoted(refusals.get("note")))
    hers, others = (len(clinic.records(name)) * len(ENCRYPTED) for name in (GRACE, ADA))
    report.claim(
        opened[ADA] == 0 and locked == others,
        f"{ADA}'s rows load, and {locked:,} of {others:,} values in them stay locked",
    )
    report.claim(opened[GRACE] == hers, f"her own open: {opened[GRACE]:,} of {hers:,} values")
    return report


def wrong_secret(clinic: Clinic) -> Report:
    """Step 4: somebody guesses."""
    report = Report("What a wrong secret gets")
    guesses = [clinic.secrets[ADA].title(), clinic.secrets[GRACE]]
    tried = [(guess, *attempt(partial(clinic.try_secret, ADA, guess))) for guess in guesses]
    rows = [(f"{guess!r}", type(error).__name__, milliseconds(seconds)) for guess, error, seconds in tried]
    report.show(listing(f"tried for {ADA}", "outcome", "after", rows=rows), quoted(tried[0][1]))
    refused = sum(type(error) is UnlockError for _, error, _ in tried)
    each = sum(seconds for *_, seconds in tried) / len(tried)
    report.claim(
        refused == len(tried), f"{refused} of {len(tried)} guesses refused, at {milliseconds(each)} each"
    )
    return report


def plaintexts(clinic: Clinic, name: str) -> Iterator[bytes]:
    """A person's values as the bytes that a plaintext column might hold, and the person's secret."""
    for value in (clinic.secrets[name], clinic.phones[name]):
        yield from _spellings(value)
    for record in clinic.records(name):
        for key in ENCRYPTED:
            yield from (one for one in _spellings(record[key]) if len(one) >= SHORTEST)


def _count_found(needles: set[bytes], raw: bytes) -> int:
    """Count the needles in the file in a single pass. A search for each would need thousands of passes."""
    by_opening: dict[bytes, list[bytes]] = {}
    for needle in needles:
        by_opening.setdefault(needle[:SHORTEST], []).append(needle)
    found: set[bytes] = set()
    for position in range(len(raw)):
        for needle in by_opening.get(raw[position : position + SHORTEST], ()):
            if raw.startswith(needle, position):
                found.add(needle)
    return len(found)


def _spellings(value: Any) -> Iterator[bytes]:
    if isinstance(value, str):
        yield value.encode("utf-8")
        yield value.encode("utf-16-le")
    elif isinstance(value, bytes):
        yield value
        yield value.hex().encode()
    elif isinstance(value, uuid.UUID):
        yield from (value.bytes, value.hex.encode(), str(value).encode())
    elif isinstance(value, dt.datetime):
        yield from (value.isoformat(separator, "minutes")[:16].encode() for separator in "T ")
    elif isinstance(value, dict):
        yield json.dumps(value).encode()
        yield json.dumps(value, separators=(",", ":")).encode()
    elif isinstance(value, (dt.date, Decimal)) or type(value) is int:
        yield str(value).encode()
        if isinstance(value, int):
            yield value.to_bytes(8, "big").lstrip(b"\0")
    elif isinstance(value, Kind):
        yield from (value.name.encode(), value.value.encode())


def _stored(clinic: Clinic, column: str, entry_id: uuid.UUID) -> str:
    statement = f"SELECT length({column}) FROM journal WHERE id = ?"  # noqa: S608 - our own column names
    return f"{clinic.execute(statement, entry_id.hex)[0][0]} B"


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{value[:8].hex(' ')} … {counted(len(value), 'byte')}"
    if isinstance(value, Kind):
        return value.value
    return str(value)
