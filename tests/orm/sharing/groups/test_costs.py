"""What sharing costs, counted at the driver, and what a locked value is told as."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import sqlalchemy as sa
from sqlalchemy import Engine, insert, select
from sqlalchemy.orm import Session

from sqlalchemy_envelope import EnrollmentError, LockedError, NotEnrolledError, UnlockedSession
from sqlalchemy_envelope.crypto.context import owner_reference
from sqlalchemy_envelope.crypto.secret import KeyBytes
from sqlalchemy_envelope.keys.grants import sealed_grant
from sqlalchemy_envelope.keys.hierarchy import describe, link_to_newer_root, proof_of_epoch, wrap_under_root
from sqlalchemy_envelope.keys.model import KeyState, OpenedKey, Purpose
from sqlalchemy_envelope.orm.tables.grant_rows import GrantStore
from sqlalchemy_envelope.orm.tables.key_grant import grant_class_of
from sqlalchemy_envelope.orm.tables.key_rows import KeyStore
from sqlalchemy_envelope.orm.tables.owners import owner_class_of
from tests.orm import lone_models as lone
from tests.orm.sharing.groups.steps import unlocked_user
from tests.orm.sharing_models import (
    Circle,
    Group,
    Letter,
    PlainBase,
    Post,
    Reader,
    Seat,
    User,
    calls_sent,
    count,
    envelope,
    found_group,
    secret_of,
    write,
)

pytestmark = pytest.mark.both_lines

MEMBERS = int(os.environ.get("ENVELOPE_MEMBERS", "200"))
"""How many members a group has where it has many; with 1,000 there are fifty groups of twenty epochs."""


# Costs, counted at the driver


def _circle(engine: Engine, readers: int, letters: int = 0) -> tuple[int, int]:
    """A founder's circle with so many members and rows; the founder's and the circle's primary key."""
    PlainBase.metadata.create_all(engine)
    with Session(engine) as session:
        founder = Reader(name="founder")
        envelope.enroll(session, founder, secret=secret_of("founder"))
        with envelope.unlock(session, founder, secret=secret_of("founder")):
            for _ in range(readers - 1):
                envelope.enroll(session, Reader(), secret=secret_of("reader"))
            circle = Circle(name="circle")
            envelope.enroll(session, circle)
            ids = session.scalars(select(Reader.id)).all()
            session.add_all([Seat(circle_id=circle.id, reader_id=one) for one in ids])
            session.flush()
            if letters:
                rows = [{"circle_id": circle.id, "text": f"letter {n}"} for n in range(letters)]
                session.execute(insert(Letter), rows)
            session.commit()
            return founder.id, circle.id


@pytest.mark.any_database
def test_adding_a_member_touches_no_data(engine: Engine) -> None:
    """Joining a group with many rows writes three small rows, and no statement so much as names the data."""
    founder_id, circle_id = _circle(engine, readers=1, letters=1_000)
    with Session(engine) as session:
        newcomer = Reader()
        envelope.enroll(session, newcomer, secret=secret_of("newcomer"))
        session.commit()
        newcomer_id = newcomer.id
    with Session(engine) as session:
        founder = session.get_one(Reader, founder_id)
        with envelope.unlock(session, founder, secret=secret_of("founder")) as unlocked:
            unlocked.settle()
            session.commit()
            with calls_sent(engine) as sent:
                session.add(Seat(circle_id=circle_id, reader_id=newcomer_id))
                session.commit()
            session.scalars(select(Letter)).first()
    with Session(engine) as session:
        newcomer = session.get_one(Reader, newcomer_id)
        with envelope.unlock(session, newcomer, secret=secret_of("newcomer")):
            assert len({letter.text for letter in session.scalars(select(Letter))}) == 1_000

    assert not [statement for statement, _ in sent if "letters" in statement]
    assert len(sent) <= 6
    assert sum(rows for _, rows in sent) <= 6


