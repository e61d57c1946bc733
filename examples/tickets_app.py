"""Notes that only their author can read, and a log-in from end to end: sign-up with an encrypted email and a
recovery code, a throttle, a ticket in Starlette's session, your devices, ways in, a reset, log-out.

`ENVELOPE_SERVER_KEYS=... SESSION_KEY=... uvicorn --factory examples.tickets_app:create_app` behind TLS.
"""

import logging
import math
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, SecretStr
from sqlalchemy import ForeignKey, String, Text, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.middleware.sessions import SessionMiddleware

from sqlalchemy_envelope import (
    AsyncEnvelope,
    AuditEvent,
    BlindIndex,
    EncryptedType,
    Envelope,
    KeyOwner,
    KeySlot,
    NormalizationError,
    SecretError,
    ServerKeyring,
    TableThrottle,
    Throttle,
    Ticket,
    TicketError,
    TransactionConflictError,
    UnlockBusyError,
    UnlockedSession,
    UnlockError,
    UnlockThrottledError,
    enforce_foreign_keys,
    throttle_table,
)

LIFETIME, IDLE = timedelta(days=14), timedelta(days=2)


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(EncryptedType(String))
    email_index: Mapped[bytes | None] = mapped_column(
        BlindIndex("email", scope="server", normalize="email-v1"), index=True, unique=True
    )
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    body: Mapped[str] = mapped_column(EncryptedType(Text))


attempts = throttle_table(Base.metadata)


def strength(secret: str, owner: User) -> str | None:
    """Why a new secret will not do; None if it will."""
    return "Take 15 characters or more." if len(secret) < 15 else None


def security_log(event: AuditEvent) -> None:
    if event.name in ("unlock_failed", "unlock_throttled", "secret_set", "slot_added", "slot_removed"):
        logging.getLogger("security").warning("%s", event)


def make_envelope(**settings: Any) -> Envelope:
    """An envelope whose log-in is throttled, strong and recorded."""
    return Envelope(
        throttle=Throttle(TableThrottle(attempts)), secret_strength=strength, audit=security_log, **settings
    )


class LogIn(BaseModel):
    email: str
    secret: SecretStr


class Reset(BaseModel):
    email: str
    recovery_code: SecretStr
    new: SecretStr


class Confirmation(BaseModel):
    secret: SecretStr


class NewSecret(Confirmation):
    new: SecretStr


class NoteText(BaseModel):
    body: str


def envelope_of(request: Request) -> AsyncEnvelope:
    envelope: AsyncEnvelope = request.app.state.envelope
    return envelope


