"""The page on audit events lists every event, and its recipe works on PostgreSQL and with asyncio."""

import asyncio
import dataclasses
import re
from pathlib import Path
from typing import Any, get_args
from weakref import WeakSet

import pytest
from sqlalchemy import URL, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sqlalchemy_envelope import AsyncEnvelope, AuditEvent, EventName, UnlockError, enforce_foreign_keys
from sqlalchemy_envelope.orm.current.policy import ENVELOPES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "events.md").read_text("utf-8")
BLOCKS = re.compile(
    r"^```python\n(.*?)^```|^<!--- invisible-code-block: python\n(.*?)^-->", re.MULTILINE | re.DOTALL
)
ROWS = re.findall(r"^\| `(\w+)` \|.*\| (yes|no) \|(.*)\|$", PAGE, re.MULTILINE)
FIELDS = {"owner_id", "slot_kind", "provider", "key_id", "reason", "count"}


@pytest.fixture(autouse=True)
def _an_application_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ENVELOPES, "policies", WeakSet())


def run(**given: Any) -> dict[str, Any]:
    """Run the page from top to bottom; return its names."""
    page: dict[str, Any] = {"__name__": "events_page", **given}
    for found in BLOCKS.finditer(PAGE):
        exec(found[1] or found[2], page)  # noqa: S102 - the page of this repository
    return page


def test_every_event_is_in_the_table() -> None:
    """The table has each name once, and says rightly what survives a rollback."""
    told = {name: survives == "yes" for name, survives, _ in ROWS}

    assert {name: AuditEvent(name, "User").survives_rollback for name in get_args(EventName)} == told
    assert len(ROWS) == len(told)


def test_the_fields_of_the_table() -> None:
    """Each field that the table names is one of an event."""
    named = {field for _, _, cell in ROWS for field in re.findall(r"`(\w+)`", cell)}

    assert named == FIELDS
    assert {field.name for field in dataclasses.fields(AuditEvent)} > FIELDS


def test_every_event_is_emitted() -> None:
    """Each name occurs in the package where something is done, and not in the list of names alone."""
    package = ROOT / "sqlalchemy_envelope"
    code = "".join(
        path.read_text("utf-8")
        for path in package.rglob("*.py")
        if path.name not in ("audit.py", "errors.py")
    )

    assert [name for name in get_args(EventName) if f'"{name}"' not in code] == []


@pytest.mark.backend
def test_on_postgresql(postgres_url: URL) -> None:
    """The page runs with both logs in one database: what is rolled back is not in the table, and what was
    tried is."""
    url = postgres_url.set(drivername="postgresql+psycopg")
    page = run(url=url, log_url=url)
    try:
        names = page["log"]()
    finally:
        page["engine"].dispose()
        page["log_engine"].dispose()

    assert {"enrolled", "unlock_failed", "ticket_used", "ticket_revoked", "shredded"} <= set(names)


def test_with_asyncio(tmp_path: Path) -> None:
    """The same function writes into the transaction of an `AsyncSession`, or not if that is undone."""
    page = run(url=f"sqlite:///{tmp_path}/application.db", log_url=f"sqlite:///{tmp_path}/log.db")
    current, envelope, user_class = page["current"], AsyncEnvelope(page["envelope"]), page["User"]
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/application.db")

    enforce_foreign_keys(engine.sync_engine)

    async def request() -> None:
        async with AsyncSession(engine) as session:
            current.set(page["Request"](session.sync_session, "a test"))
            user = user_class(email="ben")
            await envelope.enroll(session, user, secret="the secret of Ben")
            await session.commit()
            await session.refresh(user)
            await envelope.change_secret(session, user, old="the secret of Ben", new="another of Ben")
            await session.rollback()
            user = (await session.scalars(select(user_class).where(user_class.email == "ben"))).one()
            with pytest.raises(UnlockError):
                await envelope.unlock(session, user, secret="another of Ben")
        await engine.dispose()

    before, refused = page["log"](), page["log"](page["log_engine"])
    asyncio.run(request())

    assert page["log"]()[len(before) :] == ["enrolled"]
    assert page["log"](page["log_engine"])[len(refused) :] == ["unlock_failed"]
    page["engine"].dispose()
    page["log_engine"].dispose()