@pytest.mark.parametrize("unlocked", [False, True], ids=["locked", "unlocked"])
def test_rotating_a_thousand_members_is_one_batch(engine: Engine, unlocked: bool) -> None:
    """A removal from a group of many seals a grant to each of the others and writes them in one batch, with a
    handful of statements around it, whoever removes."""
    members = MEMBERS
    PlainBase.metadata.create_all(engine)
    founder_id, circle_id = _circle(engine, readers=2)
    # The same key pair for all: what is counted is the sealing to each and the writing, not their enrolment.
    with engine.begin() as connection:
        keys = PlainBase.metadata.tables["readers_key"]
        ids = range(10, members + 9)
        connection.execute(insert(Reader.__table__), [{"id": one} for one in ids])
        root = connection.execute(
            select(keys).where(keys.c.owner_id == founder_id, keys.c.purpose == "root")
        ).one()
        made = [
            describe(KeyBytes.generate(), owner_reference("readers", (one,)), Purpose.ROOT) for one in ids
        ]
        connection.execute(
            insert(keys),
            [
                {
                    **root._mapping,
                    "owner_id": one,
                    "key_id": key.stored.key_id,
                    "owner_reference": key.stored.owner_reference,
                    "commitment": key.stored.commitment,
                    "public_key": key.stored.public_key,
                }
                for one, key in zip(ids, made, strict=True)
            ],
        )
    with Session(engine) as session:
        founder = session.get_one(Reader, founder_id)
        with envelope.unlock(session, founder, secret=secret_of("founder")):
            session.add_all([Seat(circle_id=circle_id, reader_id=one) for one in ids])
            session.commit()
    grants = PlainBase.metadata.tables["seats_keygrant"]
    before = count(engine, grants)
    leaver = next(one for one in _seats(engine) if one != founder_id and one < 10)
    with Session(engine) as session, unlocked_user(session, None):
        founder = session.get_one(Reader, founder_id)
        keys_of_founder = envelope.unlock(session, founder, secret=secret_of("founder")) if unlocked else None
        session.commit()
        with _entered(keys_of_founder):
            seat = session.get_one(Seat, (circle_id, leaver))
            with calls_sent(engine) as sent:
                session.delete(seat)
                session.commit()

    batches = [rows for statement, rows in sent if statement.startswith("INSERT INTO seats_keygrant")]
    assert sum(batches) in (members, len(batches))
    assert count(engine, grants) == before - 1 + members
    assert len(batches) == 1
    assert len(sent) <= 17


@contextmanager
def _entered(unlocked: UnlockedSession | None) -> Iterator[None]:
    if unlocked is None:
        yield
    else:
        with unlocked:
            yield


def _seats(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(select(Seat.__table__.c.reader_id)))


@pytest.mark.any_database
def test_unlocking_a_user_of_many_groups_takes_six_queries(engine: Engine) -> None:
    """Many groups of many epochs: six queries and no more, and rows of the first and the last epoch are
    readable after it."""
    circles, generations = MEMBERS // 20, MEMBERS // 50
    PlainBase.metadata.create_all(engine)
    with Session(engine) as session:
        reader = Reader()
        envelope.enroll(session, reader, secret=secret_of("reader"))
        session.execute(insert(Circle.__table__), [{"id": 1 + n} for n in range(circles)])
        session.execute(
            insert(Seat.__table__), [{"circle_id": 1 + n, "reader_id": reader.id} for n in range(circles)]
        )
        _insert_epochs(session, reader, circles, generations)
        session.commit()
        reader_id = reader.id
    for turn in range(2):  # the first adopts what was sealed
        with Session(engine) as session:
            reader = session.get_one(Reader, reader_id)
            with calls_sent(engine) as sent:
                unlocked = envelope.unlock(session, reader, secret=secret_of("reader"))
            session.commit()
            with unlocked:
                session.add_all([Letter(circle_id=1 + n, text=f"letter {turn}") for n in range(circles)])
                session.commit()
                texts = [letter.text for letter in session.scalars(select(Letter))]
                opened = [
                    unlocked.keyring.open(key.key_id)
                    for owner in unlocked.places
                    for key in unlocked.keyring.keys_of(owner)
                ]

    queries = [statement for statement, _ in sent if not statement.startswith("PRAGMA")]
    assert len(queries) <= 6
    assert all(statement.startswith("SELECT") for statement in queries)
    assert sorted(texts) == ["letter 0"] * circles + ["letter 1"] * circles
    assert len(opened) == circles * generations * 2 + 2
    assert None not in opened


