"""`examples/tickets_app.py` with plaintext columns. A row for each log-in stands in for the ticket, so that
users can log out and see their devices as there. One query lets a request in.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from sqlalchemy import ForeignKey, String, Text, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.middleware.sessions import SessionMiddleware

from examples.tickets_app import LIFETIME, Db, LogIn, NoteText
from sqlalchemy_envelope import enforce_foreign_keys


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    phone: Mapped[str | None] = mapped_column(String)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    body: Mapped[str] = mapped_column(Text)


class Device(Base):
    __tablename__ = "devices"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    label: Mapped[str]
    expires_at: Mapped[dt.datetime]


async def logged_in_user(request: Request, session: Db) -> AsyncIterator[User]:
    device_id = uuid.UUID(request.session["device"])
    query = select(User, Device).join(Device, Device.user_id == User.id).where(Device.id == device_id)
    found = (await session.execute(query)).first()
    if found is None or found.Device.expires_at <= dt.datetime.now(dt.UTC).replace(tzinfo=None):
        raise HTTPException(401, "Log in.")
    yield found.User


LoggedInUser = Annotated[User, Depends(logged_in_user, scope="function")]
router = APIRouter()


@router.post("/sign-up", status_code=201)
async def sign_up(session: Db, given: LogIn) -> dict[str, int]:
    user = User(email=given.email)
    session.add(user)
    await session.commit()
    return {"id": user.id}


@router.post("/log-in", status_code=204)
async def log_in(request: Request, session: Db, given: LogIn) -> None:
    user = await session.scalar(select(User).where(User.email == given.email))
    assert user is not None
    expires_at = (dt.datetime.now(dt.UTC) + LIFETIME).replace(tzinfo=None)
    device = Device(user_id=user.id, label=request.headers.get("User-Agent", "")[:255], expires_at=expires_at)
    session.add(device)
    await session.commit()
    request.session["device"] = str(device.id)


@router.post("/notes", status_code=201)
async def create_note(session: Db, user: LoggedInUser, given: NoteText) -> dict[str, int]:
    note = Note(user_id=user.id, body=given.body)
    session.add(note)
    await session.commit()
    return {"id": note.id}


@router.get("/notes")
async def list_notes(session: Db, user: LoggedInUser) -> list[str]:
    notes = await session.scalars(select(Note).where(Note.user_id == user.id).order_by(Note.id))
    return [note.body for note in notes]


def create_app(url: str, session_key: str) -> FastAPI:
    engine = create_async_engine(url)
    enforce_foreign_keys(engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        yield
        await engine.dispose()

    app = FastAPI(lifespan=lifespan)
    app.state.sessions = async_sessionmaker(engine, class_=AsyncSession, expire_on_commit=False)
    app.add_middleware(
        SessionMiddleware, secret_key=session_key, max_age=1_209_600, same_site="lax", https_only=True
    )
    app.include_router(router)
    return app