async def database(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as session:
        envelope_of(request).attach(session)  # its server keys find users by email
        yield session


Db = Annotated[AsyncSession, Depends(database)]


def source_of(request: Request) -> str | None:
    """Where a request comes from, for the throttle. Behind a proxy, let uvicorn take it from there alone,
    with `--forwarded-allow-ips`."""
    return None if request.client is None else request.client.host


async def unlocked_user(request: Request, session: Db) -> AsyncIterator[User]:
    """The user of the ticket in the cookie, loaded and unlocked by one query."""
    ticket = request.session.get("ticket", "")
    async with envelope_of(request).unlock(session, User, ticket=ticket) as unlocked:
        yield unlocked.owner


UnlockedUser = Annotated[User, Depends(unlocked_user, scope="function")]


@asynccontextmanager
async def confirmed(
    request: Request, session: AsyncSession, user: User, given: Confirmation
) -> AsyncIterator[UnlockedSession]:
    """Unlock the user with the secret, too: a ticket changes nothing about keys."""
    secret, source = given.secret.get_secret_value(), source_of(request)
    async with envelope_of(request).unlock(session, user, secret=secret, source=source) as unlocked:
        yield unlocked


async def remember(request: Request, session: AsyncSession, user: User) -> None:
    """Issue a ticket for a user who is unlocked with the secret, commit, and put it into the cookie."""
    browser = request.headers.get("User-Agent", "")[:255]
    ticket = await envelope_of(request).issue_ticket(
        session, user, lifetime=LIFETIME, idle=IDLE, label=browser
    )
    await session.commit()
    request.session.clear()  # whoever was logged in before in this browser
    request.session["ticket"] = str(ticket)


def shown(slot: KeySlot) -> dict[str, Any]:
    return {
        "id": slot.slot_id,
        "kind": slot.kind,
        "label": slot.label,
        "made": slot.created_at,
        "last used": slot.used_at,
        "new": slot.unacknowledged_since is not None,
    }


async def find(session: AsyncSession, email: str) -> User | None:
    """A user by email: the blind index finds the row while nobody is unlocked."""
    user: User | None = await session.scalar(select(User).where(User.email == email))
    return user


async def named_user(given: LogIn, session: Db) -> User | None:
    return await find(session, given.email)


NamedUser = Annotated[User | None, Depends(named_user)]

router = APIRouter()


@router.post("/sign-up", status_code=201)
async def sign_up(request: Request, session: Db, given: LogIn) -> dict[str, Any]:
    envelope, user = envelope_of(request), User(email=given.email)
    try:
        async with envelope.enroll(session, user, secret=given.secret.get_secret_value()):
            code = await envelope.add_recovery_code(session, user, label="printed at sign-up")
            await envelope.acknowledge_slots(session, user)  # the user sees the code now
            await session.commit()
    except IntegrityError:
        raise HTTPException(409, "This email is taken.") from None
    return {"id": user.id, "recovery code": str(code)}


@router.post("/log-in")
async def log_in(request: Request, session: Db, given: LogIn, user: NamedUser) -> dict[str, Any]:
    envelope, secret, source = envelope_of(request), given.secret.get_secret_value(), source_of(request)
    try:
        if user is None:
            account = given.email.strip().lower()  # waits in one spelling, as those of a known user
            await envelope.unlock_unknown(secret=secret, account=account, source=source, session=session)
        async with envelope.unlock(session, user, secret=secret, source=source) as unlocked:
            await remember(request, session, user)
            return {"was this you?": [shown(slot) for slot in unlocked.unacknowledged_slots]}
    except (UnlockError, SecretError):  # an empty secret is a wrong one
        raise HTTPException(401, WRONG) from None


@router.post("/log-out", status_code=204)
async def log_out(request: Request, session: Db) -> None:
    await envelope_of(request).revoke_ticket(session, User, request.session.get("ticket", ""))
    await session.commit()
    request.session.clear()


@router.post("/reset")
async def reset(request: Request, session: Db, given: Reset) -> dict[str, str]:
    envelope, source = envelope_of(request), source_of(request)
    code, new = given.recovery_code.get_secret_value(), given.new.get_secret_value()
    user = await find(session, given.email)
    if user is None:
        await envelope.unlock_unknown(recovery_code=code, source=source, session=session)
    made = await envelope.reset_secret(session, user, recovery_code=code, new=new, source=source)
    await session.commit()
    return {"recovery code": str(made)}  # it replaces the used one; every device is logged out


@router.get("/devices")
async def devices(request: Request, session: Db, user: UnlockedUser) -> list[dict[str, Any]]:
    this = Ticket(request.session["ticket"]).ticket_id
    return [
        {"id": one.ticket_id, "browser": one.label, "last used": one.used_at, "this": one.ticket_id == this}
        for one in await envelope_of(request).tickets(session, user)
    ]


@router.delete("/devices/{ticket_id}", status_code=204)
async def log_out_device(request: Request, session: Db, user: UnlockedUser, ticket_id: UUID) -> None:
    await envelope_of(request).revoke_ticket(session, user, ticket_id)
    await session.commit()


@router.post("/devices/log-out-others", status_code=204)
async def log_out_others(request: Request, session: Db, user: UnlockedUser) -> None:
    envelope, this = envelope_of(request), Ticket(request.session["ticket"]).ticket_id
    for one in await envelope.tickets(session, user):
        if one.ticket_id != this:
            await envelope.revoke_ticket(session, user, one.ticket_id)
    await session.commit()


@router.get("/ways-in")
async def ways_in(request: Request, session: Db, user: UnlockedUser) -> dict[str, Any]:
    envelope = envelope_of(request)
    lost = (await envelope.recoverable(session, user)).lost
    return {
        "ways": [shown(slot) for slot in await envelope.slots(session, user)],
        "lost without the secret": [str(loss) for loss in lost],
    }


@router.post("/ways-in/acknowledge", status_code=204)
async def that_was_me(request: Request, session: Db, user: UnlockedUser, given: Confirmation) -> None:
    async with confirmed(request, session, user, given):
        await envelope_of(request).acknowledge_slots(session, user)
        await session.commit()


@router.post("/ways-in/{slot_id}/remove", status_code=204)
async def that_was_not_me(
    request: Request, session: Db, user: UnlockedUser, slot_id: UUID, given: Confirmation
) -> None:
    async with confirmed(request, session, user, given):
        await envelope_of(request).remove_slot(session, user, slot_id)
        await remember(request, session, user)  # the other devices are logged out


@router.post("/ways-in/recovery-code", status_code=201)
async def another_code(
    request: Request, session: Db, user: UnlockedUser, given: Confirmation
) -> dict[str, str]:
    async with confirmed(request, session, user, given):
        code = await envelope_of(request).add_recovery_code(session, user, label="printed later")
        await session.commit()
    return {"recovery code": str(code)}


@router.post("/secret", status_code=204)
async def change_secret(request: Request, session: Db, user: UnlockedUser, given: NewSecret) -> None:
    async with confirmed(request, session, user, given):
        await envelope_of(request).set_secret(session, user, new=given.new.get_secret_value())
        await remember(request, session, user)  # the other devices are logged out


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


@router.get("/export")
async def export(session: Db, user: UnlockedUser) -> dict[str, Any]:
    """All that the user has: also for a user who forgot the secret, on a device that is still logged in."""
    return {"email": user.email, "phone": user.phone, "notes": await list_notes(session, user)}


WRONG = "Unknown email, or a wrong secret or code."


async def log_in_again(request: Request, error: Exception) -> JSONResponse:
    """The ticket has ended or was revoked, and the browser forgets it. A site with pages redirects."""
    request.session.clear()
    return JSONResponse({"detail": "Log in."}, 401)


async def refused(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": WRONG}, 401)


async def no_good(request: Request, error: Exception) -> JSONResponse:
    """A new secret that is too weak, a code that is mistyped."""
    return JSONResponse({"detail": error.args[0]}, 422)


async def no_address(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "This is no email address."}, 422)


async def wait(request: Request, error: Any) -> JSONResponse:
    seconds = str(math.ceil(error.retry_after))
    return JSONResponse({"detail": "Try again later."}, 429, {"Retry-After": seconds})


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
    app.state.envelope = AsyncEnvelope(
        envelope or make_envelope(server_keys=ServerKeyring.from_environment())
    )
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
    app.add_exception_handler(UnlockError, refused)
    app.add_exception_handler(SecretError, no_good)
    app.add_exception_handler(NormalizationError, no_address)
    app.add_exception_handler(UnlockThrottledError, wait)
    app.add_exception_handler(UnlockBusyError, busy)
    app.add_exception_handler(TransactionConflictError, busy)
    return app
