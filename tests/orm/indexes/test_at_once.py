"""Two processes that sign up one email address at once."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import Engine, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tests.orm.indexes.server_models import SECRET, Base, User, new_envelope
from tests.prepared import tables_of


@pytest.mark.parametrize("first", [True, False])
def test_one_of_two_wins(postgres_engine: Engine, first: bool) -> None:
    """Exactly one of two equal rows is stored, also when both make the index's first key. The other writer
    gets an IntegrityError that shows no value."""
    tables_of(Base.metadata, postgres_engine)
    if not first:
        with Session(postgres_engine) as session:
            new_envelope().enroll(session, User(email="ben@example.org"), secret=SECRET)
            session.commit()
    together = Barrier(2)

    def sign_up(_: int) -> str:
        engine, envelope = create_engine(postgres_engine.url), new_envelope()  # a cache of its own
        try:
            with Session(engine) as session:
                session.connection()
                together.wait(10)
                envelope.enroll(session, User(email="ada@example.org"), secret=SECRET)
                session.commit()
                return "stored"
        except IntegrityError as error:
            return str(error)
        finally:
            engine.dispose()

    with ThreadPoolExecutor(2) as threads:
        refused, stored = sorted(threads.map(sign_up, range(2)))
    with Session(postgres_engine) as session:
        new_envelope().attach(session)
        found = session.scalars(select(User.id).where(User.email == "ada@example.org")).all()

    assert stored == "stored"
    assert "users_email_index_key" in refused
    assert "ada@" not in refused
    assert len(found) == 1
