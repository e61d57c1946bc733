"""An old application's database, and the command line run on it in processes of its own."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psycopg

import sqlalchemy_envelope
from sqlalchemy_envelope import ServerKeyring

PROJECT = Path(sqlalchemy_envelope.__file__).parents[1]
APP = "examples.migrate_app"
CANARY = "canary"
"""In every plaintext value; no output may have it."""
OLD_TABLES = (
    "CREATE TABLE users (id INTEGER PRIMARY KEY, email VARCHAR(200) NOT NULL UNIQUE, phone VARCHAR(20))",
    """CREATE TABLE notes (id INTEGER PRIMARY KEY,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE, body TEXT)""",
)
USERS = 5
NEW_TABLES = "from examples.migrate_app import Base, engine; Base.metadata.create_all(engine)"
STEPS = """
import json, sys
from sqlalchemy_envelope.cli.group import commands
codes = []
for arguments in json.loads(sys.argv[1]):
    try:
        commands(arguments)
    except SystemExit as end:
        codes.append(end.code)
json.dump(codes, open("codes.json", "w"))
"""
READ = """
import json
from sqlalchemy import select
from sqlalchemy.orm import Session
from examples.migrate_app import Note, User, engine, envelope
with Session(engine) as session, envelope.server_mode(session, reason="test"):
    notes = {one.id: one.body for one in session.scalars(select(Note))}
    phones = {one.id: one.phone for one in session.scalars(select(User))}
json.dump([sum(body == f"canary body {id}" for id, body in notes.items()), len(notes),
           sum(phone == f"canary {id}" for id, phone in phones.items()), len(phones)], open("read.json", "w"))
"""


@dataclass(frozen=True)
class Old:
    """An old application: its folder, its database, its server key."""

    folder: Path
    url: str
    key: str = field(default_factory=ServerKeyring.generate_key)
    rows: int = 0

    @property
    def file(self) -> Path:
        return self.folder / "notes.db"

    def environment(self, **more: str) -> dict[str, str]:
        """What its processes are started with."""
        return {
            **os.environ,
            "PYTHONPATH": str(PROJECT),
            "PYTHONIOENCODING": "utf-8",
            "NO_COLOR": "1",
            "COLUMNS": "100",
            "DATABASE_URL": self.url,
            "ENVELOPE_SERVER_KEYS": self.key,
            **more,
        }

    def python(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Python, in the application's folder."""
        return subprocess.run(
            [sys.executable, *arguments],
            check=False,
            cwd=self.folder,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=120,
        )

    def start(self, *arguments: str, app: str = APP, **more: str) -> "subprocess.Popen[str]":
        """The command line, left to run."""
        return subprocess.Popen(
            [sys.executable, "-m", "sqlalchemy_envelope.cli", "migrate", *arguments, "--app", app],
            cwd=self.folder,
            env=self.environment(**more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def migrate(self, *arguments: str, app: str = APP, code: int = 0, **more: str) -> "Ran":
        """The command line; whatever it prints, there is neither plaintext nor key nor traceback in it."""
        command = ["-m", "sqlalchemy_envelope.cli", "migrate", *arguments, "--app", app]
        ran = self.python(*command, **more)
        self.check_output(ran.stdout + ran.stderr)
        assert ran.returncode == code, (ran.returncode, ran.stdout, ran.stderr)
        return Ran(ran.stdout, ran.stderr)

    def steps(self, *steps: str, group: str = "migrate", **more: str) -> list[int]:
        """Several commands in one process, which is quicker: their exit codes."""
        ran = self.python(
            "-c", STEPS, json.dumps([[group, *one.split()] for one in steps]), **{"ENVELOPE_APP": APP, **more}
        )
        self.check_output(ran.stdout + ran.stderr)
        assert ran.returncode == 0, ran.stderr
        codes: list[int] = json.loads((self.folder / "codes.json").read_text())
        return codes

    def check_output(self, output: str) -> None:
        """Neither plaintext nor key nor traceback."""
        assert CANARY not in output
        assert self.key not in output
        assert "Traceback" not in output

    def execute(self, sql: str, *parameters: Any) -> list[Any]:
        """Plain SQL on its SQLite file, as an old writer would."""
        with closing(sqlite3.connect(self.file, timeout=30)) as connection:
            connection.execute("PRAGMA ignore_check_constraints = ON")
            found = connection.execute(sql, parameters).fetchall()
            connection.commit()
            return found

    def read(self, **more: str) -> tuple[int, int, int, int]:
        """How many notes and phone numbers the application reads right, and how many there are."""
        ran = self.python("-c", READ, **more)
        assert ran.returncode == 0, ran.stderr
        right, notes, right_phones, phones = json.loads((self.folder / "read.json").read_text())
        return right, notes, right_phones, phones


@dataclass(frozen=True)
class Ran:
    """What a finished command printed."""

    out: str
    err: str

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def json(self) -> Any:
        """Its JSON document."""
        return json.loads(self.out)


def old_rows(rows: int) -> tuple[list[tuple[int, str, str]], list[tuple[int, int, str]]]:
    """Users and notes."""
    users = [(n, f"user{n}@example.org", f"{CANARY} {n}") for n in range(1, USERS + 1)]
    return users, [(n, n % USERS + 1, f"{CANARY} body {n}") for n in range(1, rows + 1)]


def make_template(folder: Path) -> Old:
    """An SQLite file with the old tables, empty, and the new key tables."""
    old = Old(folder, f"sqlite:///{folder / 'notes.db'}")
    for statement in OLD_TABLES:
        old.execute(statement)
    made = old.python("-c", NEW_TABLES)
    assert made.returncode == 0, made.stderr
    return old


def make_old(template: Old, folder: Path, rows: int) -> Old:
    """A copy of it with rows."""
    folder.mkdir(exist_ok=True)
    old = replace(template, folder=folder, url=f"sqlite:///{folder / 'notes.db'}", rows=rows)
    old.file.write_bytes(template.file.read_bytes())
    users, notes = old_rows(rows)
    with closing(sqlite3.connect(old.file)) as connection:
        connection.executemany("INSERT INTO users VALUES (?, ?, ?)", users)
        connection.executemany("INSERT INTO notes VALUES (?, ?, ?)", notes)
        connection.commit()
    return old


def make_old_postgres(address: str, folder: Path, rows: int) -> Old:
    """The same on PostgreSQL."""
    old = Old(folder, address.replace("postgresql://", "postgresql+psycopg://"), rows=rows)
    users, notes = old_rows(rows)
    with psycopg.connect(address) as connection, connection.cursor() as cursor:
        for statement in OLD_TABLES:
            cursor.execute(statement.encode())
        cursor.executemany("INSERT INTO users VALUES (%s, %s, %s)", users)
        with cursor.copy("COPY notes FROM STDIN") as copy:
            for row in notes:
                copy.write_row(row)
    made = old.python("-c", NEW_TABLES)
    assert made.returncode == 0, made.stderr
    return old
