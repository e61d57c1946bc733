"""Flask-Security looks users up by an encrypted email: with the line that its settings need."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import Engine, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, scoped_session, sessionmaker

from sqlalchemy_envelope import (
    BlindIndex,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    ServerKeyring,
    StatementRefusedError,
)

flask_security: Any = pytest.importorskip("flask_security")


class Base(DeclarativeBase):
    pass


class UserRole(Base):
    __tablename__ = "user_roles"
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    role_id: Mapped[int] = mapped_column(ForeignKey("roles.id"), primary_key=True)


class Role(Base, flask_security.RoleMixin):  # type: ignore[misc]
    __tablename__ = "roles"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class User(KeyOwner, Base, flask_security.UserMixin):  # type: ignore[misc]
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(EncryptedType(String))
    email_index: Mapped[bytes | None] = mapped_column(BlindIndex("email", scope="server"), unique=True)
    password: Mapped[str]
    active: Mapped[bool] = mapped_column(default=True)
    fs_uniquifier: Mapped[str] = mapped_column(unique=True)
    roles: Mapped[list[Role]] = relationship(secondary="user_roles")


@pytest.fixture
def store(sqlite_engine: Engine) -> Iterator[Any]:
    """Flask-Security's user datastore, on a session in which the server holds the keys."""
    Base.metadata.create_all(sqlite_engine)
    envelope = Envelope(
        kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([bytes(range(32))])
    )
    session = scoped_session(sessionmaker(sqlite_engine))
    with envelope.server_mode(session, reason="web application"):
        yield flask_security.SQLAlchemySessionUserDatastore(session, User, Role)
    session.remove()


def app_of(store: Any, **identity: Any) -> Flask:
    """An application whose users log in by email."""
    mapper = flask_security.uia_email_mapper
    app = Flask("notes")
    app.config.update(
        SECRET_KEY="s" * 32,
        SECURITY_PASSWORD_SALT="p" * 32,
        SECURITY_PASSWORD_HASH="pbkdf2_sha512",
        SECURITY_USER_IDENTITY_ATTRIBUTES=[{"email": {"mapper": mapper, **identity}}],
        WTF_CSRF_ENABLED=False,
        TESTING=True,
    )
    flask_security.Security(app, store)
    with app.app_context():
        hashed = flask_security.hash_password("a password of ada")
        store.create_user(email="ada@example.org", password=hashed, roles=[])
        store.commit()
    return app


def test_users_log_in_by_email(store: Any) -> None:
    """The right password logs in; another email or a wrong password does not."""
    app = app_of(store, case_insensitive=False)

    def log_in(email: str, password: str) -> int:
        answer = app.test_client().post("/login", json={"email": email, "password": password})
        return answer.status_code

    assert log_in("ada@example.org", "a password of ada") == 200
    assert log_in("ada@example.org", "another password") == 400
    assert log_in("eve@example.org", "a password of ada") == 400
    with app.app_context():
        assert store.find_user(email="ada@example.org").email == "ada@example.org"
        assert store.find_user(email="eve@example.org") is None


def test_without_case_in_the_database(store: Any) -> None:
    """`lower()` in the database works on no ciphertext: refused, and nobody is told to be unknown."""
    app = app_of(store, case_insensitive=True)
    with pytest.raises(StatementRefusedError, match="lower"):
        app.test_client().post("/login", json={"email": "ada@example.org", "password": "x"})
