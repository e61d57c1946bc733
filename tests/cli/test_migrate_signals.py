"""SIGINT and SIGTERM in mid-run: a clean stop with its exit code, from which the next run goes on; the second
one ends the process at once, and loses nothing."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.migrating import APP, Old, make_old

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
ROWS = 8_000
BODY = "notes.body"
HELD = f"""
import time
from pathlib import Path
from sqlalchemy import event
from {APP} import engine, migrator

@event.listens_for(engine, "before_cursor_execute")
def hold(connection, cursor, statement, parameters, context, executemany):
    while statement.startswith("UPDATE notes") and Path("hold").exists():
        Path("held").touch()
        time.sleep(0.01)
"""
"""An application whose first chunk does not come to its end while there is a file `hold`."""


@pytest.fixture
def old(template: Old, tmp_path: Path) -> Old:
    """The old application."""
    return make_old(template, tmp_path / "app", ROWS)


def finish(old: Old, process: "subprocess.Popen[str]") -> tuple[int, list[str]]:
    """Wait for its end: the exit code, and the lines it still printed."""
    out, err = process.communicate(timeout=100)
    old.check_output(out + err)
    assert err == "", out
    return process.returncode, out.splitlines()


def pending(old: Old) -> int:
    """How many rows are to be encrypted, asked of the file itself."""
    (found,) = old.execute("SELECT count(*) FROM notes WHERE body IS NOT NULL AND body_encrypted IS NULL")
    return int(found[0])


@pytest.mark.parametrize(
    ("number", "workers"), [(signal.SIGINT, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)], ids=str
)
def test_stops_and_goes_on(old: Old, number: signal.Signals, workers: int) -> None:
    """A signal in mid-run ends it with 128 + its number, and the next run does the rest, no row twice."""
    process = old.start("run", BODY, "--json", "--load", "0.02", "--workers", str(workers))
    assert process.stdout is not None
    for line in process.stdout:
        if 0 < json.loads(line).get("done", 0) < ROWS:
            break
    process.send_signal(number)
    code, lines = finish(old, process)
    left = pending(old)
    last = json.loads(lines[-1])

    assert code == 128 + number
    assert (last["event"], last["interrupted"], last["finished"]) == ("finished", True, False)
    assert 0 < left == last["pending"] < ROWS
    again = old.migrate("run", BODY, "--json").events[-1]
    assert (again["rows"], again["late"], again["finished"]) == (ROWS, 0, True)
    assert pending(old) == 0


def test_a_reader_that_goes_stops_it(old: Old) -> None:
    """When nobody reads on, a run stops after its chunk without a word, and the next one does the rest."""
    process = old.start("run", BODY, "--json", "--load", "0.02")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    code, said = process.wait(100), process.stderr.read()
    process.stderr.close()

    assert (code, said) == (141, "")
    assert 0 < pending(old) < ROWS
    assert old.migrate("run", BODY, "--json").events[-1]["rows"] == ROWS


def catches_sigterm(pid: str) -> bool:
    """Whether a process is far enough started."""
    (caught,) = [
        line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigCgt" in line
    ]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc for the workers")
def test_worker_is_ended(old: Old) -> None:
    """SIGTERM to one of two workers ends it after its chunk, and the other does what is left."""
    process = old.start("run", BODY, "--json", "--load", "0.1", "--workers", "2")
    assert process.stdout is not None
    workers: list[str] = []
    for line in process.stdout:
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        workers = [pid for pid in listed if catches_sigterm(pid)]
        if len(workers) == 2 and 0 < json.loads(line).get("done", 0) < ROWS:
            break
    os.kill(int(workers[0]), signal.SIGTERM)
    code, lines = finish(old, process)

    assert len(workers) == 2
    assert code == 0, lines
    assert json.loads(lines[-1])["rows"] == ROWS


def test_second_signal_ends_at_once(old: Old) -> None:
    """A chunk that does not end is cut off by the second signal, rolled back, and done by the next run."""
    (old.folder / "mine.py").write_text(HELD)
    (old.folder / "hold").touch()
    process = old.start("run", BODY, app="mine:migrator")
    for _ in range(3000):
        if (old.folder / "held").exists():
            break
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    code, _ = finish(old, process)

    assert code == 128 + signal.SIGINT
    assert pending(old) == ROWS
    (old.folder / "hold").unlink()
    assert f"{ROWS:,} rows encrypted; none left" in old.migrate("run", BODY).out
