"""Notes that only their author can read, and a log-in that lasts: a ticket in Starlette's session.

`ENVELOPE_SERVER_KEYS=... SESSION_KEY=... uvicorn --factory examples.tickets_app:create_app` behind TLS.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, SecretStr
from sqlalchemy import ForeignKey, String, Text, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.middleware.sessions import SessionMiddleware

from sqlalchemy_envelope import (
    AsyncEnvelope,
    EncryptedType,
    Envelope,
    KeyOwner,
    ServerKeyring,
    TicketError,
    UnlockBusyError,
    UnlockError,
    enforce_foreign_keys,
)

LIFETIME, IDLE = timedelta(days=14), timedelta(days=2)


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    body: Mapped[str] = mapped_column(EncryptedType(Text))


class LogIn(BaseModel):
    email: str
    secret: SecretStr


class NoteText(BaseModel):
    body: str


def envelope_of(request: Request) -> AsyncEnvelope:
    envelope: AsyncEnvelope = request.app.state.envelope
    return envelope


async def database(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        yield session


Db = Annotated[AsyncSession, Depends(database)]


async def unlocked_user(request: Request, session: Db) -> AsyncIterator[User]:
    """The user of the ticket in the cookie, loaded and unlocked by one query."""
    ticket = request.session.get("ticket", "")
    async with envelope_of(request).unlock(session, User, ticket=ticket) as unlocked:
        yield unlocked.owner


UnlockedUser = Annotated[User, Depends(unlocked_user, scope="function")]

router = APIRouter()


@router.post("/sign-up", status_code=201)
async def sign_up(request: Request, session: Db, given: LogIn) -> dict[str, int]:
    user = User(email=given.email)
    await envelope_of(request).enroll(session, user, secret=given.secret.get_secret_value())
    await session.commit()
    return {"id": user.id}


@router.post("/log-in", status_code=204)
async def log_in(request: Request, session: Db, given: LogIn) -> None:
    envelope, secret = envelope_of(request), given.secret.get_secret_value()
    user = await session.scalar(select(User).where(User.email == given.email))
    if user is None:
        await envelope.unlock_unknown(secret=secret)
    async with envelope.unlock(session, user, secret=secret):  # raises UnlockError if the secret is wrong
        browser = request.headers.get("User-Agent", "")[:255]
        ticket = await envelope.issue_ticket(session, user, lifetime=LIFETIME, idle=IDLE, label=browser)
        await session.commit()
    request.session.clear()  # whoever was logged in before in this browser
    request.session["ticket"] = str(ticket)


@router.post("/log-out", status_code=204)
async def log_out(request: Request, session: Db) -> None:
    await envelope_of(request).revoke_ticket(session, User, request.session.get("ticket", ""))
    await session.commit()
    request.session.clear()


@router.get("/devices")
async def devices(request: Request, session: Db, user: UnlockedUser) -> list[dict[str, Any]]:
    found = await envelope_of(request).tickets(session, user)
    return [{"id": one.ticket_id, "browser": one.label, "last used": one.used_at} for one in found]


@router.delete("/devices/{ticket_id}", status_code=204)
async def log_out_device(request: Request, session: Db, user: UnlockedUser, ticket_id: UUID) -> None:
    await envelope_of(request).revoke_ticket(session, user, ticket_id)
    await session.commit()


@router.post("/notes", status_code=201)
async def create_note(session: Db, user: UnlockedUser, given: NoteText) -> dict[str, int]:
    note = Note(user_id=user.id, body=given.body)
    session.add(note)
    await session.commit()
    return {"id": note.id}


@router.get("/notes")
async def list_notes(session: Db, user: UnlockedUser) -> list[str]:
    notes = await session.scalars(select(Note).where(Note.user_id == user.id).order_by(Note.id))
    return [note.body for note in notes]


async def log_in_again(request: Request, error: Exception) -> JSONResponse:
    """The ticket has ended or was revoked, and the browser forgets it. A site with pages redirects."""
    request.session.clear()
    return JSONResponse({"detail": "Log in."}, 401)


async def wrong_secret(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "Unknown email or wrong secret."}, 401)


async def busy(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "Try again shortly."}, 503, {"Retry-After": "1"})


def create_app(
    url: str = "sqlite+aiosqlite:///notes.db",
    envelope: Envelope | None = None,
    session_key: str | None = None,
) -> FastAPI:
    engine = create_async_engine(url)
    enforce_foreign_keys(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()

    app = FastAPI(title="Notes", lifespan=lifespan)
    app.state.envelope = AsyncEnvelope(envelope or Envelope(server_keys=ServerKeyring.from_environment()))
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.add_middleware(
        SessionMiddleware,
        secret_key=session_key or os.environ["SESSION_KEY"],
        max_age=int(LIFETIME.total_seconds()),
        same_site="lax",
        https_only=True,
    )
    app.include_router(router)
    app.add_exception_handler(TicketError, log_in_again)
    app.add_exception_handler(UnlockError, wrong_secret)
    app.add_exception_handler(UnlockBusyError, busy)
    return app
