"""Whatever is written by whatever statement, token indexes find what a plain column would: random programs,
compared with a dictionary of the texts."""

import random
from collections.abc import Callable, Iterator
from typing import Any
from unicodedata import normalize

import pytest
from sqlalchemy import Engine, delete, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from tests.orm.indexes.token_models import SECRET, Note, User, enroll, new_envelope

WORDS = ["ada", "Ben", "über", "STRASSE", "straße", "x", "42", "e\u0301cole", "école", "don't", "a_b"]
LETTERS = "abAB-1%_"
Texts = dict[int, tuple[str | None, str | None]]


class Program:
    """Random writes of notes, and the texts that they should have left."""

    def __init__(self, session: Session, user_id: int, seed: int) -> None:
        self.session = session
        self.user_id = user_id
        self.random = random.Random(seed)
        self.texts: Texts = {}
        self.last = 0

    def text(self) -> str | None:
        count = self.random.randrange(5)
        return self.random.choice([None, "", *[" ".join(self.random.choices(WORDS, k=count))] * 6])

    def part(self) -> str | None:
        return self.random.choice([None, "".join(self.random.choices(LETTERS, k=self.random.randrange(7)))])

    def new(self) -> dict[str, Any]:
        self.last += 1
        return self.values() | {"id": self.last, "user_id": self.user_id}

    def values(self) -> dict[str, Any]:
        return {"body": self.text(), "part": self.part()}

    def note(self, row: dict[str, Any]) -> None:
        self.texts[row["id"]] = row["body"], row["part"]

    def some(self, most: int = 3) -> list[int]:
        return self.random.sample(sorted(self.texts), k=min(len(self.texts), most))

    def add_objects(self) -> None:
        rows = [self.new() for _ in range(self.random.randrange(1, 4))]
        self.session.add_all([Note(**row) for row in rows])
        for row in rows:
            self.note(row)

    def change_objects(self) -> None:
        for one in self.some():
            row = self.values() | {"id": one}
            note = self.session.get_one(Note, one)
            note.body, note.part = row["body"], row["part"]
            self.note(row)

    def move_object(self) -> None:
        for one in self.some(1):
            self.last += 1
            self.session.get_one(Note, one).id = self.last
            self.texts[self.last] = self.texts.pop(one)

    def merge(self) -> None:
        row = self.new() if self.random.random() < 0.5 or not self.texts else self.values()
        row = {"id": (self.some(1) or [self.last])[0], "user_id": self.user_id} | row
        self.session.merge(Note(**row))
        self.note(row)

    def delete_objects(self) -> None:
        for one in self.some(2):
            self.session.delete(self.session.get_one(Note, one))
            del self.texts[one]

    def insert_many(self) -> None:
        rows = [self.new() for _ in range(self.random.randrange(1, 5))]
        self.session.execute(insert(Note), rows)
        for row in rows:
            self.note(row)

    def insert_values(self) -> None:
        rows = [self.new() for _ in range(2)]
        self.session.connection().execute(insert(Note.__table__).values(rows))
        for row in rows:
            self.note(row)

    def update_many(self) -> None:
        rows = [self.values() | {"id": one} for one in self.some()]
        if rows:
            self.session.execute(update(Note), rows)
            for row in rows:
                self.note(row)

    def update_where(self) -> None:
        least, row = self.random.randrange(self.last + 1), self.values()
        self.session.execute(update(Note).where(Note.id > least, Note.id < least + 4).values(**row))
        for one in self.texts:
            if least < one < least + 4:
                self.note(row | {"id": one})

    def update_one_text(self) -> None:
        for one in self.some(1):
            body = self.text()
            self.session.connection().execute(update(Note.__table__).where(Note.id == one).values(body=body))
            self.texts[one] = body, self.texts[one][1]

    def upsert(self) -> None:
        new = postgresql_insert if self.session.get_bind().dialect.name == "postgresql" else sqlite_insert
        rows = [self.new(), *({**self.new(), "id": one} for one in self.some(2))]
        statement = new(Note).values(rows)
        if self.random.random() < 0.5:
            self.session.execute(
                statement.on_conflict_do_nothing(), execution_options={"populate_existing": True}
            )
            rows = [row for row in rows if row["id"] not in self.texts]
        else:
            given = {key: statement.excluded[key] for key in ("body", "part", "user_id")}
            self.session.execute(statement.on_conflict_do_update(index_elements=["id"], set_=given))
        for row in rows:
            self.note(row)

    def delete_where(self) -> None:
        least = self.random.randrange(self.last + 1)
        self.session.execute(delete(Note).where(Note.id == least))
        self.texts.pop(least, None)

    def roll_back(self) -> None:
        self.session.flush()
        before, last = dict(self.texts), self.last
        self.session.commit()
        self.random.choice([self.change_objects, self.update_where, self.insert_many, self.delete_objects])()
        self.session.flush()
        self.session.rollback()
        self.texts, self.last = before, last

    def step(self) -> None:
        steps = [getattr(self, name) for name in STEPS]
        self.random.choice(steps)()
        self.session.flush()
        self.session.expire_all()


