"""Owners by `OneOf` through other rows: what the linked row chooses, and what no row tells apart."""

from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, Text, event, select, update
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqlalchemy_envelope import (
    ConfigurationError,
    EncryptedType,
    Envelope,
    KdfProfile,
    KeyOwner,
    OneOf,
    ServerKeyring,
    StatementRefusedError,
)

envelope = Envelope(kdf_profile=KdfProfile.unsafe_for_tests(), server_keys=ServerKeyring([b"k" * 32]))


class Base(DeclarativeBase):
    pass


class User(KeyOwner, Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


class Company(KeyOwner, Base):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)


class Document(Base):
    __tablename__ = "documents"
    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    company_id: Mapped[int | None] = mapped_column(ForeignKey("companies.id"))


class History(Base):
    __tablename__ = "history"
    id: Mapped[int] = mapped_column(primary_key=True)
    document_id: Mapped[int] = mapped_column(ForeignKey("documents.id"))
    document: Mapped[Document] = relationship()
    body: Mapped[str | None] = mapped_column(
        EncryptedType(Text, owner=OneOf("document.user_id", "document.company_id"))
    )


@pytest.fixture
def documents(sqlite_engine: Engine) -> Engine:
    """Document 1 of a user, 2 of a company, 3 of neither, 4 of both."""
    Base.metadata.create_all(sqlite_engine)
    with Session(sqlite_engine) as session, envelope.server_mode(reason="test"):
        session.add_all([User(id=1), Company(id=1)])
        session.flush()
        session.add_all([Document(id=1, user_id=1), Document(id=2, company_id=1), Document(id=3)])
        session.add(Document(id=4, user_id=1, company_id=1))
        session.commit()
    return sqlite_engine


@pytest.mark.parametrize("document", [3, 4])
def test_a_row_that_names_not_exactly_one_is_refused(documents: Engine, document: int) -> None:
    """Where the linked row has no owner, or two, nothing is written, and the error names both columns."""
    with Session(documents) as session, envelope.server_mode(reason="test"):
        session.add(History(document_id=document, body="x"))
        with pytest.raises(StatementRefusedError) as refused:
            session.flush()

    assert "in that row not exactly one of user_id or company_id is set" in str(refused.value)


def test_documents_and_histories_in_one_flush(documents: Engine) -> None:
    """The database is asked for the owners of all of them together: what it says is what is committed."""
    asked: list[str] = []

    def note(_: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "FROM documents" in statement:
            asked.append(statement)

    with Session(documents) as session, envelope.server_mode(reason="test"):
        event.listen(documents, "before_cursor_execute", note)
        session.add_all(History(document=Document(company_id=1), body="made together") for _ in range(3))
        session.commit()

        assert len(asked) == 1
        assert session.scalars(select(History.body)).all() == ["made together"] * 3


def test_the_linked_row_cannot_choose_anew(documents: Engine) -> None:
    """Who makes the linked row another owner's is refused while values hang on it."""
    with Session(documents) as session, envelope.server_mode(reason="test"):
        session.add(History(document_id=1, body="x"))
        session.commit()
        document = session.get_one(Document, 1)
        document.user_id, document.company_id = None, 1
        with pytest.raises(StatementRefusedError, match=r"documents.company_id leads to the owner"):
            session.flush()
        session.rollback()
        with pytest.raises(StatementRefusedError, match="leads to the owner"):
            session.execute(update(Document).where(Document.id == 1).values(user_id=None, company_id=1))
        session.rollback()
        session.execute(update(Document).where(Document.id == 2).values(company_id=None, user_id=1))
        session.commit()

        assert session.execute(select(Document.user_id, Document.company_id).filter_by(id=2)).one() == (
            1,
            None,
        )


def declared(owner: Any) -> type[DeclarativeBase]:
    """Classes whose entries are owned so, configured."""

    class Base(DeclarativeBase):
        pass

    class User(KeyOwner, Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Team(KeyOwner, Base):
        __tablename__ = "teams"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Project(Base):
        __tablename__ = "projects"
        id: Mapped[int] = mapped_column(primary_key=True)
        team_id: Mapped[int | None] = mapped_column(ForeignKey("teams.id"))
        team: Mapped[Team] = relationship()

    class Document(Base):
        __tablename__ = "documents"
        id: Mapped[int] = mapped_column(primary_key=True)
        user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
        project_id: Mapped[int | None] = mapped_column(ForeignKey("projects.id"))
        project: Mapped[Project | None] = relationship()

    class Entry(Base):
        __tablename__ = "entries"
        id: Mapped[int] = mapped_column(primary_key=True)
        document_id: Mapped[int] = mapped_column(ForeignKey("documents.id"))
        user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
        document: Mapped[Document] = relationship()
        body: Mapped[str] = mapped_column(EncryptedType(Text, owner=owner))

    Base.registry.configure()
    return Base


@pytest.mark.parametrize(
    ("owner", "why"),
    [
        (
            OneOf("document.user_id", "document.project.team"),
            "Give entries a foreign key to each of these owners (`user_id`, `team_id`), set one of them",
        ),
        (OneOf(OneOf("document.user_id", "user_id"), "document.project.team"), "cannot be an alternative"),
        (OneOf("document.user_id", "document.user_id"), "two of its alternatives are the same"),
    ],
)
def test_alternatives_that_no_row_tells_apart(owner: Any, why: str) -> None:
    """They are refused where they are declared, and not with every write."""
    with pytest.raises(ConfigurationError) as refused:
        declared(owner)

    assert why in str(refused.value)


def test_alternatives_of_which_some_are_linked() -> None:
    """A choice may be between the linked row's owner and one's own."""
    assert declared(OneOf("document.user_id", "user_id")) is not None
