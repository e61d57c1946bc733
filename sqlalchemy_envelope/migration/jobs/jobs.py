"""What is done with a chunk of rows: encrypt it, compare it, move it back, or encrypt it anew.

Each writes only where a row still is what was read of it. What was changed meanwhile is left for the next
sweep, and a chunk that is done twice changes nothing the second time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from sqlalchemy import and_, func

from sqlalchemy_envelope.crypto.aead import (
    HEADER_SIZE,
    MAX_VALUE_SIZE,
    NO_ROW,
    OVERHEAD,
    Batch,
    row_tail,
)
from sqlalchemy_envelope.crypto.context import encode_reference
from sqlalchemy_envelope.exceptions import (
    DecryptionError,
    EnvelopeError,
    FormatError,
    MigrationStoppedError,
)
from sqlalchemy_envelope.migration.database.faults import refuses_value, why_refused
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.early_ciphertext import BESIDE, Advice, refuse_ciphertext
from sqlalchemy_envelope.migration.jobs.own_previous import LOCKED, open_previous, seal_previous
from sqlalchemy_envelope.migration.jobs.owner_ciphers import OwnerCiphers
from sqlalchemy_envelope.migration.jobs.preflight import (
    check_read,
    find_unreadable,
    is_of_the_value,
    unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import ColumnElement
    from sqlalchemy.orm import Session

    from sqlalchemy_envelope.crypto.aead import ValueCipher
    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.database.rows import Rows
    from sqlalchemy_envelope.orm.columns.codecs import Codec
    from sqlalchemy_envelope.orm.tables.keyset import Position


@dataclass
class Step:
    """What one chunk came to.

    Attributes:
        position: the last key that was looked at; None if there was no row left.
        full: whether there may be more rows after it.
        rows: how many were written or compared.
        bad, locked: of a verification: how many differ, and how many no key here opens.
        examples: the keys of some that differ; keys, never values.
    """

    position: Position | None
    full: bool
    rows: int = 0
    bad: int = 0
    locked: int = 0
    examples: tuple[Position, ...] = ()


class Work(Protocol):
    """One kind of job.

    Attributes:
        part: of a job that several do at once, each for themselves: which of them.
        sampled: of a verification: whether it looks at a sample.
    """

    job: Job
    part: str
    sampled: bool | None

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Which rows are still to be done."""
        ...

    def step(
        self, session: Session, rows: Rows, after: Position | None, upto: Position | None, size: int
    ) -> Step:
        """Do one chunk, in the session's transaction."""
        ...


class Backfill:
    """Encrypt previous values for their rows' owners.

    Args:
        advice: what an error says to do about a previous value that is ciphertext already.
    """

    job = Job.BACKFILL
    part = ""
    sampled: bool | None = None

    def __init__(self, advice: Advice = BESIDE) -> None:
        self._advice = advice

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Pending rows that have an owner."""
        return and_(rows.pending, rows.owned)

    def step(
        self, session: Session, rows: Rows, after: Position | None, upto: Position | None, size: int
    ) -> Step:
        """Encrypt one chunk; owners without keys are passed over."""
        connection = session.connection()
        found = read_chunk(session, rows, self.due(rows), after, upto, size)
        if not found:
            return Step(None, full=False)
        if rows.dialect.name == "sqlite":
            # A read that turns into a write fails at once when somebody else wrote in between.
            session.rollback()
            connection = session.connection()
        parts = [rows.split(row) for row in found]
        check_read(rows, parts)
        step = Step(parts[-1][0], len(found) == size)
        parts = [part for part in open_previous(session, rows, parts) if part[2] is not LOCKED]
        step.locked = len(found) - len(parts)
        keys = OwnerCiphers(session, rows.column)
        refuse_ciphertext(rows.column, keys, parts, self._advice)
        ciphers = keys.writers({owner for _, owner, *_ in parts}, len(parts))
        step.rows = rows.write_encrypted(connection, encrypt_rows(rows.column, ciphers, parts))
        return step


class Verify:
    """Decrypt what is stored and compare it with the previous value, to the byte and type.

    Args:
        sample: the share of rows to look at; None for all.
    """

    job = Job.VERIFY
    part = ""

    def __init__(self, sample: float | None = None) -> None:
        self._sample = sample
        self.sampled: bool | None = sample is not None

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Rows with an encrypted value."""
        where: ColumnElement[bool] = rows.encrypted.is_not(None)
        if self._sample is None:
            return where
        name = rows.dialect.name
        if name == "sqlite":
            return and_(where, func.abs(func.random() % 1_000_000) < int(self._sample * 1_000_000))
        return and_(where, (func.rand() if name in ("mysql", "mariadb") else func.random()) < self._sample)

    def step(
        self, session: Session, rows: Rows, after: Position | None, upto: Position | None, size: int
    ) -> Step:
        """Compare one chunk."""
        found = read_chunk(session, rows, self.due(rows), after, upto, size)
        if not found:
            return Step(None, full=False)
        parts = open_previous(session, rows, [rows.split(row) for row in found])
        keys = OwnerCiphers(session, rows.column)
        keys.prepare_read(headers_of(stored for *_, stored in parts))
        step = Step(parts[-1][0], len(found) == size)
        codec, examples = rows.column.plan.type.codec, []
        locked: list[tuple[Position, bytes, tuple[Any, ...]]] = []
        for position, owner, typed, _, stored in parts:
            try:
                plaintext = open_stored(rows.column, keys, position, stored, owner)
            except (DecryptionError, FormatError):
                same: bool | None = False
            else:
                if plaintext is None or typed is LOCKED:
                    same = None
                else:
                    same = typed is None or encrypts_to(codec, typed, plaintext)
            if same is None and typed is not LOCKED:
                locked.append((position, bytes(stored[:HEADER_SIZE]), owner))
            elif same is None:
                step.locked += 1
            elif not same:
                step.bad += 1
                examples.append(position)
            step.rows += 1
        # Locked is what somebody has the key of. Who was deleted and made again has lost theirs.
        for (position, *_), lost in zip(locked, keys.strangers([one[1:] for one in locked]), strict=True):
            step.bad, step.locked = step.bad + lost, step.locked + (not lost)
            if lost:
                examples.append(position)
        step.examples = tuple(examples[:5])
        return step


