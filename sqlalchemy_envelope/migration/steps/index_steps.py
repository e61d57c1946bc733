"""The steps that keep blind indexes: fill, verify, drop. Each is safe to repeat."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy_envelope.crypto.frames import emptying_class
from sqlalchemy_envelope.exceptions import MigrationRefusedError
from sqlalchemy_envelope.migration.database.index_columns import (
    IndexColumn,
    index_columns,
    index_named,
    refuse_tokens,
    token_indexes,
)
from sqlalchemy_envelope.migration.database.state import Job
from sqlalchemy_envelope.migration.jobs.index_work import IndexFill, IndexRefill, IndexVerify
from sqlalchemy_envelope.migration.running.emptied_index import EmptiedIndex
from sqlalchemy_envelope.migration.running.reports import IndexReport, Progress
from sqlalchemy_envelope.migration.running.steady import steady
from sqlalchemy_envelope.migration.running.whole_job import WholeJob
from sqlalchemy_envelope.migration.running.workers import Crew
from sqlalchemy_envelope.migration.steps.requirements import Requirements

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from sqlalchemy_envelope.migration.jobs.work import Work
    from sqlalchemy_envelope.migration.running.setting import Setting


@emptying_class
class IndexSteps:
    """The steps of a `Migrator` that keep blind indexes. An index is named `table.index`."""

    setting: Setting
    base: Any

    @property
    def indexes(self) -> list[str]:
        """The names of the blind indexes of the models."""
        return [one.name for one in index_columns(self.base)]

    @property
    def token_indexes(self) -> list[str]:
        """The names of the token indexes of the models. `fill_tokens()` and `stale_tokens()` keep them."""
        return sorted(token_indexes(self.base))

    def index(self, name: str) -> IndexColumn:
        """The index with this name.

        Raises:
            ConfigurationError: no index has this name, or it is a token index.
        """
        refuse_tokens(token_indexes(self.base), name)
        return index_named(index_columns(self.base), name)

    @steady
    def fill_index(
        self,
        name: str,
        *,
        again: bool = False,
        workers: int = 1,
        executor: Executor | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Progress], None] | None = None,
    ) -> IndexReport:
        """Give tags to all values that have none; go on where an earlier run stopped.

        Programs that write meanwhile write tags themselves, if they know the index: deploy that before. A
        value that no key here opens gets no tag: `IndexReport.locked` and `pending` count it.

        Args:
            again: make every tag anew, and mend those that are not the tags of their values.
            workers: the number of workers side by side; two or more need `reference`.
            executor: runs the workers, in place of this machine's processes.
            stop: asked after each chunk; true ends the work cleanly.
            progress: called about twice a second.

        Raises:
            ConfigurationError: no index has this name.
            MigrationRefusedError: the database lacks the column of tags, or the table of index keys.
            MigrationStoppedError: the database or the machine refused; finished chunks stay done.
        """
        work = IndexRefill() if again else IndexFill()
        return self._do(name, work, Crew(workers, executor, stop, progress), again=False)

    @steady
    def verify_index(
        self,
        name: str,
        *,
        workers: int = 1,
        executor: Executor | None = None,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Progress], None] | None = None,
    ) -> IndexReport:
        """Decrypt every value, and compare its tag with the tag that is stored.

        A value without a tag is told whether or not it opens: `IndexReport.pending`, or `bad`.
        """
        return self._do(name, IndexVerify(), Crew(workers, executor, stop, progress), again=True)

    def _do(self, name: str, work: Work, crew: Crew, *, again: bool) -> IndexReport:
        index, began = self.index(name), time.perf_counter()
        Requirements(self.setting, index).index_columns()
        job = WholeJob(self.setting, index, work)
        _begin(job, again=again)
        finished = job.run(crew)
        with job.opened() as (session, _, ranges):
            count, examples = ranges.count(session), ranges.examples(session)
        return IndexReport(
            index.name,
            count.rows,
            count.bad,
            count.locked,
            count.shredded,
            examples,
            finished and count.finished,
            time.perf_counter() - began,
        )

    @steady
    def drop_index(
        self,
        name: str,
        *,
        label: str | None = None,
        stopped: bool = False,
        stop: Callable[[], bool] = lambda: False,
        progress: Callable[[Progress], None] | None = None,
    ) -> IndexReport:
        """Take every tag out of an index, and delete its key. Backups still have both. The column stays, for
        `op.drop_column()`.

        Args:
            name: `table.column`. Remove the BlindIndex from the models before, and deploy that.
            label: the label of the index, if it was declared with one.
            stopped: nothing runs that writes the index: the models may still declare it.

        Raises:
            MigrationRefusedError: the models declare it, and `stopped` is not given.
            ConfigurationError: the database has no such column of bytes.
        """
        declared = name in self.indexes
        if declared and not stopped:
            raise MigrationRefusedError(
                f"{name} is declared: programs with these models go on writing it. Remove the BlindIndex "
                "from the models and deploy that; or say that nothing runs: stopped=True."
            )
        began = time.perf_counter()
        label = self.index(name).index.label if declared else label or name
        emptied = EmptiedIndex(self.setting, self.base, name)
        rows, finished = emptied.run(label, stop=stop, progress=progress)
        return IndexReport(name, rows, 0, 0, None, (), finished, time.perf_counter() - began)


INDEX_JOBS = (Job.INDEX_FILL, Job.INDEX_REFILL, Job.INDEX_VERIFY)


def _begin(job: WholeJob, *, again: bool) -> None:
    """Begin a job, or go on with one that was stopped. A job that came to its end begins anew, so that its
    report is of this run."""
    job.begin(again=again or job.is_over())
