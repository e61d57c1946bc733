"""Parts that are longer than the tokens are found by candidates, which are compared after decryption."""

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session, aliased

from sqlalchemy_envelope import LockedError, StatementRefusedError
from tests.orm.indexes.token_models import SECRET, Note, User, enroll, new_envelope

PARTS = ["AB-1234", "1234-AB-", "ab-1234", "AB-12_34", None, "AB-1234-AB-1234", "cd"]


def found(session: Session, condition: object) -> list[int]:
    return sorted(note.id for note in session.scalars(select(Note).where(condition)))  # type: ignore[arg-type]


def test_candidates_are_compared_with_their_texts(engine: Engine) -> None:
    """Each pattern finds the rows that it would find in a plain column, and candidates alone are dropped."""
    user_id = enroll(engine)
    with Session(engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET):
            session.add_all([Note(id=at, user_id=user_id, part=part) for at, part in enumerate(PARTS, 1)])
            session.commit()

            assert found(session, Note.part.contains("AB-1234")) == [1, 6]
            assert found(session, Note.part.startswith("AB-12")) == [1, 4, 6]
            assert found(session, Note.part.endswith("1234")) == [1, 3, 6]
            assert found(session, Note.part.like("AB-12_4%")) == [1, 6]
            assert found(session, Note.part.like("AB-12/_34", escape="/")) == [4]
            assert found(session, Note.part.istartswith("ab-123")) == [1, 3, 6]
            assert found(session, Note.part.contains("AB-1234") & (Note.id > 1)) == [6]
            assert found(session, Note.part.contains("B-12") & Note.part.contains("34-A")) == [6]
            other = aliased(Note)
            pairs = select(Note.part, other.id).join(other, other.user_id == Note.user_id)
            pairs = pairs.where(Note.part.contains("AB-1234"), other.id == 7)
            assert sorted(row[0] for row in session.execute(pairs)) == ["AB-1234", "AB-1234-AB-1234"]


def test_candidates_that_cannot_be_compared_are_refused(sqlite_engine: Engine) -> None:
    """Where rows are counted, limited, negated or left locked, candidates would give a wrong answer."""
    user_id = enroll(sqlite_engine)
    long = Note.part.contains("AB-1234")
    with Session(sqlite_engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET):
            session.add(Note(id=1, user_id=user_id, part="AB-1234"))
            session.commit()
        for statement in (
            select(func.count()).where(long),
            select(Note).where(long).limit(1),
            select(Note).where(~long),
            select(Note).where(long | (Note.id == 1)),
            select(Note.id).where(long),
            select(User).where(User.id.in_(select(Note.user_id).where(long))),
        ):
            with pytest.raises(StatementRefusedError):
                session.execute(statement)
        new_envelope().attach(session)
        with pytest.raises(LockedError):
            found(session, long)
