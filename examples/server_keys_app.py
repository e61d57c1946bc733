"""Notes of many users under the operator's keys: an application that had one master key before.

Each user's rows are under keys of their own now, and nothing but the start-up code says so: the handlers
unlock nothing. `ServerKeyring.generate_key()` makes the key for the environment variable
`ENVELOPE_SERVER_KEYS`; then run `uvicorn --factory examples.server_keys_app:create_app`.
"""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sqlalchemy import URL, ForeignKey, Integer, String, Text, create_engine, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

from sqlalchemy_envelope import EncryptedType, Envelope, KeyOwner, ServerKeyring, enforce_foreign_keys


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(EncryptedType(String))
    notes: Mapped[list["Note"]] = relationship(
        back_populates="user", cascade="all, delete-orphan", passive_deletes=True, order_by="Note.id"
    )


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    body: Mapped[str] = mapped_column(EncryptedType(Text))
    stars: Mapped[int | None] = mapped_column(EncryptedType(Integer))
    user: Mapped[User] = relationship(back_populates="notes")


class SignUp(BaseModel):
    email: str
    phone: str | None = None
    notes: list[str] = []


class NoteText(BaseModel):
    body: str
    stars: int | None = None


async def async_session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.async_sessions() as session:
        yield session


def sync_session(request: Request) -> Iterator[Session]:
    with request.app.state.sessions() as session:
        yield session


DbAsync = Annotated[AsyncSession, Depends(async_session)]
DbSync = Annotated[Session, Depends(sync_session)]


router = APIRouter()


@router.post("/users", status_code=201)
async def sign_up(session: DbAsync, given: SignUp) -> dict[str, int]:
    user = User(email=given.email, phone=given.phone, notes=[Note(body=body) for body in given.notes])
    session.add(user)
    try:
        await session.commit()
    except IntegrityError:
        raise HTTPException(409, "This email is taken.") from None
    return {"id": user.id}


@router.get("/users/{user_id}")
async def profile(session: DbAsync, user_id: int) -> dict[str, str | None]:
    user = await session.get(User, user_id)
    if user is None:
        raise HTTPException(404)
    return {"email": user.email, "phone": user.phone}


@router.delete("/users/{user_id}", status_code=204)
async def leave(session: DbAsync, user_id: int) -> None:
    await session.delete(await session.get_one(User, user_id))
    await session.commit()


@router.post("/users/{user_id}/notes", status_code=201)
async def create_note(session: DbAsync, user_id: int, given: NoteText) -> dict[str, int]:
    note = Note(user_id=user_id, body=given.body, stars=given.stars)
    session.add(note)
    await session.commit()
    return {"id": note.id}


@router.get("/users/{user_id}/notes")
async def list_notes(session: DbAsync, user_id: int) -> list[str]:
    return [note.body for note in await session.scalars(notes_of(user_id))]


@router.get("/export")
async def export(session: DbAsync) -> StreamingResponse:
    """Every note of everybody, a line of JSON each."""
    query = select(Note, User.email).join(Note.user).order_by(Note.id)

    async def lines() -> AsyncIterator[str]:
        async for note, email in await session.stream(query.execution_options(yield_per=100)):
            yield json.dumps({"email": email, "body": note.body}) + "\n"

    return StreamingResponse(lines(), media_type="application/x-ndjson")


@router.post("/sync/users", status_code=201)
def sign_up_sync(session: DbSync, given: SignUp) -> dict[str, int]:
    user = User(email=given.email, phone=given.phone, notes=[Note(body=body) for body in given.notes])
    session.add(user)
    session.commit()
    return {"id": user.id}


@router.get("/sync/users/{user_id}/notes")
def list_notes_sync(session: DbSync, user_id: int) -> list[str]:
    return [note.body for note in session.scalars(notes_of(user_id))]


@router.post("/sync/users/{user_id}/notes", status_code=201)
def create_note_sync(session: DbSync, user_id: int, given: NoteText) -> dict[str, int]:
    note = Note(user_id=user_id, body=given.body, stars=given.stars)
    session.add(note)
    session.commit()
    return {"id": note.id}


@router.put("/sync/notes/{note_id}")
def change_note(session: DbSync, note_id: int, given: NoteText) -> dict[str, Any]:
    note = session.get_one(Note, note_id)
    note.body, note.stars = given.body, given.stars
    session.commit()
    return {"body": note.body, "stars": note.stars}


@router.post("/sync/broadcast")
def broadcast(session: DbSync, given: NoteText) -> int:
    """One note for everybody, in one statement."""
    rows = [{"user_id": user_id, "body": given.body} for user_id in session.scalars(select(User.id))]
    session.execute(insert(Note), rows)
    session.commit()
    return session.scalar(select(func.count()).select_from(Note)) or 0


def notes_of(user_id: int) -> Any:
    return select(Note).where(Note.user_id == user_id).order_by(Note.id)


def create_app(
    database: str | URL = "sqlite:///notes.db", async_database: str | URL = "sqlite+aiosqlite:///notes.db"
) -> FastAPI:
    engine, async_engine = create_engine(database), create_async_engine(async_database)
    if engine.dialect.name == "sqlite":
        for one in (engine, async_engine):
            enforce_foreign_keys(one)
    envelope = Envelope(server_keys=ServerKeyring.from_environment())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        serving = envelope.server_mode(reason="web application").everywhere()
        async with async_engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield
        serving.stop()
        await async_engine.dispose()
        engine.dispose()

    app = FastAPI(title="Notes", lifespan=lifespan)
    app.state.envelope = envelope
    app.state.engine = engine
    app.state.sessions = sessionmaker(engine, expire_on_commit=False)
    app.state.async_sessions = async_sessionmaker(async_engine, expire_on_commit=False)
    app.include_router(router)
    return app
