"""A run that fails at a statement, and goes on afterwards."""

from sqlalchemy_envelope.migration.running.runner import Pace
from tests.migration.engine_models import Trial, notes

NOTES = "notes.body"
ROWS = 120
CHUNKED = Pace(smallest=10, largest=20, range_rows=50, patience=10.0)


def goes_on(trial: Trial, rows: int = ROWS) -> None:
    """What was done is done; the next run does the rest, each row once, and all of it verifies."""
    done = trial.migrator().status(NOTES)
    assert done.pending + done.both == rows
    before = {key: state for key, state in trial.states("notes", "body").items() if state[1] is not None}
    report = trial.migrator(pace=CHUNKED).run(NOTES)
    assert (report.rows, report.finished) == (rows, True)
    after = trial.states("notes", "body")
    assert all(after[key] == state for key, state in before.items()), "encrypted twice"
    assert {key: state[0] for key, state in after.items()} == {one["id"]: one["body"] for one in notes(rows)}
    verified = trial.migrator().verify(NOTES)
    assert (verified.rows, verified.is_clean, verified.locked) == (rows, True, 0)


def shows_nothing(error: BaseException) -> None:
    """No value in the error or what it was made from, and something to do in its message."""
    one: BaseException | None = error
    while one is not None:
        assert "note body" not in f"{one}{one!r}{one.args!r}{getattr(one, 'params', '')}"
        one = one.__cause__ or one.__context__
