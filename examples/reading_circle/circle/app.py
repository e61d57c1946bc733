"""The application. Start it with `uvicorn --factory circle.app:create_app`."""

from base64 import b64decode
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from pydantic import BaseModel
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from circle.models import Circle, Comment, Membership, User
from sqlalchemy_envelope import (
    Envelope,
    LockedError,
    SecretError,
    UnlockError,
    enforce_foreign_keys,
)


def open_session(request: Request) -> Iterator[Session]:
    with request.app.state.sessions() as session:
        yield session


Db = Annotated[Session, Depends(open_session)]


class Utf8Basic(HTTPBasic):
    """HTTP Basic for secrets in any alphabet: FastAPI's own refuses what is not ASCII."""

    async def __call__(self, request: Request) -> HTTPBasicCredentials:  # type: ignore[override]
        scheme, _, encoded = request.headers.get("Authorization", "").partition(" ")
        try:
            email, colon, secret = b64decode(encoded, validate=True).decode().partition(":")
        except ValueError:
            colon = ""
        if scheme.lower() != "basic" or not colon:
            raise HTTPException(401, "Log in with HTTP Basic.", {"WWW-Authenticate": 'Basic charset="UTF-8"'})
        return HTTPBasicCredentials(username=email, password=secret)


Credentials = Annotated[HTTPBasicCredentials, Depends(Utf8Basic())]


def log_in(request: Request, session: Db, credentials: Credentials) -> Iterator[User]:
    """The user who sent this request, unlocked until the endpoint returns."""
    envelope: Envelope = request.app.state.envelope
    user = session.scalar(select(User).where(User.email == credentials.username))
    if user is None:
        envelope.unlock_unknown(secret=credentials.password)  # refuses, and takes as long as a wrong secret
    with envelope.unlock(session, user, secret=credentials.password):
        yield user


LoggedIn = Annotated[User, Depends(log_in, scope="function")]
router = APIRouter()


@router.post("/users", status_code=201)
def sign_up(request: Request, session: Db, credentials: Credentials) -> dict[str, int]:
    user = User(email=credentials.username)
    try:
        request.app.state.envelope.enroll(session, user, secret=credentials.password)
        session.commit()
    except SecretError as error:
        raise HTTPException(422, str(error)) from None
    except IntegrityError:
        raise HTTPException(409, "This email is taken.") from None
    return {"id": user.id}


@router.post("/login", status_code=204)
def settle(request: Request, session: Db, user: LoggedIn) -> None:
    """A client calls this once, at its log-in: it carries out what waits for this user."""
    request.app.state.envelope.settle(session)
    session.commit()


class Diary(BaseModel):
    text: str


@router.put("/diary", status_code=204)
def write_diary(session: Db, user: LoggedIn, given: Diary) -> None:
    user.diary = given.text
    session.commit()


@router.get("/diary")
def read_diary(user: LoggedIn) -> str | None:
    return user.diary


class NewCircle(BaseModel):
    book: str


class NewMember(BaseModel):
    email: str


class NewComment(BaseModel):
    text: str


@router.post("/circles", status_code=201)
def found_circle(request: Request, session: Db, user: LoggedIn, given: NewCircle) -> dict[str, int]:
    circle = Circle(book=given.book)
    request.app.state.envelope.enroll(session, circle)  # no secret: its members hold the key
    session.add(Membership(circle_id=circle.id, user_id=user.id))
    session.commit()
    return {"id": circle.id}


@router.post("/circles/{circle_id}/members", status_code=201)
def add_member(session: Db, user: LoggedIn, circle_id: int, given: NewMember) -> None:
    require_membership(session, circle_id, user)
    newcomer = session.scalar(select(User).where(User.email == given.email))
    if newcomer is None:
        raise HTTPException(404, "There is no such user.")
    if session.get(Membership, (circle_id, newcomer.id)) is not None:
        raise HTTPException(409, "This user is a member already.")
    session.add(Membership(circle_id=circle_id, user_id=newcomer.id))
    try:
        session.commit()
    except IntegrityError:  # another request added the same user meanwhile
        raise HTTPException(409, "This user is a member already.") from None


@router.delete("/circles/{circle_id}/members/me", status_code=204)
def leave(session: Db, user: LoggedIn, circle_id: int) -> None:
    session.delete(require_membership(session, circle_id, user))
    session.commit()


@router.post("/circles/{circle_id}/comments", status_code=201)
def write_comment(session: Db, user: LoggedIn, circle_id: int, given: NewComment) -> None:
    session.add(Comment(circle_id=circle_id, text=given.text))
    session.commit()


@router.get("/circles/{circle_id}/comments")
def read_comments(session: Db, user: LoggedIn, circle_id: int) -> list[str]:
    comments = session.scalars(select(Comment).where(Comment.circle_id == circle_id).order_by(Comment.id))
    return [comment.text for comment in comments]


def require_membership(session: Session, circle_id: int, user: User) -> Membership:
    membership = session.get(Membership, (circle_id, user.id))
    if membership is None:
        raise HTTPException(403, "You are not a member of this circle.")
    return membership


def create_app(database: str = "sqlite:///circle.db", envelope: Envelope | None = None) -> FastAPI:
    engine = create_engine(database)
    enforce_foreign_keys(engine)  # SQLite cascades only when told to
    app = FastAPI(title="Reading circle")
    app.state.sessions = sessionmaker(engine)
    app.state.envelope = envelope or Envelope()
    app.include_router(router)
    app.add_exception_handler(UnlockError, wrong_secret)
    app.add_exception_handler(SecretError, wrong_secret)  # an empty secret, or far too long
    app.add_exception_handler(LockedError, locked)
    return app


def wrong_secret(request: Request, error: Exception) -> JSONResponse:
    detail = {"detail": "Unknown email or wrong secret."}
    return JSONResponse(detail, 401, {"WWW-Authenticate": "Basic"})


def locked(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": "This is not shared with you."}, 423)


class Quote(BaseModel):
    text: str


@router.put("/comments/{comment_id}/quote", status_code=204)
def write_quote(session: Db, user: LoggedIn, comment_id: int, given: Quote) -> None:
    comment_with(session, comment_id).quote = given.text
    session.commit()


@router.get("/comments/{comment_id}/quote")
def read_quote(session: Db, user: LoggedIn, comment_id: int) -> str | None:
    return comment_with(session, comment_id).quote


def comment_with(session: Session, comment_id: int) -> Comment:
    comment = session.get(Comment, comment_id)
    if comment is None:
        raise HTTPException(404, "There is no such comment.")
    return comment