class Reverse:
    """Move values back: where there is nothing but an encrypted value, the previous column gets it."""

    job = Job.REVERSE
    part = ""
    sampled: bool | None = None

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Rows with an encrypted value alone."""
        return rows.encrypted_alone

    def step(
        self, session: Session, rows: Rows, after: Position | None, upto: Position | None, size: int
    ) -> Step:
        """Decrypt one chunk; what no key here opens stays as it is."""
        found = read_chunk(session, rows, self.due(rows), after, upto, size)
        if not found:
            return Step(None, full=False)
        parts = [rows.split(row) for row in found]
        keys = OwnerCiphers(session, rows.column)
        keys.prepare_read(headers_of(stored for *_, stored in parts))
        step = Step(parts[-1][0], len(found) == size)
        decode, made = rows.column.plan.type.codec.decode, []
        for position, owner, _, _, stored in parts:
            try:
                plaintext = open_stored(rows.column, keys, position, stored, owner)
            except (DecryptionError, FormatError):
                step.bad += 1  # it stays where it is, and is told as left
                continue
            if plaintext is None:
                step.locked += 1
            else:
                made.append((position, owner, stored, decode(plaintext)))
        sealed = seal_previous(session, rows, made)
        step.locked += len(made) - len(sealed)
        step.rows = _write_back(session, rows, sealed)
        return step


def _write_back(session: Session, rows: Rows, parts: Sequence[tuple[Position, Any, Any]]) -> int:
    """Write values into the previous column; how many were.

    Raises:
        MigrationStoppedError: the column does not take one.
    """
    try:
        return rows.write_previous(session.connection(), parts)
    except Exception as error:
        if not refuses_value(error):
            raise
        why, row = why_refused(error), "a row"
    # Outside of `except`: what the database said may show the values of a row.
    session.rollback()
    for part in parts:
        try:
            rows.write_previous(session.connection(), [part])
        except Exception as error:
            if not refuses_value(error):
                raise
            why, row = why_refused(error), f"the row {part[0]!r}"
            break
    session.rollback()
    column = rows.column.from_column
    name, kind = f"{column.table.name}.{column.name}", column.type.compile(rows.dialect)
    cure = f"Change the value in the application, or alter {name}"
    if rows.dialect.name == "postgresql":
        cure += "; PostgreSQL alters it when you drop the triggers zz_envelope_... of the table before"
    raise MigrationStoppedError(
        f"{name}, which is {kind}, does not take the value of {row}: {why}. It was written while the "
        f"encrypted column counted alone, which takes it. {cure}. Then reverse again, which puts the "
        "triggers back. What is done stays done."
    )


class Reencrypt:
    """Encrypt stored values anew that are not under their owner's current data key.

    Args:
        owner: the primary key of the one owner whose rows to do; None for all.
    """

    job = Job.REENCRYPT
    sampled: bool | None = None

    def __init__(self, owner: tuple[Any, ...] | None = None) -> None:
        self._owner = owner
        # Many owners may be at it in one moment, each in a request of theirs.
        self.part = "" if owner is None else f":{uuid4().hex}"

    def due(self, rows: Rows) -> ColumnElement[bool]:
        """Rows with an encrypted value; of one owner, if it is for that one."""
        where: ColumnElement[bool] = rows.encrypted.is_not(None)
        if self._owner is None:
            return where
        return and_(where, *(mine == key for mine, key in zip(rows.owners, self._owner, strict=True)))

    def step(
        self, session: Session, rows: Rows, after: Position | None, upto: Position | None, size: int
    ) -> Step:
        """Encrypt one chunk anew."""
        connection = session.connection()
        found = read_chunk(session, rows, self.due(rows), after, upto, size)
        if not found:
            return Step(None, full=False)
        parts = [rows.split(row) for row in found]
        keys = OwnerCiphers(session, rows.column)
        writers = keys.writers({owner for _, owner, *_ in parts if keys.names_owner(owner)}, len(parts))
        keys.prepare_read(headers_of(stored for *_, stored in parts))
        step, made = Step(parts[-1][0], len(found) == size), []
        for position, owner, _, _, stored in parts:
            writer = writers.get(owner)
            if writer is not None and stored is not None and bytes(stored[:HEADER_SIZE]) == writer.header:
                continue
            try:
                plaintext = open_stored(rows.column, keys, position, stored, owner)
            except (DecryptionError, FormatError):
                step.bad += 1  # it stays as it is, and is told
                continue
            if plaintext is None or writer is None:
                step.locked += 1
            else:
                made.append((position, stored, encrypted_again(rows.column, writer, position, plaintext)))
        step.rows = rows.replace_encrypted(connection, made)
        return step


def read_chunk(
    session: Session,
    rows: Rows,
    where: ColumnElement[bool],
    after: Position | None,
    upto: Position | None,
    size: int,
) -> list[Any]:
    """Read a chunk; a previous value that its type cannot read is told with its row's key.

    Raises:
        PreviousValueError: it cannot be read.
    """
    try:
        return rows.read(session.connection(), where, after, upto, size)
    except EnvelopeError:
        raise
    except Exception as error:
        if not is_of_the_value(rows, error):
            raise
        why = f"{type(error).__name__} was raised"
    # Nothing is chained: what a type raises may show what it tried to read.
    session.rollback()
    positions = rows.positions(session.connection(), where, after, upto, size)
    failed = find_unreadable(session.connection(), rows, positions)
    raise unreadable(rows, *(failed or (None, why)))


def encrypt_rows(
    column: MigratingColumn, ciphers: dict[tuple[Any, ...], ValueCipher], parts: Sequence[Any]
) -> list[tuple[Position, tuple[Any, ...], Any, bytes]]:
    """The ciphertexts for a chunk, each beside what was read: key, owner's key, previous value.

    Raises:
        MigrationStoppedError: a value does not fit the encrypted type.
    """
    encode, row_bound = column.plan.encode, column.plan.row_bound
    bound = {owner: [cipher.bind("value", encode, column)] for owner, cipher in ciphers.items()}
    batch, made = Batch(len(parts)), []
    for position, owner, typed, exact, _ in parts:
        cipher = bound.get(owner)
        if cipher is None:
            continue
        row = {"value": typed}
        failed = batch.encrypt(row, cipher, row_tail(encode_reference(position)) if row_bound else NO_ROW)
        if failed is not None:
            size = 0 if failed[2] is None else len(failed[2])
            raise MigrationStoppedError(
                f"{column.name}: the previous value of the row {position!r} has {size - OVERHEAD} bytes, "
                "over "
                f"{MAX_VALUE_SIZE}. Shorten it, or store it elsewhere, and run again."
                if size > MAX_VALUE_SIZE
                else f"{column.name}: the previous value of the row {position!r} is no "
                f"{column.plan.type.codec.tag!r} that "
                f"can be encrypted ({type(typed).__name__}). Correct the row, or the type of the column, "
                "and run again."
            )
        if row["value"] is not typed:
            made.append((position, owner, exact, row["value"][1]))
    return made


def open_stored(
    column: MigratingColumn, keys: OwnerCiphers, position: Position, stored: Any, owner: tuple[Any, ...]
) -> bytes | None:
    """The plaintext bytes of a stored value; None if no key here opens it.

    Raises:
        FormatError, DecryptionError: it is not what was written there, or another owner's.
    """
    return keys.open(column.plan.type.field, stored, owner, _reference(column, position))


def encrypted_again(
    column: MigratingColumn, writer: ValueCipher, position: Position, plaintext: bytes
) -> bytes:
    """A ciphertext of plaintext bytes for one row."""
    return writer.encrypt(plaintext, _reference(column, position))


def _reference(column: MigratingColumn, position: Position) -> bytes:
    return encode_reference(position) if column.plan.row_bound else b""


def headers_of(stored: Iterable[Any]) -> dict[bytes, int]:
    headers: dict[bytes, int] = {}
    for blob in stored:
        if isinstance(blob, (bytes, bytearray, memoryview)) and len(blob) > HEADER_SIZE:
            header = bytes(blob[:HEADER_SIZE])
            headers[header] = headers.get(header, 0) + 1
    return headers


def encrypts_to(codec: Codec, value: Any, plaintext: bytes) -> bool:
    try:
        if bytes(codec.encode(value)) == plaintext:
            return True
        # The previous column may have a scale, and fill up with zeros what is encrypted as it was written.
        return codec.tag == "decimal" and bool(codec.decode(plaintext) == value)
    except Exception:  # noqa: BLE001 - a value that cannot be encoded is not the one that was
        return False
