"""Notes that only their author can read: Flask, synchronous, in threads that are used again.

Run it behind TLS, since every request carries the secret:
`flask --app examples.flask_app:create_app run --cert cert.pem --key key.pem`
"""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from flask import Blueprint, Flask, Response, abort, current_app, request
from sqlalchemy import ForeignKey, String, Text, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_envelope import (
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


def envelope() -> Envelope:
    policy: Envelope = current_app.extensions["envelope"]
    return policy


def new_session() -> Session:
    session: Session = current_app.extensions["sessions"]()
    return session


def credentials() -> tuple[str, str]:
    given = request.authorization
    if given is None or given.type != "basic" or given.username is None or given.password is None:
        abort(refused())
    return given.username, given.password


@contextmanager
def unlocked_user() -> Iterator[tuple[Session, User]]:
    """The user who sent this request, unlocked until the end of the `with`."""
    email, secret = credentials()
    with new_session() as session:
        user = session.scalar(select(User).where(User.email == email))
        if user is None:
            envelope().unlock_unknown(secret=secret)
        with envelope().unlock(session, user, secret=secret):
            yield session, user


def unlocked(view: Callable[..., Any]) -> Callable[..., Any]:
    """Calls the view with a session and its unlocked user. The answer is complete when the view returns."""

    @wraps(view)
    def with_user(**values: Any) -> Any:
        with unlocked_user() as (session, user):
            return view(session, user, **values)

    return with_user


def refused() -> Response:
    """One answer for an unknown email, a wrong secret and none at all."""
    return Response("Unknown email or wrong secret.\n", 401, {"WWW-Authenticate": 'Basic charset="UTF-8"'})


notes = Blueprint("notes", __name__)


@notes.post("/users")
def sign_up() -> tuple[dict[str, int], int]:
    email, secret = credentials()
    with new_session() as session:
        user = User(email=email, phone=request.get_json().get("phone"))
        try:
            envelope().enroll(session, user, secret=secret)
            session.commit()
        except SecretError as error:
            abort(422, str(error))
        except IntegrityError:
            abort(409, "This email is taken.")
        return {"id": user.id}, 201


@notes.put("/secret")
@unlocked
def change_secret(session: Session, user: User) -> tuple[str, int]:
    try:
        envelope().change_secret(session, user, old=credentials()[1], new=request.get_json()["secret"])
    except SecretError as error:
        abort(422, str(error))
    session.commit()
    return "", 204


@notes.get("/me")
@unlocked
def profile(session: Session, user: User) -> dict[str, str | None]:
    return {"email": user.email, "phone": user.phone}


@notes.post("/notes")
@unlocked
def create_note(session: Session, user: User) -> tuple[dict[str, int], int]:
    note = Note(user_id=user.id, body=request.get_json()["body"])
    session.add(note)
    session.commit()
    return {"id": note.id}, 201


@notes.get("/notes")
@unlocked
def list_notes(session: Session, user: User) -> list[str]:
    return [note.body for note in session.scalars(notes_of(user))]


@notes.get("/notes/digest")
@unlocked
def digest(session: Session, user: User) -> dict[str, int]:
    """Waits for something slow, at most 30 seconds."""
    query = notes_of(user)
    session.commit()  # gives the connection back while we wait
    time.sleep(min(float(request.args.get("wait", 0)), 30))
    found = session.scalars(query).all()
    return {"notes": len(found), "letters": sum(len(note.body) for note in found)}


def notes_of(user: User) -> Any:
    return select(Note).where(Note.user_id == user.id).order_by(Note.id)


@notes.get("/notes/stream")
def stream_notes() -> Response:
    """A line of JSON for each note. The body is read after this function returns, so it unlocks by itself."""

    def lines() -> Iterator[str]:
        with unlocked_user() as (session, user):
            yield ""  # unlocked; what failed until here is an ordinary answer and no torn body
            for note in session.scalars(notes_of(user).execution_options(yield_per=100)):
                yield json.dumps(note.body) + "\n"

    body = lines()
    next(body)
    return Response(body, mimetype="application/x-ndjson")


def create_app(database: str = "notes.db", policy: Envelope | None = None) -> Flask:
    engine = create_engine(f"sqlite:///{database}")
    enforce_foreign_keys(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode=WAL")  # readers and a writer at once
        Base.metadata.create_all(connection)
        connection.commit()

    app = Flask("notes")
    app.extensions["envelope"] = policy or Envelope()
    app.extensions["sessions"] = sessionmaker(engine, expire_on_commit=False)
    app.register_blueprint(notes)
    for error in (UnlockError, SecretError, NotEnrolledError):
        app.register_error_handler(error, lambda _: refused())
    app.register_error_handler(UnlockBusyError, busy)
    app.register_error_handler(LockedError, locked)
    return app


def busy(error: Exception) -> Response:
    return Response("Try again shortly.\n", 503, {"Retry-After": "1"})


def locked(error: Exception) -> Response:
    """A view touched a value without `unlocked`: a bug of ours, and nothing leaked."""
    return Response("This is locked.\n", 423)
