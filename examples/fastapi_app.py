"""Notes that only their author can read: FastAPI, with asynchronous and synchronous endpoints.

Run it behind TLS, since every request carries the secret:
`uvicorn --factory examples.fastapi_app:create_app --ssl-keyfile key.pem --ssl-certfile cert.pem`
"""

import asyncio
import json
from base64 import b64decode
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel, SecretStr
from sqlalchemy import ForeignKey, String, Text, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_envelope import (
    AsyncEnvelope,
    EncryptedType,
    Envelope,
    KeyOwner,
    LockedError,
    NotEnrolledError,
    SecretError,
    UnlockBusyError,
    UnlockError,
    enforce_foreign_keys,
)


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


class SignUp(BaseModel):
    phone: str | None = None


class NoteText(BaseModel):
    body: str


class NewSecret(BaseModel):
    secret: SecretStr


class Utf8Basic(HTTPBasic):
    """HTTP Basic for secrets in any alphabet: FastAPI's own refuses what is not ASCII."""

    async def __call__(self, request: Request) -> HTTPBasicCredentials:  # type: ignore[override]
        scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
        try:
            email, colon, secret = b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            colon = ""
        if scheme.lower() != "basic" or not colon:
            raise refused()
        return HTTPBasicCredentials(username=email, password=secret)


def refused() -> HTTPException:
    """One answer for an unknown email, a wrong secret and none at all."""
    return HTTPException(401, "Unknown email or wrong secret.", {"WWW-Authenticate": 'Basic charset="UTF-8"'})


Credentials = Annotated[HTTPBasicCredentials, Depends(Utf8Basic())]


async def async_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.async_sessions() as session:
        yield session


DbAsync = Annotated[AsyncSession, Depends(async_session)]


async def unlocked_user(request: Request, session: DbAsync, credentials: Credentials) -> AsyncIterator[User]:
    """The user who sent this request, unlocked until the `with` is left: see below."""
    user = await session.scalar(select(User).where(User.email == credentials.username))
    envelope = AsyncEnvelope(request.app.state.envelope)
    if user is None:
        await envelope.unlock_unknown(secret=credentials.password)
    async with envelope.unlock(session, user, secret=credentials.password):
        yield user


UnlockedUser = Annotated[User, Depends(unlocked_user, scope="function")]
"""Unlocked while the endpoint runs, and locked before its response is sent."""
StreamedUser = Annotated[User, Depends(unlocked_user)]
"""Unlocked until the last byte of the response is sent, and until background tasks are done."""


def sync_session(request: Request) -> Iterator[Session]:
    with request.app.state.sessions() as session:
        yield session


DbSync = Annotated[Session, Depends(sync_session)]


def unlocked_user_sync(request: Request, session: DbSync, credentials: Credentials) -> Iterator[User]:
    """The same for `def` endpoints. They run in another context, and find the keys through `session`."""
    user = session.scalar(select(User).where(User.email == credentials.username))
    envelope: Envelope = request.app.state.envelope
    if user is None:
        envelope.unlock_unknown(secret=credentials.password)
    with envelope.unlock(session, user, secret=credentials.password):
        yield user


UnlockedUserSync = Annotated[User, Depends(unlocked_user_sync, scope="function")]


router = APIRouter()


@router.post("/users", status_code=201)
async def sign_up(
    request: Request, session: DbAsync, credentials: Credentials, given: SignUp
) -> dict[str, int]:
    user = User(email=credentials.username, phone=given.phone)
    envelope = AsyncEnvelope(request.app.state.envelope)
    try:
        await envelope.enroll(session, user, secret=credentials.password)
        await session.commit()
    except SecretError as error:
        raise HTTPException(422, str(error)) from None
    except IntegrityError:
        raise HTTPException(409, "This email is taken.") from None
    return {"id": user.id}


@router.put("/secret", status_code=204)
async def change_secret(
    request: Request, session: DbAsync, user: UnlockedUser, credentials: Credentials, new: NewSecret
) -> None:
    envelope, secret = AsyncEnvelope(request.app.state.envelope), new.secret.get_secret_value()
    try:
        await envelope.change_secret(session, user, old=credentials.password, new=secret)
    except SecretError as error:
        raise HTTPException(422, str(error)) from None
    await session.commit()