STEPS = [
    name
    for name, what in vars(Program).items()
    if callable(what) and name not in ("__init__", "text", "part", "new", "values", "note", "some", "step")
]


def folded(text: str) -> list[str]:
    letters = [one if one.isalnum() or one == "_" else " " for one in normalize("NFKC", text).casefold()]
    return normalize("NFKC", "".join(letters)).split()


def queries(chosen: random.Random) -> Iterator[tuple[Any, Callable[[str | None, str | None], bool | None]]]:
    """Conditions, each with what tells of a row's texts whether it is found; None stands for NULL."""
    word, other = (folded(one)[0] for one in chosen.sample(WORDS, k=2))
    part = "".join(chosen.choices(LETTERS, k=3))
    start = "".join(chosen.choices(LETTERS, k=chosen.randrange(2, 5)))
    has = Note.body.has_word(word)

    def body(tells: Callable[[list[str]], bool]) -> Callable[[str | None, str | None], bool | None]:
        return lambda text, _: None if text is None else tells(folded(text))

    yield has, body(lambda words: word in words)
    yield ~has, body(lambda words: word not in words)
    yield Note.body.has_words(f"{word} {other}"), body(lambda words: {word, other} <= set(words))
    yield ~Note.body.has_words(f"{word} {other}"), body(lambda words: not {word, other} <= set(words))
    yield has & ~Note.body.has_word(other), body(lambda words: word in words and other not in words)
    yield has | Note.body.has_word(other), body(lambda words: word in words or other in words)
    yield (
        Note.part.contains(part, autoescape=True),
        lambda _, text: None if text is None else part in text,
    )
    yield (
        ~Note.part.contains(part, autoescape=True),
        lambda _, text: None if text is None else part not in text,
    )
    yield (
        Note.part.istartswith(start, autoescape=True),
        lambda _, text: None if text is None else text.casefold().startswith(start.casefold()),
    )


def run(engine: Engine, seed: int, steps: int) -> None:
    user_id = enroll(engine)
    with Session(engine) as session:
        user = session.get_one(User, user_id)
        with new_envelope().unlock(session, user, secret=SECRET) as unlocked, unlocked.using(user):
            program = Program(session, user_id, seed)
            for _ in range(steps):
                program.step()
                for condition, tells in queries(program.random):
                    wanted = {one for one, texts in program.texts.items() if tells(*texts)}
                    assert wanted == set(session.scalars(select(Note.id).where(condition))), (
                        seed,
                        str(condition),
                    )
                assert session.scalars(select(Note.id).where(Note.body_words.pending())).all() == []


@pytest.mark.parametrize("seed", range(2))
def test_random_writes_are_found(engine: Engine, seed: int) -> None:
    """Every query finds the rows that it would find in plain columns, after each of many writes."""
    run(engine, seed, 12)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(100, 140))
def test_random_writes_are_found_at_length(engine: Engine, seed: int) -> None:
    """The same for 10,000 queries of each kind."""
    run(engine, seed, 30)
