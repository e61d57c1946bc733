"""Groups whose members alone read what is posted: FastAPI, with many requests that change a group at once.

Run it behind TLS, since every request carries the secret:
`uvicorn --factory examples.groups_app:create_app --ssl-keyfile key.pem --ssl-certfile cert.pem`
"""

import random
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel
from sqlalchemy import URL, ForeignKey, String, Text, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_envelope import (
    EncryptedType,
    EnrollmentError,
    Envelope,
    KeyGrant,
    KeyOwner,
    LockedError,
    SecretError,
    UnlockBusyError,
    UnlockedSession,
    UnlockError,
    enforce_foreign_keys,
    should_retry,
)

T = TypeVar("T")


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)


class Group(KeyOwner, Base):
    __tablename__ = "groups"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(EncryptedType(String))


class Membership(KeyGrant, Base, of="group_id", to="user_id"):
    __tablename__ = "memberships"
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)


class Post(Base):
    __tablename__ = "posts"
    id: Mapped[int] = mapped_column(primary_key=True)
    group_id: Mapped[int] = mapped_column(ForeignKey("groups.id", ondelete="CASCADE"), index=True)
    text: Mapped[str] = mapped_column(EncryptedType(Text))


class GroupName(BaseModel):
    name: str


class NewMember(BaseModel):
    email: str


class PostText(BaseModel):
    text: str


def run_again(work: Callable[[], T], attempts: int = 5) -> T:
    """Run a whole transaction, and once more each time that another one came first."""
    for attempt in range(1, attempts):
        try:
            return work()
        except Exception as error:
            if not should_retry(error):
                raise
        time.sleep(random.uniform(0, 0.05 * attempt))  # so that the same two do not meet again
    return work()


Credentials = Annotated[HTTPBasicCredentials, Depends(HTTPBasic())]


class Transactions:
    """Runs the work of a request as its user, unlocked, in a transaction that is run again if need be."""

    def __init__(self, request: Request, credentials: Credentials) -> None:
        self._sessions, self._envelope = request.app.state.sessions, request.app.state.envelope
        self._credentials = credentials

    def run(self, work: Callable[[Session, User, UnlockedSession], T]) -> T:
        return run_again(lambda: self._run(work))

    def _run(self, work: Callable[[Session, User, UnlockedSession], T]) -> T:
        email, secret = self._credentials.username, self._credentials.password
        with self._sessions() as session:
            user = session.scalar(select(User).where(User.email == email))
            if user is None:
                self._envelope.unlock_unknown(secret=secret)
            with self._envelope.unlock(session, user, secret=secret) as unlocked:
                answer = work(session, user, unlocked)
                session.commit()
                return answer


AsUser = Annotated[Transactions, Depends()]


router = APIRouter()


@router.post("/users", status_code=201)
def sign_up(request: Request, credentials: Credentials) -> dict[str, int]:
    def work() -> int:
        with request.app.state.sessions() as session:
            user = User(email=credentials.username)
            request.app.state.envelope.enroll(session, user, secret=credentials.password)
            session.commit()
            return user.id

    try:
        return {"id": run_again(work)}
    except SecretError as error:
        raise HTTPException(422, str(error)) from None
    except IntegrityError:
        raise HTTPException(409, "This email is taken.") from None


@router.post("/login", status_code=204)
def log_in(as_user: AsUser) -> None:
    """Puts in order what waits for a member who holds the key. Other requests only read, or write anyway."""
    as_user.run(lambda session, user, unlocked: unlocked.settle())


@router.post("/groups", status_code=201)
def found_group(as_user: AsUser, request: Request, given: GroupName) -> dict[str, int]:
    def work(session: Session, user: User, _: UnlockedSession) -> dict[str, int]:
        group = Group(name=given.name)
        request.app.state.envelope.enroll(session, group)
        session.flush()
        session.add(Membership(group_id=group.id, user_id=user.id))
        session.flush()
        return {"id": group.id}

    return as_user.run(work)


@router.post("/groups/{group_id}/members", status_code=201)
def add_member(as_user: AsUser, group_id: int, given: NewMember) -> None:
    def work(session: Session, user: User, _: UnlockedSession) -> None:
        membership_of(session, group_id, user)
        new = session.scalar(select(User).where(User.email == given.email))
        if new is None:
            raise HTTPException(404, "There is no such user.")
        session.add(Membership(group_id=group_id, user_id=new.id))

    try:
        as_user.run(work)
    except IntegrityError:
        raise HTTPException(409, "Is a member already.") from None


@router.delete("/groups/{group_id}/members/me", status_code=204)
def leave(as_user: AsUser, group_id: int) -> None:
    as_user.run(lambda session, user, _: session.delete(membership_of(session, group_id, user)))


@router.post("/groups/{group_id}/posts", status_code=201)
def create_post(as_user: AsUser, group_id: int, given: PostText) -> None:
    as_user.run(lambda session, user, _: session.add(Post(group_id=group_id, text=given.text)))


@router.get("/groups/{group_id}/posts")
def list_posts(as_user: AsUser, group_id: int) -> list[str]:
    """Asks nobody who is a member: the key decides."""
    query = select(Post).where(Post.group_id == group_id).order_by(Post.id)
    return as_user.run(lambda session, user, _: [post.text for post in session.scalars(query)])


def membership_of(session: Session, group_id: int, user: User) -> Membership:
    found = session.get(Membership, (group_id, user.id))
    if found is None:
        raise HTTPException(403, "You are no member of this group.")
    return found


def create_app(database: str | URL = "sqlite:///groups.db", envelope: Envelope | None = None) -> FastAPI:
    engine = create_engine(database)
    enforce_foreign_keys(engine)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # readers and a writer at once
    Base.metadata.create_all(engine)
    app = FastAPI(title="Groups")
    app.state.engine, app.state.sessions = engine, sessionmaker(engine)
    app.state.envelope = envelope or Envelope()
    app.include_router(router)
    for error, (status, detail) in ANSWERS.items():
        app.add_exception_handler(error, answer_with(status, detail))
    return app


def answer_with(status: int, detail: str) -> Callable[[Request, Exception], JSONResponse]:
    headers = {401: {"WWW-Authenticate": "Basic"}, 503: {"Retry-After": "1"}}.get(status)
    return lambda request, error: JSONResponse({"detail": detail}, status, headers)


ANSWERS: dict[type[Exception], tuple[int, str]] = {
    UnlockError: (401, "Unknown email or wrong secret."),
    SecretError: (401, "Unknown email or wrong secret."),
    UnlockBusyError: (503, "Try again shortly."),
    LockedError: (423, "This is not shared with you."),
    EnrollmentError: (409, "This would leave a group without anybody who can read it."),
}