@router.get("/me")
async def profile(user: UnlockedUser) -> dict[str, str | None]:
    return {"email": user.email, "phone": user.phone}


@router.post("/notes", status_code=201)
async def create_note(session: DbAsync, user: UnlockedUser, given: NoteText) -> dict[str, int]:
    note = Note(user_id=user.id, body=given.body)
    session.add(note)
    await session.commit()
    return {"id": note.id}


@router.get("/notes")
async def list_notes(session: DbAsync, user: UnlockedUser) -> list[str]:
    notes = await session.scalars(select(Note).where(Note.user_id == user.id).order_by(Note.id))
    return [note.body for note in notes]


@router.post("/sync/notes", status_code=201)
def create_note_sync(session: DbSync, user: UnlockedUserSync, given: NoteText) -> dict[str, int]:
    note = Note(user_id=user.id, body=given.body)
    session.add(note)
    session.commit()
    return {"id": note.id}


@router.get("/sync/notes")
def list_notes_sync(session: DbSync, user: UnlockedUserSync) -> list[str]:
    return [
        note.body for note in session.scalars(select(Note).where(Note.user_id == user.id).order_by(Note.id))
    ]


@router.get("/notes/stream")
async def stream_notes(session: DbAsync, user: StreamedUser) -> StreamingResponse:
    """A line of JSON for each note. The body is made after the endpoint has returned."""

    async def lines() -> AsyncIterator[str]:
        query = select(Note).where(Note.user_id == user.id).order_by(Note.id)
        async for note in await session.stream_scalars(query.execution_options(yield_per=100)):
            yield json.dumps(note.body) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.get("/notes/digest")
async def digest(session: DbAsync, user: UnlockedUser, wait: float = 0.0) -> dict[str, int]:
    """Waits for something slow, at most 30 seconds: nobody stays unlocked because a caller has hung up."""
    user_id = user.id
    await session.commit()  # gives the connection back while we wait
    try:
        async with asyncio.timeout(30):
            await asyncio.sleep(wait)
    except TimeoutError:
        raise HTTPException(504, "Took too long.") from None
    notes = (await session.scalars(select(Note).where(Note.user_id == user_id))).all()
    return {"notes": len(notes), "letters": sum(len(note.body) for note in notes)}


def create_app(database: str = "notes.db", envelope: Envelope | None = None) -> FastAPI:
    engine, async_engine = (
        create_engine(f"sqlite:///{database}"),
        create_async_engine(f"sqlite+aiosqlite:///{database}"),
    )
    for one in (engine, async_engine):
        enforce_foreign_keys(one)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with async_engine.connect() as connection:
            await connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # readers and a writer at once
            await connection.run_sync(Base.metadata.create_all)
            await connection.commit()
        yield
        await async_engine.dispose()
        engine.dispose()

    app = FastAPI(title="Notes", lifespan=lifespan)
    app.state.envelope = envelope or Envelope()
    app.state.sessions = sessionmaker(engine, expire_on_commit=False)
    app.state.async_sessions = async_sessionmaker(async_engine, expire_on_commit=False)
    app.include_router(router)
    for error, answer in ANSWERS.items():
        app.add_exception_handler(error, answer)
    return app


async def not_unlocked(request: Request, error: Exception) -> JSONResponse:
    wrong = refused()
    return JSONResponse({"detail": wrong.detail}, wrong.status_code, wrong.headers)


async def busy(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "Try again shortly."}, 503, {"Retry-After": "1"})


async def locked(request: Request, error: Exception) -> JSONResponse:
    """An endpoint touched a value without the dependency that unlocks: a bug of ours, and nothing leaked."""
    return JSONResponse({"detail": "This is locked."}, 423)


ANSWERS = {
    UnlockError: not_unlocked,
    SecretError: not_unlocked,
    NotEnrolledError: not_unlocked,
    UnlockBusyError: busy,
    LockedError: locked,
}
