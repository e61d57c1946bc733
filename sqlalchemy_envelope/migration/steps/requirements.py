"""The requirements of each step. If a requirement fails, the step is refused; the error says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import inspect

from sqlalchemy_envelope.exceptions import EnvelopeError, MigrationRefusedError
from sqlalchemy_envelope.migration.database import schema
from sqlalchemy_envelope.migration.database.faults import is_lost
from sqlalchemy_envelope.migration.database.record import Record
from sqlalchemy_envelope.migration.database.rows import tag_columns
from sqlalchemy_envelope.migration.database.state import Phase
from sqlalchemy_envelope.migration.jobs.preflight import check_sample
from sqlalchemy_envelope.migration.running.runner import stopped
from sqlalchemy_envelope.orm.tables.collisions import may_pass
from sqlalchemy_envelope.orm.tables.index_key_table import index_key_table_of
from sqlalchemy_envelope.words import counted

if TYPE_CHECKING:
    from sqlalchemy_envelope.migration.database.columns import MigratingColumn
    from sqlalchemy_envelope.migration.database.record import Standing
    from sqlalchemy_envelope.migration.running.setting import Setting

_BEFORE = {
    Phase.TRACKING: " Run `migrate expand` or `migrate run` before.",
    Phase.CUT_OVER: " Run `migrate cutover` before.",
}
"""The step that leads to a phase."""


class Requirements:
    """The requirements of the steps of a column's migration; each raises `MigrationRefusedError`."""

    def __init__(self, setting: Setting, column: MigratingColumn) -> None:
        self._setting, self._column = setting, column

    def standing(self) -> Standing:
        """The recorded state of the migration."""
        with self._setting.engine.connect() as connection:
            return Record(connection, self._column.name).read()

    def not_cut_over(self) -> None:
        """The encrypted column does not count alone yet, or values were moved back."""
        phase = self.standing().phase
        if phase in (Phase.CUT_OVER, Phase.GUARDED, Phase.CONTRACTED, Phase.REVERSING):
            raise MigrationRefusedError(
                f"There is nothing to expand: {self._column.name} is in the phase {phase.value!r}."
            )

    def something_to_encrypt(self) -> None:
        """The previous column exists, and nobody moves values back."""
        phase = self.standing().phase
        if phase in (Phase.CONTRACTED, Phase.REVERSING):
            raise MigrationRefusedError(f"{self._column.name} is {phase.value}: there is nothing to encrypt.")

    def reached(self, phase: Phase) -> None:
        """The migration is in this phase or a later phase, and not over."""
        now = self.standing()
        moved_back = now.phase is Phase.REVERSING and phase is Phase.CUT_OVER
        if not now.has_reached(phase) or moved_back or now.phase in (Phase.CONTRACTED, Phase.REVERSED):
            raise MigrationRefusedError(
                f"{self._column.name} is in the phase {now.phase.value!r}, and this step comes after the "
                f"phase {phase.value!r}.{_BEFORE.get(phase, '') if now.phase is not Phase.CONTRACTED else ''}"
            )

    def both_written(self) -> None:
        """This program writes both columns."""
        if self._column.policy != "both":
            raise MigrationRefusedError(
                f"{self._column.name} has the policy {self._column.policy!r}, under which the previous "
                "column is left empty. Deploy policy='both' first: it writes to both."
            )

    def no_plaintext_writer(self) -> None:
        """This program does not write the previous column."""
        if self._column.policy == "both":
            raise MigrationRefusedError(
                f"{self._column.name} still has the policy 'both': this program writes plaintext. Deploy "
                "policy='refuse' everywhere first."
            )

    def undeclared(self) -> None:
        """This program's models no longer declare the previous column."""
        if self._column.policy != "none":
            raise MigrationRefusedError(
                f"{self._column.name} still declares `previous=`: programs with these models read the "
                "column, and would fail when it is gone. After `guard`, remove it and deploy that; or say "
                "that nothing runs: stopped=True."
            )

    def key_tables(self) -> None:
        """The tables for owners' keys exist."""
        with self._setting.engine.connect() as connection:
            missing = schema.missing_key_tables(connection, self._column)
        if missing:
            raise MigrationRefusedError(
                f"The tables for the keys of {self._column.path.owner_class.name} are missing: "
                f"{', '.join(missing)}. Create them first, with an Alembic revision or "
                "`metadata.create_all()`. Nothing was changed."
            )

    def index_columns(self) -> None:
        """The columns of the blind indexes exist, and the table of their keys."""
        table = self._column.table
        wanted = tag_columns(self._column)
        if not wanted:
            return
        with self._setting.engine.connect() as connection:
            inspector = inspect(connection)
            there = {one["name"] for one in inspector.get_columns(table.name, table.schema)}
            missing = [f"{table.name}.{name}" for name in wanted if name not in there]
            by_server = any(one.scope == "server" for one in self._column.indexes)
            keys = index_key_table_of(table) if by_server else None
            if keys is not None and not inspector.has_table(keys.name, keys.schema):
                missing.append(keys.name)
        if missing:
            raise MigrationRefusedError(
                f"The database lacks {', '.join(missing)}, for a blind index of the models. Create that "
                "first, with an Alembic revision. Nothing was changed."
            )

    def readable_values(self) -> None:
        """A sample of the previous values can be read.

        Raises:
            PreviousValueError: a value cannot be read.
        """
        try:
            with self._setting.engine.connect() as connection:
                check_sample(connection, self._setting.rows(connection, self._column))
            return
        except EnvelopeError:
            raise
        except Exception as error:
            if may_pass(error) or is_lost(error):
                raise  # the step is done again
            # The report leaves out anything that the database's message shows of a row.
            failed = stopped("look at the previous values", error)
        raise failed

    def none_pending(self) -> None:
        """Every row is encrypted."""
        with self._setting.engine.connect() as connection:
            rows = self._setting.rows(connection, self._column)
            pending = rows.count(connection, rows.pending)
            unowned = rows.count(connection, rows.pending & ~rows.owned) if pending else 0
        if pending:
            alone = counted(pending, "row has", "rows have")
            lacking = counted(unowned, "of these has no owner", "of these have no owner")
            why = f" {lacking}: give each an owner, or delete it." if unowned else ""
            raise MigrationRefusedError(
                f"{self._column.name}: {alone} a previous value alone.{why} Run `migrate run` and "
                "`migrate verify` again. If such rows come back, a program still writes the previous column "
                "alone: it knows nothing of the migration, or it has the policy 'both' and writes for locked "
                "owners without `envelope.write_only(session)`."
            )

    def clean(self, *, accept_sample: bool, accept_locked: int) -> None:
        """Every row is encrypted, and was verified since, except for what the arguments accept."""
        self.none_pending()
        name, now = self._column.name, self.standing()
        if now.verified_at is None:
            raise MigrationRefusedError(f"{name} was not verified since it was last written to: verify it.")
        if now.mismatches:
            found = counted(now.mismatches, "value that differs", "values that differ")
            raise MigrationRefusedError(
                f"The verification of {name} found {found} from the previous value, or cannot be "
                "opened. Find out which program wrote those rows. `repair` puts them right by the value "
                "that counts: the previous value before the cut-over, the encrypted value after it. Then run "
                "and verify again."
            )
        if now.sample is not None and not accept_sample:
            raise MigrationRefusedError(
                f"Of {name} a sample of {now.sample:.2%} was verified. Verify all, or accept the sample: "
                "accept_sample=True."
            )
        if (now.locked or 0) > accept_locked:
            raise MigrationRefusedError(
                f"{counted(now.locked or 0, 'value')} of {name} could not be verified: only the owners hold "
                f"the keys. Accept that many, if that is as it should be: accept_locked={now.locked}."
            )
