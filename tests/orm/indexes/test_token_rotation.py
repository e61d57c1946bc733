"""The key of a token index is rotated while others read and write: texts are found by their words."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, Text, delete, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_envelope import EncryptedType, IndexRotation, KeyOwner, enforce_foreign_keys, token_index
from tests.orm.indexes.rotation_models import Clock, new_process, working
from tests.prepared import prepared

WORDS = ["river", "stone", "cloud", "ember"]


class Base(DeclarativeBase):
    pass


class Shelf(KeyOwner, Base):
    __tablename__ = "shelves"
    id: Mapped[int] = mapped_column(primary_key=True)


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelves.id", ondelete="CASCADE"))
    body: Mapped[str | None] = mapped_column(EncryptedType(Text))
    body_words = token_index("body", scope="server")


TAGS = Page.body_words.table


def one_shelf(engine: Engine) -> int:
    """A shelf whose keys the server opens; its id."""
    enforce_foreign_keys(engine)

    def make() -> int:
        Base.metadata.create_all(engine)
        with Session(engine) as session:
            shelf = Shelf()
            new_process().enroll(session, shelf, provider="server")
            session.commit()
            return shelf.id

    return prepared(engine, "one shelf", make)


def rotate(engine: Engine, *, opened: bool = True) -> IndexRotation:
    process, turns = new_process(), []
    with Session(engine) as session, process.server_mode(session, provider="server", reason="test") as server:
        if not opened:
            server.stop()
        for so_far in process.rotate_index(session, Page.body_words, alone=True, batch=2):
            session.commit()
            turns.append(so_far)
    return turns[-1]


def states(engine: Engine) -> list[str]:
    keys = Base.metadata.tables["pages_indexkey"]
    with engine.connect() as connection:
        return list(connection.scalars(select(keys.c.state).order_by(keys.c.epoch)))


class Process:
    """A process that reads and writes pages, compared with a plain dictionary."""

    def __init__(self, engine: Engine, shelf: int, twin: dict[int, str]) -> None:
        self.engine, self.shelf, self.twin, self.envelope = engine, shelf, twin, new_process()

    def write(self, chance: random.Random) -> None:
        body = " ".join(chance.sample(WORDS, chance.randint(1, 3)))
        row = chance.choice(list(self.twin)) if self.twin else None
        with working(self.engine, self.envelope) as session:
            if row is None or chance.random() < 0.5:
                page = Page(shelf_id=self.shelf, body=body)
                session.add(page)
            elif chance.random() < 0.3:
                session.execute(delete(Page).where(Page.id == row))
                session.commit()
                del self.twin[row]
                return
            else:
                page = session.get_one(Page, row)
                page.body = body
            session.commit()
            self.twin[page.id] = body

    def read(self) -> None:
        with working(self.engine, self.envelope) as session:
            for word in WORDS:
                found = set(session.scalars(select(Page.id).where(Page.body.has_word(word))))  # type: ignore[attr-defined]
                assert found == {key for key, body in self.twin.items() if word in body.split()}


@pytest.mark.parametrize(
    "seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in range(2, 30))]
)
def test_no_interleaving_loses_a_text(
    sqlite_engine: Engine, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Two processes with caches of different ages read and write between all turns of two operators."""
    chance, clock = random.Random(seed), Clock(monkeypatch)
    shelf, twin = one_shelf(sqlite_engine), dict[int, str]()
    processes = [Process(sqlite_engine, shelf, twin) for _ in range(2)]
    processes[0].write(chance)
    operators: list[Any] = []
    for _ in range(2):
        session, process = Session(sqlite_engine), new_process()
        operators.append([process, session, process.rotate_index(session, Page.body_words, batch=2)])
    while operators:
        doing = chance.random()
        if doing < 0.35:
            chance.choice(processes).write(chance)
        elif doing < 0.5:
            chance.choice(processes).read()
        elif doing < 0.6:
            clock.sleep(chance.choice([0.5, 3, 20]))
        else:
            one = chance.choice(operators)
            process, session, run = one
            with process.server_mode(session, provider="server", reason="test"):
                if next(run, None) is None:
                    operators.remove(one)
            session.rollback() if chance.random() < 0.1 else session.commit()
    for each in processes:
        each.read()

    assert states(sqlite_engine) == ["destroyed", "active"]


def test_tags_of_the_key_before_are_gone(engine: Engine) -> None:
    """Nothing is left that somebody with the old key could test words on; rows of locked owners keep both."""
    shelf = one_shelf(engine)
    with working(engine, new_process()) as session:
        session.add_all(Page(shelf_id=shelf, body=f"river {word}") for word in WORDS)
        session.commit()
    with engine.connect() as connection:
        before = set(connection.scalars(select(TAGS.c.tag)))
        count = connection.scalar(select(func.count()).select_from(TAGS))

    locked = rotate(engine, opened=False)

    assert (locked.is_done, locked.pending) == (False, 4)
    assert states(engine) == ["active", "moving"]
    with working(engine, new_process()) as session:
        assert len(session.scalars(select(Page).where(Page.body.has_word("river"))).all()) == 4  # type: ignore[attr-defined]

    done = rotate(engine)
    assert (done.is_done, done.filled, done.moved) == (True, 0, 4)
    with engine.connect() as connection:
        after = list(connection.scalars(select(TAGS.c.tag)))

    assert before.isdisjoint(after)
    assert len(after) == count