def _insert_epochs(session: Session, reader: Reader, circles: int, generations: int) -> None:
    """Circles as so many rotations leave them, in three statements: each epoch's root key granted to the
    reader, and linked to the next one."""
    seals = envelope.policy.seals
    circle_class, grant_class = owner_class_of(Circle.__table__), grant_class_of(Seat.__mapper__)
    readers = KeyStore(session, owner_class_of(Reader.__table__), seals)  # type: ignore[arg-type]
    (recipient,) = readers.load_active_roots([(reader.id,)]).values()
    keys, grants = [], []
    for number in range(1, circles + 1):
        reference, made, previous = owner_reference("circles", (number,)), [], None
        for epoch in range(1, generations + 1):
            root = describe(KeyBytes.generate(), reference, Purpose.ROOT, epoch=epoch)
            data = describe(KeyBytes.generate(), reference, Purpose.DATA, epoch=epoch)
            state = KeyState.ACTIVE if epoch == generations else KeyState.RETIRED
            proof = None if previous is None else proof_of_epoch(previous, root.stored.key_id.bytes)
            stored = replace(root.stored, state=state, proof=proof, granted=1)
            if previous is not None:
                made[-1] = link_to_newer_root(previous, root)
            made += [replace(wrap_under_root(data, root), state=state), stored]
            previous = OpenedKey(stored, root.key)
            row = (number, reader.id)
            grants.append((row, sealed_grant(previous, grant_class.granting_row(row), recipient.stored)))  # type: ignore[union-attr]
        keys += [((number,), key) for key in reversed(made)]
    KeyStore(session, circle_class, seals).insert_keys(keys)  # type: ignore[arg-type]
    GrantStore(session, grant_class, seals).insert(grants)  # type: ignore[arg-type]


@pytest.mark.any_database
def test_without_grants_nothing_is_asked_for_them(engine: Engine) -> None:
    """An application without a KeyGrant unlocks with two queries, and writes with its own INSERT alone."""
    lone.Base.metadata.create_all(engine)
    with Session(engine) as session:
        hermit_id = lone.new_hermit(session).id
    with Session(engine) as session:
        hermit = session.get_one(lone.Hermit, hermit_id)
        with calls_sent(engine) as unlocking:
            unlocked = lone.unlock(session, hermit)
        with unlocked, calls_sent(engine) as writing:
            session.add(lone.Saying(hermit_id=hermit_id, body="text"))
            session.flush()
            session.add(lone.Saying(hermit_id=hermit_id, body="more"))
            session.commit()

    assert len([statement for statement, _ in unlocking if not statement.startswith("PRAGMA")]) == 2
    assert [statement[:19] for statement, _ in writing] == ["INSERT INTO sayings"] * 2


@pytest.mark.any_database
def test_a_transaction_looks_once_before_it_writes(engine: Engine) -> None:
    """Whether somebody left is asked once in each transaction, with one small query."""
    founder_id, circle_id = _circle(engine, readers=1)
    with Session(engine) as session:
        founder = session.get_one(Reader, founder_id)
        with envelope.unlock(session, founder, secret=secret_of("founder")) as unlocked:
            unlocked.settle()
            session.commit()
            sizes = []
            for _ in range(2):
                with calls_sent(engine) as sent:
                    for n in range(5):
                        session.add(Letter(circle_id=circle_id, text=f"letter {n}"))
                        session.flush()
                    session.commit()
                sizes.append(len([one for one, _ in sent if one.startswith("SELECT")]))

    assert sizes == [1, 1]


# ---------------------------------------------------------------- what a locked value is told as


def test_what_a_locked_value_of_a_group_is_told_as(lite: Engine) -> None:
    """A group has no secret: the error names the classes whose rows give its key, and whom they give it to; a
    value that nobody shares is its owner's to unlock, as ever."""
    with Session(lite) as session:
        group_id = found_group(session, "founder")
    write(lite, "founder", group_id, "hello")
    with Session(lite) as session:
        told = {}
        for name, read in {
            "read": lambda: session.scalars(select(Post)).all()[0].text,
            "write": lambda: session.execute(sa.insert(Post).values(group_id=group_id, text="x")),
            "own": lambda: session.scalars(select(User).where(User.email == "founder")).one().diary,
        }.items():
            with pytest.raises(LockedError) as caught:
                read()
            told[name] = str(caught.value)

    for name in ("read", "write"):
        assert "unlock a Group or User whose Membership or Nesting gives the key, around this" in told[name]
        assert "or its Group if that has a secret" in told[name]
        assert "secret=" not in told[name]
    assert "User.diary is locked: unlock its owner around this" in told["own"]


def test_what_a_group_that_was_not_enrolled_is_told(lite: Engine) -> None:
    """A group has no secret: who forgot to enroll it is told of a member and a grant instead; of a class
    without grants, nothing is told of members."""
    with Session(lite) as session:
        session.add(Group(name="g"))
        with pytest.raises(NotEnrolledError) as adding:
            session.flush()
        session.rollback()
        told = []
        for owner in (Group(name="g"), User(email="eve")):
            with pytest.raises(EnrollmentError) as enrolling:
                envelope.enroll(session, owner)
            told.append(str(enrolling.value))

    assert "While a member-to-be is unlocked, call envelope.enroll(session, owner) in" in str(adding.value)
    assert "add the Membership or Nesting that gives" in str(adding.value)
    assert "secret=" not in str(adding.value)
    assert ["members-to-be" in one for one in told] == [True, False]
